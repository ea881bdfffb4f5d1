"""A local elastic cluster, and what the rest needs to know of any Ray cluster."""
