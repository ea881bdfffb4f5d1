"""From a spec to an open dataset."""

from __future__ import annotations

from eagleray.data.digits import open_digits
from eagleray.data.parts import Dataset
from eagleray.data.stdlib_text import open_stdlib_text
from eagleray.errors import DataError
from eagleray.specs.data import DataSpec, DigitsData, ModuleData, StdlibTextData


def open_dataset(spec: DataSpec) -> Dataset:
    """The dataset of a run, split and measured; tables larger than their memory budget stay in storage.

    Raises: DataError, one line: the file, the column, what was found, what to do.
    """
    dataset = _opened(spec)
    if spec.augment is not None and dataset.signature.input_kind != "image":
        raise DataError(
            f"data.augment is for images, and this dataset is {dataset.signature.input_kind}; take it out"
        )
    return dataset


def _opened(spec: DataSpec) -> Dataset:
    if isinstance(spec, DigitsData):
        return open_digits(spec)
    if isinstance(spec, StdlibTextData):
        return open_stdlib_text(spec)
    if isinstance(spec, ModuleData):
        from eagleray.data.module import open_module

        return open_module(spec)
    from eagleray.data.table import open_table  # pyarrow takes 0.3 s to import

    return open_table(spec)
