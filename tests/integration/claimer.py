"""A claim of another process, on the cluster of the environment: prints what becomes of it.

    python claimer.py service|job CLAIM BUNDLE(JSON) LABELS(JSON)

Prints `ready`, and claims one unit when a line comes in. Prints `granted NODE SECONDS` when it has it, then
`free SECONDS` once Ray gives it that node's resources, and gives all back when its input ends.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from eagleray.capacity import Request
from eagleray.cluster.holding import Holding
from eagleray.cluster.ledger_client import LedgerClient
from eagleray.cluster.names import CLAIM_GROUP


def main(kind: str, claim: str, bundle: str, labels: str) -> None:
    ray.init("auto", logging_level=logging.ERROR)
    resources, selector = json.loads(bundle), json.loads(labels)
    if kind == "service":
        request = Request.service(
            claim, f"service {claim}", resources, floor=1, wanted=1, label_selector=selector
        )
    else:
        request = Request.job(claim, f"job {claim}", resources, label_selector=selector)
    ledger = LedgerClient.find()
    assert ledger is not None, "the cluster has no ledger"
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    holding = Holding(ledger, request)
    allotment = holding.wait(lambda one: one.size >= 1)
    assert allotment is not None
    (node,) = allotment.units
    print("granted", node, time.monotonic() - began, flush=True)
    group = placement_group(
        [resources], name=f"{CLAIM_GROUP}{claim}:1", bundle_label_selector=[{"ray.io/node-id": node}]
    )
    ray.get(group.ready())
    holding.state(used=allotment.units)
    print("free", time.monotonic() - began, flush=True)
    sys.stdin.read()
    remove_placement_group(group)
    holding.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
