import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """On two shared cores the threads of tiny products wait for each other: 20 times slower at worst."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
