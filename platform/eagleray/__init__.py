"""Eagleray: one elastic Ray cluster that trains, tunes and serves models."""

__version__ = "0.1.0"
