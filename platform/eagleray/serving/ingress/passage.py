"""The way of a request through the gate before its model version: the same for the lane and the routes.

    enter, turn -> sent to a replica -> Ticket.answered, Ticket.text_ended

Whatever ends a request closes its ticket, which then waits no longer, and leaves room for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from eagleray.serving.ingress.door import refused

if TYPE_CHECKING:
    from eagleray.protocol.tensors import Array
    from eagleray.serving.admission.gate import Gate
    from eagleray.serving.admission.ticket import Ticket
    from eagleray.serving.ingress.http import HttpError
    from eagleray.serving.routes import Target

GateOf: TypeAlias = "Callable[[Target], Gate | None]"
"""Finds the gate before a model version; None: there is none."""


def no_gate(_target: Target) -> None:
    """Where nothing is known of replicas nothing waits for them."""


def cost_of(inputs: Mapping[str, Array]) -> int:
    """Of a request with these inputs, which were checked: its samples."""
    for array in inputs.values():
        return len(array) or 1
    return 1


def enter(
    gate: Gate | None,
    ticket: Ticket,
    cost: int,
    on_turn: Callable[[Ticket], None],
    *,
    is_foretold: bool = False,
) -> bool:
    """Call `on_turn` when it is the request's turn: at once (True), or when others leave.

    A request whose time is over by then is ended instead (`Ticket.on_end`, 504).

    Args:
        gate: None: nothing waits.
        ticket: Of the request.
        cost: As `cost_of`; of a text 1.
        on_turn: Sends it. What it raises comes out of here, or of the one's `answered` who leaves.
        is_foretold: Whether the gate was asked just now, when the request was let in.

    Raises:
        HttpError: 503, where an answer would come too late, or too many wait.
    """
    if gate is None:
        on_turn(ticket)
        return True
    if not is_foretold:
        refusal = gate.refused(ticket.account, ticket.deadline_s - time.monotonic())
        if refusal is not None:
            raise refused(refusal)
    ticket.cost = cost
    return gate.enter(ticket, on_turn)


def turn(gate: Gate | None, ticket: Ticket, cost: int) -> asyncio.Future[None] | None:
    """As `enter`, to be awaited: what is left to wait for; None where it is the request's turn, or was."""
    if ticket.gate is not None:  # it had its turn on the fast lane, and has been left to the application
        return None
    found, on_turn = _awaited()
    return None if enter(gate, ticket, cost, on_turn) else found


def turn_again(ticket: Ticket) -> asyncio.Future[None]:
    """As `turn`, of one that waits for a replica first; to be awaited if the ticket has an `entry` then."""
    found, ticket.on_turn = _awaited()
    return found


def _awaited() -> tuple[asyncio.Future[None], Callable[[Ticket], None]]:
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_turn(_: Ticket) -> None:
        if not found.done():  # given up by a task that has not run since
            found.set_result(None)

    return found, on_turn


def late(ticket: Ticket | None) -> HttpError | None:
    """What is to be said of a request whose time is over, where it still waits for its turn."""
    if ticket is None or ticket.entry is None or ticket.gate is None:
        return None
    return refused(ticket.gate.too_late(ticket, time.monotonic()))
