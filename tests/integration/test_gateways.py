"""Two gateways on one port of a real cluster: one limit, one record, and no request lost with one of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagleray.client import Client
from eagleray.cluster import processes, settings
from eagleray.errors import EaglerayError
from eagleray.registry.models import MlflowModels
from eagleray.serving.admission.limits import BURST_S
from eagleray.specs.card import ModelCard
from support import cards
from support.drivers import ROOT
from support.failing import Asking, are_settled, gateways, kill, titled, ways
from support.served import IMAGE, SHARE, deploy, infer, until
from support.served import NAME as PICTURES

pytestmark = pytest.mark.timeout(240)
NAME = "behind-two"
CARD = cards.card("tokens", name=NAME)
TOKENS = np.full((1, 12), 5, np.int64)
BODY = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 12], "data": [5] * 12}]}
BY_HANDLES = Path(__file__).with_name("by_handles.py")
METRIC, ROUTE = "eagleray_ingress_requests_total", "/v2/models/{model}/infer"
LIMIT_PER_S = 60.0
HAMMERED_S, SETTLING_S = 4.0, 1.0
PACE_S = 0.03
REPLACED_S = 8.0
MOST_STREAMS = 6
"""At a time; a replica has slots for some more, so that a new one begins at once."""


@pytest.fixture(scope="module")
def served(ingress: httpx.Client) -> Iterator[httpx.Client]:
    """A small GPT behind two gateways; afterwards there is one again."""
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    version = store.publish(CARD, cards.weights(CARD, 21)).version
    spec = {"name": NAME, "version": version, "cpus_per_replica": SHARE}
    assert ingress.post("/admin/deploy", json=spec).status_code == 202
    assert ingress.post("/admin/gateways", json={"number": 2}).status_code == 202
    seconds = until(lambda: are_settled(ingress, 2))
    print(f"a second gateway: {seconds:.1f} s")
    until(lambda: ingress.post(f"/v2/models/{NAME}/infer", json=BODY).status_code == 200)
    yield ingress
    ingress.post("/admin/gateways", json={"number": 1})
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: are_settled(ingress, 1))
    until(lambda: ingress.get(f"/admin/services/{NAME}").status_code == 404)


def new_key(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    """A key that both gateways know: the one that was not asked hears of it some milliseconds later."""
    made = client.post("/admin/keys", json=asked).json()
    headers = {"Authorization": f"Bearer {made['key']}"}

    def is_known() -> bool:  # on a new connection each time
        answer = httpx.get(f"{client.base_url}/v2/models/{NAME}", headers=headers, trust_env=False)
        return answer.status_code == 200

    until(lambda: all(is_known() for _ in range(8)), 20)
    return made


def told_apart(client: httpx.Client, metric: str, **labels: str) -> Counter[str]:
    """The sum of a metric's samples, by gateway."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == metric and labels.items() <= sample.labels.items():
                found[sample.labels["gateway"]] += int(sample.value)
    return found


@dataclass
class Hammer:
    """Asks through many connections, so that each gateway gets some of them, for more than is let in."""

    client: httpx.Client
    key: str
    asked: list[tuple[float, int]] = field(default_factory=list)
    """When, and what status came."""
    longest_s: float = 0.0

    def run(self, seconds: float, connections: int = 12) -> None:
        until_s = time.monotonic() + seconds
        threads = [threading.Thread(target=self._one, args=(until_s,)) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, until_s: float) -> None:
        # http.client costs a tenth of httpx's CPU time, and the machine is the gateways' too.
        url, path = self.client.base_url, f"/v2/models/{NAME}/infer"
        body, headers = json.dumps(BODY), {"Authorization": f"Bearer {self.key}"}
        with contextlib.closing(http.client.HTTPConnection(url.host, url.port, timeout=60)) as connection:
            while (began_s := time.monotonic()) < until_s:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                self.asked.append((began_s, answer.status))
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                time.sleep(max(0.0, began_s + PACE_S - time.monotonic()))


