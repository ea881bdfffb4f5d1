"""A replica without Serve around it: what it answers, and that a lone request waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from eagleray.cluster import loopback_ray260
from eagleray.data import ByteTokenizer
from eagleray.errors import InputError
from eagleray.inference.generation import generate
from eagleray.packaging import Folder, open_package, write_package
from eagleray.protocol.generation import GenerationRequest
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.frames import Kind
from eagleray.serving.model_app import REFUSED, ModelReplica, arguments_of
from eagleray.specs import ServiceSpec
from support.cards import card, weights
from support.links import KEY, MAX_FRAME_BYTES, answered, asked, linked, placed, run, until

LINKS = {"key": KEY.hex(), "max_frame_bytes": MAX_FRAME_BYTES}


@pytest.fixture
def replica(tmp_path, monkeypatch) -> Iterator[ModelReplica]:
    with replica_of(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def writer(tmp_path, monkeypatch) -> Iterator[ModelReplica]:
    with replica_of(tmp_path, monkeypatch, kind="tokens") as found:
        yield found


@contextmanager
def replica_of(tmp_path, monkeypatch, kind="image", **changes) -> Iterator[ModelReplica]:
    monkeypatch.setattr(loopback_ray260, "keep_replica_to_node_address", lambda: None)
    monkeypatch.setattr(
        "eagleray.serving.garbage.collect_seldom", lambda: None
    )  # it is for a process of its own
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    write_package(Folder(tmp_path / "p"), card(kind), weights(card(kind)))
    spec = ServiceSpec(kind="service", name="digits", max_batch_size=8, **changes)
    found = ModelReplica(arguments_of(spec, str(tmp_path / "p"), open_package(tmp_path / "p").digest, LINKS))
    try:
        yield found
    finally:
        found.close(0)


def test_no_thread_takes_more_cores_than_its_replica_has(tmp_path, monkeypatch):
    """OpenMP's and MKL's numbers are each thread's own; teams of all cores spin longer than they work."""
    import torch

    told = set()
    monkeypatch.setattr(
        torch, "set_num_threads", lambda number: told.add((threading.current_thread().name, number))
    )
    with replica_of(tmp_path, monkeypatch, cpus_per_replica=3.5) as replica:
        asyncio.run(replica.infer(images(1)))  # behind what the link's thread was told first
    assert told == {(name, 3) for name in (threading.current_thread().name, "model_0", "link-server")}


@pytest.mark.parametrize("kind", ["image", "tokens"])
def test_wherever_a_model_runs_its_thread_was_told_first(tmp_path, monkeypatch, kind):
    """Passes in the loop and in the thread, the iterations of texts, and the warm-up."""
    import torch

    set_num_threads, told, ran = torch.set_num_threads, set(), {}

    def tell(number: int) -> None:
        set_num_threads(number)
        told.add(threading.current_thread().name)

    def ran_here(*_: object) -> None:
        ran[threading.current_thread().name] = torch.get_num_threads()

    monkeypatch.setattr("eagleray.serving.replica.batcher.LOOP_S", 60.0)  # however slow this machine is
    before = torch.get_num_threads()
    set_num_threads(3)
    monkeypatch.setattr(torch, "set_num_threads", tell)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(ran_here)
    try:
        with replica_of(tmp_path, monkeypatch, kind=kind, cpus_per_replica=1) as replica:
            if kind == "image":
                for may_run_in_loop in (True, False):
                    replica._batcher._may_run_in_loop = may_run_in_loop
                    asyncio.run(replica.infer(images(1)))
            else:
                asyncio.run(collected(replica.generate(GenerationRequest("ab", max_tokens=3))))
        assert ran.keys() <= told
        assert set(ran.values()) == {1}
        assert ("link-server" in ran) == (kind == "image")
    finally:
        hook.remove()
        set_num_threads(before)


async def collected(chunks) -> list:
    return [chunk async for chunk in chunks]


