"""`python -m eagleray.workflows.tune SPEC [--set a.b=c] | --resume SEARCH`: a search, as a job's driver."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eagleray.capacity import Request
from eagleray.cluster import job_ray260, settings
from eagleray.errors import EaglerayError, TrainingError
from eagleray.packaging import Folder
from eagleray.specs import TuneSpec, load
from eagleray.tuning import Trial, winner_of
from eagleray.tuning.room import Allotted, Anywhere, Room
from eagleray.tuning.running import StopRequest
from eagleray.workflows.connecting import connect
from eagleray.workflows.lock import RunLock
from eagleray.workflows.queueing import Queue
from eagleray.workflows.reporting import reporting
from eagleray.workflows.run import EXPERIMENT, is_storage_trouble, process_started_at, runs
from eagleray.workflows.search import Search
from eagleray.workflows.stopping import Stopped, stoppable
from eagleray.workflows.words import count

SCRATCH = ".ray-tune-"
"""Folder for Ray Tune's own files while a search runs: in the search's, where that is on a disk."""


def execute(search: Search, *, started_at: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what is left of the search; returns the report that is also saved as report.json.

    Raises:
        EaglerayError: no trial came to anything; the first cause, in words.
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the search can be resumed.
    """
    trials, stop = search.trials(), StopRequest()
    report: dict[str, Any] = {
        "search_id": search.search_id,
        "name": search.spec.name,
        "started_at": started_at,
        "metric": search.spec.metric,
    }
    monitor = None
    try:
        with reporting(report, unexpected="STOPPED"):  # so that it can be resumed
            num_concurrent, submitted_at = _connect(search, stop, say)
            report["started_at"] = submitted_at or started_at
            with claimed(search, num_concurrent, say) as (room, queue):
                monitor = _monitor(search, trials, queue, say)
                _run(search, trials, monitor, room=room, stop=stop, num_concurrent=num_concurrent)
            if stop.reason == "signal":
                raise Stopped
            require_result(search, trials, stop)
    finally:
        report |= result_of(search, trials)
        _finish(search, trials, report, monitor, say)
    return report


def _connect(search: Search, stop: StopRequest, say: Callable[[str], None]) -> tuple[int, float | None]:
    """Connect, refuse what can never be placed; returns how many trials may run at once, and since when."""
    connect(stop.listen)
    from eagleray.capacity import placement
    from eagleray.cluster import capacity_ray260
    from eagleray.tuning import max_concurrent
    from eagleray.tuning.search import describe_resources, resources_of

    scaling, capacity = search.spec.scaling, capacity_ray260.observe()
    placement.require(capacity, [resources_of(scaling)] * scaling.num_workers, scaling.label_selector)
    found = max_concurrent(search.spec, capacity)
    say(
        f"{search.spec.num_trials} trials, {found} at once, {describe_resources(scaling)} each; "
        f"{search.spec.searcher.kind}, {search.spec.scheduler.kind}"
    )
    return found, job_ray260.submitted_at()


@contextmanager
def claimed(
    search: Search, num_concurrent: int, say: Callable[[str], None]
) -> Iterator[tuple[Room, Queue | None]]:
    """The search's claim while it runs: where its trials may run, and who says why it waits.

    Where the cluster has no ledger: anywhere.
    """
    from eagleray.cluster.holding import Holding
    from eagleray.cluster.ledger_client import LedgerClient
    from eagleray.tuning.search import units_of

    ledger = LedgerClient.find()
    if ledger is None:
        yield Anywhere(), None
        return
    holding = Holding(ledger, request_of(search, num_concurrent))
    try:
        yield (
            Allotted(
                search.search_id,
                holding,
                lambda num_trials: request_of(search, num_trials),
                units_of(search.spec.scaling),
            ),
            Queue(search.search_id, ledger.report, say),
        )
    finally:
        holding.close()


