"""`POST /models/{name}:predict`: files and values in, answers that people can read out."""

from __future__ import annotations

import io
import json
import re
import wave
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eagleray.errors import InputError
from eagleray.serving.ingress import media
from eagleray.specs import Signature
from eagleray.specs.card import inputs_of
from support.serving import FEATURES, SIGNATURES, Pretend, card

GREY = (np.arange(64, dtype=np.uint8).reshape(8, 8) * 4) % 251


def file(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def sound(values: Any, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(np.asarray(values, "<i2").tobytes())
    return out.getvalue()


def of(channels: int) -> Any:
    signature = Signature(
        input_kind="image", input_shape=(channels, 8, 8), target_kind="class", num_classes=10
    )
    return card("digits").model_copy(update={"signature": signature, "inputs": inputs_of(signature)})


def sent(ingress: Pretend, name: str, body: bytes, kind: str) -> tuple[dict[str, Any], Any]:
    """The answer, and the array that the replica was given."""
    answer = ingress.post(f"/models/{name}:predict", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    [(_, inputs)] = ingress.transport.asked
    [array] = inputs.values()
    return answer.json(), array


def test_an_image_gives_its_label(ingress: Pretend) -> None:
    values, array = sent(ingress, "digits", file(GREY), "image/png")
    assert np.array_equal(array, GREY[None, None].astype(np.float32)), "grey values as the file has them"
    label = str(int(GREY.sum()) % 10)
    assert values["model"] == "digits"
    assert values["version"] == 2
    assert values["label"] == label
    assert values["class"] == int(label)
    assert list(values["probabilities"]) == list("0123456789")
    assert values["probabilities"][label] == 0.5


def test_a_version_and_an_alias(ingress: Pretend) -> None:
    for name in ("digits@candidate", "digits/versions/3"):
        ingress.transport.asked.clear()
        assert sent(ingress, name, file(GREY), "image/png")[0]["version"] == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_the_models(channels: int) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    array = media.image(file(colour), of(channels))
    assert (array.shape, array.dtype) == ((1, channels, 8, 8), np.float32)
    if channels == 1:
        assert np.array_equal(array[0, 0], np.asarray(Image.fromarray(colour).convert("L"), np.float32))
    else:
        assert np.array_equal(array[0, :3], colour.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_another_size_is_scaled(kind: str) -> None:
    flat = np.full((20, 33), 120, np.uint8)
    assert np.array_equal(media.image(file(flat, kind), of(1)), np.full((1, 1, 8, 8), 120, np.float32))


def test_modes_of_png() -> None:
    black_white = Image.fromarray(GREY > 100)
    assert set(np.unique(media.image(file(black_white), of(1)))) == {0.0, 255.0}
    palette = Image.fromarray(GREY).convert("P")
    assert media.image(file(palette), of(3)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("body", "channels", "message"),
    [
        (
            file(np.random.default_rng(1).integers(0, 256, (50, 50), np.uint8))[:999],
            1,
            "the image is damaged",
        ),
        (
            file(GREY.astype(np.uint16) * 256),
            1,
            "the image has I;16 pixels, not 8 bits a channel; convert it",
        ),
        (file(GREY, "GIF"), 1, "the body is not a PNG or JPEG image"),
        (file(GREY), 2, "an image has 1, 3 or 4 channels, and this model takes 2; send JSON"),
        (file(np.zeros((8000, 8000), np.uint8)), 1, "the image has 8000 x 8000 pixels; scale it down"),
    ],
    ids=["cut", "16 bits", "GIF", "2 channels", "huge"],
)
def test_an_image_that_will_not_do(body: bytes, channels: int, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        media.image(body, of(channels))


def test_a_sound_gives_its_value(ingress: Pretend) -> None:
    samples = np.arange(-400, 400) * 40
    values, array = sent(ingress, "tones", sound(samples), "audio/wav")
    assert np.array_equal(array, (samples / 32768).astype(np.float32)[None])
    assert values == {"model": "tones", "version": 1, "value": pytest.approx(samples.sum() / 32768, abs=1e-4)}


def test_a_stereo_sound_is_averaged_and_a_short_one_filled() -> None:
    array = media.sound(sound([100, 300] * 10, channels=2), card("tones"))
    assert (array.shape, array.dtype) == ((1, 800), np.float32)
    assert np.array_equal(array[0, :10], np.full(10, 200 / 32768, np.float32))
    assert not array[0, 10:].any()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"RIFF", "the body is not a PCM WAV file"),
        (b"", "the body is not a PCM WAV file"),
        (
            sound([0] * 800, rate=44100),
            "44100 samples a second, and the model takes 8000; convert it: ffmpeg",
        ),
        (sound([0] * 801), "the sound has 801 samples, and the model takes 800 (0.1 s); cut it"),
        (sound([]), "the sound is empty"),
        (sound([0] * 8, width=1), "the sound has 8 bits a sample; make it 16 bits"),
    ],
)
def test_a_sound_that_will_not_do(body: bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        media.sound(body, card("tones"))


def test_a_table_gives_an_answer_per_row(ingress: Pretend) -> None:
    head = "petal width, petal length,sepal width,sepal length"
    values, array = sent(ingress, "iris", f"{head}\r\n1,2,3,4\r\n\r\n5,6,7,9\r\n".encode(), "text/csv")
    assert array.tolist() == [[4, 3, 2, 1], [9, 7, 6, 5]], "columns in the model's order"
    assert [row["label"] for row in values["predictions"]] == ["versicolor", "setosa"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the CSV has no row of values; send a header and one row or more"),
        (",".join(FEATURES), "the CSV has no row of values"),
        ("a,b,c,d\n1,2,3,4", "CSV header: column 'a' is not known; the model takes: sepal length, sepal"),
        ("sepal length\n1", "CSV header: column 'sepal width' is missing"),
        (",".join([*FEATURES, FEATURES[0]]) + "\n1,2,3,4,5", "column 'sepal length' is there twice"),
        (",".join(FEATURES) + "\n1,2,3", "CSV row 1 has 3 values, and the header 4"),
        (",".join(FEATURES) + "\n1,2,3,4\n1,2,x,4", "CSV row 2, column 'petal length': 'x' is not a finite"),
        (",".join(FEATURES) + "\n1,2,nan,4", "'nan' is not a finite number"),
        (",".join(FEATURES) + "\n1,2,1e39,4", "'1e39' is not a finite number"),
        (b"\xff\xfe", "the body is not UTF-8 text (byte 0"),
    ],
)
def test_a_table_that_will_not_do(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        media.table(text if isinstance(text, bytes) else text.encode(), card("iris"))


def test_a_table_without_names_of_features() -> None:
    signature = SIGNATURES["iris"].model_copy(update={"feature_names": ()})
    bare = card("iris").model_copy(update={"signature": signature})
    assert media.table(b"a,b,c,d\n1,2,3,4\n", bare).tolist() == [[1, 2, 3, 4]]
    for body in (b"a,b,c\n1,2,3\n", b"a,b,c,d,e\n1,2,3,4,5\n"):
        with pytest.raises(InputError, match="and the model takes 4"):
            media.table(body, bare)


@pytest.mark.parametrize(
    ("body", "is_single"),
    [
        ([1, 2, 3, 4], True),
        ([[1, 2, 3, 4]], False),
        ({"inputs": [1, 2, 3, 4]}, True),
        ({"inputs": [[1, 2, 3, 4], [1, 2, 3, 5]]}, False),
        ({"inputs": {"features": [[1, 2, 3, 4]]}}, False),
        ({"inputs": dict(zip(FEATURES, [1, 2, 3, 4], strict=True))}, True),
        ([dict(zip(reversed(FEATURES), [4, 3, 2, 1], strict=True))], False),
    ],
    ids=str,
)
def test_values_as_json(ingress: Pretend, body: Any, is_single: bool) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        ingress.transport.asked.clear()
        values, array = sent(ingress, "iris", json.dumps(body).encode(), kind)
        assert array[0].tolist() == [1, 2, 3, 4]
        first = values if is_single else values["predictions"][0]
        assert (first["label"], "predictions" in values) == ("versicolor", not is_single)


def test_names_of_features_that_are_wrong(ingress: Pretend) -> None:
    answer = ingress.post("/models/iris:predict", {"inputs": {"sepal length": 1}})
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "inputs: unknown or missing names; the model takes: sepal length, sepal width, petal length, "
        "petal width"
    )


def test_a_text_is_judged(ingress: Pretend) -> None:
    assert sent(ingress, "reviews", "schön".encode(), "text/plain")[0]["label"] == "good"
    ingress.transport.asked.clear()
    values, array = sent(ingress, "reviews", b'{"inputs": ["four", "three"]}', "application/json")
    assert [row["label"] for row in values["predictions"]] == ["bad", "good"]
    assert array.tolist() == ["four", "three"]


def test_a_text_is_gone_on_with(ingress: Pretend) -> None:
    body = {"inputs": "ab", "parameters": {"max_tokens": 5, "temperature": 0, "stop": "x"}}
    answer = ingress.post("/models/gpt:predict", body)
    assert answer.json() == {"model": "gpt", "version": 1, "text": "ababa", "finish_reason": "length"}
    [request] = ingress.transport.requests
    assert (request.temperature, request.stop) == (0, ("x",))
    plain = ingress.post("/models/gpt:predict", content=b"ab", headers={"Content-Type": "text/plain"})
    assert plain.json()["text"] == "ab" * 64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ["a"]}, "inputs: this model completes text; give a string"),
        ({"inputs": ""}, "prompt is empty"),
        ({"inputs": "a", "parameters": {"max_token": 1}}, "parameters: unknown key 'max_token'"),
        ({"inputs": "a", "parameters": {"max_tokens": 0}}, "max_tokens is 0; give a number from 1 to"),
        ({"inputs": "a", "parameters": [1]}, "parameters: expected an object"),
    ],
)
def test_a_text_that_will_not_do(ingress: Pretend, body: Any, message: str) -> None:
    answer = ingress.post("/models/gpt:predict", body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_an_answer_with_nan_is_the_models_fault(ingress: Pretend) -> None:
    ingress.transport.change = lambda outputs: {**outputs, "value": outputs["value"] * np.nan}
    answer = ingress.post(
        "/models/tones:predict", content=sound([1] * 800), headers={"Content-Type": "audio/wav"}
    )
    assert (answer.status_code, "output 'value' has NaN" in answer.json()["error"]) == (500, True)


def test_the_list_of_models(ingress: Pretend) -> None:
    models = {entry["name"]: entry for entry in ingress.get("/models").json()["models"]}
    assert list(models) == ["digits", "gpt", "iris", "reviews", "tones"]
    digits = models["digits"]
    assert (digits["default"], digits["aliases"], digits["input_kind"]) == (2, {"candidate": 3}, "image")
    assert [(v["version"], v["state"], v["metrics"]) for v in digits["versions"]] == [
        (2, "ready", {"accuracy": 0.5}),
        (3, "ready", {"accuracy": 0.5}),
    ]
    assert [name for name, entry in models.items() if entry["is_generative"]] == ["gpt"]
    assert ingress.get("/models/digits").json() == digits
