"""Measure: how good a model is, how sure we are, and what its thinking costs. No number without its n."""
