"""`runs list` against an ingress without Ray."""

from __future__ import annotations

import re

from support.serving import Pretend
from unit.cli.conftest import Run

OLDEST, NEWEST = "digits-20260131-120007-1f2e", "digits-20260131-120009-1f2e"


def test_runs_are_a_table(run: Run, ingress: Pretend) -> None:
    said = run("runs", "list")
    assert said.code == 0
    rows = [re.split(" {2,}", line) for line in said.out.splitlines()]
    assert rows[0] == ["run", "kind", "status", "started", "metric"]
    assert [row[:3] for row in rows[1:3]] == [
        [NEWEST, "train", "running"],
        ["digits-20260131-120008-1f2e", "train", "finished"],
    ]
    assert rows[1][-1] == "-"
    assert rows[3][-1] == "test_accuracy 0.5"
    assert said.err == "next: eagleray publish digits-20260131-120008-1f2e\n"


def test_runs_as_json(run: Run, ingress: Pretend) -> None:
    found = run("runs", "list", "--limit", "1", "--json").json
    assert [(entry["id"], entry["status"], entry["metric"]) for entry in found] == [(NEWEST, "running", None)]
    assert run("runs", "list", OLDEST, "--json").json[0]["value"] == 0.5


def test_what_comes_next_is_what_their_state_lets_do(run: Run, ingress: Pretend) -> None:
    ingress.admin.runs_known[2]["status"] = "failed"
    steps = run("runs", "list", "digits").err.splitlines()
    assert steps == ["next: eagleray publish digits-20260131-120008-1f2e", f"next: eagleray resume {OLDEST}"]
    assert run("runs", "list", NEWEST).err == "next: eagleray jobs\n"


def test_where_there_is_none(run: Run, ingress: Pretend) -> None:
    said = run("runs", "list", "other")
    assert (said.code, said.out, said.err) == (0, "no run 'other'\n", "next: eagleray runs list\n")
    ingress.admin.runs_known.clear()
    assert run("runs", "list").out == "no runs yet\n"
    assert run("runs", "list", "--json").json == []
