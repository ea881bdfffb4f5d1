"""A replica of the pretending model `tones` as a process: `replica_main.py FOLDER`. It prints its address.

What begins with a value below 0 is never answered.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from eagleray.serving.link import tensors
from eagleray.serving.link.calls import Call, GenerateCall, InferCall
from eagleray.serving.link.server import LinkServer
from support.linked import LINKS, NODE
from support.links import KEY, TIMINGS
from support.serving import card, outputs_for

TONES = card("tones")


class Tones:
    """A link's Handler that answers at once."""

    def __init__(self) -> None:
        self.held: list[Call] = []

    def infer(self, call: InferCall) -> None:
        inputs = call.inputs()
        [values] = inputs.values()
        if values.flat[0] < 0:
            self.held.append(call)
        else:
            call.answer(tensors.write(outputs_for(TONES, inputs)), TIMINGS)

    def generate(self, call: GenerateCall) -> None:
        call.refuse("it makes no text")

    def cancel(self, call: Call) -> None:
        if call in self.held:
            self.held.remove(call)
            call.expire()

    def flush(self) -> None:
        """Each is answered as it comes."""


if __name__ == "__main__":
    server = LinkServer(
        Tones(), KEY, folder=Path(sys.argv[1]), host="127.0.0.1", max_frame_bytes=LINKS["max_frame_bytes"],
        node=NODE,
    )  # fmt: skip
    print(json.dumps(server.start()), flush=True)
    sys.stdin.read()  # until whoever started it is gone
    server.close(0)
