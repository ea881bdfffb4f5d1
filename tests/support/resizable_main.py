"""The driver of a training run whose size is asked for on its standard input, a number in each line.

`python resizable_main.py SPEC [--set a.b=c]`: otherwise as `python -m eagleray.workflows.train`.
"""

from __future__ import annotations

import functools
import sys
import threading

from eagleray.training import trainer
from eagleray.workflows.train import main

SIZE = trainer.Size()


def listen() -> None:
    for line in sys.stdin:
        SIZE.want(int(line))


if __name__ == "__main__":
    trainer.fit = functools.partial(trainer.fit, size=SIZE)
    threading.Thread(target=listen, daemon=True).start()
    sys.exit(main())
