"""The demo's search, evaluation and publication: from trials to a model version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import Tally, eagleray, found_in, of_cluster, read_json, require, submit


@dataclass(frozen=True)
class Winner:
    """The best trial of a search."""

    search_id: str
    run_id: str


def search(environment: dict[str, str], tally: Tally) -> Winner:
    """Search with ASHA; check that trials shared the nodes, and that a best one was found."""
    log = submit("jobs/tune.py", ("examples/tune/digits.toml",), environment, tally)
    folder = Path(found_in(log, r"files in (\S+)"))
    report = read_json(folder / "report.json")
    best, num_trials = report["best"], report["num_trials"]
    require(report["status"] == "FINISHED", f"the search is {report['status']}")
    require(num_trials >= 8, f"the search had {num_trials} trials, not 8")
    for name in ("trials.parquet", "history.png"):
        require((folder / name).exists(), f"{folder / name} is missing")
    num_stopped = report["states"].get("stopped", 0)
    tally.add("search: trials", f"{num_trials}, {num_stopped} ended early, in {report['seconds']:.0f} s")
    tally.add("search: best validation accuracy", f"{best['value']:.2%}")
    return Winner(report["search_id"], best["run_id"])


def publish(winner: Winner, environment: dict[str, str], tally: Tally) -> str:
    """Make a model version of the search's winner; returns its reference."""
    arguments = (winner.run_id, "--name", "digits", "--alias", "candidate", "--search", winner.search_id)
    log = submit("jobs/publish.py", arguments, environment, tally)
    return found_in(log, r"published (\S+?):?\s")


def evaluate(reference: str, environment: dict[str, str], tally: Tally) -> Path:
    """Judge the version on digits that it never saw; returns the evaluation's folder."""
    chosen = ("--set", "model.kind=version", "--set", f"model.ref={reference}")
    log = submit("jobs/evaluate.py", ("examples/evaluate/digits.toml", *chosen), environment, tally)
    folder = Path(found_in(log, r"report (\S+)/report\.html"))
    accuracy = read_json(folder / "report.json")["metrics"]["values"]["accuracy"]
    require(accuracy >= 0.9, f"the winner's test accuracy is {accuracy:.2%}")
    require(bool(list(folder.glob("*.png"))), f"no picture in {folder}")
    tally.add("evaluation: accuracy on held-out digits", f"{accuracy:.2%}")
    return folder


def promote(reference: str, tally: Tally) -> None:
    """Give the judged version the alias that applications ask for."""
    name, _, version = reference.partition("/versions/")
    arguments = ("models", "promote", name, version, "production")
    eagleray(*of_cluster(*arguments), shown=" ".join(arguments))
    eagleray(*of_cluster("models", "list"), shown="models list")
    tally.add("published", f"{reference} as candidate, then production")
