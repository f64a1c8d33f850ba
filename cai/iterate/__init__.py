"""From the failures of one round to the next: new prompts, the principles that failed, a proposed edit."""
