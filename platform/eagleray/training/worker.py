"""What each rank of a run does, from its process's start to its end: one formation after the other.

A formation is a set of ranks that train together. When the driver asks for another size, all stop at the same
step and form anew; when a rank is lost, the others notice, and form anew with what they hold in memory.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eagleray.errors import EaglerayError, PeerLost
from eagleray.specs import TrainSpec
from eagleray.training.station import STATION, Formation, Station
from eagleray.training.telemetry import BUFFER, Sink


@dataclass(frozen=True)
class Attempt:
    """One start of the workers of a run, or one formation of them."""

    number: int
    """1 for the first start ever of the run; checkpoints of a lower one are refused."""
    spec: TrainSpec
    run_url: str
    """The run's folder in storage."""


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end; called by Ray Train in a thread. A rank that is to leave is ended by the driver.

    Args:
        config: `spec` (its JSON) and `run_url`. Everything else is the driver's order (`station`).

    Returns:
        What the driver wants to know of the end: position, number of parameters, test metrics, completion.
    """
    from eagleray.training.placing import own_address

    try:
        spec = TrainSpec.model_validate(config["spec"])
        return train_in_formations(spec, config["run_url"], STATION, BUFFER, own_address)
    except EaglerayError:
        raise
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray hands the exception to the driver without it
        raise


def train_in_formations(
    spec: TrainSpec, run_url: str, station: Station, sink: Sink, address: Callable[[], str]
) -> dict[str, Any]:
    """Train to the end in one formation after the other, as the orders at `station` say.

    `address` names one that this rank could listen on, `ip:port`, anew for each formation.
    """
    from eagleray import groups
    from eagleray.training.life import GROUP_TIMEOUT_S, Life, Yielded

    station.begin()
    life, error = Life(spec, run_url, sink, station), ""
    try:
        life.prepare()
        while True:
            formation = station.next_formation(address(), life.progress.step, life.data_digest)
            try:
                with groups.forming():
                    groups.form(
                        address=formation.address,
                        rank=formation.rank,
                        world_size=formation.world_size,
                        backend="gloo",
                        timeout_s=GROUP_TIMEOUT_S,
                    )
                    life.join(formation)
                return life.train()
            except Yielded:
                station.tell("yielded")
            except PeerLost as lost:
                groups.break_groups()  # first: it wakes peers that wait for somebody else
                station.tell("lost", str(lost))
            except BaseException:
                groups.break_groups()  # the others hear at once that this rank is out
                raise
            finally:
                life.disconnect()
                groups.close_all()
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        station.tell("over", error)
        life.close()


def run(attempt: Attempt, *, rank: int, sink: Sink, station: Station | None = None) -> dict[str, Any]:
    """Train to the end over the default process group, which the caller has made; see `train_worker`.

    Raises: Yielded: a notice at `station` asked for it.
    """
    import torch.distributed as dist

    from eagleray.training.life import Life

    life = Life(attempt.spec, attempt.run_url, sink, station or Station())
    try:
        life.prepare()
        life.join(Formation(attempt.number, rank, dist.get_world_size(), "", 0))
        return life.train()
    finally:
        life.disconnect()
        life.close()
