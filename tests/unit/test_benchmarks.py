"""What the benchmarks share: their arguments and rows, what is kept and said, homes that were left behind."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.benchmarks import shared

frame, homes, keeping, picture, results = (
    shared(name) for name in ("frame", "homes", "keeping", "picture", "results")
)


@dataclass(frozen=True)
class Row:
    name: str
    is_full: bool = False


ROWS = {row.name: row for row in (Row("a"), Row("b"), Row("long", is_full=True))}


def options(*words: str) -> Any:
    return frame.rows_parser("what it is", ROWS).parse_args(words)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), ["a", "b"]),
        (("--full",), ["a", "b", "long"]),
        (("--full", "--skip", "a"), ["b", "long"]),
        (("--rows", "long,a"), ["a", "long"]),
    ],
)
def test_the_rows_that_run(words, names):
    assert [row.name for row in frame.chosen(ROWS, options(*words))] == names


@pytest.mark.parametrize("option", ["--rows", "--skip"])
def test_a_row_that_is_not_there_is_said(option, capsys):
    assert frame.chosen(ROWS, options(option, "a,c,d")) is None
    assert capsys.readouterr().err == f"{option}: no row c, d; there are a, b, long\n"


def result(*values: float, **more: Any) -> dict[str, Any]:
    repetitions = [{"ms": value} for value in values]
    return {**results.empty(), "repetitions": repetitions, "seconds": 2.0, "load_before": [1.0], **more}


class Report:
    """Keeps rows as they are."""

    def read(self, folder: Path) -> dict[str, Any]:
        return keeping.read_rows(folder / "some.json")

    def save(self, rows: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
        keeping.write_rows(rows, [], about, folder / "some.json")


def test_the_last_results_of_rows_that_are_not_asked_for_stay(tmp_path, capsys):
    folder = tmp_path / "results"
    for words, expected in ((), {"a": 1.0}), (("--rows", "b"), {"a": 1.0, "b": 2.0}), ((), {"c": 3.0}):
        session = frame.Session(options("--results", str(folder), *words), "some", Report())
        [(name, value)] = list(expected.items())[-1:]
        session.over(name, result(value))
        session.keep({name: result(value)})
        assert session.end([lambda rows: f"{len(rows)} rows", lambda _: None]) == 0
        kept = json.loads((folder / "some.json").read_text())
        assert {name: row["repetitions"][0]["ms"] for name, row in kept["rows"].items()} == expected
        assert kept["options"]["rows"] == str(session.options.rows)
        said = capsys.readouterr().out
        assert f"{name}: 1 repetitions in 2 s (load before: 1.0)\n" in said
        assert f"\n{len(expected)} rows\n" in said
        assert said.endswith(f" minutes; {folder}/some.json, some.png\n")


def test_a_row_that_another_machine_measured_says_which(tmp_path, monkeypatch):
    mine = keeping.machine()
    Report().save({"a": result(1.0)}, {}, tmp_path)
    assert "machine" not in Report().read(tmp_path)["a"]
    monkeypatch.setattr(keeping, "machine", lambda: {"processor": "another"})
    rows = Report().read(tmp_path)
    assert rows["a"]["machine"] == mine
    Report().save({**rows, "b": result(2.0)}, {}, tmp_path)
    monkeypatch.setattr(keeping, "machine", lambda: mine)
    found = Report().read(tmp_path)
    assert found["a"]["machine"] == mine
    assert found["b"]["machine"] == {"processor": "another"}


def test_an_interrupted_run_keeps_what_there_is_and_says_so(tmp_path, capsys):
    session = frame.Session(options("--results", str(tmp_path)), "some", Report())
    session.keep({"a": result(1.0)})
    session.is_interrupted = True
    assert session.end([]) == 130
    assert "interrupted; what was measured is kept" in capsys.readouterr().out
    assert set(Report().read(tmp_path)) == {"a"}


def test_a_row_that_failed_or_is_not_there_says_why():
    assert keeping.row_line("a", result(1.0, failure="broke")) == "a: 1 repetitions in 2 s; FAILED: broke"
    assert keeping.row_line("a", result(not_available="no GPU")) == "a: not available: no GPU"


def test_a_picture_of_aims_has_a_line_for_each(tmp_path):
    judged = SimpleNamespace(values=[1.0, 3.0], median=2.0, is_met=True, beside={"peer": 5.0})
    with picture.of_aims(tmp_path / "some.png", ["first", "second"], "ms", "dots") as axes:
        picture.dots(axes, 1, judged, over=2.0, least=1.0)
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.0, 1.5], [1.0], [2.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert (tmp_path / "some.png").stat().st_size > 0


def test_a_home_that_a_killed_run_left_behind_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(homes.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("EAGLERAY_HOME", "EAGLERAY_STORAGE", "EAGLERAY_TRACKING_URI"):
        monkeypatch.setenv(name, "before")
    left = tmp_path / f"eagleray-bench-some-{os.getuid()}" / f"{os.getpid()}-1"  # it began at another time
    left.mkdir(parents=True)
    some = homes.Homes("bench-some")
    with some.home() as home:
        assert not left.exists()
        assert os.environ["EAGLERAY_HOME"] == str(home)
        assert some.mark() == f"bench-some-{home.name}"
        (home / "file").touch()
    assert not home.parent.exists()
