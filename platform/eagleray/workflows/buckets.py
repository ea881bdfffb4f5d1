"""What compression did with each of DDP's buckets in one step: for metrics, whose labels must be few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 16
"""Buckets with numbers of their own; those that come later in backward are one together."""
REST = "rest"
_SUMMED = ("sent_bytes", "payload_bytes", "codec_seconds", "exchange_seconds", "link_bytes_per_second")


def by_bucket(buckets: Sequence[Mapping[str, Any]], step_s: float) -> dict[str, dict[str, float]]:
    """Numbers by bucket: its place in backward's order, or REST.

    Args:
        buckets: of a record "buckets": sums over their exchanges.
        step_s: how long a step takes at the moment, in which each bucket is exchanged once; 0: not known.

    Returns for each what a rank does with it in one step (`sent_bytes`, `payload_bytes`, `codec_seconds`,
    `exchange_seconds`, `link_bytes_per_second`), its `ratio`, and its `relative_error` where that is known;
    of several their sum, their common ratio, and their largest error.
    """
    each = [_of_step(bucket, step_s) for bucket in buckets if bucket["num_exchanges"]]
    found = {str(index): [one] for index, one in enumerate(each[:MOST])}
    if each[MOST:]:
        found[REST] = each[MOST:]
    return {name: _together(ones) for name, ones in found.items()}


def _of_step(bucket: Mapping[str, Any], step_s: float) -> dict[str, float | None]:
    names = ("sent_bytes", "payload_bytes", "uncompressed_bytes", "codec_seconds", "exchange_seconds")
    means: dict[str, float] = {name: bucket[name] / bucket["num_exchanges"] for name in names}
    link = means["sent_bytes"] / step_s if step_s else 0.0
    return {**means, "link_bytes_per_second": link, "relative_error": bucket["relative_error"]}


def _together(ones: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    def total(name: str) -> float:
        return sum(one[name] or 0.0 for one in ones)

    sent_bytes = total("sent_bytes")
    errors = [error for one in ones if (error := one["relative_error"]) is not None]
    return {
        **{name: total(name) for name in _SUMMED},
        "ratio": total("uncompressed_bytes") / sent_bytes if sent_bytes else 1.0,
        **({"relative_error": max(errors)} if errors else {}),
    }
