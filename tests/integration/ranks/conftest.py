import pytest

from eagleray.compression import kernels


@pytest.fixture(scope="session", autouse=True)
def _compiled():
    """On a machine that has not compiled them yet: the tests are of the compiled kernels."""
    kernels.wait()
