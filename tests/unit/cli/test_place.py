"""Which ingress a verb speaks to, and with which key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from eagleray.cluster import attached, files, state
from eagleray.cluster.processes import this_process
from support.serving import Pretend
from unit.cli.conftest import Run


def local(
    name: str, url: str | None, *, age_s: float = 1000.0, key: str | None = None, dashboard: str | None = None
) -> state.ClusterState:
    """The state of a running local cluster whose ingress is at `url`."""
    me = this_process("supervisor")
    addresses = {"ingress": url, "dashboard": dashboard or "http://127.0.0.1:1"}
    cluster = state.ClusterState(
        name=name,
        marker="none",
        host="127.0.0.1",
        ports={part: int(found.rpartition(":")[2]) for part, found in addresses.items() if found},
        runtime_dir=Path("/nowhere"),
        starter=me,
        created_s=time.time() - age_s,
    )
    cluster.directory.mkdir(parents=True)
    files.write_json(cluster.directory / "state.json", state.to_json(cluster))
    files.write_json(cluster.directory / "processes.json", [vars(me)])
    if key is not None:
        cluster.admin_key_path.write_text(key + "\n")
    return cluster


@pytest.fixture
def unnamed(ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """The ingress, which nothing in the environment names."""
    monkeypatch.delenv("EAGLERAY_URL")
    monkeypatch.delenv("EAGLERAY_KEY")
    return ingress


def test_a_local_cluster_is_found_with_its_key(run: Run, unnamed: Pretend) -> None:
    local("local", unnamed.url, key=unnamed.admin_key)
    local("other", unnamed.url, key=unnamed.infer_key)
    assert run("models", "list").code == 0
    said = run("models", "list", "--name", "other")
    assert said.code == 1
    assert "has the scope infer; this needs admin" in said.err


def test_a_name_wins_over_the_environment(
    run: Run, unnamed: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    local("mine", unnamed.url, key=unnamed.admin_key)
    monkeypatch.setenv("EAGLERAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("EAGLERAY_KEY", "er_wrong")
    assert run("keys", "list", "--name", "mine").code == 0
    said = run("keys", "list")
    assert said.code == 1
    assert said.err.startswith("eagleray: no ingress answers at http://127.0.0.1:1")


def test_url_and_key_file(run: Run, unnamed: Pretend, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(unnamed.admin_key + "\n")
    assert run("models", "list", "--url", unnamed.url, "--key-file", str(tmp_path / "key")).code == 0
    said = run("models", "list", "--url", unnamed.url)
    assert said.code == 1
    assert "this needs an API key" in said.err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"\xff", "not text"), (b"a b\nc", "expected one line")],
)
def test_a_key_file_that_holds_no_key(
    content: bytes | None, message: str, run: Run, unnamed: Pretend, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    said = run("keys", "list", "--url", unnamed.url, "--key-file", str(tmp_path / "key"))
    assert said.code == 2
    assert message in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["keys", "list"], 1, "no cluster 'local' is running"),
        (["keys", "list", "--name", "a/b"], 2, "cluster name 'a/b'"),
        (["keys", "list", "--url", "127.0.0.1:80"], 2, "expected http://HOST:PORT"),
        (["keys", "list", "--url", "http://127.0.0.1:1"], 1, "no ingress answers at http://127.0.0.1:1"),
        (["keys", "list", "--url", "http://x", "--name", "y"], 2, "give --name (a local cluster) or --url"),
        (["predict", "m", "--text", "x"], 1, "no cluster 'local' is running"),
        (["status", "--url", "http://127.0.0.1:1"], 1, "no ingress answers"),
    ],
)
def test_a_place_that_is_none(arguments: list[str], code: int, message: str, run: Run) -> None:
    said = run(*arguments)
    assert said.code == code, said
    assert message in said.err
    assert said.out == ""


def test_an_attached_cluster_is_found_with_its_key(run: Run, unnamed: Pretend) -> None:
    cluster = attached.AttachedCluster("theirs", "10.0.0.1:6379", unnamed.url, 0.0)
    attached.write(cluster)
    cluster.admin_key_path.write_text(unnamed.admin_key)
    assert (
        run("models", "list", "--name", "theirs").err == "next: eagleray models show digits --name theirs\n"
    )
    assert run("status", "--name", "theirs").out.startswith(f"ingress {unnamed.url}: ready")
    said = run("jobs", "--name", "theirs")
    assert said.code == 1
    assert "cluster 'theirs' was attached, and its jobs are at its own dashboard" in said.err


def test_a_cluster_without_serving(run: Run) -> None:
    local("local", None)
    said = run("models", "list")
    assert said.code == 1
    assert "was started without serving" in said.err


def test_a_young_cluster_is_waited_for(run: Run, unnamed: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = local("local", unnamed.url, age_s=1)
    monkeypatch.setattr(time, "sleep", lambda _: cluster.admin_key_path.write_text(unnamed.admin_key))
    said = run("models", "list")
    assert said.code == 0
    assert said.err.splitlines()[0] == "waiting for the ingress of cluster 'local' to start"


def test_an_old_cluster_without_a_key_is_not(run: Run, unnamed: Pretend) -> None:
    local("local", unnamed.url)
    said = run("models", "list")
    assert (said.code, len(said.err.splitlines())) == (1, 1)
    assert "the ingress of cluster 'local' has not started yet" in said.err


def test_what_comes_next_is_for_the_same_place(run: Run, unnamed: Pretend, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(unnamed.admin_key)
    place = ["--url", unnamed.url, "--key-file", str(tmp_path / "key")]
    said = run("keys", "list", *place)
    assert said.err.splitlines()[1] == f"next: eagleray keys revoke ID {' '.join(place)}"
    said = run("models", "show", "digits", *place)
    assert f"next: eagleray deploy SPEC {' '.join(place)}   (a spec with" in said.err