def most_in(times: list[float], seconds: float) -> int:
    """The most that any stretch of that length has seen."""
    ordered = sorted(times)
    return max(bisect_left(ordered, first + seconds) - at for at, first in enumerate(ordered))


def test_a_limit_holds_over_both(cluster, served):
    """Not more than the limit; all of it, too, where the machine lets those who ask come in time."""
    assert len(gateways(cluster)) == 2
    for _ in range(3):
        rate, longest_s = admitted_per_s(served)
        if rate >= 0.9 * LIMIT_PER_S:
            return
        assert longest_s > BURST_S, f"{rate:.0f}/s are admitted"
        # What a bucket cannot hold is lost while nobody comes for it, and says nothing of the limit.
        print(f"only that it is not more: an answer took {longest_s:.2f} s, a burst lasts {BURST_S:.2f} s")


def admitted_per_s(client: httpx.Client) -> tuple[float, float]:
    """Of a key with a limit, asked for more through both, after the first second; and the longest answer."""
    terms = {"requests_per_s": LIMIT_PER_S}
    made = new_key(client, name="limited", terms=terms)
    hammer = Hammer(client, made["key"])
    before = told_apart(client, METRIC, code="200", route=ROUTE)
    began_s = time.monotonic()
    hammer.run(HAMMERED_S)
    client.delete(f"/admin/keys/{made['id']}")
    admitted = [at for at, code in hammer.asked if code == 200]
    settled_s = began_s + SETTLING_S
    rate = sum(at > settled_s for at in admitted) / (HAMMERED_S - SETTLING_S)
    offered = sum(at > settled_s for at, _ in hammer.asked) / (HAMMERED_S - SETTLING_S)
    codes = Counter(code for _, code in hammer.asked)
    print(f"{rate:.0f} of {offered:.0f}/s after the first second; {most_in(admitted, 1.0)} in one; {codes}")
    assert set(codes) == {200, 429}
    assert len(admitted) <= LIMIT_PER_S * (HAMMERED_S + 0.05 * 10), "5 % of what 10 s may see"
    until(lambda: (told_apart(client, METRIC, code="200", route=ROUTE) - before).total() >= codes[200], 10)
    assert len(told_apart(client, METRIC, code="200", route=ROUTE) - before) == 2
    return rate, hammer.longest_s


def test_a_revoked_key_ends_streams_on_both(served):
    made = new_key(served, name="streaming")
    ended: dict[int, tuple[float, str]] = {}

    def read(number: int) -> None:
        with Client(str(served.base_url), made["key"], timeout_s=60) as client:
            try:
                for _ in client.generate(NAME, "a", max_tokens=30_000, stream=True):
                    began.add(number)
                    if number < len(threads) - MOST_STREAMS:
                        return
                said = "it came to its end"
            except EaglerayError as error:
                said = str(error)
            ended[number] = time.monotonic(), said

    began: set[int] = set()
    threads: list[threading.Thread] = []

    def are_on_both() -> bool:
        """More and more, of which the oldest leave: which gateway gets a connection is chance."""
        assert not ended, ended
        if began >= set(range(len(threads))):
            threads.append(threading.Thread(target=read, args=(len(threads),)))
            threads[-1].start()
        return min(told_apart(served, "eagleray_ingress_in_flight").values()) >= 2

    until(are_on_both, 30)
    staying = set(range(max(0, len(threads) - MOST_STREAMS), len(threads)))
    revoked_s = time.monotonic()
    assert served.delete(f"/admin/keys/{made['id']}").status_code == 200
    for thread in threads:
        thread.join(20)
    last_s = max(at for at, _ in ended.values()) - revoked_s
    print(f"{len(ended)} streams have ended {last_s:.2f} s after their key was revoked")
    assert staying <= set(ended), ended
    assert last_s < 2.0
    assert all("was revoked" in said for _, said in ended.values()), ended


