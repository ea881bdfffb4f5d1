"""The arithmetic of benchmarks/elastic: passages from records, aims from repetitions, what a row tells."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from eagleray.training.observer import Change
from support.benchmarks import FOLDER, module_of, shared

aims, passages, messages, rows = (
    module_of("elastic", name) for name in ("aims", "passages", "messages", "rows")
)
empty = shared("results").empty


def change(number: int, at: float) -> Change:
    return Change(number, [], 2, {}, at)


def at(time: float, step: int) -> dict:
    return {"kind": "at", "time": time, "step": step}


def begin(time: float, step: int, attempt: int) -> dict:
    return {"kind": "phase", "name": "training", "time": time, "step": step, "attempt": attempt}


def step(time: float, step: int, num_steps: int = 1, seconds: float = 0.05) -> dict:
    return {"kind": "step", "time": time, "step": step, "num_steps": num_steps, "seconds": seconds}


def commit(time: float, step: int, seconds: float) -> dict:
    return {"kind": "commit", "time": time, "step": step, "seconds": seconds, "blocked_s": 0.01}


PLANNED = [
    step(9.0, 20, 20, 1.0),
    at(9.5, 30),
    commit(10.3, 40, 0.3),  # the last step was over at 10.0
    begin(10.9, 40, 2),
    step(11.0, 41),
    step(11.95, 60, 19, 0.95),
]


def test_a_planned_change_begins_with_the_commit_of_its_last_step():
    found = passages.passage(change(2, 10.5), PLANNED)
    assert (found.step, found.last_at, found.first_at) == (40, 10.0, 11.0)
    assert found.pause_s == pytest.approx(1.0)
    assert found.lost == 0


def test_there_is_no_passage_before_a_new_step_was_taken():
    assert passages.passage(change(2, 10.5), PLANNED[:3]) is None
    assert passages.passage(change(2, 10.5), PLANNED[:4]) is None


def test_steps_that_are_taken_again_are_not_new():
    records = [at(9.0, 47), begin(20.0, 40, 2), step(20.1, 41), at(20.6, 50), step(21.0, 60, 19, 0.9)]
    found = passages.passage(change(2, 15.0), records)
    assert found.lost == 7
    assert found.first_at == 20.6, "the first that is known to be beyond step 47"


def test_a_first_step_that_was_not_told_of_is_reckoned_from_the_next_report():
    records = [at(9.0, 40), begin(10.0, 40, 2), step(11.0, 60, 20, 1.0)]
    assert passages.passage(change(2, 9.5), records).first_at == pytest.approx(10.05)


def test_the_time_of_a_step_is_of_whole_reports_alone():
    records = [step(10.0, 20, 20, 1.0), step(11.4, 40, 20, 1.4), step(13.4, 60, 20, 2.0)]
    assert passages.step_seconds(records, 9.0, 11.5) == pytest.approx(0.06)
    assert passages.step_seconds(records, 11.5, 13.0) is None


def test_pauses_that_overlap_count_once():
    records = [at(9.0, 40), begin(10.0, 40, 2), begin(11.0, 40, 3), step(12.0, 41)]
    changes = [change(2, 9.9), change(3, 10.9)]
    assert passages.paused_seconds(changes, records, 0.0, 100.0) == pytest.approx(3.0)
    assert passages.paused_seconds(changes, records, 0.0, 11.0) == pytest.approx(2.0)


def test_commits_hold_up_a_run_in_their_span():
    assert passages.blocked_seconds(PLANNED, 10.0, 11.0) == 0.01
    assert passages.blocked_seconds(PLANNED, 11.0, 12.0) == 0


def row(key: str, *values: float, **more) -> dict:
    return {**empty(), "repetitions": [{key: value} for value in values], **more}


@pytest.mark.parametrize(
    ("values", "is_met"), [((1.4, 1.4, 2.9), True), ((1.6, 1.6, 1.0), False), ((1.0, 1.0, 3.1), False)]
)
def test_the_median_binds_and_the_worst_where_it_has_a_bound(values, is_met):
    aim = aims.Aim("worker", "", "recovery_s", 1.5, worst=3.0)
    assert aims.judge(aim, {"worker": row("recovery_s", *values)}).is_met is is_met


def test_nothing_may_be_lost_in_any_repetition():
    aim = aims.Aim("worker", "", "lost", 0, binds="worst")
    assert aims.judge(aim, {"worker": row("lost", 0, 0, 0)}).is_met is True
    assert aims.judge(aim, {"worker": row("lost", 0, 0, 1)}).is_met is False


def test_a_row_that_broke_off_meets_nothing():
    aim = aims.Aim("worker", "", "lost", 0)
    assert aims.judge(aim, {"worker": row("lost", 0, failure="it crashed")}).is_met is False
    assert aims.judge(aim, {"worker": row("lost")}).is_met is None


def test_a_goal_may_be_a_fact_of_the_row_or_a_lower_bound():
    by_fact = aims.Aim("claim", "", "free_s", "a commit")
    assert aims.judge(by_fact, {"claim": row("free_s", 0.4, facts={"a commit": 0.5})}).is_met is True
    assert aims.judge(by_fact, {"claim": row("free_s", 0.4)}).is_met is None
    lower = aims.Aim("storm", "", "goodput", 0.8, at_least=True)
    assert aims.judge(lower, {"storm": row("goodput", 0.79)}).is_met is False


def test_the_figures_of_others_stand_beside():
    aim = aims.Aim("a", "", "pause_s", 1.3, beside=("b", "c"))
    found = aims.judge(aim, {"a": row("pause_s", 1.0), "b": row("pause_s", 10, 12, 14)})
    assert found.beside == {"b": 12}


def test_percentiles():
    assert aims.percentile(range(1, 21), 0.95) == 19
    assert aims.percentile([3.0, 1.0, 2.0], 0.95) == 3.0


def test_what_a_row_tells_is_put_together(tmp_path):
    path = tmp_path / "pipe"
    with path.open("w") as file:
        teller = messages.Teller(os.dup(file.fileno()))
        teller.note("on its way")
        teller.repetition(pause_s=1.0)
        teller.facts(step_s=0.05)
        teller.failure("crashed")
        result = empty()
        notes = [messages.take(result, line) for line in path.read_text().splitlines()]
        teller._pipe.close()
    assert notes == ["on its way", None, None, None]
    assert result == {
        "repetitions": [{"pause_s": 1.0}],
        "facts": {"step_s": 0.05},
        "failure": "crashed",
        "not_available": None,
    }
    assert json.dumps(result)


def test_every_aim_has_a_row_and_every_row_a_function():
    assert {aim.row for aim in aims.AIMS} <= set(rows.ROWS)
    assert {name for aim in aims.AIMS for name in aim.beside} <= set(rows.ROWS)
    for one in rows.ROWS.values():
        module, _, function = one.function.partition(":")
        tree = ast.parse((FOLDER / "elastic" / f"{module}.py").read_text())
        [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        names = [argument.arg for argument in found.args.args + found.args.kwonlyargs]
        assert names[:2] == ["tell", "reps"]
        assert set(one.arguments) <= set(names[2:])


def test_only_neighbours_of_one_stage_run_beside_each_other():
    def of(name: str, stage: str = ""):
        return rows.Row(name, "", 1, 1, stage=stage)

    listed = [of("a"), of("b", "x"), of("c", "x"), of("d", "y"), of("e"), of("f")]
    found = [[row.name for row in stage] for stage in rows.stages(listed)]
    assert found == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]


def test_what_has_a_goal_in_seconds_runs_alone():
    timed = {aim.row for aim in aims.AIMS if aim.unit in ("s", "%")}
    assert [name for name in timed if rows.ROWS[name].stage] == []


def test_stock_is_measured_in_the_same_run_after_our_own():
    listed = [row for row in rows.ROWS.values() if not row.is_full]
    is_stock = [row.name.endswith("_stock") for row in listed]
    assert sum(is_stock) == 3
    assert is_stock == sorted(is_stock)
    assert {row.reps for row in listed if row.name.endswith("_stock")} == {3}


def test_a_group_of_the_same_size_is_another_where_its_process_is():
    old, new = ({"pid": pid, "world": 3} for pid in (1, 2))
    assert passages.is_one_group([old, old], 3, 2)
    assert not passages.is_one_group([old, old, new], 3, 2), "it was killed, and started again"
    assert not passages.is_one_group([old, old], 2, 2)
    assert not passages.is_one_group([old], 3, 2)


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "aims", aims)
    return module_of("elastic", "report")


def test_the_table_says_how_often_stock_was_measured(report):
    aim = aims.Aim("a", "a pause", "pause_s", 1.3, beside=("a_stock",))
    table = report.table({"a": row("pause_s", 1.0, 1.0), "a_stock": row("pause_s", 10, 12, 14)}, [aim])
    assert "| stock 12.00 s (3) |" in table.splitlines()[-1]


def test_a_run_that_dies_while_it_writes_leaves_the_last_results(report, tmp_path, monkeypatch):
    report.save({"a": row("pause_s", 1.0)}, {}, tmp_path)

    def write(path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(KeyboardInterrupt):
        report.save({"a": row("pause_s", 2.0)}, {}, tmp_path)
    assert report.read(tmp_path) == {"a": row("pause_s", 1.0)}


def test_a_row_that_is_interrupted_keeps_its_repetitions_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "messages", messages)
    monkeypatch.setitem(sys.modules, "rows", rows)
    children = module_of("elastic", "children")
    script = tmp_path / "row.py"
    script.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"os.write(int(os.environ['{messages.PIPE}']), b'{{\"repetition\": {{\"lost\": 0}}}}\\n')\n"
        f"os.write(int(os.environ['{messages.PIPE}']), b'{{\"note\": \"told\"}}\\n')\n"
        "signal.pause()\n"
    )
    monkeypatch.setattr(children, "_MAIN", script)
    result = children.run(
        rows.Row("a", "", 1, 30), 1, os.environ, tmp_path / "log", lambda _: children.stop_all()
    )
    assert result["failure"] == "interrupted"
    assert result["repetitions"] == [{"lost": 0}]
