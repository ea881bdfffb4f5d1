import pytest
import torch
from safetensors.torch import load

from eagleray.packaging.tensors import _DTYPES, Image, pack

base = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "tensors",
    [
        {"transposed": base.T},
        {"whole": base, "again": base, "row": base[1], "column": base[:, 2]},
        {"expanded": torch.ones(1).expand(5)},
        {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "empty2": torch.empty(0)},
        {"conjugate": torch.tensor([1 + 2j]).conj()},
        {"parameter": torch.nn.Parameter(base.clone())},
        {},
    ],
    ids=lambda tensors: "+".join(tensors) or "nothing",
)
def test_any_dense_tensor_comes_back(tensors):
    loaded = load(pack(tensors))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tied_weights_load_into_the_tied_model():
    model = torch.nn.ModuleDict({"in": torch.nn.Linear(3, 3), "out": torch.nn.Linear(3, 3)})
    model["out"].weight = model["in"].weight
    loaded = load(pack(model.state_dict()))
    assert torch.equal(loaded["in.weight"], loaded["out.weight"])


def test_a_sparse_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match=r"grad: .*sparse"):
        pack({"grad": base.to_sparse()})


def test_a_dtype_that_the_format_lacks_is_refused_by_name():
    with pytest.raises(TypeError, match=r"grad: .*complex128"):
        pack({"grad": base.to(torch.complex128)})


def test_every_dtype_of_the_format_comes_back_to_the_bit():
    bits = torch.arange(48, dtype=torch.uint8)
    tensors = {
        name: bits.clone().view(getattr(torch, name)) if name != "bool" else bits > 20 for name in _DTYPES
    }
    loaded = load(pack(tensors))
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_an_image_is_filled_anew_in_the_same_memory():
    image = Image({"w": base, "n": torch.tensor(1)})
    where = image._memory.data_ptr()
    image.fill({"w": base.T.contiguous().T * 2, "n": torch.tensor(7)})
    loaded = load(bytes(image.data))
    assert torch.equal(loaded["w"], base * 2)
    assert loaded["n"] == 7
    assert image._memory.data_ptr() == where
    assert all(view.data_ptr() % 64 % view.dtype.itemsize == 0 for view in image._views.values())


@pytest.mark.parametrize(
    "other",
    [
        {"w": base[1]},
        {"w": base.double()},
        {"v": base},
        {"w": base, "v": base},
        {},
        {"w": base.reshape(4, 3)},
    ],
    ids=["shape", "dtype", "name", "more", "none", "as many numbers"],
)
def test_an_image_fits_its_own_layout_alone(other):
    image = Image({"w": base})
    assert image.fits({"w": base + 1})
    assert not image.fits(other)