def test_one_that_is_killed_and_one_that_ends_cost_the_sdk_no_request(cluster, served):
    key = new_key(served, name="sdk")["key"]
    with Asking(str(served.base_url), key, NAME, {"tokens": TOKENS}) as asking:
        [killed, other] = gateways(cluster)
        processes.send(killed, processes.signal.SIGKILL)
        asking.goes_on()
        seconds = until(lambda: are_settled(served, 2) and len(gateways(cluster)) == 2, 60)
        longest_s = max(after - at for at, after in pairwise(asking.answered_s))
        print(f"a killed gateway is back after {seconds:.1f} s; the longest pause was {longest_s:.2f} s")
        assert other.pid in {process.pid for process in gateways(cluster)}
        served.post("/admin/gateways", json={"number": 1})
        seconds = until(lambda: are_settled(served, 1) and len(gateways(cluster)) == 1, 60)
        print(f"one is left after {seconds:.1f} s; {len(asking.answered_s)} answers")
        asking.goes_on()
    assert asking.failed == []


COMPLETIONS, PROMPT = "/v1/completions", {"model": NAME, "prompt": "ab", "max_tokens": 20, "temperature": 0}
MANY = {**BODY["inputs"][0], "shape": [360, 12], "data": [5] * 12 * 360}
UNKNOWN = {**BODY["inputs"][0], "data": [258] * 12}
"""Tokens that the vocabulary has not: what to say of them is the replica's."""
ASKED: list[tuple[str, dict[str, Any]]] = [
    (f"/v2/models/{NAME}/infer", BODY),
    (f"/v2/models/{NAME}/infer", {"inputs": [MANY]}),  # its answer is larger than 4 MiB, which gRPC takes
    (f"/v2/models/{NAME}/infer", {"inputs": [{**MANY, "shape": [1, 12]}]}),
    (f"/v2/models/{NAME}/infer", {"inputs": [UNKNOWN]}),
    (COMPLETIONS, PROMPT),
    (COMPLETIONS, {**PROMPT, "stream": True}),
]


