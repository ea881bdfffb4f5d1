"""Names under which actors of ours are found on a cluster, and where they run."""

from __future__ import annotations

from collections.abc import Mapping

NAMESPACE = "eagleray"
LEDGER = "eagleray-ledger"
ON_HEAD: Mapping[str, float] = {"node:__internal_head__": 0.001}
"""A resource that Ray gives to the head alone; an actor that asks for it runs there or nowhere."""
NODE_ID_LABEL = "ray.io/node-id"
"""A label that Ray gives to each node."""
CLAIM_GROUP = "eagleray-claim:"
"""A placement group that holds units of a claim is called so, with `<claim>:<number>` behind it."""
ASK_GROUP = "eagleray-ask:"
"""One that stands for a unit for which the ledger asks a node."""
