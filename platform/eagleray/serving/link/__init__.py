"""Gateway to replica: framed connections of our own, below everything that knows HTTP, Ray or models."""
