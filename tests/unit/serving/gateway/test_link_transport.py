"""Requests over links, and where they go when there is none; real links, pretending replicas, no Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from eagleray.errors import ServiceError
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.admission.window import OPEN
from eagleray.serving.gateway.link_transport import LinkTransport
from eagleray.serving.gateway.lookup_ray260 import Running
from eagleray.serving.link.server import LinkServer
from eagleray.serving.routes import Target
from eagleray.serving.services import Trouble
from eagleray.serving.transport import BadInput, Overloaded, ReplicaFailed
from support.linked import LINKS, NODE, LinkedTransport, NoLookup, PretendReplica
from support.links import KEY, has_link, num_free, run, until
from support.serving import PretendTransport, outputs_for, target

DIGITS, GPT = target("digits", 2, max_queued=2), target("gpt", 1)
MANY = target("digits", 2, max_queued=10)


class PretendServe(PretendTransport):
    """Answers as pretending replicas do, and knows what it was asked."""

    def expect(self, starts) -> None:
        self.starts = starts

    def keep_only(self, apps) -> None:
        self.apps = apps


class Replicas:
    """Several of one target, each a link server; and the transport to them."""

    def __init__(self, folder, of: Target = DIGITS, number: int = 1) -> None:
        self.behind, self.target = [PretendTransport() for _ in range(number)], of
        self.serve = PretendServe()
        self.servers = [
            LinkServer(
                PretendReplica(of, behind),
                KEY,
                folder=folder,
                host="127.0.0.1",
                max_frame_bytes=LINKS["max_frame_bytes"],
                node=NODE,
            )
            for behind in self.behind
        ]
        self.addresses = [server.start() for server in self.servers]

    @asynccontextmanager
    async def linked(self, max_ongoing: int = 100, **options) -> AsyncIterator[LinkTransport]:
        transport = LinkTransport(self.serve, node=NODE, look_up=NoLookup)
        transport.follow({**LINKS, **options}, [self.target.app])
        self.tell(transport, max_ongoing)
        await until(lambda: len(transport.line(self.target.app).pool.links) == len(self.servers))
        try:
            yield transport
        finally:
            await transport.close()

    def tell(self, transport: LinkTransport, max_ongoing: int = 100) -> None:
        transport.update(self.target.app, [Running(address, max_ongoing) for address in self.addresses])


@pytest.fixture
def replicas(tmp_path) -> Iterator[Replicas]:
    found = Replicas(tmp_path / "s")
    yield found
    for server in found.servers:
        server.close(0)


@pytest.fixture
def two(tmp_path) -> Iterator[Replicas]:
    found = Replicas(tmp_path / "s", number=2)
    yield found
    for server in found.servers:
        server.close(0)


def images(number: int, size: int = 1) -> dict[str, np.ndarray]:
    return {"image": np.full((size, 1, 8, 8), number, np.float32)}


def same(found, inputs) -> bool:
    wanted = outputs_for(DIGITS.card, inputs)
    return all(np.array_equal(found[name].astype(wanted[name].dtype), wanted[name]) for name in wanted)


def test_both_ways_give_the_same_and_it_is_said_once_which_one(replicas, caplog):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        for _ in range(3):
            assert same(await transport.infer(DIGITS, images(3), timeout_s=5), images(3))
        assert len(replicas.serve.asked) == 3, "nobody has said how links are made"
        transport.follow(LINKS, [DIGITS.app])
        waiting = [asyncio.ensure_future(transport.infer(DIGITS, images(3), timeout_s=5)) for _ in range(2)]
        await asyncio.sleep(0)
        assert [said.queued for said in transport.demand.due()] == [2]
        transport.update(DIGITS.app, [Running(None, 10)])
        assert all(same(found, images(3)) for found in await asyncio.gather(*waiting))
        assert len(replicas.serve.asked) == 5, "what waited goes on, too"
        assert same(await transport.infer(DIGITS, images(3), timeout_s=5), images(3))
        assert same(await transport.infer(DIGITS, images(3), timeout_s=5), images(3))
        assert len(replicas.serve.asked) == 7, "its replica has no address"
        replicas.tell(transport)
        await has_link(transport.line(DIGITS.app).pool)
        for _ in range(3):
            assert same(await transport.infer(DIGITS, images(3), timeout_s=5), images(3))
        assert (len(replicas.serve.asked), len(replicas.behind[0].asked)) == (7, 3)
        await transport.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    said = [record.message for record in caplog.records if "m--digits--v2" in record.message]
    assert said == [
        "requests to m--digits--v2 go by Serve's handles, more slowly: no link to its replicas is ready yet",
        "requests to m--digits--v2 go over links again",
    ]


def test_what_waits_for_a_first_replica_goes_over_its_link_as_soon_as_that_is_there(replicas):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        transport.update(DIGITS.app, [])
        waiting = [asyncio.ensure_future(transport.infer(MANY, images(n), timeout_s=5)) for n in range(5)]
        waiting.append(asyncio.ensure_future(transport.by_serve(MANY, images(5), 5)))  # as the lane does
        gone = asyncio.ensure_future(transport.infer(MANY, images(9), timeout_s=5))
        await asyncio.sleep(0)
        [said] = transport.demand.due()
        assert said.queued == 7
        gone.cancel()
        began_s = time.perf_counter()
        replicas.tell(transport)
        for number, found in enumerate(await asyncio.gather(*waiting)):
            assert same(found, images(number))
        print(f"6 answers {1000 * (time.perf_counter() - began_s):.1f} ms after Serve told of the replica")
        assert not replicas.serve.asked
        assert len(replicas.behind[0].asked) == 6
        assert [one[1]["image"][0, 0, 0, 0] for one in replicas.behind[0].asked] == [*range(6)], "in order"
        assert transport.parking.num_bytes == 0
        await transport.close()

    run(scenario())


def test_what_waits_for_a_replica_that_no_link_reaches_goes_by_serve(replicas):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow({**LINKS, "key": "ff" * 32}, [DIGITS.app])
        waiting = asyncio.ensure_future(transport.infer(DIGITS, images(1), timeout_s=5))
        await asyncio.sleep(0)
        replicas.tell(transport)
        assert same(await waiting, images(1))
        assert len(replicas.serve.asked) == 1
        await transport.close()

    run(scenario())


def test_a_first_replica_that_does_not_start_is_told_with_its_reason_and_the_next_one_answers(replicas):
    trouble = Trouble(1, "code/net.py is missing", is_final=True)

    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        transport.ail({DIGITS.app: Trouble(1, "earlier", is_final=True)})
        waiting = asyncio.ensure_future(transport.infer(DIGITS, images(1), timeout_s=5))
        await asyncio.sleep(0)
        transport.ail({DIGITS.app: Trouble(1, "earlier", is_final=True)})
        await asyncio.sleep(0)
        assert not waiting.done(), "that was before it came"
        transport.ail({DIGITS.app: trouble})
        with pytest.raises(ServiceError, match="has no replica: code/net"):
            await waiting
        again = asyncio.ensure_future(transport.infer(DIGITS, images(1), timeout_s=5))
        await asyncio.sleep(0)
        transport.ail({DIGITS.app: trouble})
        replicas.tell(transport)
        assert same(await again, images(1))
        assert not replicas.serve.asked
        await transport.close()

    run(scenario())


def test_what_waited_for_a_first_replica_takes_turns_with_what_comes_then(replicas):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        transport.update(DIGITS.app, [])
        gate, behind = transport.gate(MANY), replicas.behind[0]
        assert gate is not None
        behind.pause_s = 0.1
        accounts = [
            Account(name, name, KeyTerms(priority=name), 1.0, 0.0) for name in ("shadow", "interactive")
        ]

        async def one(number: int, account: Account) -> None:
            now_s = time.monotonic()
            ticket, turn = Ticket(account, None, now_s, now_s + 60), asyncio.Event()
            gate.enter(ticket, lambda _: turn.set())
            try:
                await turn.wait()
                found = await transport.infer(MANY, images(number), timeout_s=5, ticket=ticket)
            finally:
                ticket.close(time.monotonic())
            assert same(found, images(number))

        waiting = [asyncio.ensure_future(one(n, accounts[n // 4])) for n in range(6)]
        gone = asyncio.ensure_future(one(9, accounts[0]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (transport.parking.num_bytes > 0, gate.cost_under_way) == (True, 7)
        replicas.tell(transport, max_ongoing=1)
        await until(lambda: behind.num_open > 0)
        assert (transport.parking.num_bytes, gate.cost_under_way, gate.num_queued) == (0, 1, 6)
        behind.pause_s = 0.0
        gone.cancel()
        waiting.append(asyncio.ensure_future(one(6, accounts[1])))
        await asyncio.gather(*waiting)
        assert [one[1]["image"][0, 0, 0, 0] for one in behind.asked] == [4, 5, 6, 0, 1, 2, 3]
        assert (gate.num_queued, gate.cost_under_way, gate.num_entered) == (0, 0, 8)
        await transport.close()

    run(scenario())


def test_who_leaves_while_he_waits_for_his_turn_after_a_start_leaves_nothing_behind(replicas):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        gate, now_s = transport.gate(MANY), time.monotonic()
        assert gate is not None
        key = Account("k", "k", KeyTerms(), 1.0, 0.0)
        tickets = [Ticket(key, None, now_s, now_s + 60) for _ in range(2)]
        for ticket in tickets:
            gate.enter(ticket, lambda _: None)
        replicas.behind[0].pause_s = 0.02
        first = asyncio.ensure_future(transport.infer(MANY, images(1), timeout_s=5, ticket=tickets[0]))
        second = asyncio.ensure_future(transport.infer(MANY, images(2), timeout_s=5, ticket=tickets[1]))
        await asyncio.sleep(0)
        replicas.tell(transport, max_ongoing=1)
        await until(lambda: gate.num_queued == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        tickets[1].close(time.monotonic())
        assert same(await first, images(1))
        tickets[0].close(time.monotonic())
        assert (gate.num_queued, gate.cost_under_way) == (0, 0)
        await transport.close()

    run(scenario())


def test_a_text_waits_for_a_first_replica_and_is_forgotten_with_its_client(tmp_path):
    replicas = Replicas(tmp_path / "s", GPT)
    request = GenerationRequest("abc", max_tokens=5)

    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [GPT.app])
        stream, gone = transport.generate(GPT, request), transport.generate(GPT, request)
        first, lost = asyncio.ensure_future(anext(stream)), asyncio.ensure_future(anext(gone))
        await asyncio.sleep(0)
        assert transport.parking.num_bytes == 6
        [said] = transport.demand.due()
        assert (said.queued, said.texts) == (2, 2)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        replicas.tell(transport)
        assert (await first).text == "a"
        assert texts([chunk async for chunk in stream]) == "bcab"
        assert (len(replicas.behind[0].requests), replicas.serve.requests) == (1, [])
        await transport.close()

    run(scenario())


def test_a_text_that_cannot_wait_for_a_start_is_told_when_to_come_again_and_the_start_goes_on(tmp_path):
    replicas = Replicas(tmp_path / "s", GPT)
    request = GenerationRequest("abc", max_tokens=5)

    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [GPT.app])
        with pytest.raises(Overloaded, match="has had no replica for the request in its time; try again"):
            async with asyncio.timeout(5):
                await anext(transport.generate(GPT, request, timeout_s=0.1))
        transport.expect({GPT.app: 90.0})
        with pytest.raises(Overloaded, match=r"its start takes [\d.]+ s, and the request waits 1 s"):
            await anext(transport.generate(GPT, request, timeout_s=1.0))
        [said] = transport.demand.due()
        assert said.queued == 1, "he will come again"
        await transport.close()

    run(scenario())


def test_a_replica_with_another_key_is_reached_by_serve(replicas, caplog):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow({**LINKS, "key": "ff" * 32}, [DIGITS.app])
        replicas.tell(transport)
        pool = transport.line(DIGITS.app).pool
        await until(lambda: any(pool.problems().values()))
        assert same(await transport.infer(DIGITS, images(1), timeout_s=5), images(1))
        assert len(replicas.serve.asked) == 1
        transport.follow(LINKS, [DIGITS.app])  # the key was replaced: all links anew
        replicas.tell(transport)
        await has_link(transport.line(DIGITS.app).pool)
        await transport.infer(DIGITS, images(1), timeout_s=5)
        assert len(replicas.serve.asked) == 1
        transport.follow(LINKS, [])
        assert transport.line(DIGITS.app) is None
        await transport.close()

    run(scenario())
    assert "key" in caplog.text
    assert LINKS["key"] not in caplog.text


def test_large_values_go_through_shared_memory_and_come_back_as_copies(replicas):
    async def scenario():
        async with replicas.linked() as transport:
            [link] = transport.line(DIGITS.app).pool.links
            slots = num_free(link)
            inputs = {"image": np.random.default_rng(1).random((400, 1, 8, 8), np.float32)}
            found = await asyncio.gather(
                *(transport.infer(DIGITS, inputs, timeout_s=5) for _ in range(slots + 4))
            )
            assert all(same(outputs, inputs) for outputs in found)
            assert num_free(link) == slots
            replicas.behind[0].pause_s = 30
            with pytest.raises(TimeoutError):
                await transport.infer(DIGITS, inputs, timeout_s=0.05)
            await until(lambda: num_free(link) == slots and not replicas.behind[0].num_open)

    run(scenario())


def test_what_a_link_does_not_carry_goes_by_serve(replicas):
    async def scenario():
        async with replicas.linked(max_frame_bytes=1 << 16) as transport:
            large = images(1, 1000)
            assert same(await transport.infer(DIGITS, large, timeout_s=5), large)
            assert len(replicas.serve.asked) == 1
            assert same(await transport.infer(DIGITS, images(1, 2), timeout_s=5), images(1, 2))
            replicas.behind[0].change = lambda outputs: {"label": np.zeros(1 << 16)}
            assert same(await transport.infer(DIGITS, images(2), timeout_s=5), images(2))
            assert len(replicas.serve.asked) == 2, "the answer was too large"
            assert replicas.serve.seconds == [False, True], "the second one was worked on already"
            surrogate = {"image": np.array(["\ud800"], object)}
            replicas.serve.error = BadInput("the model's own words")
            with pytest.raises(BadInput, match="own words"):
                await transport.infer(DIGITS, surrogate, timeout_s=5)

    run(scenario())


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BadInput("too small"), BadInput, "^too small$"),
        (Overloaded("no room", 7.0), Overloaded, "^model 'digits' version 2: no room$"),
        (ValueError("no layer"), ReplicaFailed, "^model 'digits' version 2 failed: ValueError: no layer$"),
    ],
)
def test_errors_of_a_replica_in_the_words_of_serves_transport(replicas, error, kind, message):
    async def scenario():
        async with replicas.linked() as transport:
            replicas.behind[0].error = error
            with pytest.raises(kind, match=message) as said:
                await transport.infer(DIGITS, images(1), timeout_s=5)
            if kind is Overloaded:
                assert said.value.retry_after_s == 7.0
            elif kind is ReplicaFailed:
                assert said.value.retry_after_s is None, "it would fail there too"
            assert not replicas.serve.asked
            replicas.behind[0].error = None
            assert same(await transport.infer(DIGITS, images(1), timeout_s=5), images(1))

    run(scenario())


def test_the_gate_before_a_version_is_as_wide_as_its_replicas_take(replicas):
    async def scenario():
        async with replicas.linked(max_ongoing=8) as transport:
            assert not transport.gates
            gate = transport.gate(DIGITS)
            assert transport.gates == {DIGITS.app: gate}
            assert (gate.name, gate.window, gate.max_queued) == ("model 'digits' version 2", 8, 2)
            assert transport.gate(target("digits", 2, max_queued=7)) is gate
            assert gate.max_queued == 7
            transport.share(2)
            assert (transport.gate(DIGITS).max_queued, gate.window) == (1, 4), "of each thing its half"
            transport.update(DIGITS.app, [Running(None, 8)] * 3)
            assert gate.window == 12, "by Serve's handles the same gate is before them"
            assert transport.gate(GPT) is None
            transport.update(DIGITS.app, [])
            assert gate.window == OPEN, "who starts a replica has to know of the requests"
            transport.update(DIGITS.app, [Running(None, 8)] * 3)
            assert await transport.infer(DIGITS, images(1), timeout_s=5)
            assert gate.forecast.answer_s(0) > 0.0, "Serve's handles tell no times: what it took counts"
            transport.follow(LINKS, [])
            assert transport.gate(DIGITS) is None

    run(scenario())


def test_what_waits_at_a_gate_or_is_turned_away_there_is_told(replicas):
    async def scenario():
        async with replicas.linked(max_ongoing=1) as transport:
            gate, key = transport.gate(DIGITS), Account("k", "k", KeyTerms(), 1.0, 0.0)
            now_s = time.monotonic()
            tickets = [Ticket(key, None, now_s, now_s + 60) for _ in range(3)]
            for ticket in tickets:
                gate.enter(ticket, lambda _: None)
            assert gate.refused(key, 60.0) is not None
            assert transport.demand.is_urgent.is_set()
            [said] = transport.demand.due()
            assert (said.app, said.queued, said.texts, said.arrived[1][1]) == (DIGITS.app, 2, 0, 4)
            transport.share(2)  # another gateway has begun, and nobody asks this one meanwhile
            assert gate.max_queued == 1
            for ticket in tickets:
                ticket.close(now_s)
            wall = transport.demand.wall
            transport.demand.wall = lambda: wall() + 2.0
            assert [said.queued for said in transport.demand.due()] == [0]
            assert list(transport.ways()) == [("digits", "2", "link"), ("digits", "2", "serve")]

    run(scenario())


def test_what_waits_goes_on_when_its_application_is_let_go(replicas):
    async def scenario():
        async with replicas.linked(max_ongoing=1) as transport:
            gate, sent, key = transport.gate(DIGITS), [], Account("k", "k", KeyTerms(), 1.0, 0.0)
            now_s = time.monotonic()
            tickets = [Ticket(key, None, now_s, now_s + 60) for _ in range(3)]
            assert [gate.enter(ticket, sent.append) for ticket in tickets] == [True, False, False]
            transport.follow({**LINKS, "key": "ff" * 32}, [DIGITS.app])
            assert sent == tickets, "the links are others, and the gate is another"
            assert transport.gate(DIGITS) is not gate

    run(scenario())


def test_a_replica_that_dies_under_load_costs_no_request(two):
    async def scenario():
        async with two.linked() as transport:
            for behind in two.behind:
                behind.pause_s = 0.02
            asked = [
                asyncio.ensure_future(transport.infer(DIGITS, images(n), timeout_s=5)) for n in range(20)
            ]
            await until(lambda: two.behind[0].num_open > 3)
            await asyncio.to_thread(two.servers[0].close, 0)
            for number, found in enumerate(await asyncio.gather(*asked)):
                assert same(found, images(number))
            assert not two.serve.asked

    run(scenario())


def test_the_only_replica_dies_and_serve_has_the_second_try_within_the_budget(replicas):
    async def scenario():
        async with replicas.linked() as transport:
            replicas.behind[0].pause_s = 30
            asked = [
                asyncio.ensure_future(transport.infer(target("digits", 2), images(n), timeout_s=5))
                for n in range(20)
            ]
            await until(lambda: replicas.behind[0].num_open == 20)
            await asyncio.to_thread(replicas.servers[0].close, 0)
            found = await asyncio.gather(*asked, return_exceptions=True)
            errors = [error for error in found if isinstance(error, Exception)]
            assert len(replicas.serve.asked) == 20 - len(errors)
            assert len(replicas.serve.asked) in (11, 12), (
                "10 are there, and each ten earn one, but for rounding"
            )
            assert all(replicas.serve.seconds), "Serve is not to have a third one for any"
            assert all("went away" in str(error) for error in errors)
            assert {error.retry_after_s for error in errors} == {0.5}

    run(scenario())


def test_what_a_link_has_lost_goes_by_serve_once_there_is_a_replica_again(replicas):
    """By a link that may be lost as the one before it could be begun a third time."""

    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        transport.update(DIGITS.app, [])
        lost = asyncio.ensure_future(transport.by_serve(MANY, images(5), 5, is_second=True))
        await until(lambda: not lost.done() and [said.queued for said in transport.demand.due()] == [1])
        replicas.tell(transport)
        assert same(await lost, images(5))
        assert (replicas.serve.seconds, replicas.behind[0].asked) == ([True], [])
        await transport.close()

    run(scenario())


def let_in() -> Ticket:
    now_s = time.monotonic()
    return Ticket(Account("a", "a", KeyTerms(), 1.0, now_s), None, now_s, now_s + 60)


def texts(chunks) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_texts_over_links_and_by_serve(tmp_path):
    replicas = Replicas(tmp_path / "s", GPT)
    request = GenerationRequest("abc", max_tokens=5)

    async def scenario():
        async with replicas.linked() as transport:
            chunks = [chunk async for chunk in transport.generate(GPT, request, key="one")]
            assert (texts(chunks), chunks[-1].finish_reason) == ("abcab", "length")
            assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (3, 5)

            stream = transport.generate(GPT, GenerationRequest("ab", max_tokens=9))
            replicas.behind[0].pause_s = 30
            replicas.behind[0].pauses_after = 1
            assert (await anext(stream)).text == "a"
            await stream.aclose()
            await until(lambda: not replicas.behind[0].num_open, "it was closed early")

            stream = transport.generate(GPT, GenerationRequest("ab", max_tokens=9))
            assert (await anext(stream)).text == "a"
            await asyncio.to_thread(replicas.servers[0].close, 0)
            with pytest.raises(ReplicaFailed, match="went away"):
                await anext(stream)
            assert not replicas.serve.requests, "its beginning was said already"
            chunks = [chunk async for chunk in transport.generate(GPT, request, key="two")]
            assert texts(chunks) == "abcab"
            assert len(replicas.serve.requests) == 1
            assert (replicas.behind[0].keys, replicas.serve.keys) == (["one", "", ""], ["two"])

    run(scenario())


def test_a_text_of_which_nothing_came_is_made_elsewhere(tmp_path):
    replicas = Replicas(tmp_path / "s", GPT)

    async def scenario():
        async with replicas.linked() as transport:
            replicas.behind[0].pause_s = 30
            stream = transport.generate(GPT, GenerationRequest("ab", max_tokens=4))
            first = asyncio.ensure_future(anext(stream))
            await until(lambda: replicas.behind[0].num_open)
            await asyncio.to_thread(replicas.servers[0].close, 0)
            assert (await first).text == "a"
            assert texts([chunk async for chunk in stream]) == "bab"
            assert len(replicas.serve.requests) == 1

    run(scenario())


def test_a_text_that_was_lost_once_goes_by_serve_at_once(tmp_path):
    replicas, ticket = Replicas(tmp_path / "s", GPT), let_in()
    ticket.was_lost = True

    async def scenario():
        async with replicas.linked() as transport:
            request = GenerationRequest("ab", max_tokens=4)
            assert texts([chunk async for chunk in transport.generate(GPT, request, ticket=ticket)]) == "abab"
            assert (len(replicas.serve.requests), len(replicas.behind[0].requests)) == (1, 0)

    run(scenario())


def test_a_text_that_waited_for_a_start_is_timed_from_its_end(tmp_path):
    replicas, ticket = Replicas(tmp_path / "s", GPT), let_in()
    ticket.turn_s = ticket.began_s

    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [GPT.app])
        stream = transport.generate(GPT, GenerationRequest("ab", max_tokens=4), ticket=ticket)
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: [said.queued for said in transport.demand.due()] == [1])
        started_s = time.monotonic()
        replicas.tell(transport)
        assert (await first).text == "a"
        assert ticket.turn_s >= started_s
        await stream.aclose()
        await transport.close()

    run(scenario())


def test_who_comes_before_the_first_link_is_there_waits_behind_those_that_came_before(replicas):
    async def scenario():
        transport = LinkTransport(replicas.serve, node=NODE, look_up=NoLookup)
        transport.follow(LINKS, [DIGITS.app])
        gate = transport.gate(DIGITS)
        transport.update(DIGITS.app, [])
        replicas.tell(transport, max_ongoing=2)
        assert gate.window == OPEN, "a replica is there, and no way to it yet: all are parked in their order"
        await has_link(transport.line(DIGITS.app).pool)
        assert gate.window < OPEN
        await transport.close()

    run(scenario())


def test_what_serve_is_told_goes_on_to_it(replicas):
    async def scenario():
        async with replicas.linked() as transport:
            transport.expect({DIGITS.app: 3.0})
            assert replicas.serve.starts == {DIGITS.app: 3.0}
            assert list(replicas.serve.apps) == [DIGITS.app]

    run(scenario())


def test_the_suites_transport_has_real_links():
    behind = PretendTransport()
    links = LinkedTransport(behind)

    async def scenario():
        found = await links.infer(DIGITS, images(4), timeout_s=5)
        assert same(found, images(4))
        await links.leave()

    run(scenario())
    assert len(behind.asked) == 1
    links.close()


def test_it_counts_requests_by_the_way_they_took(replicas):
    async def scenario():
        async with replicas.linked() as transport:
            assert transport.ways() == {}
            transport.gate(DIGITS)
            await transport.infer(DIGITS, images(1), timeout_s=5)
            await transport.infer(DIGITS, images(1), timeout_s=5)
            transport.update(DIGITS.app, [Running(None, 8)])
            await transport.infer(DIGITS, images(1), timeout_s=5)
            assert transport.ways() == {("digits", "2", "link"): 2, ("digits", "2", "serve"): 1}
            assert transport.laned() == {("digits", "2"): 0}, "it was not asked by the lane"

    run(scenario())
