"""What runs a model version inside a replica: which requests share a forward pass, and what it takes."""
