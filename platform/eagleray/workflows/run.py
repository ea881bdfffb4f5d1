"""One training run from its spec to its report; the driver's side of `train` and `resume`.

The order matters: the nodes are asked for before torch and ray.train are imported, so that the autoscaler
and the workers do their part meanwhile.
"""

from __future__ import annotations

import datetime
import errno
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from eagleray.cluster import job_ray260, settings
from eagleray.errors import EaglerayError, InputError, SpecError, TakenOver
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec, validate
from eagleray.workflows.connecting import connect
from eagleray.workflows.lock import RunLock
from eagleray.workflows.report import Account
from eagleray.workflows.reporting import reporting
from eagleray.workflows.run_summary import summary

if TYPE_CHECKING:
    from eagleray.training.reservation_ray260 import Reservation
    from eagleray.workflows.claiming import Seats

EXPERIMENT = "eagleray"
_STORAGE_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Run:
    """A run's identity and place."""

    run_id: str
    spec: TrainSpec
    folder: Folder

    @classmethod
    def create(cls, spec: TrainSpec, run_id: str | None = None) -> Run:
        """A new run of `spec`, its folder made, the resolved spec and the user's code saved in it."""
        from eagleray.training.code import store_code

        run_id = run_id or new_id(spec.name)
        run = cls(run_id, spec, runs().child(run_id))
        store_code(spec.code, run.folder)
        run.folder.write_json("spec.json", spec.model_dump(mode="json"))
        return run

    @classmethod
    def open(cls, run_id: str) -> Run:
        """An earlier run that may go on. Raises: InputError: there is none of that id, or it finished."""
        folder = existing(run_id)
        if folder.exists("report.json") and folder.read_json("report.json")["status"] == "FINISHED":
            raise InputError(
                f"run {run_id} is finished; its results are in {folder.url}. To train further, start a "
                f"new run with --set training.init_from={folder.url}"
            )
        return cls(run_id, saved_spec(folder), folder)

    def next_attempt(self) -> int:
        """Number of the next start of the workers: above every one that was made before."""
        from eagleray.training.attempts import next_attempt

        return next_attempt(self.folder)


def new_id(name: str) -> str:
    """An id that no run has: `name`, the time, and four random digits."""
    return f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def saved_spec(folder: Folder) -> TrainSpec:
    """The spec that a run was started with. Raises: SpecError where it is damaged."""
    name = f"{folder.url}/spec.json"
    try:
        table = folder.read_json("spec.json")
    except ValueError as error:
        raise SpecError(f"{name}: not JSON: {error}; the run cannot go on without it") from error
    return validate(TrainSpec, table, name=name)


def runs() -> Folder:
    """The folder of all runs."""
    return Folder(settings.storage_url()).child("runs")


def existing(run_id: str) -> Folder:
    """The folder of an earlier run. Raises: InputError where the storage has none of that id."""
    folder = runs().child(run_id)
    if "/" in run_id or not folder.exists("spec.json"):
        stem = run_id.partition("-")[0]
        known = [name for name in runs().list() if name.startswith(stem)][-5:]
        hint = f"; runs like it: {', '.join(known)}" if known else ""
        raise InputError(f"no run {run_id!r} in {runs().url}{hint}")
    return folder