def said(status: int, text: str) -> Any:
    """What is the same in two answers to the same."""
    if not text.startswith("data: "):
        found = json.loads(text)
        return status, {name: value for name, value in found.items() if name not in {"id", "created"}}
    events = [json.loads(event[6:]) for event in text.split("\n\n") if event not in {"", "data: [DONE]"}]
    choices = [event["choices"][0] for event in events]
    return status, "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def by_handles(
    env: Mapping[str, str], client: httpx.Client, card: ModelCard, asked: Sequence[tuple[str, Any]]
) -> tuple[list[Any], str]:
    """What Serve's own handles answer, in another process, and why there nothing went over links."""
    version = client.get(f"/admin/services/{card.name}").json()["services"][0]["version"]
    done = subprocess.run(
        [sys.executable, str(BY_HANDLES), card.name, str(version), card.model_dump_json()],
        input="".join(f"{json.dumps(one)}\n" for one in asked),
        env={**env, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *answers, [counted, reason] = map(json.loads, done.stdout.splitlines())
    assert counted["link"] == 0 < counted["serve"]
    return [said(*answer) for answer in answers], reason


def test_by_links_and_by_serves_handles_the_answers_are_the_same(cluster_env, served):
    before = ways(served, NAME)
    answers = [served.post(path, json=values) for path, values in ASKED]
    by_links = [said(answer.status_code, answer.text) for answer in answers]
    until(lambda: (ways(served, NAME) - before)["link"] >= 5, 10)  # another gateway's are a second old
    assert (ways(served, NAME) - before)["serve"] == 0
    assert [status for status, *_ in by_links] == [200, 200, 400, 400, 200, 200]
    answers, reason = by_handles(cluster_env, served, CARD, ASKED)
    assert answers == by_links
    assert "key" in reason


@pytest.fixture(scope="module")
def pictures(served: httpx.Client) -> Iterator[ModelCard]:
    """The card of a model that is asked more than it answers; it runs beside the other."""
    card = cards.card("image", name=PICTURES)
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    deploy(served, version=store.publish(card, cards.weights(card, 22)).version)
    until(lambda: infer(served).status_code == 200, client=served)
    yield card
    served.post("/admin/undeploy", json={"name": PICTURES})


@pytest.mark.slow
@pytest.mark.parametrize(
    "handles", [{}, {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30)}], ids=["4 MiB", "as gateways"]
)
def test_so_are_those_to_requests_larger_than_a_slot_and_a_message(cluster_env, served, pictures, handles):
    images = {"name": "image", "datatype": "FP32", "shape": [20_000, 1, 8, 8], "data": IMAGE * 20_000}
    asked = [(f"/v2/models/{PICTURES}/infer", {"inputs": [images]})]  # 5.1 MB of numbers
    [answer] = [served.post(path, json=values) for path, values in asked]
    assert answer.status_code == 200, answer.text[:300]
    answers, _ = by_handles({**cluster_env, **handles}, served, pictures, asked)
    assert answers == [said(200, answer.text)]


@pytest.mark.slow
def test_all_are_replaced_on_demand_without_a_failed_request(cluster, served):
    key = new_key(served, name="sdk")["key"]
    with Asking(str(served.base_url), key, NAME, {"tokens": TOKENS}) as asking:
        for number in (1, 1, 2):
            served.post("/admin/gateways", json={"number": number})
            until(lambda number=number: are_settled(served, number), 60)
            before = {process.pid for process in gateways(cluster)}
            assert served.post("/admin/gateways/restart").status_code == 202

            def are_others(number: int = number, before: set[int] = before) -> bool:
                return are_settled(served, number) and not before & {one.pid for one in gateways(cluster)}

            seconds = until(are_others, 90)
            print(f"{number} replaced after {seconds:.1f} s; {len(asking.answered_s)} answers")
            asking.goes_on()
    assert asking.failed == []


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_no_version_is_kept_for_a_gateway_that_has_ended(cluster, served):
    """The version that takes over runs before: how long a start takes is not what is asked here."""
    url, [service] = f"/admin/services/{NAME}", served.get(f"/admin/services/{NAME}").json()["services"]
    first, store = service["version"], MlflowModels(settings.tracking_uri(), settings.storage_url())
    second = store.publish(CARD, cards.weights(CARD, 22)).version

    def is_deployed(version: int, is_default: bool) -> bool:
        spec = {"name": NAME, "version": version, "default": is_default, "cpus_per_replica": SHARE}
        try:
            return served.post("/admin/deploy", json=spec).status_code == 202
        except httpx.TransportError:  # a connection to a gateway that has ended
            return False

    def both_run() -> bool:
        return [one["state"] for one in served.get(url).json()["services"]] == ["ready", "ready"]

    def kill_one() -> None:
        kill(gateways(cluster)[:1])

    def replace_all() -> None:
        until(lambda: are_settled(served, 2) and len(gateways(cluster)) == 2, 90)
        before = set(gateways(cluster))
        assert served.post("/admin/gateways/restart").status_code == 202
        until(lambda: are_settled(served, 2) and not before & set(gateways(cluster)), 90)

    for end, version in ((kill_one, second), (replace_all, first)):
        [before] = titled(cluster, f"ray::ServeReplica:m--{NAME}--v")
        until(lambda version=version: is_deployed(version, False), 20)
        until(both_run)
        end()
        began_s = time.monotonic()
        until(lambda version=version: is_deployed(version, True), 20)
        until(lambda before=before: not before.is_alive, 60)
        seconds = time.monotonic() - began_s
        print(f"{end.__name__}: version {version} is in the other's place after {seconds:.1f} s")
        assert seconds < REPLACED_S
