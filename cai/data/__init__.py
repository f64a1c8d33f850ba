"""Prompts in, data sets out."""
