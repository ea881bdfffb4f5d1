"""`models`, `deploy`, `undeploy`, `keys`, `status` against an ingress without Ray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from eagleray.errors import CapacityError, ServiceError
from support.serving import SIGNATURES, Pretend
from unit.cli.conftest import Run
from unit.processes import ROOT

DIGITS = str(ROOT / "examples/serve/digits.toml")


def test_models_are_listed(run: Run, ingress: Pretend) -> None:
    said = run("models", "list")
    assert said.code == 0
    header, *rows = said.out.splitlines()
    assert header.split() == ["model", "versions", "aliases", "deployed"]
    assert [row.split()[0] for row in rows] == list(SIGNATURES)
    assert said.err == "next: eagleray models show digits\n"
    found = run("models", "list", "--json")
    assert [model["name"] for model in found.json] == list(SIGNATURES)
    assert found.err == ""


def test_no_models_yet(run: Run, ingress: Pretend) -> None:
    async def none() -> list[dict[str, Any]]:
        return []

    ingress.admin.models = none
    said = run("models", "list")
    assert (said.out, said.err) == ("no models yet\n", "next: eagleray publish RUN --name NAME\n")
    assert run("models", "list", "--json").json == []


@pytest.mark.parametrize(
    ("ref", "number"), [("digits", 2), ("digits@candidate", 2), ("digits/versions/1", 1)]
)
def test_a_version_is_shown_with_its_model(ref: str, number: int, run: Run, ingress: Pretend) -> None:
    said = run("models", "show", ref)
    assert said.code == 0
    versions, _, meant = said.out.partition("\n\n")
    assert [line.split()[0] for line in versions.splitlines()] == ["version", "1", "2"]
    assert meant.splitlines()[0] == f"digits/versions/{number}"
    assert re.search(r"run id +r1$", meant, re.MULTILINE)
    assert re.search(r"metrics +accuracy 0\.5$", meant, re.MULTILINE)
    shown = run("models", "show", ref, "--json").json
    assert (shown["version"]["version"], len(shown["versions"])) == (number, 2)


def test_an_alias_is_promoted(run: Run, ingress: Pretend) -> None:
    said = run("models", "promote", "digits", "2", "production")
    assert said.out == "digits@production is version 2\n"
    assert ingress.admin.promoted == [("digits", 2, "production")]
    assert run("models", "promote", "digits", "1", "old", "--json").json == {
        "name": "digits",
        "version": 1,
        "alias": "old",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "show", "none"], "no model 'none'; there are: digits"),
        (["models", "show", "digits@none"], "model 'digits' has no alias 'none'; versions: 1, 2"),
        (["models", "show", "digits/versions/9"], "model 'digits' has no version 9; versions: 1, 2"),
        (["models", "show", "../x"], "model name '../x' cannot be used"),
        (["models", "show", "a#b"], "model name 'a#b' cannot be used"),
        (["models", "show", "n" * 300], "model name 'n"),
        (["models", "promote", "none", "1", "a"], "no model 'none'"),
        (["models", "promote", "digits", "1", "7"], "alias '7' cannot be used"),
        (["undeploy", "none"], "no model 'none' is deployed; deployed: digits"),
        (["keys", "create", "app", "--scope", "root"], "scope 'root' is not known"),
        (["keys", "create", "\x07"], "key name"),
        (["keys", "revoke", "none"], "no key has the id 'none'"),
        (["keys", "rotate", "none"], "no key has the id 'none'"),
        (["keys", "create", "app", "--weight", "0"], "weight: expected a whole number from 1 to 100"),
        (["keys", "create", "app", "--burst", "5"], "burst: expected 1 or more, beside requests_per_s"),
        (["keys", "create", "app", "--model", "A B"], "models: 'A B' is none"),
        (["deploy", "none.toml"], "none.toml: no such file"),
        (["deploy", DIGITS, "--set", "name=none"], "no model 'none'; there are: digits"),
        (["deploy", DIGITS, "--set", "max_replicas=0"], f"{DIGITS}: max_replicas: "),
        (["deploy", str(ROOT / "examples/train/digits.toml")], "kind: is a train spec; give a service spec"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: Sequence[str], message: str, run: Run, ingress: Pretend
) -> None:
    said = run(*arguments)
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("eagleray: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_deploy_waits_and_shows_each_state(run: Run, ingress: Pretend) -> None:
    states = ["starting", "starting", "ready"]

    async def services() -> list[dict[str, Any]]:
        return [{"name": "digits", "version": 1, "state": states.pop(0), "replicas": 1}]

    ingress.admin.services = services
    said = run("deploy", DIGITS, "--set", "min_replicas=2")
    assert (said.code, said.out) == (0, f"digits/versions/1 is ready at {ingress.url}\n"), said
    first, ready, following = said.err.splitlines()
    assert first == "digits/versions/1 is starting"
    assert re.fullmatch(r"ready after \d+\.\d s", ready)
    assert following.startswith("next: eagleray predict digits FILE   or --text")
    [spec] = ingress.admin.deployed
    assert (spec["name"], spec["min_replicas"], spec["kind"]) == ("digits", 2, "service")


def test_deploy_may_return_at_once(run: Run, ingress: Pretend) -> None:
    said = run("deploy", DIGITS, "--no-wait", "--json")
    assert said.json["name"] == "digits"
    assert said.json["state"] in ("ready", "starting")
    assert said.err == ""


@pytest.mark.parametrize(
    ("state", "more", "message"),
    [
        ("failed", [], "model 'digits' version 1 failed to start: no such module"),
        ("starting", ["--timeout-s", "0.3"], "model 'digits' version 1 is still starting after 0.3 s"),
    ],
)
def test_a_deploy_that_does_not_come_up_fails(
    state: str, more: list[str], message: str, run: Run, ingress: Pretend
) -> None:
    async def services() -> list[dict[str, Any]]:
        return [{"name": "digits", "version": 1, "state": state, "message": "no such module"}]

    ingress.admin.services = services
    said = run("deploy", DIGITS, *more)
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines()[-1].startswith(f"eagleray: {message}")


def test_ctrl_c_leaves_it_starting(run: Run, ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eagleray.cli.services._found", interrupt)
    said = run("deploy", DIGITS)
    assert (said.code, said.out) == (130, "")
    assert "it goes on starting" in said.err
    assert len(ingress.admin.deployed) == 1


def test_what_never_fits_is_exit_code_3(run: Run, ingress: Pretend) -> None:
    ingress.admin.error = CapacityError("wants 64 CPU; node types allow at most 2")
    assert run("deploy", DIGITS).code == 3


def test_undeploy_says_what_went(run: Run, ingress: Pretend) -> None:
    assert run("undeploy", "digits", "--version", "3").out == "digits: undeployed version 3\n"
    assert run("deploy", DIGITS).code == 0
    assert run("undeploy", "digits", "--json").json == {"name": "digits", "versions": [1]}


def test_gateways_are_shown_replaced_and_counted(
    run: Run, ingress: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run("gateways", "show")
    assert shown.out == "1 gateways, 1 running, as asked for\n"
    assert shown.err.splitlines()[0] == "next: eagleray gateways restart"
    assert run("gateways", "restart").out == "1 gateways, 1 running, as asked for\n"
    assert run("gateways", "scale", "3", "--no-wait", "--json").json == {
        "number": 3, "running": 3, "is_settled": False, "restarts": 1, "message": "",
    }  # fmt: skip
    assert run("gateways", "scale", "65").code == 2
    monkeypatch.setattr("eagleray.cli.gateways.WAIT_S", -1.0)
    late = run("gateways", "restart")
    assert (late.code, late.out) == (1, "")
    assert "not as asked for after -1 s (no reason known); it goes on" in late.err


def test_a_key_lives_until_it_is_revoked(run: Run, ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("keys", "create", "my app", "--scope", "infer", "--scope", "admin")
    [key] = made.out.splitlines()
    assert re.fullmatch("er_[0-9a-f]{8}_[0-9a-f]{64}", key)
    assert "shown this once" in made.err
    assert key not in made.err
    listed = run("keys", "list")
    assert "my app" in listed.out
    assert key[-64:] not in listed.out
    key_id = key.split("_")[1]
    assert {entry["id"] for entry in run("keys", "list", "--json").json} >= {key_id}
    monkeypatch.setenv("EAGLERAY_KEY", key)
    assert run("models", "list").code == 0
    monkeypatch.setenv("EAGLERAY_KEY", ingress.admin_key)
    assert run("keys", "revoke", key_id).out == f"key {key_id} is revoked\n"
    monkeypatch.setenv("EAGLERAY_KEY", key)
    refused = run("models", "list")
    assert (refused.code, refused.out) == (1, "")
    assert "wrong or was revoked" in refused.err


def test_a_key_with_terms_is_made_shown_and_rotated(run: Run, ingress: Pretend) -> None:
    made = run(
        "keys", "create", "app", "--model", "digits", "--model", "gpt-*", "--requests-per-s", "20",
        "--bytes-per-s", "2Mi", "--concurrency", "4", "--weight", "3", "--priority", "batch",
        "--expires-in", "12h",
    )  # fmt: skip
    said = "digits gpt-*, 20 requests/s, 2,097,152 bytes/s, 4 at a time, weight 3, batch, until 20"
    assert f"'app', infer, {said}" in made.err
    assert said in run("keys", "list").out
    [entry] = [entry for entry in run("keys", "list", "--json").json if entry["name"] == "app"]
    assert (entry["terms"]["models"], entry["terms"]["bytes_per_s"]) == (["digits", "gpt-*"], 2.0 * 2**20)
    assert entry["terms"]["expires_at"] - entry["created_at"] == pytest.approx(12 * 3600, abs=60)
    rotated = run("keys", "rotate", entry["id"], "--overlap", "30m")
    assert re.fullmatch(f"er_{entry['id']}_[0-9a-f]{{64}}\n", rotated.out)
    assert rotated.out != made.out
    assert "its old text is good until 20" in rotated.err
    assert "old text until 20" in run("keys", "list").out
    assert "its old text is no longer good" in run("keys", "rotate", entry["id"], "--overlap", "0s").err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--requests-per-s", "many"), "'many': expected a number such as 10, 2.5, 10M or 64Mi"),
        (("--expires-in", "1 year"), "'1 year': expected a time such as 90s, 30m, 12h or 7d"),
        (("--priority", "high"), "'high' is not one of"),
    ],
)
def test_terms_that_the_command_line_refuses(option: tuple[str, str], message: str, run: Run) -> None:
    said = run("keys", "create", "app", *option)
    assert (said.code, message in said.err) == (2, True), said


def test_a_key_as_json_has_its_text(run: Run, ingress: Pretend) -> None:
    made = run("keys", "create", "app", "--json").json
    assert made["scopes"] == ["infer"]
    assert made["key"].startswith(f"er_{made['id']}_")


def test_status_of_an_ingress(run: Run, ingress: Pretend) -> None:
    said = run("status")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == f"ingress {ingress.url}: ready, eagleray 0"
    assert "NOTE: the ingress runs eagleray 0, and " in said.out
    assert [line.split()[:3] for line in lines if line.startswith("digits")] == [
        ["digits", "2", "ready"],
        ["digits", "3", "ready"],
    ]
    found = run("status", "--json").json
    assert found["ingress"]["cluster"] == "pretend"
    assert {(entry["name"], entry["version"]) for entry in found["services"]} >= {("digits", 2), ("gpt", 1)}


def test_status_says_why_there_are_so_many_replicas(run: Run, ingress: Pretend) -> None:
    async def services() -> list[dict[str, Any]]:
        scaling = {"wanted": 5, "runs": 2, "reason": "2000 samples/s come", "at": 1.0}
        found = {"name": "digits", "state": "ready", "replicas": 2}
        return [
            {**found, "version": 1, "scaling": scaling},
            {**found, "version": 2, "scaling": {**scaling, "reason": ""}},
            {**found, "version": 3, "scaling": None},
        ]

    ingress.admin.services = services
    lines = [line.strip() for line in run("status").out.splitlines() if line.startswith("digits")]
    assert lines[0].endswith("digits/versions/1  wants 5: 2000 samples/s come")
    assert "wants" not in "".join(lines[1:])
    found = run("status", "--json").json["services"][0]
    assert (found["wanted"], found["reason"]) == (5, "2000 samples/s come")


def test_status_says_who_holds_what_and_what_waits_for_what(run: Run, ingress: Pretend) -> None:
    lines = run("status").out.splitlines()
    begin = lines.index("claims:")
    table = [re.split(r"  +", line) for line in lines[begin + 1 : begin + 5]]
    assert table == [
        ["holder", "class", "has", "wants", "where"],
        ["service digits version 2", "-", "nothing", "1", "-"],
        [
            *("run gpt-7f3a", "1 training minimum, 1 training share", "2 CPU", "2"),
            "node-a: 1 CPU; node-b: 1 CPU",
        ],
        ["without a claim", "-", "0.5 CPU", "-", "node-a: 0.5 CPU"],
    ]
    assert lines[begin + 5 : begin + 7] == [
        "service digits version 2 has waited 0:02 for 1 CPU: waits for run gpt-7f3a to give it back",
        "run gpt-7f3a gives back node-b: 1 CPU within 7 s: needed by service digits version 2",
    ]
    found = run("status", "--json").json["claims"]
    assert [claim["holder"] for claim in found["claims"]] == ["service digits version 2", "run gpt-7f3a"]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"trouble": "this cluster has no ledger"}, "claims: this cluster has no ledger"),
        ({"trouble": "", "time_s": 1.0, "nodes": [], "claims": []}, "claims: none"),
    ],
)
def test_status_where_nobody_holds_anything(run: Run, ingress: Pretend, held: Any, said: str) -> None:
    ingress.admin.held = held
    assert said in run("status").out.splitlines()


def test_status_of_a_run_that_is_suspended(run: Run, ingress: Pretend) -> None:
    ingress.admin.held["claims"][1]["notice"]["is_suspension"] = True
    said = "run gpt-7f3a is suspended: it gives back everything within 7 s: needed by service"
    assert said in run("status").out


def test_status_of_what_is_ended_by_force_and_of_nodes_that_were_asked_for(
    run: Run, ingress: Pretend
) -> None:
    held = ingress.admin.held
    held["claims"][1]["notice"] |= {"is_evicted": True, "left_s": 0.0}
    held["claims"][0]["wait"] |= {"units": 2, "reason": "no room"}
    held["asks"] = [{"claim": "serve:m--digits--v2", "bundle": {"CPU": 1.0}, "count": 2, "num_new": 1}]
    said = run("status").out.splitlines()
    assert (
        "service digits version 2 has waited 0:02 for 2 CPU: no room; nodes for 1 CPU have been asked for"
    ) in said
    assert (
        "run gpt-7f3a was to give back node-b: 1 CPU, which is ended by force: needed by service digits "
        "version 2"
    ) in said


def test_status_says_what_is_wrong(run: Run, ingress: Pretend) -> None:
    ingress.admin.error = ServiceError("the controller is starting")
    said = run("status")
    assert (said.code, said.err) == (1, "eagleray: the controller is starting\n")
