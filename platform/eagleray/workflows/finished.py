"""`FinishedRun`: what a run that ended well has left: spec, report, weights, and the card of its model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eagleray.errors import CheckpointError, DataError, InputError
from eagleray.packaging import CheckpointStore, Folder
from eagleray.specs import Architecture, Lineage, ModelCard, Signature, TrainSpec, validate
from eagleray.specs.card import inputs_of, outputs_of
from eagleray.workflows.code_version import code_version
from eagleray.workflows.run import existing, saved_spec

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.data import Dataset

_OF_THE_RUN = ("learning_rate", "samples_per_second")
"""Metrics of a report that say nothing of the model."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose report says FINISHED."""

    run_id: str
    folder: Folder
    spec: TrainSpec
    report: Mapping[str, Any] = field(repr=False)
    say: Callable[[str], None] = field(repr=False)
    """Takes what is not as it should be, in words."""

    @classmethod
    def open(cls, run_id: str, say: Callable[[str], None] = print) -> FinishedRun:
        """The run of that id. Raises: InputError: there is none, it goes on, or it did not end well."""
        folder = existing(run_id)
        try:
            report = folder.read_json("report.json") if folder.exists("report.json") else None
        except ValueError as error:
            raise InputError(f"{folder.url}/report.json is damaged ({error}); put it back") from error
        if report is None:
            raise InputError(
                f"run {run_id} is not finished: it goes on, or its driver was ended; wait for it, or go on "
                f"with it: eagleray resume {run_id}"
            )
        if report["status"] != "FINISHED":
            why = f" ({report['error']})" if report.get("error") else ""
            raise InputError(
                f"run {run_id} has {report['status'].lower()}{why}; finish it first: eagleray resume {run_id}"
            )
        return cls(run_id, folder, saved_spec(folder), report, say)

    @cached_property
    def signature(self) -> Signature:
        """Of the data that it was trained on: from the report, or from the data where that is older.

        Raises: DataError: the report has none, and the data cannot be opened or is not the same any more.
        """
        if "signature" in self.report:
            return validate(
                Signature, self.report["signature"], name=f"{self.folder.url}/report.json: signature"
            )
        return reopen_data(self.run_id, self.folder, self.spec, self.report["dataset_digest"]).signature

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Of the newest checkpoint that verifies. Raises: CheckpointError where none does."""
        return self._checkpoint.tensors("weights")

    @property
    def metrics(self) -> dict[str, float]:
        """The report's, of the weights; none where the weights are older than the report."""
        if self._checkpoint.step != self.report["progress"]["step"]:
            self.say(
                f"the newest checkpoint that verifies is of step {self._checkpoint.step}, and the metrics "
                f"are of step {self.report['progress']['step']}: they are left out"
            )
            return {}
        found = self.report["metrics"]
        return {name: found[name] for name in found if name not in _OF_THE_RUN and math.isfinite(found[name])}

    @property
    def evaluated(self) -> dict[str, float]:
        """What evaluations found on the parts that the run held out; empty where there was none."""
        if not self.folder.exists("evaluation.json"):
            return {}
        return dict(self.folder.read_json("evaluation.json")["metrics"])

    @property
    def compression(self) -> str:
        """Kind of the compression; of `auto` what it chose last, none for a worker alone."""
        kind, choices = self.spec.compression.kind, self.report.get("compression_choices")
        if choices:
            return choices[-1]["compressor"]
        return "none" if kind == "auto" and not self.report.get("sent_bytes") else kind

    @property
    def code(self) -> Folder | None:
        """The user's own code; None where the model needs none."""
        return self.folder.child("code") if self.spec.model.kind == "module" else None

    def import_code(self) -> None:
        """Put the run's code on this process's import path."""
        from eagleray.training.code import import_code

        import_code(self.folder)

    def card(
        self,
        name: str,
        *,
        metrics: Mapping[str, float] | None = None,
        search: str | None = None,
        parent: str | None = None,
    ) -> ModelCard:
        """The card of a package of the run's weights.

        Args:
            name: Of the model.
            metrics: Laid over the run's own, and over those of its evaluations.
            search: The search whose trial the run was, where the run does not know it.
            parent: The version that it was made from, "digits/versions/2".
        """
        return ModelCard(
            name=name,
            architecture=Architecture.of(self.spec.model),
            signature=self.signature,
            inputs=inputs_of(self.signature),
            outputs=outputs_of(self.signature),
            metrics={**self.metrics, **self.evaluated, **(metrics or {})},
            lineage=Lineage(
                run_id=self.run_id,
                dataset_digest=self.report["dataset_digest"],
                code_version=code_version(),
                compression=self.compression,
                search=search or self.report.get("search"),
                parent=parent,
                created_at=time.time(),
            ),
        )

    @cached_property
    def _checkpoint(self) -> Any:
        newest = CheckpointStore(self.folder.child("checkpoints").url).newest(self.say)
        if newest is None:
            raise CheckpointError(
                f"run {self.run_id} has no checkpoint that verifies in {self.folder.url}/checkpoints; put it "
                "back, or train again"
            )
        return newest


def reopen_data(run_id: str, folder: Folder, spec: TrainSpec, digest: str) -> Dataset:
    """The dataset that a run was trained on; puts the run's code on this process's import path.

    Raises: DataError: it cannot be opened, or has another digest now.
    """
    from eagleray.data import open_dataset
    from eagleray.training.code import import_code

    import_code(folder)
    dataset = open_dataset(spec.data)
    if dataset.digest != digest:
        raise DataError(
            f"run {run_id} was trained on data with digest {digest[:12]}, and the spec's data now has "
            f"{dataset.digest[:12]}; put the data back"
        )
    return dataset
