"""A candidate on its data: what is measured, what is compared, and what to be warned of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from eagleray import data, device
from eagleray.errors import DataError, EaglerayError, InputError
from eagleray.evaluation import Evidence, Judgement, check_fit, classes_of, judge, validation_curve
from eagleray.evaluation.metrics import Array
from eagleray.inference.predictor import Predictor
from eagleray.specs import EvaluateSpec, Signature
from eagleray.specs.data import DataSpec
from eagleray.specs.model import TransformerModel
from eagleray.specs.train import MaskedTokenLoss
from eagleray.workflows.candidate import Candidate, Origin
from eagleray.workflows.judging import Judged, Walk, judge_parts, shares
from eagleray.workflows.monitor import read_history

_MASK_FRACTION = 0.15
"""Where the run that would say it is gone."""
_LEAST_TRAIN, _MOST_TRAIN = 200, 10_000
"""Samples of the training part that the held-out ones are compared with."""

History = list[dict[str, float]]


@dataclass(frozen=True)
class Examination:
    """What was found of a candidate."""

    spec: EvaluateSpec
    candidate: Candidate
    data_spec: DataSpec
    digest: str
    """Of the dataset."""
    num_parameters: int
    judged: Judged
    train: Judged | None
    """On a sample of the training part."""
    sizes: Mapping[str, int]
    """Samples of each part that were judged."""
    judgement: Judgement
    history: History
    """Of the run that made the model; empty where that is not known."""
    warnings: tuple[str, ...]


def examine(spec: EvaluateSpec, candidate: Candidate, say: Callable[[str], None]) -> Examination:
    """Measure the candidate on the spec's part of the data, and on data that it was trained on.

    Raises:
        InputError: the data is not known, does not fit the model, or has no such part.
        EvaluationError: an output is not finite.
        DataError, PackageError: samples or weights cannot be read.
    """
    if candidate.origin is not None:
        _import_code(candidate.origin)
    data_spec = _data_of(spec, candidate)
    dataset = data.open_dataset(data_spec, is_raw=True)
    signature = candidate.package.card.signature
    check_fit(signature, dataset.signature)
    walk = Walk(
        batch_size=spec.batch_size,
        max_samples=spec.max_samples,
        seed=spec.seed,
        transform=_masking(candidate),
        classes=_classes(signature, dataset.signature),
    )
    parts = parts_of(dataset, spec.part, data_spec)
    sizes = shares(parts, spec.max_samples)
    place = device.pick(spec.gpus)
    if place.is_logical_gpu:
        say("gpus = 1, and this machine has no CUDA device: computing on the CPU")
    predictor = Predictor(candidate.package, place)
    say(f"judging {', '.join(f'{size:,} samples of {name}' for name, size in sizes.items())}")
    judged = judge_parts(predictor, parts, walk)
    warnings = _digest_warnings(spec, candidate, dataset.digest)
    train, trouble = _on_training_data(spec, candidate, dataset, predictor, sum(sizes.values()))
    history = [] if candidate.origin is None else read_history(candidate.origin.folder)
    is_held_out = spec.part != "train"
    evidence = Evidence(
        train=None if train is None else train.metrics.loss,
        held_out=judged.metrics.loss if is_held_out else None,
        validation_curve=validation_curve(history),
    )
    return Examination(
        spec=spec,
        candidate=candidate,
        data_spec=data_spec,
        digest=dataset.digest,
        num_parameters=sum(parameter.numel() for parameter in predictor.module.parameters()),
        judged=judged,
        train=train,
        sizes=sizes,
        judgement=judge(evidence),
        history=history,
        warnings=(*warnings, *trouble),
    )


def parts_of(dataset: data.Dataset, part: str, spec: DataSpec) -> dict[str, data.Part]:
    """The parts to judge on, by name. Raises: InputError where the split gives the part nothing."""
    held = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    there = {name: found for name, found in held.items() if found is not None}
    if part == "all":
        return there
    if part not in there:
        others = " or ".join(f'"{name}"' for name in there if name != "train")
        way_out = f"judge on part = {others}, or on" if others else "judge on"
        raise InputError(
            f"part = {part!r}: data.split.{part} is {getattr(spec.split, part):g}, so nothing was held out "
            f'as {part}; {way_out} a dataset of its own (data, with part = "all")'
        )
    return {part: there[part]}


def _import_code(origin: Origin) -> None:
    """The run's own code, for the dataset's function or the model's."""
    from eagleray.training.code import import_code

    import_code(origin.folder)


def _data_of(spec: EvaluateSpec, candidate: Candidate) -> DataSpec:
    if spec.data is not None:
        return spec.data
    if candidate.origin is None:
        raise InputError(
            f"{candidate.name} was made by run {candidate.package.card.lineage.run_id}, which is not in this "
            "storage, so its data is not known; give the dataset in data"
        )
    return candidate.origin.spec.data


def _classes(model: Signature, dataset: Signature) -> Array | None:
    return classes_of(model, dataset) if model.target_kind == "class" else None


def _masking(candidate: Candidate) -> data.Transform | None:
    """What hides tokens, where the model was trained to fill them in; the same masks every time."""
    card, origin = candidate.package.card, candidate.origin
    if card.signature.target_kind != "tokens":
        return None
    if origin is not None:
        loss = origin.spec.loss
        return (
            data.Masking.of(loss.mask_fraction, card.signature) if isinstance(loss, MaskedTokenLoss) else None
        )
    architecture = card.architecture
    is_masked = architecture.is_registered and isinstance(architecture.spec, TransformerModel)
    return data.Masking.of(_MASK_FRACTION, card.signature) if is_masked else None


def _digest_warnings(spec: EvaluateSpec, candidate: Candidate, digest: str) -> list[str]:
    trained_on = candidate.package.card.lineage.dataset_digest
    if digest == trained_on:
        return []
    if spec.data is None:
        return [
            f"The data has changed since the model was trained on it (digest {digest[:12]}, and it was "
            f"{trained_on[:12]}): samples that count as held out may be among those that it was trained on"
        ]
    return [
        f"This is not the dataset that the model was trained on (digest {digest[:12]}, and that one has "
        f"{trained_on[:12]}): make sure that it shares no samples with it"
    ]


def _on_training_data(
    spec: EvaluateSpec, candidate: Candidate, dataset: data.Dataset, predictor: Predictor, num_judged: int
) -> tuple[Judged | None, list[str]]:
    """The model on a sample of what it was trained on, and why not where that cannot be had."""
    if spec.data is not None:
        if candidate.origin is None:
            return None, []
        try:
            dataset = data.open_dataset(candidate.origin.spec.data, is_raw=True)
        except DataError as error:
            return None, [f"The data that the model was trained on cannot be read: {error}"]
    signature = candidate.package.card.signature
    walk = Walk(
        batch_size=spec.batch_size,
        max_samples=max(_LEAST_TRAIN, min(num_judged, _MOST_TRAIN)),
        seed=spec.seed,
        transform=_masking(candidate),
    )
    try:
        walk = replace(walk, classes=_classes(signature, dataset.signature))
        return judge_parts(predictor, {"train": dataset.train}, walk), []
    except EaglerayError as error:
        return None, [f"The model could not be measured on its training data: {error}"]
