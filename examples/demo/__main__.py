"""The demo: what the platform does, on this machine, with Ray's own command line and ours.

    make demo            all of it, then nothing is left running
    make demo KEEP=1     leaves the cluster up, to look at the Ray dashboard and the ingress's pages

Every step is checked; the exit code is 0 only if each one really happened.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from common import Tally, cluster_environment, console, eagleray, of_cluster, step
from ending import NodeWatcher, wait_for_no_nodes
from playing import perform
from training import jobs_listed, train_digits, train_gpt

LAST_STEP = 11


def play(tally: Tally) -> None:
    """The steps, in order."""
    step(1, "A local elastic cluster: Ray's autoscaler v2, a head without workload CPUs, no worker node yet")
    began = time.monotonic()
    eagleray(*of_cluster("up"))
    tally.add("cluster up", f"{time.monotonic() - began:.1f} s")
    environment = cluster_environment()
    with NodeWatcher(tally):
        gpt_run = train(environment, tally)
        evaluation = improve(environment, tally)
        serve(evaluation, gpt_run, began, environment, tally)


def train(environment: dict[str, str], tally: Tally) -> str:
    """Two training runs; returns the id of the GPT's."""
    step(2, "A CNN on real handwritten digits: 2 workers, a logical GPU each, gradients in bf16")
    console.print("   (and step 3: on the way, one of the two workers is ended with kill -9)\n", style="dim")
    train_digits(environment, tally)
    step(4, "A small GPT on the Python standard library's own source text")
    return train_gpt(environment, tally)


def improve(environment: dict[str, str], tally: Tally) -> Path:
    """From a search to a promoted model version; returns the evaluation's folder."""
    import searching

    step(5, "A search over learning rate, width and gradient format: ASHA ends early what does badly")
    winner = searching.search(environment, tally)
    step(6, "The winner becomes a model version, is judged on digits that it never saw, and promoted")
    reference = searching.publish(winner, environment, tally)
    evaluation = searching.evaluate(reference, environment, tally)
    searching.promote(reference, tally)
    return evaluation


def serve(evaluation: Path, gpt_run: str, up_at: float, environment: dict[str, str], tally: Tally) -> None:
    """Both models behind the single ingress, until nobody needs them any more."""
    import load
    import serving

    step(7, "It is deployed behind the single ingress, and asked by curl and by the SDK")
    with serving.connect(up_at) as client, load.Sampler(client) as sampler:
        serving.deploy("examples/serve/digits.toml", "digits", tally)
        serving.ask(client, serving.read_digits(evaluation), tally)
        step(8, "The GPT behind the same ingress: text as its tokens come, on the OpenAI-compatible route")
        serving.publish_gpt(gpt_run, environment, tally)
        serving.stream_text(client, tally)
        step(9, "Load: replicas and nodes come for it, and go when it stops")
        load.under_load(client.url, sampler.trace, tally)
        leave(environment, tally)
    load.draw(sampler.trace)


def leave(environment: dict[str, str], tally: Tally) -> None:
    """End the services, unless they are to stay; then the nodes go."""
    step(10, "Nobody needs the nodes any more: they go away by themselves")
    jobs_listed(environment, tally)
    if tally.keeps_cluster:
        console.print("   (KEEP=1: the services stay, and with them the node of one replica)", style="dim")
        return
    for name in ("digits", "gpt"):
        eagleray(*of_cluster("undeploy", name), shown=f"undeploy {name}")
    wait_for_no_nodes(tally)
    num_seen = len(tally.nodes_seen)
    tally.add("nodes started and stopped", f"{num_seen} and {num_seen}")


if __name__ == "__main__":
    sys.exit(perform(play, LAST_STEP))
