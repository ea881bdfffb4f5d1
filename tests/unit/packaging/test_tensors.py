import pytest
import torch
from safetensors.torch import load

from eagleray.packaging.tensors import pack

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
