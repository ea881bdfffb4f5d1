"""Ray 2.60's internals that training stands on: these fail loudly when Ray moves them."""

import inspect

import pytest
import ray

from eagleray.errors import PeerLost
from eagleray.training import (
    reservation_ray260,
    retrying_ray260,
    trainer_ray260,
    watch_ray260,
    worker_actor_ray260,
)
from eagleray.training.stopping import Suspended


def test_this_is_the_ray_that_the_room_was_written_for():
    assert ray.__version__.startswith("2.60.")


@pytest.mark.parametrize(
    ("ours", "overridden"),
    [
        (
            trainer_ray260.SeatedWorkerGroup,
            (
                "_start",
                "_create_placement_group",
                "_create_workers",
                "_init_train_context_on_workers",
                "_poll_workers_and_collect_errors",
                "shutdown",
                "abort",
            ),
        ),
        (retrying_ray260.RetryPolicy, ("make_decision", "_log_decision")),
        (trainer_ray260.Trainer, ("_initialize_and_run_controller",)),
        (
            watch_ray260.Watch,
            (
                "after_worker_group_start",
                "after_worker_group_poll_status",
                "before_worker_group_shutdown",
            ),
        ),
    ],
)
def test_what_is_overridden_exists_with_the_same_parameters(ours, overridden):
    base = ours.__mro__[1]
    for name in overridden:
        theirs, mine = (inspect.signature(getattr(cls, name)) for cls in (base, ours))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in mine.parameters.values()):
            assert list(theirs.parameters) == list(mine.parameters), f"{base.__name__}.{name} was changed"


def test_the_worker_actor_has_every_method_of_rays_worker():
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    theirs = {name for name, _ in inspect.getmembers(RayTrainWorker, inspect.isfunction) if name[0] != "_"}
    ours = {name for name in vars(worker_actor_ray260.WorkerActor) if name[0] != "_"}
    assert ours - theirs == {"form", "notice", "news", "break_groups"}
    assert theirs <= ours


def test_the_context_takes_no_more_than_we_give_it():
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    required = {
        name
        for name, parameter in inspect.signature(RayTrainWorker.init_train_context).parameters.items()
        if parameter.default is parameter.empty and name != "self"
    }
    assert required <= {
        "train_run_context", "distributed_context", "synchronization_actor", "storage_context",
        "worker_callbacks", "controller_actor",
    }  # fmt: skip


def test_errors_that_would_come_again_are_final_and_lost_peers_are_not():
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    from eagleray.errors import PeerLost, TrainingError

    def group_error(**failures):
        return WorkerGroupError("", {int(rank[1:]): failure for rank, failure in failures.items()})

    final = UserExceptionWithTraceback(TrainingError("not finite"), "Traceback …")
    lost = UserExceptionWithTraceback(PeerLost("no answer"), "Traceback …")
    death = WorkerHealthCheckFailedError("", ActorDiedError())
    users = UserExceptionWithTraceback(KeyError("x"), "Traceback …")
    assert isinstance(retrying_ray260.final_error(group_error(r0=final)), TrainingError)
    assert isinstance(retrying_ray260.final_error(group_error(r0=lost, r1=final)), TrainingError)
    assert retrying_ray260.final_error(group_error(r0=lost)) is None
    assert retrying_ray260.final_error(group_error(r0=final, r1=death)) is None
    assert retrying_ray260.final_error(group_error(r0=users)) is None
    assert retrying_ray260.failures(group_error(r0=users))[0].__notes__ == ["Traceback …"]


@pytest.mark.parametrize("text", ["The actor died", "Get timed out"])
def test_a_worker_that_ends_or_stops_when_it_is_told_to_train_is_a_failed_start_that_is_tried_again(
    monkeypatch, text
):
    from ray.exceptions import ActorDiedError, GetTimeoutError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS
    from ray.train.v2.api.exceptions import ControllerError

    from eagleray.errors import PeerLost

    def start(_):
        raise ActorDiedError() if text == "The actor died" else GetTimeoutError(text)

    monkeypatch.setattr(trainer_ray260.WorkerGroup, "_start", start)
    with pytest.raises(WorkerGroupStartupFailedError) as caught:
        trainer_ray260.SeatedWorkerGroup.__new__(trainer_ray260.SeatedWorkerGroup)._start()
    assert isinstance(caught.value, RETRYABLE_CONTROLLER_ERRORS)
    error = ControllerError(caught.value)
    (failure,) = retrying_ray260.failures(error).values()
    assert isinstance(failure, PeerLost)
    assert str(failure).startswith(f"a worker was lost while the workers started: {text}")
    assert retrying_ray260.final_error(error) is None


def test_a_start_that_always_fails_ends_the_run():
    from types import SimpleNamespace

    from ray.exceptions import ActorDiedError
    from ray.train import FailureConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    most = reservation_ray260.MAX_DEATHS_AT_START
    retried = []
    observer = SimpleNamespace(failed=lambda _failures, is_retried: retried.append(is_retried))
    policy = retrying_ray260.RetryPolicy(
        FailureConfig(max_failures=1), observer, SimpleNamespace(has_stepped=True)
    )
    failed_start = ControllerError(WorkerGroupStartupFailedError("A worker ended before it trained."))
    for error in [
        *[failed_start] * most,
        WorkerGroupError("", {0: ActorDiedError()}),
        *[failed_start] * most,
    ]:
        policy.make_decision(error)
    assert retried == [True] * (2 * most + 1), "what trains in between begins the count anew"
    policy.make_decision(failed_start)
    assert retried[-1] is False


def test_workers_that_end_where_nothing_failed_charge_nobody():
    from types import SimpleNamespace

    from ray.exceptions import ActorDiedError
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from eagleray.training.stopping import Restarting, Suspended

    heard = []
    observer = SimpleNamespace(failed=lambda *failed: heard.append(failed))
    policy = retrying_ray260.RetryPolicy(
        FailureConfig(max_failures=0), observer, SimpleNamespace(has_stepped=True)
    )
    for _ in range(3):
        restarting = WorkerGroupError("", {0: Restarting(), 1: ActorDiedError()})
        assert policy.make_decision(restarting) == FailureDecision.RETRY
    for suspended in (WorkerGroupError("", {0: Suspended("x")}), ControllerError(Suspended("x"))):
        assert policy.make_decision(suspended) == FailureDecision.RAISE
    assert heard == []


@pytest.mark.parametrize("failure", [None, Suspended("others need its nodes", 7)], ids=["lost", "suspended"])
def test_workers_that_are_all_gone_at_once_have_a_status_each(monkeypatch, failure):
    import threading
    from types import SimpleNamespace

    group = trainer_ray260.SeatedWorkerGroup.__new__(trainer_ray260.SeatedWorkerGroup)
    membership = SimpleNamespace(lock=threading.Lock(), members=[], failure=failure)
    monkeypatch.setattr(trainer_ray260.SeatedWorkerGroup, "membership", membership, raising=False)
    monkeypatch.setattr(trainer_ray260.SeatedWorkerGroup, "get_workers", lambda self: ["a", "b", "c"])
    first, *others = group._poll_workers_and_collect_errors(None)
    assert isinstance(first.error, PeerLost) if failure is None else first.error is failure
    assert [(status.running, status.error) for status in others] == [(True, None)] * 2
