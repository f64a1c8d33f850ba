"""Red-teaming: attacks on a model by several strategies, and what each of them gets out of it."""