def request_of(search: Search, num_trials: int) -> Request:
    """What the search asks the ledger for, so that so many trials run at once.

    A unit is a worker. Workers of one trial are of use together only: the first trial's are granted so.
    """
    from eagleray.tuning.search import resources_of, units_of

    scaling, holder = search.spec.scaling, f"search {search.search_id}"
    request = Request.search(
        search.search_id,
        holder,
        resources_of(scaling),
        wanted=num_trials * units_of(scaling),
        label_selector=scaling.label_selector,
    )
    if scaling.num_workers == 1:
        return request
    return replace(request, minimum=min(units_of(scaling), request.wanted), is_gang=True)


def _monitor(search: Search, trials: list[Trial], queue: Queue | None, say: Callable[[str], None]) -> Any:
    from eagleray.registry.tracking import Tracker
    from eagleray.workflows.search_monitor import SearchMonitor

    def make_tracker(folder: Folder) -> Tracker:
        local = folder.local_path
        return Tracker(
            settings.tracking_uri(),
            EXPERIMENT,
            artifact_root=f"{settings.storage_url()}/mlflow-artifacts",
            spill=None if local is None else local / "mlflow-unwritten.jsonl",
        )

    parent, folder = make_tracker(search.folder), search.folder
    parent.start(
        search.search_id,
        params=search.spec.model_dump(mode="json"),
        tags={"eagleray.search": search.search_id, "eagleray.kind": "tune"},
        run_id=folder.read_json("mlflow.json")["run_id"] if folder.exists("mlflow.json") else None,
    )
    return SearchMonitor(
        search.search_id,
        search.spec,
        folder,
        trials,
        parent=parent,
        make_tracker=make_tracker,
        say=say,
        node_name=job_ray260.node_name,
        queue=queue,
    )


def _run(
    search: Search,
    trials: list[Trial],
    monitor: Any,
    *,
    room: Room,
    stop: StopRequest,
    num_concurrent: int,
) -> None:
    from eagleray.tuning import make_suggester
    from eagleray.tuning.driver import run_search

    for name in search.folder.list():
        if name.startswith(SCRATCH):  # of a driver that was killed
            search.folder.remove(name)
    with TemporaryDirectory(prefix=SCRATCH, dir=search.folder.local_path) as scratch:
        run_search(
            search.spec,
            trials,
            suggester=make_suggester(search.spec),
            observer=monitor,
            num_concurrent=num_concurrent,
            room=room,
            stop=stop,
            scratch=Path(scratch),
        )


def require_result(search: Search, trials: Sequence[Trial], stop: StopRequest) -> None:
    """Raises: TrainingError: no trial has a value."""
    from eagleray.tuning.search import describe

    if winner_of(trials, search.spec.metric, search.spec.is_max_better) is not None:
        return
    failed = [trial for trial in trials if trial.state == "failed"]
    if not failed:
        raise TrainingError(
            f"no trial was evaluated within budget.time_s ({search.spec.budget.time_s:g} s); raise it, or "
            "evaluate more often (training.evaluate_every_steps)"
        )
    so_far = f"the first {len(failed)} trials failed, and the rest was given up"
    what = so_far if stop.reason == "hopeless" else f"all {len(failed)} trials failed"
    first = failed[0]
    raise TrainingError(
        f"{what}; the first cause: trial {first.number} ({describe(first.values)}): {first.error}"
    )


