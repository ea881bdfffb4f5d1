"""`POST /models/{name}:predict`: for people, their files and shells; and what models there are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol import infer as protocol
from eagleray.protocol import tensors
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.tensors import Array
from eagleray.serving.ingress import media, schemas
from eagleray.serving.ingress.call import Call, only
from eagleray.serving.ingress.generating import collect
from eagleray.serving.ingress.http import JSON, HttpError, Response, json_response
from eagleray.serving.ingress.routing import Route
from eagleray.serving.ingress.v2 import encoded
from eagleray.serving.routes import ModelRoute, Target
from eagleray.specs.card import ModelCard

TAG = "For people"
_GENERATION = ("max_tokens", "temperature", "top_p", "seed", "stop")


@dataclass(frozen=True)
class Asked:
    """What a body asks for: samples to judge, or a text to go on with."""

    inputs: Mapping[str, Array]
    is_single: bool
    """One sample, and so one answer instead of a list."""
    request: GenerationRequest | None = None


async def predict(call: Call) -> Response:
    """The prediction for a file or some values."""
    target = call.ready()
    decode = _decoder(call.request.media_type, target.card)
    # 30 kB of PNG can hold 33 million pixels, which take 0.3 s.
    is_slow = call.request.media_type.startswith("image/")
    asked = await call.decoded(lambda body: decode(body, target.card), is_slow=is_slow)
    names = {"model": target.name, "version": target.version}
    if asked.request is not None:
        chunks = await collect(call, target, asked.request)
        text = "".join(chunk.text for chunk in chunks)
        return json_response({**names, "text": text, "finish_reason": chunks[-1].finish_reason})
    tensors.check(asked.inputs, target.card.inputs)
    outputs = await call.infer(target, asked.inputs)
    # The same rules as for machines: an answer with NaN is the model's error, not an odd number.
    encoded(protocol.InferResponse(target.name, str(target.version), outputs), target)
    answers = answers_of(outputs, target.card)
    return json_response({**names, **answers[0]} if asked.is_single else {**names, "predictions": answers})


async def models(call: Call) -> Response:
    """Every deployed model."""
    routes = call.state.routes.models
    return json_response({"models": [_described(name, routes[name]) for name in sorted(routes)]})


async def model(call: Call) -> Response:
    """One deployed model."""
    target = call.find()
    return json_response(_described(target.name, call.state.routes.models[target.name]))


def answers_of(outputs: Mapping[str, Array], card: ModelCard) -> list[dict[str, Any]]:
    """One plain answer per sample."""
    if "probabilities" in outputs:
        labels = card.signature.labels or [str(i) for i in range(outputs["probabilities"].shape[1])]
        rows = zip(outputs["label"], outputs["class"], outputs["probabilities"].tolist(), strict=True)
        return [
            {"label": str(label), "class": int(index), "probabilities": dict(zip(labels, row, strict=True))}
            for label, index, row in rows
        ]
    if "value" in outputs:
        values = outputs["value"].reshape(len(outputs["value"]), -1).tolist()
        return [{"value": row[0] if len(row) == 1 else row} for row in values]
    if "logits" in outputs:
        return [{"tokens": row} for row in np.argmax(outputs["logits"], axis=-1).tolist()]
    size = len(next(iter(outputs.values())))
    return [{name: array[index].tolist() for name, array in outputs.items()} for index in range(size)]


Decode = Callable[[bytes, ModelCard], Asked]


def _decoder(media_type: str, card: ModelCard) -> Decode:
    """What reads a body of this type. Raises: HttpError 415."""
    # curl -d says "form" of whatever it sends; what it sends is then JSON.
    if media_type in ("", JSON, "application/x-www-form-urlencoded") or media_type.endswith("+json"):
        return _json
    if media_type in _FILES:
        return _FILES[media_type]
    raise HttpError(
        415, f"Content-Type {media_type[:60]!r} is not known; send one of: {JSON}, {', '.join(_FILES)}"
    )


def _text(body: bytes, card: ModelCard) -> Asked:
    return _texts(media.text(body), card, {})


def _one(read: Callable[[bytes, ModelCard], Array], body: bytes, card: ModelCard) -> Asked:
    return Asked({card.inputs[0].name: read(body, card)}, is_single=True)


def _csv(body: bytes, card: ModelCard) -> Asked:
    return Asked({card.inputs[0].name: media.table(body, card)}, is_single=False)


_FILES: Mapping[str, Decode] = {
    "image/png": functools.partial(_one, media.image),
    "image/jpeg": functools.partial(_one, media.image),
    "audio/wav": functools.partial(_one, media.sound),
    "audio/x-wav": functools.partial(_one, media.sound),
    "text/plain": _text,
    "text/csv": _csv,
}


def _json(body: bytes, card: ModelCard) -> Asked:
    """{"inputs": …} or the bare list: one sample or many, by how deep it is nested."""
    values = protocol.loads(body)
    parameters: dict[str, Any] = {}
    if isinstance(values, dict):
        allowed = ("inputs", "parameters") if card.is_generative else ("inputs",)
        values = only(values, *allowed)
        if "inputs" not in values:
            raise InputError('the body: "inputs" is required and missing')
        parameters = only(values.get("parameters") or {}, *_GENERATION, what="parameters")
        values = values["inputs"]
    if card.is_generative:
        return _texts(values, card, parameters)
    return _values(values, card)


def _texts(value: Any, card: ModelCard, parameters: dict[str, Any]) -> Asked:
    """A text, or a list of texts where they are only judged."""
    if card.is_generative:
        if not isinstance(value, str):
            raise InputError("inputs: this model completes text; give a string")
        stop = parameters.get("stop", ())
        parameters["stop"] = (
            (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
        )
        return Asked({}, is_single=True, request=GenerationRequest(value, **parameters))
    if card.signature.input_kind != "text":
        raise InputError(f"this model takes {card.signature.input_kind}, not text")
    return _values(value, card)


def _values(value: Any, card: ModelCard) -> Asked:
    if isinstance(value, dict) and set(value) == {tensor.name for tensor in card.inputs}:
        pairs = [(tensor, value[tensor.name]) for tensor in card.inputs]
    elif len(card.inputs) == 1:
        pairs = [(card.inputs[0], _rows(value, card.signature.feature_names))]
    else:
        raise InputError(f"inputs: give an object with: {tensors.described(card.inputs)}")
    found, singles = {}, set()
    for tensor, data in pairs:
        depth = _depth(data)
        is_single = depth == len(tensor.shape) - 1
        nested = [data] if is_single else data
        if not isinstance(nested, list):
            raise InputError(f"inputs: expected {tensors.described([tensor])}, or one sample of it")
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": _sizes(nested), "data": nested}
        found[tensor.name] = tensors.from_json(entry, "inputs")[1]
        singles.add(is_single)
    return Asked(found, is_single=singles == {True})


def _rows(value: Any, names: tuple[str, ...]) -> Any:
    """Objects with the features by name, as lists in the model's order; anything else as it is."""
    if isinstance(value, dict):
        if not names or set(value) != set(names):
            takes = ", ".join(names) or "a list of numbers"
            raise InputError(f"inputs: unknown or missing names; the model takes: {takes}")
        return [value[name] for name in names]
    if isinstance(value, list) and any(isinstance(row, dict) for row in value):
        return [_rows(row, names) for row in value]
    return value


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else int(isinstance(value, list))