def execute(run: Run, *, driver_started_at: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Run (or go on with) `run`; returns the report that is also saved as report.json.

    Raises:
        EaglerayError: the run failed; the report says so too.
        KeyboardInterrupt: SIGTERM (Stopped) or Ctrl-C came; the run can be resumed.
    """
    account = Account(marks={"submitted_at": driver_started_at, "submitted": driver_started_at})
    report: dict[str, Any] = {"run_id": run.run_id, "started_at": driver_started_at}
    monitor = None
    keep_earlier_report(run)
    try:
        with reporting(report, unexpected="FAILED"), _seats(run, account) as seats:
            reservation, account.marks["nodes"] = _reserve(seats, say)
            try:
                monitor = _monitor(run, account, say)
            except BaseException:
                reservation.release()
                raise
            report |= _train(run, seats, reservation, monitor, say)
    finally:
        account.ended(report["started_at"] + report["seconds"])
        report |= account.to_json()
        _finish(run, report, monitor, say)
    return report


def keep_earlier_report(run: Run) -> None:
    """Move the report of an earlier driver of the run aside, into reports/."""
    if run.folder.exists("report.json"):
        number = len([name for name in run.folder.child("reports").list() if name[0] != "."]) + 1
        run.folder.write_bytes(f"reports/{number:06d}.json", run.folder.read_bytes("report.json"))
        run.folder.remove("report.json")


@contextmanager
def _seats(run: Run, account: Account) -> Iterator[Seats]:
    """Connect, refuse what can never be placed, and open the run's claim, where there is a ledger."""
    connect()
    from eagleray.cluster import capacity_ray260
    from eagleray.training.trainer import bundle
    from eagleray.workflows import claiming

    account.marks["submitted_at"] = job_ray260.submitted_at() or account.marks["submitted_at"]
    scaling, resources = run.spec.scaling, bundle(run.spec)
    capacity_ray260.require([resources] * scaling.minimum, scaling.label_selector)
    with claiming.seats(run.run_id, run.spec, resources) as seats:
        account.marks["driver"] = time.time()
        yield seats


def _reserve(seats: Seats, say: Callable[[str], None]) -> tuple[Reservation, float]:
    """Ask for nodes, import what training needs meanwhile, and wait; returns when they were there, too."""
    from eagleray.training.stopping import Suspended

    asked_at = time.time()
    while True:
        reservation = seats.reserve()
        import eagleray.training.trainer_ray260  # noqa: F401  3 s, while nodes and workers start

        try:
            return reservation, max(asked_at, reservation.wait(say))
        except Suspended:  # others needed the seats before a worker was there: it is to wait for its turn
            reservation.release()
        except BaseException:
            reservation.release()
            raise


def _monitor(run: Run, account: Account, say: Callable[[str], None]) -> Any:
    from eagleray.cluster.emitter import RayEmitter
    from eagleray.cluster.job_ray260 import node_name
    from eagleray.registry.tracking import Tracker
    from eagleray.workflows.monitor import RunMonitor

    local = run.folder.local_path
    tracker = Tracker(
        settings.tracking_uri(),
        EXPERIMENT,
        artifact_root=f"{settings.storage_url()}/mlflow-artifacts",
        spill=None if local is None else local / "mlflow-unwritten.jsonl",
    )
    earlier = run.folder.read_json("mlflow.json")["run_id"] if run.folder.exists("mlflow.json") else None
    tracker.start(
        run.run_id,
        params=run.spec.model_dump(mode="json"),
        tags={"eagleray.run": run.run_id, "eagleray.kind": "train"},
        run_id=earlier,
    )
    return RunMonitor(
        run.run_id, run.folder, account, tracker=tracker, emitter=RayEmitter(), say=say, node_name=node_name
    )


def _train(
    run: Run, seats: Seats, reservation: Reservation, monitor: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train to the end, with as many interruptions as others need."""
    from eagleray.training.trainer import fit

    account = monitor.account
    while True:
        try:
            outcome = fit(
                run.spec,
                run.folder.url,
                # Those of this driver too, which a storage that was full does not know of.
                first_attempt=max(run.next_attempt(), account.attempt + 1),
                reservation=reservation,
                observer=seats.watching(monitor),
            )
        finally:
            reservation.release()
        if not outcome.get("is_suspended"):
            break
        if outcome["step"]:
            is_stored = outcome["step"] != account.unsaved_step
        else:  # they had not trained since they were started: what was before is lost already, or is not
            is_stored = account.pending is None and account.unsaved_step is None
        say(suspension(outcome, is_stored=is_stored, position=account.position))
        if outcome["is_forced"]:
            account.lost(list(range(outcome["num_workers"])), f"not given back in time ({outcome['reason']})")
        is_saved = is_stored and not outcome["is_forced"]
        account.suspended(outcome["reason"], outcome["time"], is_saved=is_saved)
        reservation, there_at = _reserve(seats, say)
        account.resumed(there_at)
        say(f"going on after {there_at - outcome['time']:.1f} s: it has nodes again")
    account.latest |= {f"test_{name}": value for name, value in outcome.get("test", {}).items()}
    if "completion" in outcome:
        say("completion:")
        say(outcome["completion"])
    return outcome


def suspension(outcome: Mapping[str, Any], *, is_stored: bool = True, position: int = 0) -> str:
    """How a run was suspended, in a line.

    Args:
        outcome: what `fit` returned.
        is_stored: whether the storage has its state.
        position: the last step that was taken, where its workers had not trained since they were started.
    """
    if not outcome["step"]:
        at = f" at step {position}" if position else ""
        lost = "" if is_stored else "; steps since the last checkpoint are taken again"
        return f"suspended{at}, before its workers trained: {outcome['reason']}{lost}"
    if outcome["is_forced"]:
        saved = "it had not saved that in time, and goes on from the checkpoint before"
    elif not is_stored:
        saved = "that could not be saved, and it goes on from the checkpoint before"
    else:
        saved = "all of it is saved"
    return f"suspended after step {outcome['step']}: {outcome['reason']}; {saved}"


def _finish(run: Run, report: dict[str, Any], monitor: Any, say: Callable[[str], None]) -> None:
    """Write the report, the history and the picture, and hand all of it to MLflow.

    What fails is said and replaces nothing: the run ended as it ended.
    """
    try:
        run.folder.write_json("report.json", report)
    except OSError as error:
        say(f"the report cannot be written to {run.folder.url}: {error.strerror or error}")
    if monitor is None:
        return
    try:
        _publish(run, report, monitor, say)
    except Exception as error:
        say(f"history, picture or MLflow record are not complete: {type(error).__name__}: {error}")


def _publish(run: Run, report: dict[str, Any], monitor: Any, say: Callable[[str], None]) -> None:
    """Files into the run's folder and to MLflow; whatever fails meanwhile, the run in MLflow is ended."""
    tracker = monitor.tracker
    with TemporaryDirectory(prefix="eagleray-") as scratch:
        try:
            _publish_files(run, report, monitor, Path(scratch))
        finally:
            tracker.log(report["metrics"], report["steps"])
            status = {"FINISHED": "FINISHED", "STOPPED": "KILLED"}.get(report["status"], "FAILED")
            for trouble in tracker.finish(status):
                say(f"MLflow: {trouble}")


def _publish_files(run: Run, report: dict[str, Any], monitor: Any, scratch: Path) -> None:
    from eagleray.evaluation.curves import plot_curves
    from eagleray.evaluation.run_size import plot_size
    from eagleray.workflows.monitor import read_history

    monitor.close()
    tracker = monitor.tracker
    curves = scratch / "curves.png"
    losses = [(recovery["lost_step"], "worker lost") for recovery in report["recoveries"]]
    plot_curves(read_history(run.folder), curves, title=run.run_id, events=losses)
    size = scratch / "size.png"
    goodput = monitor.account.goodput()
    plot_size(monitor.account.course(), size, title=f"{run.run_id}: goodput {goodput.ratio:.0%}")
    for picture in (curves, size):
        run.folder.upload(picture, picture.name)
        tracker.artifact(picture)
    parts = {"useful": goodput.useful_s, **goodput.lost_s, "rest": goodput.rest_s}
    tracker.log({"goodput": goodput.ratio, **{f"{name}_s": parts[name] for name in parts}}, report["steps"])
    for name in ("spec.json", "report.json"):
        path = scratch / name
        path.write_bytes(run.folder.read_bytes(name))
        tracker.artifact(path)
    _track_checkpoint(run, tracker, scratch)


def _track_checkpoint(run: Run, tracker: Any, scratch: Path) -> None:
    """The newest checkpoint as an artifact."""
    from eagleray.packaging import CheckpointStore

    newest = CheckpointStore(run.folder.child("checkpoints").url).newest(lambda _: None)
    if newest is None:
        return
    source = Folder(newest.url)
    for name in source.files():
        path = scratch / "checkpoint" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes(name))
        tracker.artifact(path, f"checkpoint-step-{newest.step}")


def drive(make_run: Callable[[], Run], driver_started_at: float) -> int:
    """The job's main: run, print, and turn an error into one message and its exit code."""
    run = None
    try:
        run = make_run()
        print(f"run {run.run_id}", flush=True)
        with RunLock(run.folder, job_ray260.submission_id()):
            report = execute(run, driver_started_at=driver_started_at, say=_say)
        for line in summary(run, report):
            _say(line)
        return 0
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if run is not None and error.exit_code == 1 and not isinstance(error, TakenOver):
            _say(f"go on with it: eagleray resume {run.run_id}")
        return error.exit_code
    except OSError as error:
        if not is_storage_trouble(error):
            raise
        print(
            f"error: the run's files cannot be written to {settings.storage_url()}: "
            f"{os.strerror(error.errno or 0)}; make room there, or give the right to write",
            file=sys.stderr,
            flush=True,
        )
        if run is not None:
            _say(f"then go on with it: eagleray resume {run.run_id}")
        return 1
    except KeyboardInterrupt:
        _say(f"stopped; go on with it: eagleray resume {run.run_id}" if run else "stopped")
        return 1


def is_storage_trouble(error: OSError) -> bool:
    """Whether the storage is full, read-only or closed to this user: no fault of ours."""
    return error.errno in _STORAGE_TROUBLE


def _say(text: str) -> None:
    print(text, flush=True)


def process_started_at() -> float:
    """Time at which this process was started."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
        return time.time() - float(uptime.read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")
