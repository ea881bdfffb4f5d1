"""Who holds what and what waits for what, for people: from an ingress, or from the cluster itself.

`python -m eagleray.workflows.claims` prints the ledger's report as JSON, for the cluster that the environment
names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from eagleray.capacity.placement import amounts
from eagleray.errors import EaglerayError
from eagleray.workflows.words import clock

if TYPE_CHECKING:
    from eagleray.client import Claims, Client
    from eagleray.client.claims import Claim
    from eagleray.cluster.state import ClusterState

COLUMNS = ("holder", "class", "has", "wants", "where")
_LIMIT_S = 30.0


def of_ingress(client: Client) -> Claims:
    """What its ledger says; where nobody does, why."""
    from eagleray.client import Claims

    try:
        return client.admin.claims()
    except EaglerayError as error:
        return Claims(str(error))


def of_cluster(cluster: ClusterState) -> Claims:
    """The same of a local cluster without an ingress: a process joins it, which takes seconds."""
    from eagleray.client import Claims
    from eagleray.client.claims import claims
    from eagleray.cluster import state

    try:
        said = subprocess.run(
            [sys.executable, "-m", "eagleray.workflows.claims"],
            env={**os.environ, **state.environment(cluster)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=True,
        )
        return claims(json.loads(said.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Claims(f"the cluster did not answer in {_LIMIT_S:g} s")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        return Claims(f"the cluster cannot be asked: {lines[-1] if lines else 'no reason given'}")


def rows(found: Claims) -> list[tuple[str, str, str, int | None, str]]:
    """A row of `COLUMNS` for each claim, and one for what runs without."""
    names = {node.id: node.name for node in found.nodes}
    lines: list[tuple[str, str, str, int | None, str]] = [
        (claim.holder, _classes(claim), _amounts(claim, sum(claim.held.values())), claim.wanted, where)
        for claim in found.claims
        for where in [_where(claim, claim.held, names)]
    ]
    other = {node.name: _shown(node.other) for node in found.nodes if _shown(node.other)}
    if not other:
        return lines
    where = "; ".join(f"{name}: {amounts(used)}" for name, used in other.items())
    total: dict[str, float] = {}
    for used in other.values():
        total = {key: total.get(key, 0.0) + used.get(key, 0.0) for key in {**total, **used}}
    return [*lines, ("without a claim", "", amounts(total), None, where)]


def sentences(found: Claims) -> Iterator[str]:
    """What is under way: who gives back what, and what waits for what."""
    names = {node.id: node.name for node in found.nodes}
    for claim in found.claims:
        if (notice := claim.notice) is not None:
            what = "everything" if notice.is_suspension else _where(claim, notice.give, names)
            if notice.is_evicted:
                yield f"{claim.holder} was to give back {what}, which is ended by force: {notice.reason}"
            else:
                ends = "is suspended: it gives back" if notice.is_suspension else "gives back"
                yield f"{claim.holder} {ends} {what} within {notice.left_s:.0f} s: {notice.reason}"
        if (wait := claim.wait) is not None:
            what = _amounts(claim, wait.units)
            asked = f"; nodes for {_amounts(claim, wait.asked)} have been asked for" if wait.asked else ""
            yield f"{claim.holder} has waited {clock(wait.waited_s)} for {what}: {wait.reason}{asked}"


def _classes(claim: Claim) -> str:
    if len(claim.classes) == 1:
        return next(iter(claim.classes))
    return ", ".join(f"{units} {name}" for name, units in claim.classes.items())


def _amounts(claim: Claim, units: int) -> str:
    return amounts({key: units * amount for key, amount in claim.bundle.items()}) if units else "nothing"


def _where(claim: Claim, units: Mapping[str, int], names: Mapping[str, str]) -> str:
    there = sorted((names.get(node, node), number) for node, number in units.items())
    return "; ".join(f"{name}: {_amounts(claim, number)}" for name, number in there)


def _shown(used: Mapping[str, float]) -> dict[str, float]:
    """What people count: memory is asked for by next to nobody."""
    return {key: amount for key, amount in used.items() if key in ("CPU", "GPU") and amount > 1e-3}


def main() -> None:
    """Print the report, or {"trouble"}."""
    from eagleray.serving.control_admin import ledger_report
    from eagleray.workflows.connecting import connect

    try:
        connect()
        found = ledger_report()
    except EaglerayError as error:
        found = {"trouble": str(error)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
