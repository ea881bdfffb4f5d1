"""A compressor of the user's own, tried before the first step: what is wrong is told by its name, and early.

Else it would come out in the middle of a backward pass, on all ranks at once, or not at all. Those that come
with Eagleray are not tried; their tests do that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch

from eagleray.compression.compressor import Compressor
from eagleray.compression.dry import DryWire, sample_of
from eagleray.compression.layout import Layout
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Step
from eagleray.errors import InputError
from eagleray.specs.functions import told

SAMPLE = 1 << 16
"""Elements, about, that it is tried on: milliseconds, also where it is written with torch operations."""
_BIND = "bind(layout, wire, memory) takes the model, the ranks and the state"
_SENDS = "sends_residual(place) returns True or False"
_PLAN = "plan(bucket, device) returns an object with a method run(gradient, step)"
_RUN = (
    "run(gradient, step) is a generator that leaves the mean in `gradient`, yields before each wait, and "
    "returns -1, or the index in the bucket of a parameter that was not finite on some rank"
)


def try_out(compressor: Compressor, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
    """Take two steps of one bucket, over a wire whose peers send what this rank sends.

    Args:
        compressor: is to be bound anew afterwards. One of Eagleray's is left alone.
        layout: of the model; the bucket is like its last parameters.
        device: of the gradients.
        dtype: of the gradients, which a compressor without `keeps_dtype` gets in float32.

    Raises: InputError: it names the compressor, what it did, and what was expected.
    """
    if type(compressor).__module__.partition(".")[0] == "eagleray" or not layout.places:
        return
    trial = _Trial(compressor)
    sample, bucket = sample_of(layout, SAMPLE)
    wire = DryWire(layout.world_size, device)
    trial.call("bind", _BIND, compressor.bind, sample, wire, Memory(sample, device))
    for place in bucket.places:
        sends = trial.call("sends_residual", _SENDS, compressor.sends_residual, place)
        trial.expect(isinstance(sends, bool), f"sends_residual returned {_shown(sends)}", _SENDS)
    plan = trial.call("plan", _PLAN, compressor.plan, bucket, device)
    trial.expect(
        callable(getattr(plan, "run", None)), f"plan returned {_shown(plan)}, which has no run", _PLAN
    )
    gradient = torch.randn(bucket.numel, generator=torch.Generator().manual_seed(0)).to(device)
    gradient = gradient.to(dtype if compressor.keeps_dtype else torch.float32)
    for number in (1, 2):
        running = trial.call("run", _RUN, plan.run, gradient.clone(), Step(number, 0))
        is_generator = isinstance(running, Generator)
        trial.expect(is_generator, f"run returned {_shown(running)} at once: it has no yield", _RUN)
        bad = trial.call("run", _RUN, _finish, running)
        is_index = isinstance(bad, int) and not isinstance(bad, bool)
        trial.expect(is_index, f"run returned {_shown(bad)}", _RUN)
        trial.expect(bad == -1, f"run returned {bad}, and the gradient was finite on all ranks", _RUN)
        wire.is_first = False


class _Trial:
    """Says of whom it speaks."""

    def __init__(self, compressor: Compressor):
        kind = type(compressor)
        self._who = f"compressor {compressor.name!r} ({kind.__module__}:{kind.__qualname__})"
        is_text = isinstance(compressor.name, str)
        self.expect(is_text, f"its name is {_shown(compressor.name)}", "name is a text, for messages")

    def call(self, what: str, expected: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns. Raises: InputError: it has raised."""
        try:
            return function(*arguments)
        except Exception as error:
            raise self._wrong(f"{what} raised {told(error)}", expected) from error

    def expect(self, is_right: bool, found: str, expected: str) -> None:
        """Raises: InputError: it is not."""
        if not is_right:
            raise self._wrong(found, expected)

    def _wrong(self, found: str, expected: str) -> InputError:
        return InputError(
            f"{self._who}: {found}, when it was tried on a bucket like the model's; {expected} "
            "(eagleray/compression/compressor.py)"
        )


def _finish(running: Generator[None, None, Any]) -> Any:
    """What a generator returns at its end."""
    while True:
        try:
            next(running)
        except StopIteration as stop:
            return stop.value


def _shown(value: Any) -> str:
    """A value, short; of a tensor what kind it is."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