def result_of(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """What report.json says of the trials."""
    spec = search.spec
    states = [trial.state for trial in trials]
    by_node: dict[str, list[int]] = {}
    for trial in trials:
        for node in trial.nodes:
            by_node.setdefault(node, []).append(trial.number)
    winner = winner_of(trials, spec.metric, spec.is_max_better)
    best = (
        None
        if winner is None
        else {
            "trial": winner.number,
            "run_id": winner.run_id,
            "run_folder": runs().child(winner.run_id).url,
            "state": winner.state,
            "values": winner.values,
            "value": winner.value_of(spec.metric),
            "metrics": winner.evaluations[-1],
        }
    )
    return {
        "num_trials": len(trials),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "trial_seconds": sum(trial.seconds for trial in trials),
        "nodes": by_node,
        "best": best,
    }


def _finish(
    search: Search, trials: list[Trial], report: dict[str, Any], monitor: Any, say: Callable[[str], None]
) -> None:
    """Write report, table and picture, and hand them to MLflow. What fails is said and replaces nothing."""
    try:
        search.folder.write_json("report.json", report)
    except OSError as error:
        say(f"the report cannot be written to {search.folder.url}: {error.strerror or error}")
    if monitor is None:
        return
    try:
        from eagleray.workflows.search_results import publish

        for trouble in publish(search, trials, report, monitor):
            say(f"MLflow: {trouble}")
    except Exception as error:
        say(f"table, picture or MLflow record are not complete: {type(error).__name__}: {error}")


def summary(search: Search, trials: Sequence[Trial], report: dict[str, Any]) -> list[str]:
    """The last lines of a search's log."""
    from eagleray.tuning.search import describe
    from eagleray.workflows.search_table import closing

    states = ", ".join(f"{number} {state}" for state, number in report["states"].items())
    lines = [
        f"search {search.search_id}: {report['status'].lower()} after {report['seconds']:.1f} s, "
        f"{report['num_trials']} trials ({states}) on {count(len(report['nodes']), 'node')}",
        *closing(search.spec, trials),
    ]
    if best := report["best"]:
        lines += [
            f"  best: trial {best['trial']}, {search.spec.metric} {best['value']:.4f}, "
            f"with {describe(best['values'])}",
            f"  its run {best['run_id']}: eagleray publish {best['run_id']} --search {search.search_id}",
        ]
    return [*lines, f"  files in {search.folder.url}"]


def drive(make_search: Callable[[], Search], started_at: float) -> int:
    """The job's main: search, print, and turn an error into one message and its exit code."""
    search = None
    try:
        search = make_search()
        print(f"search {search.search_id}", flush=True)
        with RunLock(search.folder, job_ray260.submission_id(), noun="search"):
            report = execute(search, started_at=started_at, say=_say)
        for line in summary(search, search.trials(), report):
            _say(line)
        return 0
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if not is_storage_trouble(error):
            raise
        print(
            f"error: the search's files cannot be written to {settings.storage_url()}: "
            f"{os.strerror(error.errno or 0)}; make room there, or give the right to write",
            file=sys.stderr,
            flush=True,
        )
        if search is not None:
            _say(f"then go on with it: eagleray tune --resume {search.search_id}")
        return 1
    except KeyboardInterrupt:
        if search is None:
            _say("stopped")
            return 1
        if search.folder.exists("report.json"):
            for line in summary(search, search.trials(), search.folder.read_json("report.json")):
                _say(line)
        _say(f"stopped; go on with it: eagleray tune --resume {search.search_id}")
        return 1


def _say(text: str) -> None:
    print(text, flush=True)


@stoppable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the search in `argv`; returns the exit code (0 done, 1 failed, 2 bad input, 3 no capacity)."""
    import argparse

    parser = argparse.ArgumentParser(prog="tune", description="Search for the best values of a train spec.")
    parser.add_argument("spec", nargs="?", help="TOML file, for instance examples/tune/digits.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--resume", metavar="SEARCH", help="go on with a stopped search, by its id")
    given = parser.parse_args(argv)
    if (given.spec is None) == (given.resume is None) or (given.resume and given.overrides):
        parser.error("give a spec (with --set, if need be), or --resume SEARCH")
    started_at = process_started_at()
    if given.resume:
        return drive(lambda: Search.open(given.resume), started_at)
    return drive(lambda: Search.create(load(TuneSpec, given.spec, given.overrides)), started_at)


if __name__ == "__main__":
    sys.exit(main())
