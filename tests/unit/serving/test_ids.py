import os
import re

from eagleray.serving import ids


def test_ids_have_their_length_and_do_not_meet():
    found = {ids.fresh(8) for _ in range(10_000)}
    assert len(found) == 10_000
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in found)
    assert len(ids.fresh(24)) == 48


def test_a_process_that_was_forked_makes_others():
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, ids.fresh(24).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = os.read(read, 48).decode()
    assert theirs != ids.fresh(24)
    os.close(read)
    os.close(write)
