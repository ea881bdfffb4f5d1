"""What a transformer keeps of several texts that grow side by side, each in a slot of its own.

Names: S slots, C capacity of a slot in steps, R rows (one token of one slot each), N parts given, H heads, D
width of a head, L layers, T steps looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.models.attention import rotation_of


class Part(NamedTuple):
    """The next tokens of one slot."""

    slot: int
    tokens: Sequence[int]
    """At least one, and with those held no more than the capacity."""


class Group(NamedTuple):
    """Rows whose attention is one call: as many of each of some neighbouring slots."""

    slots: slice
    rows: slice
    num_slots: int
    num_steps: int
    """Of the longest of the slots: T."""
    hidden_N1RT: Tensor | None
    """0 where a row looks, -inf where what its slot holds comes after it; None where each sees all of T, or
    with `is_causal`."""
    is_causal: bool


@dataclass(frozen=True)
class Plan:
    """Where the rows of one pass stand in the cache, and what each may look at; the same for all layers."""

    tokens_R: Tensor
    places_R2H: Tensor
    """Where each head's key and value go, in steps from the start of a layer's cache."""
    cos_R11D: Tensor
    sin_R11D: Tensor
    """Angles as `SlottedLayer.attend` takes them: both halves, the first one's sine negative."""
    groups: Sequence[Group]
    """All rows, in order."""
    last_N: Tensor | None
    """The last row of each part as given; None if the rows are the parts."""


class SlottedLayer:
    """Keys, rotated by their positions, and values of one attention layer, of all slots."""

    def __init__(self, kv_2SHCD: Tensor):
        self.kv_2SHCD = kv_2SHCD
        self.plan: Plan | None = None
        """Of the pass that runs."""

    def attend(self, qkv_R3HD: Tensor) -> Tensor:
        """What each row gathers of its own slot up to itself [R, H, D]; keys and values are kept.

        Queries and keys in `qkv_R3HD` are rotated afterwards.
        """
        plan = self.plan
        assert plan is not None
        qk_R2HD = qkv_R3HD[:, :2]
        swapped_R2HD = qk_R2HD.roll(qk_R2HD.shape[-1] // 2, -1)
        qk_R2HD.mul_(plan.cos_R11D).addcmul_(swapped_R2HD, plan.sin_R11D)
        self.kv_2SHCD.flatten(0, 3).index_copy_(0, plan.places_R2H.flatten(), qkv_R3HD[:, 1:].flatten(0, 2))
        q_RHD = qkv_R3HD[:, 0]
        mixed = [self._mix(q_RHD[group.rows], group) for group in plan.groups]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _mix(self, q_RHD: Tensor, group: Group) -> Tensor:
        k_NHTD, v_NHTD = self.kv_2SHCD[:, group.slots, :, : group.num_steps]
        q_NHRD = q_RHD.unflatten(0, (group.num_slots, -1)).transpose(1, 2)
        mixed_NHRD = F.scaled_dot_product_attention(
            q_NHRD, k_NHTD, v_NHTD, attn_mask=group.hidden_N1RT, is_causal=group.is_causal
        )
        return mixed_NHRD.transpose(1, 2).flatten(0, 1)


class SlottedCache:
    """The caches of all layers: slots of `capacity` steps each, at positions 0, 1, … of the rotation.

    Memory, taken at once: 2 x layers x slots x capacity x width values of the type of `like`.
    """

    def __init__(
        self, num_layers: int, *, num_slots: int, num_heads: int, capacity: int, head_width: int, like: Tensor
    ):
        self.capacity = capacity
        self.num_held = [0] * num_slots
        """Steps held of each slot."""
        # Zeros: a step that is not looked at has weight 0, and 0 x NaN would be NaN.
        self._kv_L2SHCD = like.new_zeros(num_layers, 2, num_slots, num_heads, capacity, head_width)
        self._steps_C = torch.arange(capacity, device=like.device)
        self.layers = [SlottedLayer(kv_2SHCD) for kv_2SHCD in self._kv_L2SHCD]
        heads_H = torch.arange(num_heads, device=like.device) * capacity
        self._offsets_2H = torch.stack([heads_H, heads_H + num_slots * num_heads * capacity])
        self._num_heads = num_heads
        cos, sin = rotation_of(capacity, head_width, like)
        self._cos_CD, self._sin_CD = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def copy(self, source: int, target: int, num_steps: int) -> None:
        """Let `target` hold the first `num_steps` of `source` and nothing else."""
        assert num_steps <= self.num_held[source]
        if source != target:
            kv = self._kv_L2SHCD
            kv[:, :, target, :, :num_steps] = kv[:, :, source, :, :num_steps]
        self.num_held[target] = num_steps

    def wipe(self, slot: int) -> None:
        """Let the slot hold nothing, not even numbers that are not finite."""
        self._kv_L2SHCD[:, :, slot] = 0
        self.num_held[slot] = 0

    def begin(self, parts: Sequence[Part]) -> Plan:
        """The pass that adds these tokens, at most one part of each slot; they count as held from now on."""
        # Single tokens first, by their slots: neighbours are one group.
        order = sorted(range(len(parts)), key=lambda part: (len(parts[part].tokens) > 1, parts[part].slot))
        slot_steps = self._num_heads * self.capacity
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        last = [0] * len(parts)
        for number in order:
            slot, added = parts[number]
            start, end = self.num_held[slot], self.num_held[slot] + len(added)
            assert end <= self.capacity, f"{end} steps in a slot for {self.capacity}"
            tokens += added
            positions += range(start, end)
            places += range(slot * slot_steps + start, slot * slot_steps + end)
            last[number] = len(tokens) - 1
            self.num_held[slot] = end
        device = self._kv_L2SHCD.device
        tokens_R, positions_R, places_R = torch.tensor([tokens, positions, places]).to(device)
        in_order = last == list(range(len(tokens)))
        plan = Plan(
            tokens_R=tokens_R,
            places_R2H=places_R[:, None, None] + self._offsets_2H,
            cos_R11D=self._cos_CD[positions_R][:, None, None],
            sin_R11D=self._sin_CD[positions_R][:, None, None],
            groups=self._groups([parts[number] for number in order], positions_R),
            last_N=None if in_order else torch.tensor(last, device=device),
        )
        for layer in self.layers:
            layer.plan = plan
        return plan

    def _groups(self, parts: Sequence[Part], positions_R: Tensor) -> list[Group]:
        groups: list[Group] = []
        row = 0
        for run in _runs(parts):
            slots = slice(run[0].slot, run[-1].slot + 1)
            rows = slice(row, row + len(run) * len(run[0].tokens))
            row = rows.stop
            held = self.num_held[slots]
            num_steps = max(held)
            is_causal = len(run) == 1 and num_steps == len(run[0].tokens) > 1
            sees_all = len(run[0].tokens) == 1 and min(held) == num_steps
            hidden_N1RT = None
            if not (is_causal or sees_all):
                hides_RT = self._steps_C[:num_steps] > positions_R[rows, None]
                hidden_RT = self._kv_L2SHCD.new_zeros(hides_RT.shape).masked_fill_(hides_RT, -torch.inf)
                hidden_N1RT = hidden_RT.unflatten(0, (len(run), -1))[:, None]
            groups.append(Group(slots, rows, len(run), num_steps, hidden_N1RT, is_causal))
        return groups


def _runs(parts: Sequence[Part]) -> list[list[Part]]:
    """Single tokens of neighbouring slots together, longer parts each by itself."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and len(part.tokens) == len(runs[-1][-1].tokens) == 1 and part.slot == runs[-1][-1].slot + 1:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
