"""In which folder a replica's unix socket lies."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest

from eagleray.serving.replica import listening
from support.links import KEY

NAME = f"eagleray-link-{os.geteuid()}"


@pytest.mark.parametrize("is_long", [False, True], ids=["its own", "one whose path is too long for a socket"])
def test_replicas_share_a_folder_of_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """A folder for each would be left behind by each that is killed."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s-") as short:
        temporary = tmp_path / ("x" * 100) if is_long else Path(short)
        temporary.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        before = set(Path("/tmp").glob("er-*"))
        server, address = listening.serve(cast("Any", object()), KEY, max_frame_bytes=1 << 16)
        try:
            assert Path(address["unix"]).parent == (Path("/tmp") if is_long else temporary) / NAME
            assert set(Path("/tmp").glob("er-*")) <= before
        finally:
            server.close(0)
        assert not Path(address["unix"]).exists()
