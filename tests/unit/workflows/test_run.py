"""The driver's main: an error in words and an exit code."""

import errno

import pytest

from eagleray.errors import DataError
from eagleray.workflows.run import drive


def failing(error):
    def make_run():
        raise error

    return make_run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("x.csv: the file is empty"), 2, "error: x.csv: the file is empty\n"),
        (OSError(errno.ENOSPC, "full"), 1, "No space left on device; make room there"),
        (OSError(errno.EROFS, "read-only"), 1, "Read-only file system"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, code, said):
    assert drive(failing(error), 0.0) == code
    assert said in capsys.readouterr().err


def test_any_other_error_of_the_system_shows_where():
    with pytest.raises(BrokenPipeError):
        drive(failing(BrokenPipeError(errno.EPIPE, "gone")), 0.0)
