"""The base install is light: no ray, no torch, quick to start, and clear about what it leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.serving import Pretend, pretend, serving
from unit.processes import ROOT, fastest_s, python

HEAVY = (
    "ray", "torch", "mlflow", "msgspec", "orjson", "pandas", "pyarrow", "sklearn", "matplotlib", "scipy"
)  # fmt: skip


@pytest.fixture(scope="module")
def ingress() -> Iterator[Pretend]:
    with serving(pretend()) as ingress:
        yield ingress


@pytest.mark.parametrize(
    ("module", "also_absent"),
    [
        ("eagleray.client", ("pydantic", "httpx", "numpy", "websockets")),
        ("eagleray.client.sync, eagleray.client.aio, eagleray.client.outcome", ("pydantic",)),
        ("eagleray.protocol.infer, eagleray.protocol.openai_answers", ("pydantic", "httpx")),
        ("eagleray.cli", ("pydantic", "httpx", "numpy", "rich")),
        ("eagleray.specs", ("httpx", "numpy")),
        ("eagleray.cluster.state", ("pydantic", "httpx", "numpy")),
        ("eagleray.metrics", ()),
    ],
)
def test_importing_loads_nothing_heavy(module: str, also_absent: tuple[str, ...]) -> None:
    finished = python("-c", f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))")
    assert finished.returncode == 0, finished.stderr
    loaded = {name.partition(".")[0] for name in json.loads(finished.stdout)}
    assert loaded.isdisjoint({*HEAVY, *also_absent})


@pytest.mark.alone
@pytest.mark.slow  # a goal for a machine that is free; what it loads is checked above
@pytest.mark.parametrize(
    ("arguments", "limit_s"),
    [
        (["-m", "eagleray.cli", "--help"], 0.25),
        (["-c", "import eagleray.client"], 0.25),
        (["-m", "eagleray.cli", "check", "examples/train/digits.toml"], 0.5),
    ],
    ids=["help", "client", "check"],
)
def test_starting_is_quick(arguments: list[str], limit_s: float) -> None:
    assert fastest_s(arguments, limit_s) <= limit_s


def test_a_verb_against_an_ingress_loads_nothing_heavy(ingress: Pretend) -> None:
    """One process for all: what the first has not loaded, a later one may."""
    verbs = [
        ["models", "list"],
        ["runs", "list"],
        ["deploy", "examples/serve/digits.toml"],
        ["status"],
        ["predict", "gpt", "--text", "ab", "--max-tokens", "3", "--stream"],
        ["undeploy", "tones"],
    ]
    program = f"import sys, json; from eagleray import cli; codes = [cli.run(verb) for verb in {verbs!r}]"
    finished = python(
        "-c",
        f"{program}; print(json.dumps([codes, sorted(sys.modules)]))",
        EAGLERAY_URL=ingress.url,
        EAGLERAY_KEY=ingress.admin_key,
    )
    codes, loaded = json.loads(finished.stdout.splitlines()[-1])
    assert codes == [0] * len(verbs), finished.stderr
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)


@pytest.mark.slow
def test_a_wheel_without_extras(tmp_path: Path, ingress: Pretend) -> None:
    """The wheel in a new environment: small, whole, and clear about what it leaves out."""
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    base_bytes = size_bytes(home)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, timeout=170)

    packages = {path.name.lower() for path in home.glob("lib/python*/site-packages/*")}
    assert packages.isdisjoint(HEAVY)
    assert size_bytes(home) - base_bytes <= 120 * 2**20

    (tmp_path / "local.toml").write_text('kind = "local"\n')
    (tmp_path / "cluster.yaml").touch()

    environment = {
        "PATH": os.environ["PATH"],
        "EAGLERAY_HOME": str(tmp_path / "home"),
        "EAGLERAY_GRAFANA_URL": "http://127.0.0.1:1",
        "EAGLERAY_GRAFANA_TOKEN": "none",
    }

    def eagleray(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(home / "bin/eagleray"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert "Commands:" in eagleray("--help").stdout
    checked = eagleray("check", str(ROOT / "examples/train/digits.toml"))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "no cluster 'local' is running" in eagleray("jobs").stderr
    for verb in (["up"], ["verify-run", "digits-1"], ["dashboards", "publish"]):
        refused = eagleray(*verb)
        assert refused.returncode == 1
        assert "pip install '.[platform]' in a checkout, or 'WHEEL[platform]'" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1

    environment |= {"EAGLERAY_URL": ingress.url, "EAGLERAY_KEY": ingress.admin_key}
    for verb in (
        ["models", "list"],
        ["runs", "list"],
        ["deploy", str(ROOT / "examples/serve/digits.toml")],
        ["status"],
        ["predict", "gpt", "--text", "ab", "--stream"],
        ["keys", "create", "app"],
    ):
        answered = eagleray(*verb)
        assert answered.returncode == 0, answered.stderr


def size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
