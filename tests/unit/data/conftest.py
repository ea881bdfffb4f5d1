"""Small real tables, in every format that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from eagleray.specs.data import DataSpec

_SPEC = TypeAdapter(DataSpec)


def make_spec(kind: str = "table", **fields: Any) -> Any:
    """A data spec from plain values."""
    if "paths" in fields:
        fields["paths"] = [str(path) for path in np.atleast_1d(fields["paths"])]
    return _SPEC.validate_python({"kind": kind, **fields})


def write(table: pa.Table, path: Path, rows_per_block: int | None = None) -> Path:
    """`table` in the format that the name of `path` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=rows_per_block)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_block)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def flowers(num_rows: int = 60, seed: int = 0) -> pa.Table:
    """Two measures, a name as class, and a price."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, num_rows)
    return pa.table(
        {
            "width": rng.normal(kind, 0.1),
            "height": rng.integers(0, 50, num_rows),
            "species": [("iris", "rose", "aster")[index] for index in kind],
            "price": rng.normal(10, 2, num_rows).astype(np.float32),
        }
    )


@pytest.fixture
def no_split() -> dict[str, float]:
    return {"train": 1.0, "validation": 0.0, "test": 0.0}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a user's own module; returns its import name."""

    def make(source: str) -> str:
        name = f"user_data_{abs(hash((tmp_path, source)))}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return name

    return make
