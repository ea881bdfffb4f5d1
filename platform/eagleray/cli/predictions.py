"""`predict`: a deployed model's answer for a file, a text, or what a pipe brings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import print_json, print_table
from eagleray.cli.shared import json_option
from eagleray.errors import InputError

if TYPE_CHECKING:
    from eagleray.client import Client

TEXT, CSV, JSON, NPY = "text/plain", "text/csv", "application/json", "application/x-npy"
MEDIA_TYPES: Mapping[str, str] = {
    ".json": JSON,
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".wav": "audio/wav",
    ".txt": TEXT,
    ".csv": CSV,
    ".npy": NPY,
}
_BEGINNINGS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "audio/wav",
    b"\x93NUMPY": NPY,
}
"""By which what a pipe brings is known; of anything else the model says what it is."""
_NUM_CLASSES = 5


@dataclass(frozen=True)
class Sample:
    """What is to be judged."""

    body: bytes
    media_type: str | None
    """None where only the model can say."""


@click.command()
@click.argument("model")
@click.argument("file", required=False)
@click.option("--text", help="A text in place of a FILE.")
@click.option("--stream", is_flag=True, help="Print a text while it is made.")
@click.option("--max-tokens", type=int, metavar="N", help="The text ends after so many [128].")
@click.option("--temperature", type=float, metavar="T", help="0: the likeliest token each time [0.7].")
@click.option("--top-p", type=float, metavar="P", help="Draw among the likeliest that make up P [1].")
@click.option("--seed", type=int, metavar="N", help="Equal calls then have equal answers.")
@click.option("--stop", multiple=True, metavar="TEXT", help="The text ends before it; may be repeated.")
@ingress_options
@json_option
def predict(
    model: str,
    file: str | None,
    *,
    text: str | None,
    stream: bool,
    place: Place,
    as_json: bool,
    stop: tuple[str, ...],
    **generation: Any,
) -> None:
    """Ask a deployed MODEL about a file or a text.

    MODEL: NAME, NAME@ALIAS or NAME/versions/NUMBER. FILE: .json, .png, .jpg, .wav, .txt, .csv or .npy; or -
    for what a pipe brings. The options about text are for models that write it.

    JSON has raw values, one sample or a list of them, for instance:

    \b
      {"inputs": [5.1, 3.5, 1.4, 0.2]}            one row
      {"inputs": [[5.1, 3.5], [6.2, 2.9]]}        two rows
      {"inputs": {"height": 5.1, "width": 3.5}}   by the names of columns, or of inputs
      {"inputs": "def ", "parameters": {"max_tokens": 20}}
    """  # noqa: D301  click wants the character itself
    if text is not None and file is not None:
        raise click.UsageError("give FILE or --text, not both")
    if stream and as_json:
        raise click.UsageError("give --stream or --json, not both: a JSON document comes whole")
    from eagleray.specs.model_ref import Ref

    name = Ref.parse(model).name
    sample = Sample(text.encode(), TEXT) if text is not None else read_sample(file)
    options = {key: value for key, value in generation.items() if value is not None}
    options |= {"stop": stop} if stop else {}
    with ingress_client(place) as client:
        if sample.media_type in (None, TEXT) or options or stream:
            described = client.model(name)
            if described.is_generative and sample.media_type in (None, TEXT):
                prompt = _decoded(sample.body)
                if stream:
                    _stream(client, model, prompt, options)
                else:
                    whole = client.generate(model, prompt, **options)
                    print_json(whole) if as_json else click.echo(whole.text)
                return
            if options or stream:
                what = f"model {name!r} writes no text" if not described.is_generative else "FILE is no text"
                raise InputError(
                    f"--stream, --max-tokens and the like are for a text that a model goes on with; {what}"
                )
            if sample.media_type is None:
                sample = Sample(sample.body, _meant(sample.body, described.input_kind))
        answer = client.predict_file(model, *_as_sent(sample))
    print_json(answer) if as_json else _show(answer)


def read_sample(file: str | None) -> Sample:
    """The file, or what a pipe brings. Raises: InputError."""
    if file is None and sys.stdin.isatty():
        raise click.UsageError("Missing argument 'FILE' (or --text, or a pipe).")
    if file in (None, "-"):
        body = sys.stdin.buffer.read()
        known = (kind for beginning, kind in _BEGINNINGS.items() if body.startswith(beginning))
        return Sample(body, next(known, None))
    path = Path(file)
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise InputError(f"{file}: expected a file whose name ends in one of: {', '.join(MEDIA_TYPES)}")
    try:
        return Sample(path.read_bytes(), media_type)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def _meant(body: bytes, input_kind: str) -> str:
    """The media type of a text, for a model that takes `input_kind`."""
    if input_kind == "text":
        return TEXT
    if body.lstrip()[:1] in (b"[", b"{"):
        return JSON
    return CSV if input_kind == "tabular" else TEXT


def _as_sent(sample: Sample) -> tuple[bytes, str]:
    """Body and media type as the ingress takes them. Raises: InputError where an array is none."""
    assert sample.media_type is not None
    if sample.media_type != NPY:
        return sample.body, sample.media_type
    import io
    import json

    import numpy as np

    try:
        array = np.load(io.BytesIO(sample.body), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"not an array that can be sent: {reason}; write it with numpy.save") from None
    if array.dtype.kind not in "biufU":
        raise InputError(f"an array of {array.dtype} cannot be sent; convert it to numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("the array has NaN or infinite values, which no model takes")
    return json.dumps({"inputs": array.tolist()}).encode(), JSON


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8 (byte {error.start}: {error.reason})") from None


def _stream(client: Client, model: str, prompt: str, options: Mapping[str, Any]) -> None:
    with client.generate(model, prompt, stream=True, **options) as pieces:
        for piece in pieces:
            click.echo(piece, nl=False)
    click.echo()


def _show(answer: Mapping[str, Any]) -> None:
    """An answer for people."""
    rows = answer.get("predictions", [answer])
    if "text" in answer:
        click.echo(answer["text"])
    elif len(rows) == 1 and "probabilities" in rows[0]:
        ranked = sorted(rows[0]["probabilities"].items(), key=lambda entry: -entry[1])
        click.echo(rows[0]["label"])
        click.echo()
        print_table(
            ["class", "probability"],
            [(label, _percent(share)) for label, share in ranked[:_NUM_CLASSES]],
            right=["probability"],
        )
    elif rows and "probabilities" in rows[0]:
        print_table(
            ["sample", "label", "probability"],
            [
                (index, row["label"], _percent(row["probabilities"].get(row["label"], 0.0)))
                for index, row in enumerate(rows)
            ],
            right=["sample", "probability"],
        )
    elif "value" in answer:
        click.echo(_values(answer["value"]))
    else:
        print_table(
            ["sample", *(rows[0] if rows else ())],
            [(index, *map(_values, row.values())) for index, row in enumerate(rows)],
            right=["sample"],
        )


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _values(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_values, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
