"""Training: examples with their loss masks, and the stages, on TRL's trainers."""
