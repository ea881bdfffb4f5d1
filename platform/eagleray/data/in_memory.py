"""A dataset from arrays that fit in memory."""

from __future__ import annotations

from eagleray.data import digest, normalize, split
from eagleray.data.parts import Array, ArrayPart, Dataset, Finish, as_they_are
from eagleray.specs import Signature
from eagleray.specs.data import DataSpec


def dataset(
    inputs: Array,
    targets: Array | None,
    signature: Signature,
    spec: DataSpec,
    *,
    what: str,
    finish: Finish = as_they_are,
    is_raw: bool = False,
) -> Dataset:
    """Split, measured on the training part and normalised.

    Args:
        inputs: [N, ...], not normalised.
        targets: [N, ...]; None where `finish` makes them from the inputs.
        signature: of the samples; the result's has the normalisation filled in.
        spec: whose split, seed and normalisation hold.
        what: the dataset's name in messages.
        finish: makes batches of rows.
        is_raw: leave the inputs as they are, whatever the spec says of normalisation.

    Raises: DataError if a part of the split stays empty or the input cannot be normalised.
    """
    rows = split.indices(spec.split, spec.split_seed, len(inputs), what)
    normalize.check_kind(spec.normalize, signature.input_kind)
    content = digest.of_arrays(inputs) if targets is None else digest.of_arrays(inputs, targets)
    if spec.normalize == "standard" and not is_raw:
        normalization = normalize.measure([inputs[rows["train"]]])
        signature = signature.model_copy(update={"normalization": normalization})
        inputs = normalize.apply(inputs, normalization)
    parts = {
        name: ArrayPart(inputs[chosen], None if targets is None else targets[chosen], finish)
        for name, chosen in rows.items()
    }
    return Dataset(
        signature=signature,
        digest=digest.of_dataset(content, spec),
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
    )
