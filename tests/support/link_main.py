"""One end of a link as a process, to be killed: `link_main.py replica FOLDER`, or `gateway ADDRESS`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from eagleray.serving.link.server import LinkServer
from support.links import KEY, MAX_FRAME_BYTES, Doubler, asked, filled, linked, run, slot_of


def replica(folder: str) -> None:
    """Print the address; answer what is small, and hold back what is large."""

    class HoldingLarge(Doubler):
        def answer(self, call) -> None:
            if call.inputs()["x"].nbytes < 1000:
                super().answer(call)
            else:
                held.append(call)

    held: list = []
    server = LinkServer(
        HoldingLarge(), KEY, folder=Path(folder), host="127.0.0.1", max_frame_bytes=MAX_FRAME_BYTES, node="n"
    )
    print(json.dumps(server.start()), flush=True)
    time.sleep(60)


async def gateway(address: str) -> None:
    """Have one request in a slot and one on the socket in flight, take one slot more, and say so."""
    link = await linked(json.loads(address))
    slot, head, length = filled(link, np.ones(100_000, np.float32))
    link.infer_in_slot(slot, 0, length, head, 0, print)
    slot_of(link).view[:4] = b"half"
    await asked(link, x=np.ones(100_000, np.float32))


if __name__ == "__main__":
    if sys.argv[1] == "replica":
        replica(sys.argv[2])
    else:
        run(gateway(sys.argv[2]), 60)
