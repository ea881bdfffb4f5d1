import pytest


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """A folder with one SQLite file for all: making it takes seconds."""
    return tmp_path_factory.mktemp("mlflow")
