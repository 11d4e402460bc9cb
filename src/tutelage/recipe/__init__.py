"""Recipes: a list of stages read from YAML, run over worker processes, and resumed from the run folder."""
