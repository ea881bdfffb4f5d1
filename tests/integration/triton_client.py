"""NVIDIA's tritonclient asks the ingress at argv[1], with the key argv[2], and prints what it got as JSON.

Run with the Python of an environment that has it, and nothing of ours: see test_triton_client.py.
"""

import asyncio
import json
import sys
from itertools import product
from typing import Any

import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

ADDRESS, HEADERS = sys.argv[1].removeprefix("http://"), {"Authorization": f"Bearer {sys.argv[2]}"}
IMAGES = (np.arange(200 * 64, dtype=np.float32) % 17).reshape(200, 1, 8, 8)
OUTPUTS = ("label", "class", "probabilities")
PACKINGS = (None, "gzip", "deflate")


def given(name: str, array: Any, datatype: str, is_binary: bool, library: Any = http) -> Any:
    tensor = library.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    return tensor


def plain(result: Any, names: tuple[str, ...] = OUTPUTS) -> dict[str, Any]:
    """The outputs as lists; BYTES come as bytes from raw values, and as str from JSON."""
    found = {name: result.as_numpy(name) for name in names}
    return {
        name: [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
        for name, array in found.items()
        if array is not None
    }


def refused(ask: Any) -> tuple[str | None, str]:
    try:
        ask()
    except InferenceServerException as error:
        return error.status(), error.message()
    return None, "it was answered"


def metadata(client: Any) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("digits", "3", headers=HEADERS),
        "server": client.get_server_metadata(headers=HEADERS),
        "model": client.get_model_metadata("digits", headers=HEADERS),
    }


def inferences(client: Any) -> list[dict[str, Any]]:
    """Every way in, every way out, in every packing; each output alone as raw bytes or JSON at last."""
    asked = {
        "as the server likes": None,
        "raw": [http.InferRequestedOutput(name) for name in OUTPUTS],
        "JSON": [http.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS],
        "mixed": [http.InferRequestedOutput(name, binary_data=name != "class") for name in OUTPUTS],
    }
    found = []
    for is_binary, form, packing, back in product((True, False), asked, PACKINGS, PACKINGS):
        result = client.infer(
            "digits",
            [given("image", IMAGES, "FP32", is_binary)],
            outputs=asked[form],
            request_id="42",
            priority=1,
            timeout=10**6,
            headers=dict(HEADERS),
            request_compression_algorithm=packing,
            response_compression_algorithm=back,
        )
        answer = result.get_response()
        about = {
            "is_binary": is_binary, "form": form, "packing": packing, "back": back, "id": answer["id"],
            "version": answer["model_version"],
        }  # fmt: skip
        found.append({**about, "outputs": plain(result)})
    return found


def texts(client: Any) -> list[dict[str, Any]]:
    words = np.array(["schön", "odd", ""], object)
    return [
        plain(
            client.infer("reviews", [given("text", words, "BYTES", is_binary)], headers=dict(HEADERS)),
            ("label",),
        )
        for is_binary in (True, False)
    ]


def many(client: Any) -> list[Any]:
    asked = [
        client.async_infer("digits", [given("image", image[None], "FP32", True)], headers=dict(HEADERS))
        for image in IMAGES[:20]
    ]
    return [plain(one.get_result(), ("label",))["label"] for one in asked]


async def by_asyncio() -> dict[str, Any]:
    async with aio.InferenceServerClient(ADDRESS) as client:
        result = await client.infer(
            "digits",
            [given("image", IMAGES, "FP32", True, aio)],
            model_version="3",
            headers=dict(HEADERS),
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        )
        return {"version": result.get_response()["model_version"], "outputs": plain(result)}


def main() -> None:
    client = http.InferenceServerClient(ADDRESS, concurrency=4)
    image = given("image", IMAGES, "FP32", True)
    print(
        json.dumps(
            {
                "metadata": metadata(client),
                "inferences": inferences(client),
                "texts": texts(client),
                "many": many(client),
                "asyncio": asyncio.run(by_asyncio()),
                "no key": refused(lambda: client.infer("digits", [image])),
                "no model": refused(lambda: client.infer("nothing", [image], headers=dict(HEADERS))),
                "wrong": refused(
                    lambda: client.infer(
                        "digits", [given("image", IMAGES[0], "FP32", True)], headers=dict(HEADERS)
                    )
                ),
            }
        )
    )


main()
