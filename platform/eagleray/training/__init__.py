"""Training: the loop, and what runs it."""
