"""How a run or a search ended, for its report."""

import signal
import time

import pytest

from eagleray.errors import TrainingError
from eagleray.workflows.reporting import reporting
from eagleray.workflows.stopping import Stopped


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_block_that_ends_well():
    report = {"started_at": time.time() - 5}
    with reporting(report, unexpected="FAILED"):
        assert report["status"] == "RUNNING"
        report["found"] = 1
    assert (report["status"], report["found"], report["seconds"] >= 5) == ("FINISHED", 1, True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped(), "STOPPED", "stopped by a signal"),
        (KeyboardInterrupt(), "STOPPED", "stopped by a signal"),
        (TrainingError("the loss is not finite"), "FAILED", "the loss is not finite"),
        (KeyError("x"), "unexpected", "KeyError: 'x'"),
        (SystemExit(1), "unexpected", "SystemExit: 1"),
    ],
)
@pytest.mark.parametrize("unexpected", ["FAILED", "STOPPED"])
def test_an_error_is_told_and_goes_on(error, status, said, unexpected):
    report = {"started_at": time.time()}
    with pytest.raises(type(error)) as caught, reporting(report, unexpected=unexpected):
        raise error
    assert caught.value is error
    assert report["status"] == (unexpected if status == "unexpected" else status)
    assert report["error"] == said
