"""`predict` against an ingress without Ray."""

from __future__ import annotations

import io
import json
import re
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from support.serving import Pretend
from unit.cli.conftest import Run
from unit.processes import ROOT

IMAGE = np.zeros((1, 8, 8), np.float32)
IMAGE[0, 0, 0] = 4  # the pretending model's class is the sum modulo 10


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file of each kind, in the current directory."""
    from PIL import Image

    (tmp_path / "one.json").write_text(json.dumps({"inputs": IMAGE.tolist()}))
    np.save(tmp_path / "one.npy", IMAGE)
    np.save(tmp_path / "many.npy", np.stack([IMAGE, 2 * IMAGE]))
    Image.fromarray(IMAGE[0].astype(np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("good")
    names = "sepal length,sepal width,petal length,petal width\n"
    (tmp_path / "two.csv").write_text(f"{names}1,0,0,0\n0,1,1,0\n")
    with wave.open(str(tmp_path / "one.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.full(800, 16384, "<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("name", ["one.json", "one.npy", "one.png"])
def test_an_image_in_each_form(name: str, run: Run, ingress: Pretend, folder: Path) -> None:
    said = run("predict", "digits", name)
    assert (said.code, said.err) == (0, "")
    label, empty, header, best, *others = said.out.splitlines()
    assert (label, empty, header.split()) == ("4", "", ["class", "probability"])
    assert best.split() == ["4", "50.00%"]
    assert len(others) == 4
    answer = run("predict", "digits", name, "--json").json
    assert (answer["label"], answer["version"], answer["probabilities"]["4"]) == ("4", 2, 0.5)


TAKES = {
    "a row, in the order of the columns": "iris",
    "a row, by name": "iris",
    "several rows": "iris",
    "a text": "reviews",
    "a text to go on with": "gpt",
}
WRITTEN = dict(re.findall(r"^\| (.+?) \| `(\{.*\})` \|$", (ROOT / "docs/start.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("what", TAKES)
def test_json_as_the_documentation_writes_it(what: str, run: Run, ingress: Pretend, folder: Path) -> None:
    (folder / "ask.json").write_text(WRITTEN[what])
    said = run("predict", TAKES[what], "ask.json")
    assert (said.code, said.err) == (0, "")
    assert len(said.out.splitlines()) >= 1


@pytest.mark.parametrize(("model", "version"), [("digits@candidate", 3), ("digits/versions/3", 3)])
def test_a_version_by_its_reference(
    model: str, version: int, run: Run, ingress: Pretend, folder: Path
) -> None:
    assert run("predict", model, "one.npy", "--json").json["version"] == version


def test_many_samples_are_a_table(run: Run, ingress: Pretend, folder: Path) -> None:
    rows = [line.split() for line in run("predict", "digits", "many.npy").out.splitlines()]
    assert rows == [["sample", "label", "probability"], ["0", "4", "50.00%"], ["1", "8", "50.00%"]]
    rows = [line.split() for line in run("predict", "iris", "two.csv").out.splitlines()]
    assert [row[1] for row in rows[1:]] == ["versicolor", "virginica"]
    found = run("predict", "iris", "two.csv", "--json").json
    assert [row["class"] for row in found["predictions"]] == [1, 2]


def test_a_number_and_a_text(run: Run, ingress: Pretend, folder: Path) -> None:
    assert run("predict", "tones", "one.wav").out == "400\n"
    assert run("predict", "reviews", "one.txt").out.splitlines()[0] == "bad"  # four characters, two classes
    assert run("predict", "reviews", "--text", "odd").out.splitlines()[0] == "good"


@pytest.mark.parametrize(
    ("model", "name", "label"),
    [
        ("digits", "one.npy", "4"),
        ("digits", "one.png", "4"),
        ("digits", "one.json", "4"),
        ("iris", "two.csv", "0"),
        ("reviews", "one.txt", "bad"),
    ],
)
def test_a_pipe_is_known_by_what_it_brings(
    model: str,
    name: str,
    label: str,
    run: Run,
    ingress: Pretend,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe(monkeypatch, (folder / name).read_bytes())
    said = run("predict", model, "-")
    assert said.code == 0, said
    assert label in said.out


def test_a_text_model_goes_on(
    run: Run, ingress: Pretend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("predict", "gpt", "one.txt", "--max-tokens", "6").out == "goodgo\n"
    assert run("predict", "gpt", "--text", "ab", "--max-tokens", "3", "--stream").out == "aba\n"
    pipe(monkeypatch, b"{}")
    assert run("predict", "gpt", "--max-tokens", "2", "--temperature", "0", "--stop", "x").out == "{}\n"
    asked = ingress.transport.requests[-1]
    assert (asked.temperature, asked.stop, asked.max_tokens) == (0.0, ("x",), 2)
    found = run("predict", "gpt", "--text", "ab", "--max-tokens", "3", "--json", "--seed", "7").json
    assert (found["text"], found["finish_reason"], found["completion_tokens"]) == ("aba", "length", 3)
    assert ingress.transport.requests[-1].seed == 7
    (folder / "ask.json").write_text(json.dumps({"inputs": "xy", "parameters": {"max_tokens": 4}}))
    assert run("predict", "gpt", "ask.json").out == "xyxy\n"


def test_a_stream_that_breaks_off_is_told(run: Run, ingress: Pretend) -> None:
    ingress.transport.breaks_after = 2
    ingress.transport.error = RuntimeError("gone")
    said = run("predict", "gpt", "--text", "ab", "--stream", "--max-tokens", "9")
    assert said.code == 1
    assert said.out.startswith("ab")
    assert said.err.splitlines()[-1].startswith("eagleray: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "one.npy"], "no model 'none' is deployed; deployed: digits"),
        (["digits@none", "one.npy"], "model 'digits' has no alias 'none'"),
        (["digits", "none.png"], "none.png: cannot be read: No such file"),
        (["digits", "odd.bin"], "odd.bin: expected a file whose name ends in one of: .json"),
        (["digits", "pickle.npy"], "not an array that can be sent: Object arrays cannot be loaded"),
        (["digits", "text.npy"], "not an array that can be sent"),
        (["digits", "nan.npy"], "NaN or infinite"),
        (["digits", "short.npy"], "shape"),
        (["digits", "text.png"], "not a PNG or JPEG image"),
        (["digits", "one.wav"], "this model takes image [1, 8, 8], not audio"),
        (["digits", "bad.json"], "JSON"),
        (["digits", "one.npy", "--max-tokens", "3"], "model 'digits' writes no text"),
        (["gpt", "ask.json", "--stream"], "FILE is no text"),
        (["gpt", "latin.txt"], "the text is not UTF-8 (byte 1"),
        (["gpt", "--text", "x", "--temperature", "9"], "temperature"),
        (["gpt", "--text", ""], "prompt is empty"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, run: Run, ingress: Pretend, folder: Path
) -> None:
    np.save(folder / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((1, 8, 8), np.nan))
    np.save(folder / "short.npy", np.zeros((1, 8)))
    for name, content in {
        "odd.bin": b"",
        "text.npy": b"text",
        "text.png": b"text",
        "bad.json": b"{",
        "ask.json": b'{"inputs": "x"}',
        "latin.txt": b"a\xe9",
    }.items():
        (folder / name).write_bytes(content)
    said = run("predict", *arguments)
    assert said.code == 2, said
    assert said.err.startswith("eagleray: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert run("predict", "digits", "one.npy").code == 0, "the next good one is answered"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "one.npy", "--text", "x"], "give FILE or --text, not both"),
        (["gpt", "--text", "x", "--stream", "--json"], "give --stream or --json, not both"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, run: Run, folder: Path) -> None:
    said = run("predict", *arguments)
    assert said.code == 2
    assert message in said.err
