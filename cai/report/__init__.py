"""The report: any number of runs as one HTML page that needs no network."""
