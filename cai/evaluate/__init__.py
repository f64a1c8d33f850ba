"""Evaluation: what a model does on the tasks of this folder, how models rank, and what breaks them."""
