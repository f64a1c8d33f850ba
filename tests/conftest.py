"""Settings of all tests."""

import os

# Before anything loads torch, as cai.engines.transformers does: the tests share the machine's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
