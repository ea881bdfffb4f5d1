"""`EvaluateSpec`: judging one model on one part of a dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from eagleray.specs.base import ExistingPath, FileSpec, Name, Spec
from eagleray.specs.data import DataSpec


class Subject(Spec):
    """The model to judge: what a run ended with, a version of the registry, or a package by its address."""

    kind: Literal["run", "version", "package"]
    ref: str = Field(min_length=1, max_length=1000)
    """Run: its id, or a train spec's `name` for its newest finished run. Version: `digits` (the newest),
    `digits@candidate` or `digits/versions/3`. Package: a path or any fsspec URL."""
    allow_code: bool = False
    """Load a package that carries code of the user's own."""


class EvaluateSpec(FileSpec):
    """One evaluation: a report with metrics, pictures and a judgement in words."""

    kind: Literal["evaluate"]
    name: Name
    """Lower-case letters, digits, dots, dashes; ids of evaluations start with it."""
    code: tuple[ExistingPath, ...] = ()
    """Files or packages of the user's own that `data` needs."""
    model: Subject
    data: DataSpec | None = None
    """Where not given: the dataset of the run that made the model."""
    part: Literal["test", "validation", "train", "all"] = "test"
    """`all`: every sample, of a dataset that was made to test with (give `data`)."""
    batch_size: int = Field(default=256, ge=1)
    """Samples of one forward pass."""
    max_samples: int | None = Field(default=None, ge=1)
    """Judge on so many samples of the part, drawn by `seed`; where not given on all."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    gpus: Literal[0, 1] = 0
    """1: compute on a GPU; a Ray job then needs `--entrypoint-num-gpus 1`."""

    @model_validator(mode="after")
    def _part_is_held_out(self) -> EvaluateSpec:
        if self.part == "all" and self.data is None:
            raise ValueError(
                'part = "all" of the data that the model was trained on is no test; give a dataset in data, '
                'or part = "test"'
            )
        return self
