"""`python -m eagleray.workflows.hold [--cpu N] [--gpu N] [--units N] [--label K=V] -- COMMAND…`: a plain job.

It waits in the ledger's queue until the cluster has room for the job, runs the command, and gives the room
back at its end. The command runs here, as a driver does; what it starts on the cluster is placed by Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from eagleray.capacity import Request
from eagleray.cluster import job_ray260
from eagleray.errors import EaglerayError, InputError
from eagleray.workflows.connecting import connect
from eagleray.workflows.queueing import Queue
from eagleray.workflows.stopping import stoppable

NODES = "EAGLERAY_HELD_NODES"
"""Tells the command where its room is: units by node id, `<id>=1,<id>=2`."""
LOOK_S = 0.25
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
SIGNALLED = 128
"""Exit code of a shell, and the number of the signal on top, where a signal ended the command."""
_START = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: SIGKILL when the parent is gone
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"error: {sys.argv[2]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""
"""Between fork and the command. (A `preexec_fn` may hang: Ray's threads are in this process.)"""


def hold(request: Request, command: Sequence[str], env: Mapping[str, str], say: Callable[[str], None]) -> int:
    """Wait for the claim, then run the command; returns its exit code.

    This process is connected to the cluster. Where that has no ledger, the command runs at once.

    Raises:
        InputError, CapacityError: the ledger does not take the claim.
        Stopped: SIGTERM came while it waited.
    """
    from eagleray.cluster.holding import Holding
    from eagleray.cluster.ledger_client import LedgerClient

    ledger = LedgerClient.find()
    if ledger is None:
        say("this cluster has no ledger: the command runs at once")
        return run(command, env)
    holding = Holding(ledger, request)
    try:
        queue = Queue(request.claim, ledger.report, say)
        while (found := holding.wait(lambda one: one.size >= request.wanted, LOOK_S)) is None:
            queue.look(is_waiting=True)
        holding.state(used=found.units)
        units = ",".join(f"{node}={number}" for node, number in sorted(found.units.items()))
        return run(command, {**env, NODES: units})
    finally:
        holding.close()


def run(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the command with this process's input, output and signals; returns its exit code, as a shell would.

    It is in a process group of its own, so that a signal to the whole job reaches it once, from here; and it
    does not outlive this process.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: object) -> None:
        if child is None:
            early.append(number)
        elif child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        start = (sys.executable, "-I", "-S", "-c", _START, str(os.getpid()))
        child = subprocess.Popen((*start, *command), env=dict(env), process_group=0)
        for number in early:
            forward(number, None)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else SIGNALLED - code


def request_of(
    *, cpu: float, gpu: float, units: int, labels: Sequence[str], command: Sequence[str]
) -> Request:
    """What a job claims. Raises: InputError: it asks for nothing, or a label is not `key=value`."""
    pairs = [label.partition("=") for label in labels]
    for label, (key, equals, _) in zip(labels, pairs, strict=True):
        if not key or not equals:
            raise InputError(f"--label {label}: want KEY=VALUE, for instance --label accelerator=L4")
    if units < 1:
        raise InputError(f"--units {units}: want 1 or more")
    submission = job_ray260.submission_id()
    return Request.job(
        f"{submission or 'job'}-{secrets.token_hex(3)}",
        f"job {submission or shlex.join(command)[:40]}",
        {name: amount for name, amount in (("CPU", cpu), ("GPU", gpu)) if amount},
        units=units,
        label_selector={key: value for key, _, value in pairs},
    )


@stoppable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` in its turn.

    Returns its exit code; 2 for bad input, 3 where there can never be room, 1 where it was stopped before.
    """
    import argparse

    parser = argparse.ArgumentParser(
        prog="hold", description="Run COMMAND when the ledger grants what it needs, and hold that to its end."
    )
    parser.add_argument("--cpu", type=float, default=0.0, metavar="N", help="CPUs of a unit")
    parser.add_argument("--gpu", type=float, default=0.0, metavar="N", help="GPUs of a unit")
    parser.add_argument("--units", type=int, default=1, metavar="N", help="each on one node; default 1")
    parser.add_argument(
        "--label", dest="labels", action="append", default=[], metavar="K=V", help="that its nodes must have"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --, with its arguments")
    given = parser.parse_args(argv)
    env = dict(os.environ)  # as it was before Ray adds to it
    try:
        request = request_of(
            cpu=given.cpu, gpu=given.gpu, units=given.units, labels=given.labels, command=given.command
        )
        connect()
        return hold(request, given.command, env, _say)
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
