"""AI feedback: pairs of responses, a judge with soft labels, its certificate, and preference data."""
