"""The command line: exit codes, one message and no traceback, and jobs through the stand-in for Ray's API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from eagleray import cli
from eagleray.client import JobClient, jobs
from eagleray.errors import CapacityError, ServiceError, SpecError
from unit.client import stand_in
from unit.processes import ROOT, python

DIGITS = str(ROOT / "examples/train/digits.toml")
LOCAL = str(ROOT / "local.toml")
VERBS = [
    *("up", "attach", "down", "status", "env"),
    *("check", "train", "resume", "tune", "evaluate", "publish", "verify-run"),
    *("runs", "models", "deploy", "undeploy", "predict"),
    *("jobs", "logs", "stop"),
    *("keys", "gateways", "dashboards"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster of this machine, and none in the environment."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "EAGLERAY_GRAFANA_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[stand_in.Ray]:
    """A cluster that the environment names, as `eagleray env` would."""
    (tmp_path / "token").write_text(stand_in.TOKEN + "\n")
    with stand_in.running() as ray:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        yield ray


def test_help_lists_the_verbs_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    lines = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == VERBS
    assert not any(line.endswith("...") for line in lines), "a summary is cut"


@pytest.mark.parametrize(
    "arguments",
    [
        *([verb, "--help"] for verb in VERBS),
        ["dashboards", "publish", "-h"],
        *(["models", verb, "-h"] for verb in ("list", "show", "promote")),
        *(["keys", verb, "-h"] for verb in ("create", "list", "revoke")),
        *(["gateways", verb, "-h"] for verb in ("show", "restart", "scale")),
    ],
)
def test_every_verb_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    assert capsys.readouterr().out.startswith(f"Usage: eagleray {arguments[0]}")


def test_every_verb_has_json_but_those_that_make_something_on_this_machine_or_in_grafana() -> None:
    without = {
        verb
        for verb, command in cli.cli.commands.items()
        for leaf in getattr(command, "commands", {verb: command}).values()
        if "as_json" not in {parameter.name for parameter in leaf.params}
    }
    assert without == {"up", "attach", "down", "env", "dashboards"}


def test_check_summarises(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", DIGITS, "--set", "optimizer.lr=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{DIGITS}: a valid train spec"
    assert "  optimizer    adamw lr=0.5 weight_decay=0.0001" in lines


def test_check_remarks_on_what_is_allowed_and_costs_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", DIGITS, "--set", "compression.kind=topk"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"{DIGITS}: compression.kind: topk is made for SGD: adamw divides")
    assert cli.run(["check", DIGITS]) == 0
    assert capsys.readouterr().err == ""


def test_check_as_json_is_the_resolved_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", DIGITS, "--json", "--set", "seed=9"]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert (resolved["seed"], resolved["checkpoint"]["every_steps"]) == (9, 50)


@pytest.mark.parametrize(
    ("arguments", "expected_code", "expected"),
    [
        (["check", DIGITS, "--set", "a=1"], 2, f"eagleray: {DIGITS}: a: unknown key 'a'"),
        (["check", "none.toml"], 2, "eagleray: none.toml: no such file"),
        (
            ["check", LOCAL, "--set", "node_types.train_gpus.cpus=1"],
            2,
            f"eagleray: {LOCAL}: node_types.train_gpus: ",
        ),
        (["train", DIGITS, "--set", "optimizer.lr=0"], 2, "eagleray: "),
        (["up", "none.toml"], 2, "eagleray: none.toml: no such file"),
        (["train", DIGITS], 1, "eagleray: no cluster 'local' is running"),
        (["resume", "digits-1"], 1, "eagleray: no cluster 'local' is running"),
        (["jobs"], 1, "eagleray: no cluster 'local' is running"),
        (["logs", "j", "--name", "other"], 1, "eagleray: no cluster 'other' is running"),
        (["stop", "j", "--name", "../x"], 2, "eagleray: cluster name '../x'"),
        (["env"], 1, "eagleray: no cluster 'local' is running"),
        (["status"], 1, "eagleray: no cluster 'local' is running"),
        (["dashboards", "publish"], 2, "eagleray: dashboards publish: no "),
    ],
)
def test_an_error_is_one_message(
    arguments: list[str], expected_code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == expected_code
    captured = capsys.readouterr()
    assert captured.err.startswith(expected)
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("found", ["file", "/dev/null"])
@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize(
    "verb",
    [["up"], ["down"], ["status"], ["env"], ["train", DIGITS], ["resume", "r"], ["jobs"], ["logs", "j"]],
    ids=lambda verb: verb[0],
)
def test_a_home_that_is_no_folder_is_named(
    verb: list[str],
    below: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    found = str(tmp_path / found)
    kind = "special file" if found == "/dev/null" else "file"
    monkeypatch.setenv("EAGLERAY_HOME", found + below)
    assert cli.run(verb) == 2
    assert capsys.readouterr() == (
        "",
        f"eagleray: EAGLERAY_HOME {found}{below}: {found} is a {kind}, not a folder; "
        "set EAGLERAY_HOME to a folder (`up` makes it where there is none)\n",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command"),
        (["check"], "Missing argument 'SPEC'"),
        (["check", DIGITS, "--nope"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected_code", "expected"),
    [
        (SpecError("m"), 2, "eagleray: m\n"),
        (CapacityError("m"), 3, "eagleray: m\n"),
        (ServiceError("m"), 1, "eagleray: m\n"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("a\nb"), 1, "eagleray: ValueError: a b (`eagleray --debug jobs …` shows where)\n"),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            1,
            "eagleray: `jobs` needs ray, which the light install leaves out: "
            "pip install '.[platform]' in a checkout, or 'WHEEL[platform]'\n",
        ),
    ],
)
def test_how_an_exception_ends(
    error: BaseException,
    expected_code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli.commands["jobs"], "callback", fail)
    assert cli.run(["jobs"]) == expected_code
    assert capsys.readouterr().err.lstrip("\n") == expected


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError):
        cli.run(["--debug", "check", "none.toml"])


def test_a_pipe_that_closes_is_no_error() -> None:
    close_stdout = "import os, sys; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    finished = python(
        "-c", f"{close_stdout}; from eagleray import cli; sys.exit(cli.run(['check', {DIGITS!r}]))"
    )
    assert (finished.returncode, finished.stderr) == (1, "")


def test_train_follows_its_job(ray: stand_in.Ray, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", DIGITS]) == 0
    [body] = ray.submitted
    assert capsys.readouterr().out == f"job {body['submission_id']}\nhello\n"
    assert body["metadata"] == {"eagleray_verb": "train", "eagleray_name": "digits"}


@pytest.mark.parametrize(
    ("status", "more", "expected_code", "expected"),
    [
        ("FAILED", {"driver_exit_code": 3}, 3, ""),
        ("FAILED", {"driver_exit_code": 2}, 2, ""),
        ("FAILED", {"message": "no such env"}, 1, "eagleray: job j failed to start: no such env\n"),
        ("STOPPED", {}, 130, "eagleray: job j was stopped\n"),
    ],
)
def test_the_exit_code_is_the_jobs(
    ray: stand_in.Ray,
    status: str,
    more: dict[str, object],
    expected_code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray.add("j", "RUNNING", "text\n", ends_as=status, **more)
    assert cli.run(["logs", "--follow", "j"]) == expected_code
    assert capsys.readouterr() == ("text\n", expected)


def test_ctrl_c_detaches_and_says_how_to_go_on(
    ray: stand_in.Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def follow(*_: object) -> Iterator[str]:
        yield "text\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(JobClient, "follow", follow)
    assert cli.run(["train", DIGITS]) == 130
    [job_id] = ray.jobs
    assert ray.jobs[job_id]["status"] == "RUNNING"
    assert f"`eagleray logs -f {job_id}`" in capsys.readouterr().err


def test_jobs_lists_the_newest_first(ray: stand_in.Ray, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["jobs"]) == 0
    assert capsys.readouterr().out.startswith("no jobs yet")
    ray.add("a", "FAILED", start_time=1000, end_time=62_000, entrypoint="python a.py")
    ray.add("b", "SUCCEEDED", start_time=5000, end_time=8000, entrypoint="python b.py")
    assert cli.run(["jobs"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["job", "status", "lasted", "entrypoint"],
        ["b", "SUCCEEDED", "0:03", "python", "b.py"],
        ["a", "FAILED", "1:01", "python", "a.py"],
    ]
    assert cli.run(["jobs", "--json"]) == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)] == ["b", "a"]


def test_stop_says_whether_it_ran(ray: stand_in.Ray, capsys: pytest.CaptureFixture[str]) -> None:
    ray.add("j", "RUNNING")
    assert cli.run(["stop", "j"]) == 0
    assert cli.run(["stop", "j"]) == 0
    assert capsys.readouterr().out == "j: asked to stop\nj: had ended before\n"


@pytest.mark.parametrize("verb", [["logs"], ["logs", "-f"], ["stop"]])
def test_an_unknown_job_is_one_line(
    verb: list[str], ray: stand_in.Ray, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.add("train-digits-1", "RUNNING")
    assert cli.run([*verb, "digits"]) == 2
    assert capsys.readouterr() == (
        "",
        f"eagleray: no job 'digits' on the cluster at {ray.address}: it knows train-digits-1; "
        "see `eagleray jobs`\n",
    )


def test_a_wrong_token_names_the_way_out(
    ray: stand_in.Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert cli.run(["jobs"]) == 1
    assert "does not accept this token" in capsys.readouterr().err
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    assert cli.run(["jobs"]) == 2
    assert "RAY_AUTH_TOKEN_PATH /nowhere: cannot be read" in capsys.readouterr().err


def test_no_option_takes_a_secret() -> None:
    """Command lines are visible to every user of a machine; secrets come from the environment, or a file."""

    def options(command: click.Command) -> Iterator[str]:
        yield from (
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        )
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from options(inner)

    found = set(options(cli.cli))
    assert "--set" in found
    secret = [option for option in found if re.search("token|key|password", option)]
    assert set(secret) <= {"--key-file", "--max-tokens", "--require-key", "--tls-key", "--tokens-per-s"}
