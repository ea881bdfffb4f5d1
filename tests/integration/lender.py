"""A run without training, on the cluster of the environment: takes what it is granted, and yields it.

    python lender.py CLAIM UNITS LABELS(JSON)

Holds a CPU of a node for each unit, as a run does. Prints `holds N` whenever that has changed, and gives all
back when its input ends.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
from collections import defaultdict

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from eagleray.capacity import Allotment, Request
from eagleray.cluster.holding import Holding
from eagleray.cluster.ledger_client import LedgerClient
from eagleray.cluster.names import CLAIM_GROUP

BUNDLE = {"CPU": 1}
NUMBERS = itertools.count()


def follow(
    holding: Holding, allotment: Allotment, groups: dict[str, list[PlacementGroup]], claim: str
) -> None:
    """Have as many groups on each node as are allotted there."""
    for node in {*groups, *allotment.units}:
        there, wanted = groups[node], allotment.units.get(node, 0)
        while len(there) > wanted:
            remove_placement_group(there.pop())
            holding.state(used={node: len(held) for node, held in groups.items()})
            holding.give_back({node: 1})
        while len(there) < wanted:
            there.append(
                placement_group(
                    [BUNDLE],
                    name=f"{CLAIM_GROUP}{claim}:{next(NUMBERS)}",
                    bundle_label_selector=[{"ray.io/node-id": node}],
                )
            )
            ray.get(there[-1].ready())
    holding.state(used={node: len(held) for node, held in groups.items()})
    print("holds", sum(map(len, groups.values())), flush=True)


def main(claim: str, units: str, labels: str) -> None:
    ray.init("auto", logging_level=logging.ERROR)
    ledger = LedgerClient.find()
    assert ledger is not None, "the cluster has no ledger"
    news = threading.Event()
    request = Request.run(
        claim, f"run {claim}", BUNDLE, minimum=0, wanted=int(units), label_selector=json.loads(labels)
    )
    holding = Holding(ledger, request, heard=lambda _: news.set())
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set(), news.set()), daemon=True).start()
    groups: dict[str, list[PlacementGroup]] = defaultdict(list)
    while not is_over.is_set():
        news.wait()
        news.clear()
        follow(holding, holding.allotment, groups, claim)
    for held in groups.values():
        for group in held:
            remove_placement_group(group)
    holding.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
