"""Open Inference v2 against its published contract (tests/contracts/open_inference_rest.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from support.serving import Pretend, outputs_for

CONTRACT = yaml.safe_load((Path(__file__).parents[2] / "contracts/open_inference_rest.yaml").read_text())
IMAGES = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


def holds(values: Any, schema: str) -> None:
    """`values` are as the contract's component says."""
    components = {"components": CONTRACT["components"]}
    jsonschema.validate(values, {"$ref": f"#/components/schemas/{schema}", **components})


def digits_request(**changes: Any) -> dict[str, Any]:
    data = {"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": IMAGES.ravel().tolist()}
    request = {"inputs": [data], **changes}
    holds(request, "inference_request")
    return request


def test_every_path_of_the_contract_is_a_route(ingress: Pretend) -> None:
    ours = {
        (method, path.replace("{model}", "{MODEL_NAME}").replace("{version}", "{MODEL_VERSION}"))
        for path, operations in ingress.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    theirs = {
        (method, path.replace("$", "").rstrip("/"))
        for path, operations in CONTRACT["paths"].items()
        for method in ("get", "post")
        if method in operations
    }
    assert len(theirs) == 6
    assert theirs <= ours


def test_the_servers_health_and_metadata(ingress: Pretend) -> None:
    assert ingress.get("/v2/health/live").status_code == 200
    assert ingress.get("/v2/health/ready").status_code == 200
    for path in ("/v2", "/v2/"):
        answer = ingress.get(path)
        holds(answer.json(), "metadata_server_response")
        assert answer.json()["name"] == "eagleray"
        assert answer.json()["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("path", ["digits", "digits/versions/3", "digits@candidate", "gpt", "reviews"])
def test_a_models_metadata(ingress: Pretend, path: str) -> None:
    values = ingress.get(f"/v2/models/{path}").json()
    holds(values, "metadata_model_response")
    assert ingress.get(f"/v2/models/{path}/ready").status_code == 200
    if "digits" in path:
        assert values["versions"] == ["2", "3"]
        assert values["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        assert values["properties"]["version"] == ("2" if path == "digits" else "3")


@pytest.mark.parametrize(
    ("path", "version"), [("digits", "2"), ("digits/versions/3", "3"), ("digits@candidate", "3")]
)
def test_inference(ingress: Pretend, path: str, version: str) -> None:
    answer = ingress.post(f"/v2/models/{path}/infer", digits_request(id="42"))
    assert answer.status_code == 200, answer.text
    values = answer.json()
    holds(values, "inference_response")
    assert (values["model_name"], values["model_version"], values["id"]) == ("digits", version, "42")
    [(target, inputs)] = ingress.transport.asked
    assert (target.version, inputs["image"].dtype) == (int(version), np.float32)
    assert np.array_equal(inputs["image"], IMAGES)
    expected = outputs_for(target.card, inputs)
    found = {output["name"]: output for output in values["outputs"]}
    assert list(found) == ["label", "class", "probabilities"]
    assert found["label"]["data"] == expected["label"].tolist()
    assert found["class"] == {
        "name": "class", "datatype": "INT64", "shape": [2], "data": expected["class"].tolist()
    }  # fmt: skip
    probabilities = np.array(found["probabilities"]["data"], np.float32).reshape(2, 10)
    assert np.array_equal(probabilities, expected["probabilities"])


def test_only_the_wanted_outputs_come(ingress: Pretend) -> None:
    answer = ingress.post("/v2/models/digits/infer", digits_request(outputs=[{"name": "class"}]))
    assert [output["name"] for output in answer.json()["outputs"]] == ["class"]
    assert "id" not in answer.json()
    ingress.transport.asked.clear()
    refused = ingress.post("/v2/models/digits/infer", digits_request(outputs=[{"name": "logits"}]))
    assert refused.status_code == 400
    holds(refused.json(), "inference_error_response")
    assert refused.json()["error"].startswith("output 'logits' is not known; this model gives: label, class")
    assert ingress.transport.asked == [], "it is refused before a replica works on it"


def test_text_goes_in_as_bytes(ingress: Pretend) -> None:
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["schön", "odd"]}
    answer = ingress.post("/v2/models/reviews/infer", {"inputs": [text]})
    assert answer.json()["outputs"][0]["data"] == ["good", "good"]
    [(_, inputs)] = ingress.transport.asked
    assert inputs["text"].tolist() == ["schön", "odd"]


def test_a_large_body_is_read_in_a_thread(ingress: Pretend) -> None:
    many = np.ones((3000, 1, 8, 8), np.float32)
    data = {"name": "image", "shape": list(many.shape), "datatype": "FP32", "data": many.tolist()}
    answer = ingress.post("/v2/models/digits/infer", {"inputs": [data], "outputs": [{"name": "class"}]})
    assert answer.json()["outputs"][0]["data"] == [4] * 3000


def test_an_answer_with_nan_is_the_models_fault(ingress: Pretend) -> None:
    def spoil(outputs: dict[str, Any]) -> dict[str, Any]:
        outputs["probabilities"][0, 0] = np.nan
        return outputs

    ingress.transport.change = spoil
    answer = ingress.post("/v2/models/digits/infer", digits_request())
    assert answer.status_code == 500
    assert answer.json()["error"] == (
        "model 'digits' version 2 gave no usable answer: output 'probabilities' has NaN or infinite values; "
        "only finite ones are carried"
    )
