"""The command that draws the ledger's event log."""

import pytest

from eagleray.capacity.events import Event
from eagleray.cluster.event_log import EventLog
from eagleray.workflows import capacity_picture
from eagleray.workflows.capacity_picture import main


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path))
    log = EventLog(str(tmp_path), "here", "session", every_s=0.01)
    log.nodes = {"node": {"name": "machine 7", "type": ""}}
    held = {"node": {"CPU": 2.0}}
    log.append([
        Event(1000.0, "grant", "run", "run gpt", "training_share", held=held),
        Event(1060.0, "close", "run", "run gpt", "training_share"),
    ])  # fmt: skip
    log.close()
    return tmp_path


def test_the_log_of_a_cluster_is_drawn(storage, capsys):
    assert main([str(storage / "held.png"), "--cluster", "here"]) == 0
    assert (storage / "held.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{storage}/held.png: 2 events\n"


def test_nodes_have_the_names_that_people_know(storage, monkeypatch):
    drawn = []
    monkeypatch.setattr(capacity_picture, "plot_holdings", lambda *_, names, **__: drawn.append(names))
    assert main([str(storage / "held.png"), "--cluster", "here"]) == 0
    assert drawn == [{"node": "machine 7"}]


def test_what_was_long_ago_is_left_out(storage, capsys):
    assert main([str(storage / "held.png"), "--cluster", "here", "--since", "5"]) == 0
    assert "0 events" in capsys.readouterr().out


def test_a_cluster_without_a_log_is_told_with_those_that_have_one(storage, capsys):
    assert main([str(storage / "held.png"), "--cluster", "there"]) == 2
    assert capsys.readouterr().err == (
        f"error: no event log of a cluster called 'there' in {storage}/ledger; there are: here\n"
    )
    assert not (storage / "held.png").exists()


def test_a_damaged_log_is_told_in_one_line(storage, capsys):
    (segment, *_) = sorted((storage / "ledger/here").glob("segment-*.jsonl"))
    segment.write_text("{")
    assert main([str(storage / "held.png"), "--cluster", "here"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
