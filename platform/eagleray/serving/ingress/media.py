"""Files that people have, as the arrays that models take: images, sound, tables, text.

No value is guessed: an image's numbers are its grey or colour values 0..255 as the file has them, a sound's
are 16-bit values / 32768, a table's are its numbers. What the model was trained on beyond that (another
range, a normalisation that is not in its signature) has to be in the file.
"""

from __future__ import annotations

import csv
import io
import math
import wave

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol.tensors import Array
from eagleray.specs.card import ModelCard

MAX_PIXELS = 32 * 2**20
"""Of one image, before it is decoded: a small file can claim to be a huge one."""
_STREAM_BYTES = 0x7FFF0000
"""Of a sound, from here on: its length was not known when its header was written (ffmpeg, sox to a pipe)."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image(body: bytes, card: ModelCard) -> Array:
    """A PNG or JPEG as [1, C, H, W] float32, values 0..255: grey, RGB or RGBA by the model's channels.

    Another size is scaled (bilinear). Raises: InputError: not an image, or not one for this model.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = _shape(card, "image", 3)
    if channels not in _MODES:
        raise InputError(f"an image has 1, 3 or 4 channels, and this model takes {channels}; send JSON")
    try:
        with Image.open(io.BytesIO(body), formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"the image has {opened.width} x {opened.height} pixels; scale it down")
            if opened.mode.startswith(("I", "F")):
                raise InputError(f"the image has {opened.mode} pixels, not 8 bits a channel; convert it")
            found = opened.convert(_MODES[channels])
    except InputError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, which it looks at first
        raise InputError(f"the image has more than {MAX_PIXELS} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise InputError("the body is not a PNG or JPEG image") from None
    except Exception as error:  # a damaged chunk makes Pillow raise what it will: IndexError, struct.error, …
        raise InputError(f"the image is damaged: {error}") from None
    size = (width if width > 0 else found.width, height if height > 0 else found.height)
    if found.size != size:
        found = found.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(found, np.float32)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))[None]


def sound(body: bytes, card: ModelCard) -> Array:
    """A 16-bit PCM WAV as [1, S] float32 in [-1, 1): channels averaged, a shorter one filled with silence.

    Raises: InputError: not such a file, at another rate, cut off, or longer than the model takes.
    """
    (wanted,) = _shape(card, "audio", 1)
    try:
        with wave.open(io.BytesIO(body)) as opened:
            parameters = opened.getparams()
            frames = opened.readframes(parameters.nframes)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise InputError(f"the body is not a PCM WAV file ({str(error) or 'it ends too early'})") from None
    if parameters.sampwidth != 2:
        raise InputError(f"the sound has {8 * parameters.sampwidth} bits a sample; make it 16 bits")
    announced = parameters.nframes * parameters.nchannels * parameters.sampwidth
    if len(frames) < announced < _STREAM_BYTES:
        raise InputError(f"the sound ends early: {announced} bytes are announced, {len(frames)} came")
    rate = card.signature.sample_rate_hz
    if parameters.framerate != rate:
        raise InputError(
            f"the sound has {parameters.framerate} samples a second, and the model takes {rate}; convert "
            f"it: ffmpeg -i IN.wav -ar {rate} OUT.wav"
        )
    samples = np.frombuffer(frames[: len(frames) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
    usable = len(samples) // parameters.nchannels * parameters.nchannels
    mono = samples[:usable].reshape(-1, parameters.nchannels).mean(axis=1, dtype=np.float32)
    if not len(mono):
        raise InputError("the sound is empty")
    if wanted > 0 and len(mono) > wanted:
        raise InputError(
            f"the sound has {len(mono)} samples, and the model takes {wanted} "
            f"({wanted / parameters.framerate:.3g} s); cut it"
        )
    return np.pad(mono, (0, wanted - len(mono) if wanted > 0 else 0))[None]


def table(body: bytes, card: ModelCard) -> Array:
    """CSV with a header as [N, F] float32, columns put in the model's order. Raises: InputError."""
    (num_features,) = _shape(card, "tabular", 1)
    try:
        rows = [row for row in csv.reader(io.StringIO(text(body), newline="")) if row]
    except csv.Error as error:
        raise InputError(f"the body is not CSV: {error}") from None
    if len(rows) < 2:
        raise InputError("the CSV has no row of values; send a header and one row or more")
    header, names = [name.strip() for name in rows[0]], card.signature.feature_names
    if not names and len(header) != num_features:
        raise InputError(f"the CSV has {len(header)} columns, and the model takes {num_features}")
    order = _order(header, names) if names else range(num_features)
    values = np.empty((len(rows) - 1, len(order)), np.float32)
    for index, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise InputError(f"CSV row {index + 1} has {len(row)} values, and the header {len(header)}")
        for column, position in enumerate(order):
            values[index, column] = _number(row[position], index + 1, header[position])
    return values


def text(body: bytes) -> str:
    """UTF-8 text. Raises: InputError."""
    try:
        return str(body, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not UTF-8 text (byte {error.start}: {error.reason})") from None


def _shape(card: ModelCard, kind: str, num_dimensions: int) -> tuple[int, ...]:
    """The shape of one sample. Raises: InputError where the model takes something else."""
    takes, shape = card.signature.input_kind, tuple(card.signature.input_shape)
    if takes != kind or len(shape) != num_dimensions:
        shown = f" {list(shape)}" if shape else ""
        raise InputError(
            f"this model takes {takes}{shown}, not {kind}; GET /v2/models/{card.name} says what it takes"
        )
    return shape


def _order(header: list[str], names: tuple[str, ...]) -> list[int]:
    """Where each feature stands in the header."""
    wrong = [f"column {name!r} is not known" for name in header if name not in names]
    wrong += [f"column {name!r} is missing" for name in names if name not in header]
    wrong += [f"column {name!r} is there twice" for name in names if header.count(name) > 1]
    if wrong:
        raise InputError(f"CSV header: {wrong[0][:200]}; the model takes: {', '.join(names)}")
    return [header.index(name) for name in names]


def _number(value: str, row: int, column: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise InputError(f"CSV row {row}, column {column[:60]!r}: {value[:60]!r} is not a finite number")
    return number
