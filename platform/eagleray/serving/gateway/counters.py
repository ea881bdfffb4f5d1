"""`Counters`: /metrics of all gateways of one machine, told apart, whichever of them is asked.

They share a port: who asks there gets any. So each writes down what it has counted, once a second
while there are others, and the one that is asked adds what they have written: every sample has the label
`gateway`, a small number that a gateway has while it lives, and that its successor takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from eagleray.serving.gateway import numbers
from eagleray.serving.ingress.metrics import IngressMetrics

WRITE_S = 1.0
_STEM = "counters"
_log = logging.getLogger(__name__)


class Counters:
    """For one event loop.

    Args:
        folder: Of the cluster's gateways on this machine; made where it is not there.
        metrics: This gateway's.
    """

    def __init__(self, folder: Path, metrics: IngressMetrics) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._metrics = folder, metrics
        self._lock, self.number = numbers.take(folder, _STEM)
        self._is_told = False
        self.has_others = False
        """Whether this gateway's counters are to be written down."""

    def page(self) -> str:
        """All of it, in Prometheus's text format; what others counted may be a second old."""
        texts = {self.number: self._metrics.text()}
        for path in self._folder.glob(f"{_STEM}.*.prom"):
            number = int(path.suffixes[-2][1:])
            if number != self.number and numbers.is_taken(self._folder, _STEM, number):
                with contextlib.suppress(FileNotFoundError):  # it has just left
                    texts[number] = path.read_text(encoding="utf-8")
        return together(texts)

    async def keep_writing(self) -> None:
        """Write down what was counted, every second, until it is cancelled."""
        while True:
            await asyncio.sleep(WRITE_S)
            if self.has_others:
                await asyncio.to_thread(self._write, self._metrics.text())

    def close(self) -> None:
        """Let go of the number: what was counted under it is no longer shown."""
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    @property
    def _path(self) -> Path:
        return self._folder / f"{_STEM}.{self.number}.prom"

    def _write(self, text: str) -> None:
        aside = self._path.with_suffix(".new")
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._path)
            self._is_told = False
        except OSError as error:
            if not self._is_told:
                _log.warning("other gateways do not see this one's counters: %s", error)
            self._is_told = True


def together(texts: dict[int, str]) -> str:
    """The pages of several gateways as one: a metric's samples stand together, each with its gateway."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in sorted(texts.items()):
        name = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                heads.setdefault(name, [])
                samples.setdefault(name, [])
            if not line.startswith("#"):
                samples[name].append(_labelled(line, number))
            elif line not in heads[name]:
                heads[name].append(line)
    lines: Iterable[str] = (line for name in heads for line in (*heads[name], *samples[name]))
    return "".join(f"{line}\n" for line in lines)


def _labelled(line: str, number: int) -> str:
    label = f'gateway="{number}"'
    before, brace, after = line.partition("{")
    if brace:
        return f"{before}{{{label},{after}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"
