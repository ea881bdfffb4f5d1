"""Products of a gradient, as a matrix, with a few vectors, for low-rank compressors.

What all ranks must compute alike, `orthogonalise` and `expand`, has the same bits on every machine, compiled
or not: each operation is rounded by itself, sums run as a tree of halves or in the order of the vectors. What
one rank computes for itself, `project`, has not: the compiled kernel adds in another order than torch.

Shapes: a x b a matrix, r vectors ("rank") of length n (a or b), each contiguous: [r, n]. All float32.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Protocol

import torch
from torch import Tensor

from eagleray.compression.kernels import native

_SIGNATURES = {
    "project": [*[c_void_p] * 2, c_float, *[c_int64] * 3, *[c_void_p] * 2, c_int64],
    "expand": [*[c_void_p] * 2, *[c_int64] * 3, c_float, c_void_p],
    "orthogonalise": [*[c_void_p] * 2, *[c_int64] * 2, c_void_p],
}
DEPENDENT = 1e-5
"""A vector of which less is left by those before it is taken for a combination of them."""


class LowRank(Protocol):
    """What one device can do."""

    def orthogonalise(self, vectors: list[Tensor], starts: list[Tensor]) -> None:
        """Make each [r, n] of `vectors` orthonormal, in place and in the order of its rows; finite always.

        A row that is zero, or a combination of those before it, is replaced by that of `starts`, so that a
        direction that was lost may come back.
        """
        ...

    def project(
        self, gradient: Tensor, residual: Tensor, gain: float, x: Tensor, y: Tensor, *, from_right: bool
    ) -> None:
        """Write the products of v = gain * gradient + residual with x into y, what they leave into residual.

        From the right y = (v x^T)^T and residual = v - y^T x; else y = x v and residual = v - x^T y. A row
        (else a column) of v whose product is not finite keeps its residual.

        Args:
            gradient: [a, b].
            residual: [a, b], contiguous.
            gain: see above.
            x: orthonormal; [r, b] from the right, else [r, a].
            y: the others' shape, [r, a] or [r, b].
            from_right: see above.
        """
        ...

    def expand(self, left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
        """Write scale * left^T right into out [a, b]; left [r, a], right [r, b]."""
        ...


class EagerLowRank:
    """The reference; works on any device."""

    def orthogonalise(self, vectors: list[Tensor], starts: list[Tensor]) -> None:
        """See `LowRank`. Equal shapes are done at once."""
        groups: dict[torch.Size, list[int]] = {}
        for index, one in enumerate(vectors):
            groups.setdefault(one.shape, []).append(index)
        for indices in groups.values():
            done = _orthogonal(
                torch.stack([vectors[i] for i in indices]), torch.stack([starts[i] for i in indices])
            )
            for i, one in zip(indices, done, strict=True):
                vectors[i].copy_(one)

    def project(
        self, gradient: Tensor, residual: Tensor, gain: float, x: Tensor, y: Tensor, *, from_right: bool
    ) -> None:
        """See `LowRank`."""
        v = gradient * gain + residual
        # One matrix at a time, and from `v`, which starts where the allocator wants: products of a batch, or
        # of a matrix that lies elsewhere in its bucket, may have other bits.
        torch.mm(x, v.T if from_right else v, out=y)
        good = y.isfinite().all(dim=0).unsqueeze(1 if from_right else 0)
        left, right = (y, x) if from_right else (x, y)
        v -= _expanded(left, right)
        residual.copy_(torch.where(good, v, residual))

    def expand(self, left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
        """See `LowRank`."""
        out.copy_(_expanded(left * scale, right))


class NativeLowRank:
    """The compiled kernels; contiguous tensors on the CPU."""

    def __init__(self, functions: ctypes.CDLL):
        self._functions = functions
        native.bind(functions, _SIGNATURES, None)
        self._work = torch.empty(0)

    def orthogonalise(self, vectors: list[Tensor], starts: list[Tensor]) -> None:
        """See `LowRank`. Raises: TypeError."""
        for one, start in zip(vectors, starts, strict=True):
            r, n = one.shape
            assert start.shape == one.shape, (start.shape, one.shape)
            self._functions.eagleray_orthogonalise(
                native.address(one), native.address(start), r, n, self._room(n)
            )

    def project(
        self, gradient: Tensor, residual: Tensor, gain: float, x: Tensor, y: Tensor, *, from_right: bool
    ) -> None:
        """See `LowRank`. Raises: TypeError."""
        (a, b), r = gradient.shape, len(x)
        lengths = (b, a) if from_right else (a, b)
        assert residual.shape == (a, b), residual.shape
        assert (x.shape, y.shape) == ((r, lengths[0]), (r, lengths[1])), (x.shape, y.shape)
        self._functions.eagleray_project(
            native.address(gradient),
            native.address(residual),
            gain,
            a,
            b,
            r,
            native.address(x),
            native.address(y),
            from_right,
        )

    def expand(self, left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
        """See `LowRank`. Raises: TypeError."""
        a, b = out.shape
        assert (left.shape, right.shape) == ((len(left), a), (len(left), b)), (left.shape, right.shape)
        self._functions.eagleray_expand(
            native.address(left), native.address(right), a, b, len(left), scale, native.address(out)
        )

    def _room(self, numel: int) -> int | None:
        """Memory to work in; kept."""
        if self._work.numel() < numel:
            self._work = torch.empty(numel)
        return native.address(self._work)


def low_rank_for(device: torch.device | str = "cpu") -> LowRank:
    """The products on `device`.

    Waits for the compiler: `project` has other bits in torch, so the kernels may not change in a run.
    """
    functions = native.load() if native.is_wanted(device) else None
    return EagerLowRank() if functions is None else NativeLowRank(functions)


def _expanded(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, summed in the order of the vectors, each product rounded: no torch.addcmul."""
    total = left[0].unsqueeze(1) * right[0]
    for k in range(1, len(left)):
        total += left[k].unsqueeze(1) * right[k]
    return total


def _orthogonal(x: Tensor, start: Tensor) -> Tensor:
    """`x` [g, r, n], its rows made orthonormal (modified Gram-Schmidt, twice); `start` likewise."""
    done: list[Tensor] = []
    for k in range(x.shape[1]):
        v, before, after = _without(x[:, k], done)
        is_dependent = ~(after > before * DEPENDENT)
        if is_dependent.is_cuda or bool(is_dependent.any()):
            again, _, its = _without(start[:, k], done)
            v = torch.where(is_dependent, again, v)
            after = torch.where(is_dependent, its, after)
        done.append(torch.where(after > 0, v / after, torch.zeros_like(v)))
    return torch.stack(done, dim=1)


def _without(v: Tensor, others: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`v` [g, n] scaled to a largest element of 1, less its parts along the others; both norms, [g, 1].

    Scaled, because squares of small numbers would be 0 and of large ones infinite.
    """
    most = v.abs().amax(dim=1, keepdim=True)
    v = v / torch.where(most > 0, most, torch.ones_like(most))
    before = _norm(v)
    for _ in range(2):
        for other in others:
            v = v - other * _dot(v, other)
    return v, before, _norm(v)


def _norm(v: Tensor) -> Tensor:
    """Norms of v [g, n], [g, 1]. In float64, because torch's float32 root (MKL) is not rounded correctly."""
    return _dot(v, v).double().sqrt().float()


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sums of x * y [g, n], as a tree of halves, [g, 1]."""
    total = x * y
    numel = total.shape[1]
    total = torch.nn.functional.pad(total, (0, (1 << (numel - 1).bit_length()) - numel))
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total
