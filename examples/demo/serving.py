"""The demo's served models: deployed, asked by curl and the SDK, under load, and text token by token."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import CLUSTER, Tally, console, eagleray, found_in, of_cluster, require, say, submit

from eagleray.client import Client
from eagleray.cluster import state
from eagleray.data import open_dataset
from eagleray.data.parts import Array
from eagleray.specs.data import DigitsData

PROMPT = "def "


@dataclass(frozen=True)
class Digits:
    """Held-out digits as they are in the source, and what the evaluation said of them."""

    images: Array
    """[N, 1, 8, 8] float32."""
    targets: list[str]
    labels: list[str]
    """The evaluated model's."""


def connect(up_at: float) -> Client:
    """A client of the ingress, with the cluster's first admin key; `up_at` is when `up` was called."""
    cluster = state.find(CLUSTER)
    assert cluster.ingress_url is not None
    client = Client(cluster.ingress_url, cluster.admin_key_path.read_text().strip())
    require(client.is_ready(), f"{client.url} is not ready {time.monotonic() - up_at:.0f} s after `up`")
    say(f"the single ingress answers at {client.url}")
    return client


def deploy(spec: str, what: str, tally: Tally) -> None:
    """Deploy a service and wait until it is ready."""
    began = time.monotonic()
    eagleray(*of_cluster("deploy", spec), shown=f"deploy {spec}")
    tally.add(f"{what}: deployed and ready after", f"{time.monotonic() - began:.1f} s")


def read_digits(evaluation: Path) -> Digits:
    """The digits that the evaluation judged, with its answers."""
    table = pq.read_table(evaluation / "predictions.parquet").to_pylist()
    test = open_dataset(DigitsData(kind="digits"), is_raw=True).test
    assert test is not None
    arrays = test.fetch(np.array([row["position"] for row in table]))
    return Digits(
        arrays.inputs, [str(row["target"]) for row in table], [str(row["predicted"]) for row in table]
    )


def ask(client: Client, digits: Digits, tally: Tally) -> None:
    """Predictions by curl and by the SDK: the labels are the evaluation's, every one."""
    by_curl(client.url, digits)
    began = time.monotonic()
    answers = [client.predict("digits", image[None]).label for image in digits.images]
    seconds = time.monotonic() - began
    require(
        answers == digits.labels,
        f"{sum(a != b for a, b in zip(answers, digits.labels, strict=True))} labels differ",
    )
    accuracy = np.mean([answer == target for answer, target in zip(answers, digits.targets, strict=True)])
    say(f"SDK: {len(answers)} held-out digits one by one in {seconds:.1f} s, accuracy {accuracy:.2%}")
    say("     every label is the one that the evaluation gave")
    batch = client.predict("digits", digits.images)
    require(list(batch.labels) == digits.labels, "the labels of one batch differ from those one by one")
    tally.add("served: accuracy on held-out digits", f"{accuracy:.2%}, the evaluation's own labels")
    tally.add("served: one digit, one after the other", f"{seconds / len(answers) * 1e3:.1f} ms")


def by_curl(url: str, digits: Digits) -> None:
    """One digit by curl, in JSON of the Open Inference protocol."""
    image = digits.images[0]
    body = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    path = f"{url}/v2/models/digits/infer"
    console.print(f"   $ curl -d '{{\"inputs\": [...]}}' {path}", style="green", markup=False)
    if shutil.which("curl") is None:
        say("(there is no curl here)")
        return
    answer = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-H", "content-type: application/json", "-d", "@-", path],
        input=json.dumps({"inputs": [body]}),
        capture_output=True,
        text=True,
        check=False,
    )
    require(answer.returncode == 0, f"curl failed: {answer.stderr}")
    outputs = {one["name"]: one["data"] for one in json.loads(answer.stdout)["outputs"]}
    require(outputs["label"] == [digits.labels[0]], f"curl got {answer.stdout[:300]}")
    say(f"label {outputs['label'][0]}, probability {max(outputs['probabilities']):.3f}")


def publish_gpt(run_id: str, environment: dict[str, str], tally: Tally) -> None:
    """The GPT as a model version, behind the same ingress."""
    publish(run_id, "gpt", environment, tally)
    deploy("examples/serve/gpt.toml", "gpt", tally)


def publish(run_id: str, name: str, environment: dict[str, str], tally: Tally) -> None:
    """Make the run's model a version of `name`."""
    log = submit("jobs/publish.py", (run_id, "--name", name), environment, tally)
    reference = found_in(log, r"published (\S+?):?\s")
    say(f"{reference} is in the registry")


def stream_text(client: Client, tally: Tally) -> None:
    """A completion over the OpenAI-compatible route, as its tokens come."""
    console.print(
        f'   $ POST /v1/completions {{"model": "gpt", "prompt": "{PROMPT}", "stream": true}}', style="green"
    )
    began, first_s, pieces = time.monotonic(), 0.0, []
    console.print("   ", end="")
    console.print(PROMPT, end="", markup=False)
    for piece in client.generate("gpt", PROMPT, stream=True, max_tokens=120, temperature=0.5, seed=7):
        first_s = first_s or time.monotonic() - began
        pieces.append(piece)
        console.print(piece.replace("\n", "\n   "), end="", markup=False)
    seconds = time.monotonic() - began
    console.print()
    require(len(pieces) >= 20, f"the text came in {len(pieces)} pieces: it was not streamed")
    tally.add("gpt: first token", f"{first_s:.1f} s")
    tally.add(
        "gpt: streamed",
        f"{len(pieces)} pieces, {len(pieces) / max(1e-3, seconds - first_s):.0f}/s after the first",
    )
