import pytest
import torch

from eagleray import device
from eagleray.errors import SpecError

CPU = device.Place(torch.device("cpu"), "gloo", is_logical_gpu=False)


@pytest.mark.parametrize(("num_gpus", "is_logical"), [(0, False), (1, True)])
def test_without_cuda_a_worker_computes_on_the_cpu_over_gloo(monkeypatch, num_gpus, is_logical):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick(num_gpus) == device.Place(torch.device("cpu"), "gloo", is_logical_gpu=is_logical)


@pytest.mark.parametrize(
    ("local_rank", "num_gpus", "visible", "index"),
    [(None, 1, 1, 0), ("3", 1, 8, 3), ("3", 1, 1, 0), ("1", 2, 4, 2)],
)
def test_the_workers_of_a_node_take_different_gpus(monkeypatch, local_rank, num_gpus, visible, index):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    place = device.pick(num_gpus)
    assert place == device.Place(torch.device("cuda", index), "nccl", is_logical_gpu=False)
    assert taken == [index]


def test_a_worker_without_gpus_stays_on_the_cpu_of_a_machine_that_has_some(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick(0) == CPU


@pytest.mark.parametrize(
    ("precision", "of_parameters", "of_product"),
    [
        ("float32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("float64", torch.float64, torch.float64),
    ],
)
def test_precision_says_the_dtype_of_parameters_and_of_products(precision, of_parameters, of_product):
    assert device.dtype(precision) == of_parameters
    weight = torch.ones(2, 2, dtype=device.dtype(precision))
    with device.autocast(CPU, precision):
        assert (weight @ weight).dtype == of_product


@pytest.mark.parametrize(("is_logical", "found"), [(True, "logical"), (False, "no GPU")])
def test_fp16_on_a_cpu_is_refused_with_a_way_out(is_logical, found):
    place = device.Place(torch.device("cpu"), "gloo", is_logical_gpu=is_logical)
    with pytest.raises(SpecError, match=rf'"fp16" needs CUDA.*{found}.*use "bf16"'):
        device.autocast(place, "fp16")
