"""The last lines of a run's log: its report in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eagleray.workflows.goodput import in_words
from eagleray.workflows.report import sent

if TYPE_CHECKING:
    from eagleray.workflows.run import Run


def summary(run: Run, report: dict[str, Any]) -> list[str]:
    """The last lines of a run's log."""
    spans = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in report["spans_s"].items())
    lines = [
        f"run {run.run_id}: {report['status'].lower()} after {report['seconds']:.1f} s, "
        f"{report['steps']} steps",
        f"  {in_words(report['goodput'])}",
        f"  first step {report['submit_to_first_step_s']:.1f} s after submission: {spans}",
        *_gradients(run, report),
    ]
    lines += [
        f"  lost {_who(recovery)} after step {recovery['lost_step']}; "
        + _way_back(recovery, is_last=recovery is report["recoveries"][-1])
        for recovery in report["recoveries"]
    ]
    lines += [
        f"  {name} {value:.4f}" for name, value in report["metrics"].items() if name.startswith("test_")
    ]
    return [*lines, f"  files in {run.folder.url}"]


def _gradients(run: Run, report: Mapping[str, Any]) -> list[str]:
    """How the gradients were sent, and how many steps had none that was finite."""
    kind, choices = run.spec.compression.kind, report["compression_choices"]
    how = f"{kind} ({choices[-1]['compressor']})" if choices else kind
    ratio = f", {report['compression_ratio']:.2f}x less" if report["compression_ratio"] > 1 else ""
    amount = sent(report["sent_bytes"], report["uncompressed_bytes"])
    sends = report["sent_bytes"] > 0  # a worker alone does not
    lines = [f"  gradients as {how}: {amount}{ratio}"] if sends else []
    lines += [f"  step {choice['step']}: {choice['reason']}" for choice in choices[-1:]]
    if report["skipped_steps"]:
        lines.append(f"  {report['skipped_steps']} steps skipped: a gradient was not finite")
    return lines


def _who(recovery: Mapping[str, Any]) -> str:
    """The ranks that were lost, and their nodes."""
    pairs = zip(recovery["ranks"], recovery["nodes"], strict=True)
    return "rank " + ", ".join(f"{rank}" if node is None else f"{rank} (node {node})" for rank, node in pairs)


def _way_back(recovery: Mapping[str, Any], *, is_last: bool) -> str:
    """How a run went on after a loss, in words."""
    if recovery["pause_s"] is None:
        return "not back before the end" if is_last else "lost again before it was back"
    owed = f", {100 * share:.0f} % of what compression owed lost" if (share := recovery["owed_share"]) else ""
    return f"training again after {recovery['pause_s']:.1f} s, {recovery['redone_steps']} steps redone{owed}"
