"""The chapters of the report. Each module makes one of them out of the runs, or None where they hold nothing for it."""