def _sizes(value: Any) -> list[int]:
    return [len(value), *(_sizes(value[0]) if value else [])] if isinstance(value, list) else []


def _described(name: str, route: ModelRoute) -> dict[str, Any]:
    card = route.versions[route.default].card
    return {
        "name": name,
        "default": route.default,
        "aliases": dict(route.aliases),
        "versions": [_version(route.versions[version]) for version in sorted(route.versions)],
        "input_kind": card.signature.input_kind,
        "inputs": [tensor.model_dump(mode="json") for tensor in card.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in card.outputs],
        "is_generative": card.is_generative,
    }


def _version(target: Target) -> dict[str, Any]:
    return {
        "version": target.version,
        "state": target.state,
        "digest": target.digest,
        "metrics": dict(target.card.metrics),
        "message": target.message,
    }


def routes() -> list[Route]:
    """The routes of this page."""
    accepts = {JSON: schemas.PREDICT_REQUEST, **dict.fromkeys(_FILES, schemas.BINARY)}
    found = [
        Route(
            "POST", f"{path}:predict", predict, "Predict from a file or values", TAG,
            accepts=accepts, answer=schemas.PREDICTION,
        )
        for path in ("/models/{model}", "/models/{model}/versions/{version}")
    ]  # fmt: skip
    return [
        *found,
        Route("GET", "/models", models, "Deployed models", TAG, answer=schemas.MODELS),
        Route("GET", "/models/{model}", model, "One deployed model", TAG, answer=schemas.MODEL),
    ]
