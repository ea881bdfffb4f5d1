"""Importing this imports everything that a rank needs, so that a new worker process can do it ahead of time."""

from eagleray.training import loop, state, worker  # noqa: F401