def images(number: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(number)
    return {"image": drawn.random((1, *card().signature.input_shape), np.float32)}


def test_a_lone_request_waits_for_nothing(replica, monkeypatch):
    async def scenario():
        loop, waits = asyncio.get_running_loop(), []
        monkeypatch.setattr(loop, "call_at", lambda *waited: waits.append(waited), raising=True)
        for number in range(20):
            answer = await replica.infer(images(number))
            alone = replica._predictor.predict(images(number))
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
        assert waits == [], "nothing sets an alarm"

    asyncio.run(scenario())


def test_requests_at_once_get_their_own_answers(replica):
    async def scenario():
        sizes = []
        compute = replica._batcher._run
        replica._batcher._run = lambda inputs: sizes.append(len(inputs["image"])) or compute(inputs)
        asked = [replica.infer(images(number)) for number in range(40)]
        answers = await asyncio.gather(*asked, replica.infer({"image": np.zeros((1, 2), np.float32)}))
        assert "shape [1, 2]" in answers.pop()[REFUSED]
        for number, answer in enumerate(answers):
            alone = replica._predictor.predict(images(number))
            assert answer["label"].tolist() == alone["label"].tolist()
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        # The replica's thread may run the first ones before this one has asked for all.
        assert (sum(sizes), max(sizes), len(sizes) < 10) == (40, 8, True)

    asyncio.run(scenario())


def metadata(replica: ModelReplica) -> dict:
    return asyncio.run(replica.record_replica_metadata())["link"]


def test_a_replica_says_on_which_machine_it_is(replica):
    from eagleray.serving.replica.listening import here

    found = metadata(replica)
    assert ("127.0.0.1", found["node"]) == here(), "a gateway beside it takes the unix socket"
    assert "mnt:[" in found["node"]


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_link_answers_as_the_predictor_does_with_timings(replica, kind):
    async def scenario():
        link = await linked(metadata_now["link"], kind)
        answers = await asyncio.gather(*(asked(link, **images(number)) for number in range(20)))
        for number, answer in enumerate(answers):
            assert answer.kind == Kind.RESULT, answer
            outputs = tensors.read(answer.body)
            alone = replica._predictor.predict(images(number))
            assert outputs["label"].tolist() == alone["label"].tolist()
            assert outputs["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
            assert answer.timings.infer_us > 0
            assert 1 <= answer.timings.batch_size <= 8
        link.close()

    metadata_now = {"link": metadata(replica)}
    run(scenario())


def test_a_link_takes_values_from_the_ring(replica):
    images_ = np.random.default_rng(1).random((200, 1, 8, 8), np.float32)

    async def scenario(address):
        link = await linked(address)
        slot = link.take_slot()
        head, length = placed(slot.view, {"image": images_})
        answer = await answered(lambda take: link.infer_in_slot(slot, 0, length, head, 0, take))
        outputs = (
            tensors.read(answer.body) if answer.slot is None else tensors.read_apart(answer.head, answer.body)
        )
        alone = replica._predictor.predict({"image": images_})
        assert outputs["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        answer.release()
        link.close()

    run(scenario(metadata(replica)))


def test_what_the_model_cannot_take_is_refused_in_its_words(replica):
    wrong = {"image": np.zeros((1, 2), np.float32)}
    with pytest.raises(InputError) as said:
        replica._predictor.check(wrong)

    async def scenario(address):
        link = await linked(address)
        answer = await asked(link, **wrong)
        assert (answer.kind, answer.message) == (Kind.REFUSED, str(said.value))
        assert (await asked(link, **images(1))).kind == Kind.RESULT, "the next good one is answered"
        text = await answered(lambda take: link.generate(b"{}", 0, lambda *_: None, take))
        assert (text.kind, text.message) == (Kind.REFUSED, "the model does not generate text")
        link.close()

    run(scenario(metadata(replica)))


def test_a_model_that_breaks_fails_the_request_and_says_how(replica):
    def broken(inputs):
        raise ValueError("no such layer")

    replica._batcher._run = broken

    async def scenario(address):
        link = await linked(address)
        answer = await asked(link, **images(1))
        assert (answer.kind, answer.message) == (Kind.FAILED, "ValueError: no such layer")
        link.close()

    run(scenario(metadata(replica)))


def test_who_leaves_is_not_computed_and_what_comes_too_late_expires(replica):
    entered, go_on, sizes = threading.Event(), threading.Event(), []
    compute = replica._batcher._run

    def slow(inputs):
        sizes.append(len(inputs["image"]))
        entered.set()
        assert go_on.wait(5)
        return compute(inputs)

    replica._batcher._run, replica._batcher._may_run_in_loop = slow, False

    async def scenario(address):
        link = await linked(address)
        first = asked(link, **images(1))
        await until(entered.is_set)
        late = answered(lambda take: link.infer(tensors.write(images(2)), 1, take))
        gone = link.infer(tensors.write(images(3)), 0, lambda _: pytest.fail("it was cancelled"))
        last = asked(link, **images(4))
        await until(lambda: replica._batcher.num_waiting == 3)
        link.cancel(gone)
        await until(lambda: replica._batcher.num_waiting == 2)
        await asyncio.sleep(0.002)
        go_on.set()
        assert (await first).kind == (await last).kind == Kind.RESULT
        assert (await late).kind == Kind.EXPIRED
        assert sizes == [1, 1]
        link.close()

    run(scenario(metadata(replica)))


def test_a_replica_that_is_closed_finishes_what_runs_and_begins_nothing(replica):
    entered, go_on = threading.Event(), threading.Event()
    compute = replica._batcher._run

    def slow(inputs):
        entered.set()
        assert go_on.wait(5)
        return compute(inputs)

    replica._batcher._run, replica._batcher._may_run_in_loop = slow, False

    async def scenario(address):
        link = await linked(address)
        first = asked(link, **images(1))
        await until(entered.is_set)
        closing = asyncio.get_running_loop().run_in_executor(None, replica.close, 5)
        await until(lambda: link.is_draining)
        assert (await asked(link, **images(2))).kind == Kind.GOAWAY
        go_on.set()
        assert (await first).kind == Kind.RESULT
        await closing
        with pytest.raises(Exception, match="link server has ended"):
            await replica.check_health()

    run(scenario(metadata(replica)))


def texts_of(replica, request):
    context = replica._predictor.card.signature.input_shape[0]
    return list(generate(replica._predictor.module, ByteTokenizer(), request, context=context))


def test_texts_come_over_links_and_by_serve_as_they_are_made_alone(writer):
    requests = [GenerationRequest("ab" * n, max_tokens=5 + n, temperature=1.0, seed=n) for n in range(1, 6)]
    alone = [texts_of(writer, request) for request in requests]

    async def over(link, request):
        chunks = []

        def begin(take):
            link.generate(
                generating.request_bytes(request),
                0,
                lambda piece, tokens: chunks.append(generating.read_piece(piece, tokens)),
                take,
            )

        end = await answered(begin)
        assert end.kind == Kind.RESULT, end
        return [*chunks, generating.read_end(end.body)]

    async def by_serve(request):
        return [chunk async for chunk in writer.generate(request)]

    async def scenario(address):
        link = await linked(address)
        found = await asyncio.gather(*(over(link, request) for request in requests))
        assert found == alone
        assert await asyncio.gather(*map(by_serve, requests)) == alone
        bad = await answered(lambda take: link.generate(b'{"prompt":1}', 0, lambda *_: None, take))
        assert bad.kind == Kind.REFUSED
        assert writer._texts.num_under_way == 0
        link.close()

    run(scenario(metadata(writer)))


def test_a_text_that_nobody_reads_any_more_is_not_made(writer):
    endless = GenerationRequest("a", max_tokens=30_000, seed=1)

    async def scenario(address):
        link = await linked(address)
        pieces = []
        stream = link.generate(
            generating.request_bytes(endless), 0, lambda piece, _: pieces.append(piece), lambda _: None
        )
        await until(lambda: pieces)
        link.cancel(stream)
        await until(lambda: writer._texts.num_under_way == 0)
        await until(lambda: link.in_flight == 0)
        async for _ in writer.generate(endless):
            break
        await until(lambda: writer._texts.num_under_way == 0)
        link.close()

    run(scenario(metadata(writer)))


def test_an_engine_that_breaks_ends_its_texts_and_the_replica_says_so(writer):
    def broken():
        raise RuntimeError("out of order")

    writer._texts._engine.step = broken

    async def scenario(address):
        link = await linked(address)
        end = await answered(
            lambda take: link.generate(
                generating.request_bytes(GenerationRequest("a")), 0, lambda *_: None, take
            )
        )
        assert end.kind == Kind.OVERLOADED, "another replica may make it"
        with pytest.raises(Exception, match="out of order"):
            await writer.check_health()
        link.close()

    run(scenario(metadata(writer)))
