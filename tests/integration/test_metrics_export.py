from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray import metrics
from eagleray.monitoring.dashboards import PREFIX

DRIVER = Path(__file__).with_name("export_driver.py")
PLATFORM = Path(metrics.__file__).parents[1]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Short, since Ray's unix sockets lie in it and their paths end at 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="er-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_prometheus_sees_every_metric_under_the_tables_name(short_dir: Path) -> None:
    token = short_dir / "token"
    token.touch(0o600)
    token.write_text("0" * 64)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(PLATFORM),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    driver = subprocess.run(
        [sys.executable, str(DRIVER), str(short_dir / "r")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr
    seen = {(name, kind, run): value for name, kind, run, value in json.loads(driver.stdout.splitlines()[-1])}
    assert seen == {
        (PREFIX + row.name, row.kind, run): 3.0 if row.kind == "gauge" else 5.0
        for row in metrics.TABLE
        for run in ("driver", "worker")
    }
