"""What a transformer keeps of the tokens it has seen, so that the next one costs one step.

Names: B batch, H heads, S capacity in steps, T steps given, D width of a head.
"""

from __future__ import annotations

from torch import Tensor

from eagleray.models.attention import Rotation, rotation_of


class LayerCache:
    """Keys, rotated by their positions, and values of one attention layer."""

    def __init__(self, shape_BHSD: tuple[int, int, int, int], like: Tensor):
        self.k_BHSD, self.v_BHSD = like.new_empty(shape_BHSD), like.new_empty(shape_BHSD)
        self.num_steps = 0

    def extend(self, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all steps, the given ones last; these are kept from now on."""
        start, end = self.num_steps, self.num_steps + k_BHTD.shape[2]
        assert end <= self.k_BHSD.shape[2], f"{end} steps in a cache for {self.k_BHSD.shape[2]}"
        self.k_BHSD[:, :, start:end] = k_BHTD
        self.v_BHSD[:, :, start:end] = v_BHTD
        self.num_steps = end
        return self.k_BHSD[:, :, :end], self.v_BHSD[:, :, :end]


class KeyValueCache:
    """The caches of all layers; holds up to `capacity` steps, at positions 0, 1, … of the rotation.

    Memory: 2 x layers x B x capacity x width values of the type of `like`.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        batch_size: int,
        num_heads: int,
        capacity: int,
        head_width: int,
        like: Tensor,
    ):
        self.capacity = capacity
        self.layers = [
            LayerCache((batch_size, num_heads, capacity, head_width), like) for _ in range(num_layers)
        ]
        self._rotation = rotation_of(capacity, head_width, like)

    @property
    def num_steps(self) -> int:
        """Steps held."""
        return self.layers[0].num_steps

    def rotation(self, num_steps: int) -> Rotation:
        """Angles of the next `num_steps` positions."""
        cos, sin = self._rotation
        end = self.num_steps + num_steps
        assert end <= self.capacity, f"{end} steps in a cache for {self.capacity}"
        chosen = slice(self.num_steps, end)
        return cos[chosen], sin[chosen]

    def clear(self) -> None:
        """Forget all steps."""
        for layer in self.layers:
            layer.num_steps = 0
