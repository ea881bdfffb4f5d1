"""A state from one rank to another, without a network: what one sends, the other receives in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eagleray.training import agreement as agreement_module
from eagleray.training.agreement import Agreement


class Wired(Agreement):
    """One of two ranks: 1 sends into `wire`, 0 takes out of it."""

    def __init__(self, rank: int, wire: list[Tensor]):
        pair: Any = SimpleNamespace(rank=rank, world_size=2)
        super().__init__(pair)
        self._wire = wire

    def _send(self, source: int, tensor: Tensor) -> None:
        if self._group.rank == source:
            self._wire.append(tensor.clone())
        elif tensor.numel():
            tensor.copy_(self._wire.pop(0))
        else:
            self._wire.pop(0)


@pytest.mark.parametrize(("piece_bytes", "num_parcels"), [(1 << 20, 1), (40, 7), (16, 13)])
def test_a_state_is_sent_in_parcels_and_arrives_as_it_was(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, num_parcels: int
) -> None:
    monkeypatch.setattr(agreement_module, "_PIECE_BYTES", piece_bytes)
    tensors = {
        "w": torch.randn(3, 4),  # 48 bytes
        "half": torch.randn(5).to(torch.bfloat16),
        "step": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "m": torch.randn(4, 4, dtype=torch.float64).t(),  # 128, not contiguous
    }
    wire: list[Tensor] = []
    Wired(1, wire).broadcast(1, tensors, {"step": 7})
    sizes = [one.numel() for one in wire[2:]]  # after the length of the document, and it
    assert (len(sizes), max(sizes) <= piece_bytes) == (num_parcels, True)
    found, document = Wired(0, wire).broadcast(1, None, None)
    assert (document, list(found), wire) == ({"step": 7}, list(tensors), [])
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_who_receives_a_state_holds_no_more_than_a_parcel_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement_module, "_PIECE_BYTES", 64)
    made: list[int] = []
    empty, cat = torch.empty, torch.cat

    def counted(make: Any) -> Any:
        def made_of(*arguments: Any, **more: Any) -> Tensor:
            found = make(*arguments, **more)
            made.append(found.numel() * found.element_size())
            return found

        return made_of

    tensors = {f"w{index}": torch.randn(4) for index in range(100)}
    wire: list[Tensor] = []
    Wired(1, wire).broadcast(1, tensors, None)
    num_text_bytes = wire[1].numel()
    monkeypatch.setattr(agreement_module.torch, "empty", counted(empty))
    monkeypatch.setattr(agreement_module.torch, "cat", counted(cat))
    Wired(0, wire).broadcast(1, None, None)
    assert max(size for size in made if size != num_text_bytes) <= 64
