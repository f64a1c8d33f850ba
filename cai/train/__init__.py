"""Training from demonstrations and preferences, over TRL, and what the trained models are worth."""

import os

# Before torch is loaded: threads that spin while they wait make training several times slower as soon as anything else
# runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
