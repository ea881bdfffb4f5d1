"""Importing this imports everything that a rank needs: what a new worker process does ahead of time."""

from eagleray.training import loop, state, worker  # noqa: F401
