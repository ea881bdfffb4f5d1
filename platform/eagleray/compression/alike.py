"""What must be alike on all ranks, made so again after a step that broke: one rank's values count for all.

A step changes the slots of rule "same" bucket by bucket, and makes those that are new, so that where a loss
cuts it off some ranks have gone further in it than others. For the next step any rank's ranges, factors and
counts will do, if all have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleray.compression.memory import Memory


def given(memory: Memory) -> dict[str, Any]:
    """Which slots this rank has, and the values of those that all ranks have to have alike.

    Tensors are this rank's own, not copies.
    """
    return {
        "flats": {
            slot: {"rule": rule, "value": flat if rule == "same" else None}
            for slot, (rule, flat) in memory.flats.items()
        },
        "tensors": {
            slot: {
                "rule": rule,
                "shapes": {name: list(one.shape) for name, one in named.items()},
                "values": dict(named) if rule == "same" else {},
            }
            for slot, (rule, named) in memory.tensors.items()
        },
    }


def take(memory: Memory, theirs: Mapping[str, Any]) -> None:
    """Have the slots that another rank has, and its values where all must have the same.

    What is this rank's own stays. What the other rank has not is of the step that broke, and goes with it.

    Args:
        memory: of this rank; is changed.
        theirs: `given` on the other rank.
    """
    own, wanted = (one.keys() | two.keys() for one, two in ((memory.flats, memory.tensors), theirs.values()))
    for slot in own - wanted:
        memory.drop(slot)
    for slot, one in theirs["flats"].items():
        flat = memory.flat(slot, one["rule"])
        if one["value"] is not None:
            flat.copy_(one["value"])
    for slot, one in theirs["tensors"].items():
        for name, shape in one["shapes"].items():
            tensor, _ = memory.tensor(slot, name, one["rule"], shape)
            if name in one["values"]:
                tensor.copy_(one["values"][name])
        kept = memory.tensors[slot][1]
        for name in kept.keys() - one["shapes"].keys():
            del kept[name]
