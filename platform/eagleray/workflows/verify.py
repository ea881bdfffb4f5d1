"""`eagleray verify-run`: proves from a run's sample journal that each sample took effect exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eagleray.data import SampleOrder
from eagleray.data.digests import Entry, Total
from eagleray.data.replay import EpochCount, Finding, replay
from eagleray.errors import CheckpointError, InputError
from eagleray.packaging import Checkpoint, CheckpointStore, Folder
from eagleray.packaging.journal import Journal, Segment
from eagleray.workflows.finished import reopen_data
from eagleray.workflows.run import existing, saved_spec


@dataclass(frozen=True)
class Verification:
    """What the journal of a run says of its samples, up to the newest checkpoint that verifies."""

    run_id: str
    is_proven: bool
    """Whether every sample up to there was taken exactly once."""
    step: int
    """Of the checkpoint."""
    attempt: int
    num_samples: int
    """Taken by all steps."""
    epochs: tuple[EpochCount, ...]
    world_sizes: dict[int, int]
    """How many steps were taken by so many ranks."""
    formations: tuple[int, ...]
    """Numbers of the formations of ranks that took them."""
    skipped_steps: tuple[int, ...]
    """Those without effect, because the gradient was not finite."""
    findings: tuple[Finding, ...]
    """By step; none where it is proven."""


def verify(run_id: str, say: Callable[[str], None]) -> Verification:
    """Replay the sample journal of a run, which may go on meanwhile.

    `say` takes a sentence for each newer checkpoint that is damaged.

    Raises:
        InputError: there is no such run, or it kept no journal.
        DataError, SpecError: its data is not there any more, or is not the same.
        CheckpointError: it has no checkpoint that verifies, or a journal segment is missing or damaged.
    """
    folder = existing(run_id)
    spec = saved_spec(folder)
    checkpoint = _newest(run_id, folder, say)
    segments = Journal(folder.url).lineage(checkpoint.attempt, checkpoint.step)
    entries = list(_entries(segments))
    train = reopen_data(run_id, folder, spec, checkpoint.state["dataset_digest"]).train
    replayed = replay(SampleOrder(train.num_samples, spec.seed, train.blocks), entries)
    findings = (
        *replayed.findings,
        *_against_checkpoint(checkpoint, segments[-1], entries),
        *_against_report(folder, checkpoint),
    )
    return Verification(
        run_id=run_id,
        is_proven=not findings,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        num_samples=replayed.total.count,
        epochs=replayed.epochs,
        world_sizes=dict(sorted(Counter(entry.world_size for entry in entries).items())),
        formations=tuple(sorted({entry.generation for entry in entries})),
        skipped_steps=tuple(entry.step for entry in entries if entry.is_skipped),
        findings=findings,
    )


def _newest(run_id: str, folder: Folder, say: Callable[[str], None]) -> Checkpoint:
    checkpoint = CheckpointStore(folder.child("checkpoints").url).newest(say)
    if checkpoint is None:
        raise CheckpointError(
            f"run {run_id} has no checkpoint that verifies in {folder.url}/checkpoints: no step of it "
            "stands, so there is nothing to verify yet"
        )
    if checkpoint.state.get("samples") is None:
        raise InputError(
            f"run {run_id} kept no sample journal up to step {checkpoint.step}: an older eagleray trained or "
            "began it; runs that this version starts can be verified"
        )
    return checkpoint


def _entries(segments: Sequence[Segment]) -> Iterator[Entry]:
    for segment in segments:
        try:
            yield from map(Entry.from_json, segment.entries)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"journal segment {segment.name} cannot be read: {error}") from error


def _against_checkpoint(
    checkpoint: Checkpoint, segment: Segment, entries: Sequence[Entry]
) -> Iterator[Finding]:
    """Where the journal and the checkpoint that it leads to do not say the same."""
    samples, consumed = checkpoint.state["samples"], checkpoint.state["progress"]["consumed"]
    journal, counted = Total().plus(entries), Total.from_json(samples)
    last, after = (entries[-1].step, entries[-1].consumed_after) if entries else (0, 0)
    parent = None if samples["parent"] is None else tuple(samples["parent"])

    def found(says: str, but: str) -> Finding:
        text = f"the checkpoint of step {checkpoint.step} {says}, and the journal {but}"
        return Finding(checkpoint.step, "checkpoint", text)

    if (last, after) != (checkpoint.step, consumed):
        yield found(f"has consumed {consumed} samples", f"ends with step {last} after {after}")
    if journal.count != counted.count:
        yield found(f"counts {counted.count} samples", str(journal.count))
    elif journal != counted:
        yield found(f"counts {counted.count} samples", "as many, but others")
    if parent != segment.parent:
        yield found(f"started from {_position(parent)}", f"from {_position(segment.parent)}")


def _against_report(folder: Folder, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Where the run is said to be finished, and what it did after the checkpoint is nowhere."""
    report = folder.read_json("report.json") if folder.exists("report.json") else {}
    last = report.get("progress", {}).get("step", 0) if report.get("status") == "FINISHED" else 0
    if last > checkpoint.step:
        text = (
            f"the run finished after step {last}, and the newest checkpoint that verifies is of step "
            f"{checkpoint.step}: what was trained after it is lost"
        )
        yield Finding(last, "checkpoint", text)


def _position(parent: tuple[int, ...] | None) -> str:
    return "step 0" if parent is None else f"step {parent[1]} of attempt {parent[0]}"
