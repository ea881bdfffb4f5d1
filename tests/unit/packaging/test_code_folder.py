"""Folders of code go with their process, however that ends."""

import subprocess
import sys
import tempfile

import pytest

from eagleray.packaging.code_folder import code_folder

HOLDS = """
import sys
from eagleray.packaging.code_folder import code_folder
print(code_folder({"own/net.py": b"VALUE = 7"}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder(scratch):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(scratch), "PYTHONPATH": "platform"},
        text=True,
    )


def test_a_process_that_ends_takes_its_folder_along_and_one_that_was_killed_leaves_it_to_the_next(scratch):
    with holder(scratch) as ends, holder(scratch) as killed, holder(scratch) as lives:
        folders = {one: scratch / one.stdout.readline().strip() for one in (ends, killed, lives)}
        assert all((folder / "own/net.py").read_bytes() == b"VALUE = 7" for folder in folders.values())
        ends.communicate(timeout=20)
        assert not folders[ends].exists()
        killed.kill()
        killed.wait(20)
        assert folders[killed].exists()
        mine = code_folder({})
        assert set(scratch.iterdir()) == {mine, folders[lives]}
        lives.kill()


def test_what_is_no_folder_of_ours_stays(scratch):
    (scratch / "eagleray-code").mkdir()
    (scratch / "other").mkdir()
    code_folder({})
    assert {"eagleray-code", "other"} < {path.name for path in scratch.iterdir()}
