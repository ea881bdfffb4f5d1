"""JSON schemas of bodies and answers, for /openapi.json.

Source of those of inference and generation: open_inference_rest.yaml and generate_rest.yaml of
github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleray.protocol.key_terms import PRIORITIES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
OBJECT: Schema = {"type": "object"}
BINARY: Schema = {"type": "string", "format": "binary"}


def an_object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these fields."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def a_list(items: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items}


_SHAPE = a_list(WHOLE)
_DATA: Schema = {
    "type": "array",
    "items": {},
    "description": "flat in row-major order, or nested as the shape",
}
_TENSOR = an_object({"name": TEXT, "shape": _SHAPE, "datatype": TEXT, "data": _DATA}, {"parameters": OBJECT})
_INFO = an_object({"name": TEXT, "datatype": TEXT, "shape": _SHAPE})

ERROR = an_object({"error": TEXT})
OPENAI_ERROR = an_object({"error": an_object({"message": TEXT, "type": TEXT}, {"param": {}, "code": {}})})

INFER_REQUEST = an_object(
    {"inputs": a_list(_TENSOR)},
    {"id": TEXT, "parameters": OBJECT, "outputs": a_list(an_object({"name": TEXT}, {"parameters": OBJECT}))},
)
INFER_RESPONSE = an_object(
    {"model_name": TEXT, "outputs": a_list(_TENSOR)},
    {"model_version": TEXT, "id": TEXT, "parameters": OBJECT},
)
SERVER_METADATA = an_object({"name": TEXT, "version": TEXT, "extensions": a_list(TEXT)})
MODEL_METADATA = an_object(
    {"name": TEXT, "platform": TEXT},
    {"versions": a_list(TEXT), "inputs": a_list(_INFO), "outputs": a_list(_INFO), "properties": OBJECT},
)

PREDICT_REQUEST: Schema = {
    "description": 'one sample or a list of them, bare or as {"inputs": …}; text where the model generates',
    "example": {"inputs": [[5.1, 3.5, 1.4, 0.2]]},
}
PREDICTION = an_object(
    {"model": TEXT, "version": WHOLE},
    {"label": TEXT, "class": WHOLE, "probabilities": OBJECT, "value": {}, "text": TEXT,
     "predictions": a_list(OBJECT)},
)  # fmt: skip
MODEL = an_object(
    {"name": TEXT, "default": WHOLE, "aliases": OBJECT, "versions": a_list(OBJECT)},
    {
        "input_kind": TEXT,
        "inputs": a_list(_INFO),
        "outputs": a_list(_INFO),
        "is_generative": {"type": "boolean"},
    },
)
MODELS = an_object({"models": a_list(MODEL)})

_NUMBER: Schema = {"type": "number"}
_STOP: Schema = {"oneOf": [TEXT, a_list(TEXT)]}
_SAMPLING: Mapping[str, Schema] = {
    "max_tokens": WHOLE, "temperature": _NUMBER, "top_p": _NUMBER, "seed": WHOLE, "stop": _STOP,
    "stream": {"type": "boolean"}, "stream_options": OBJECT,
}  # fmt: skip
COMPLETION = an_object({"model": TEXT, "prompt": TEXT}, _SAMPLING)
CHAT = an_object({"model": TEXT, "messages": a_list(an_object({"role": TEXT, "content": TEXT}))}, _SAMPLING)

GENERATE = an_object(
    {"text_input": TEXT},
    {
        "parameters": an_object(
            {},
            {
                "max_tokens": {**WHOLE, "minimum": 1, "default": 20},
                "temperature": {**_NUMBER, "minimum": 0, "maximum": 2, "default": 1},
                "top_p": {**_NUMBER, "minimum": 0, "maximum": 1},
                "stop": a_list(TEXT), "seed": WHOLE, "details": {"type": "boolean"},
            },
        )
    },
)  # fmt: skip
_TOKEN = an_object({"id": WHOLE, "text": TEXT, "logprob": _NUMBER, "special": {"type": "boolean"}})
_DETAILS = an_object(
    {"finish_reason": {"enum": ["length", "eos_token", "stop_sequence"]}, "logprobs": a_list(_TOKEN)},
    {"token": _TOKEN},
)
GENERATED = an_object({"text_output": TEXT, "model_name": TEXT}, {"model_version": TEXT, "details": _DETAILS})

PROMOTE = an_object({"version": WHOLE, "alias": TEXT})
UNDEPLOY = an_object({"name": TEXT}, {"version": WHOLE})
_KEY_TERMS = an_object(
    {},
    {
        "models": a_list(TEXT), "requests_per_s": _NUMBER, "burst": _NUMBER, "tokens_per_s": _NUMBER,
        "bytes_per_s": _NUMBER, "concurrency": WHOLE, "weight": WHOLE, "priority": {"enum": list(PRIORITIES)},
        "expires_at": _NUMBER,
    },
)  # fmt: skip
CREATE_KEY = an_object({"name": TEXT}, {"scopes": a_list({"enum": ["infer", "admin"]}), "terms": _KEY_TERMS})
ROTATE_KEY = an_object({}, {"overlap_s": _NUMBER})
SERVICE_SPEC: Schema = {
    "type": "object",
    "description": "docs/schemas/service.json has every key",
    "example": {"kind": "service", "name": "digits"},
}
