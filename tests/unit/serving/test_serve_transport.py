"""What Serve raises, in our words; without a cluster."""

from __future__ import annotations

import asyncio

import pytest

from eagleray.serving.serve_transport_ray260 import Line, _ask, _under_way
from eagleray.serving.transport import ReplicaFailed
from eagleray.serving.waiting import Waiting
from support.serving import target


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "the model failed"])
def test_a_lost_replica_is_worth_another_try_and_a_broken_model_is_not(is_lost: bool) -> None:
    from ray.exceptions import ActorDiedError

    line = Line(None, None, None, None, Waiting(start_s=1.0))
    with pytest.raises(ReplicaFailed) as failed, _under_way(line, target("digits")):
        raise ActorDiedError() if is_lost else ValueError("no such layer")
    assert ("went away" in str(failed.value)) == is_lost
    assert (failed.value.retry_after_s is not None) == is_lost
    assert line.waiting.num_under_way == 0


class Losing:
    """A handle whose replicas all die over what they are asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def remote(self, inputs: object) -> object:
        from ray.exceptions import ActorDiedError

        self.num_asked += 1
        raise ActorDiedError()


@pytest.mark.parametrize(("is_second", "num_asked"), [(False, 2), (True, 1)])
def test_of_replicas_that_die_over_it_a_request_has_two(is_second: bool, num_asked: int) -> None:
    from ray.exceptions import ActorDiedError

    handle = Losing()
    line = Line(None, handle, handle, None, Waiting(start_s=1.0))
    with pytest.raises(ActorDiedError):
        asyncio.run(_ask(line, {}, is_second=is_second))
    assert handle.num_asked == num_asked
