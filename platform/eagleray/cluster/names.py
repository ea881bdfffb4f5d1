"""Names under which actors of ours are found on a cluster, and where they run."""

from __future__ import annotations

from collections.abc import Mapping

NAMESPACE = "eagleray"
LEDGER = "eagleray-ledger"
ON_HEAD: Mapping[str, float] = {"node:__internal_head__": 0.001}
"""A resource that Ray gives to the head alone; an actor that asks for it runs there or nowhere."""
