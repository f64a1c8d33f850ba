"""Recipes: one file names all stages of a pipeline; what it has done is skipped, what was interrupted goes on."""
