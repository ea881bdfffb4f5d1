"""What a process group is here: torch's, and what is needed to break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Backend = Literal["gloo", "nccl"]
Endpoint = tuple[str, int]
"""Numeric address and port."""


@dataclass(frozen=True)
class Group:
    """A process group over all ranks, and what is needed to break it."""

    name: str
    process_group: ProcessGroup
    rank: int
    world_size: int
    backend: Backend
    endpoints: frozenset[Endpoint] = frozenset()
    """Where any rank's gloo listens for this group; empty on other backends."""
