"""From a spec to an open dataset."""

from __future__ import annotations

from eagleray.data.digits import open_digits
from eagleray.data.parts import Dataset
from eagleray.data.stdlib_text import open_stdlib_text
from eagleray.errors import DataError
from eagleray.specs.data import DataSpec, DigitsData, ModuleData, StdlibTextData


def open_dataset(spec: DataSpec, *, is_raw: bool = False) -> Dataset:
    """The dataset of a run, split and measured; tables larger than their memory budget stay in storage.

    `is_raw`: inputs as they are in the source, for a model that normalises by itself. Parts, positions and
    digest are the same; the signature then has no normalisation.

    Raises: DataError, one line: the file, the column, what was found, what to do.
    """
    dataset = _opened(spec, is_raw)
    if spec.augment is not None and dataset.signature.input_kind != "image":
        raise DataError(
            f"data.augment is for images, and this dataset is {dataset.signature.input_kind}; take it out"
        )
    return dataset


def _opened(spec: DataSpec, is_raw: bool) -> Dataset:
    if isinstance(spec, DigitsData):
        return open_digits(spec, is_raw)
    if isinstance(spec, StdlibTextData):
        return open_stdlib_text(spec)
    if isinstance(spec, ModuleData):
        from eagleray.data.module import open_module

        return open_module(spec, is_raw)
    from eagleray.data.table import open_table  # pyarrow takes 0.3 s to import

    return open_table(spec, is_raw)
