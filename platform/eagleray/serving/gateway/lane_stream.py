"""`LaneStream`: one streamed text of the fast lane, without a Task and without a Future.

    link's read -> piece: an event, as text -> once a tick, all of a stream's: one chunk, one write

What is not the usual request is left to the application, with its ticket and its body, as long as nothing of
the answer was written.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from eagleray.errors import EaglerayError
from eagleray.serving import transport as failing
from eagleray.serving.gateway import lane_texts
from eagleray.serving.gateway.lane_exchange import LaneExchange
from eagleray.serving.gateway.lane_places import Place, placed
from eagleray.serving.gateway.lane_words import stream_head_of
from eagleray.serving.gateway.line import goes_by_serve, is_second_try
from eagleray.serving.gateway.link_answers import last_chunk
from eagleray.serving.ingress import door, failures
from eagleray.serving.ingress.app import CLIENT_GONE
from eagleray.serving.ingress.call import OFF_LOOP_BYTES, check_ready, no_answer
from eagleray.serving.link import generating
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import Kind

if TYPE_CHECKING:
    from eagleray.protocol.events import TextEvents
    from eagleray.protocol.generation import GenerationRequest
    from eagleray.serving.gateway.lane import Lane, LaneFace

MAX_HELD = 512 * 1024
"""Characters of events that wait for a client which does not read, beside what its socket holds."""
_log = logging.getLogger(__name__)
_prompt_of = struct.Struct("<I").unpack_from
_TEXT_AT = 4
"""In a piece (`link.generating`)."""


class LaneStream(LaneExchange):
    """A request for a text, piece by piece.

    `place`: where its path leads; None: its body names the model.
    """

    __slots__ = (
        *("_asked", "_body", "_events", "_has_pieces", "_held", "_num_held", "_num_made", "_num_prompt"),
        *("_num_sent", "_out", "_place", "_will_flush"),
    )

    def __init__(
        self,
        lane: Lane,
        face: LaneFace,
        route: str,
        place: Place | None,
        headers: Mapping[str, str],
        *,
        keep_alive: bool,
    ) -> None:
        target = None if place is None else place.target
        super().__init__(lane, face, route, target, headers, keep_alive=keep_alive)
        self._place = place
        self._body = b""
        """Kept until a piece comes: until then the application may have to take it."""
        self._asked: GenerationRequest | None = None
        """What waits for its turn."""
        self._events: TextEvents | None = None
        self._out: list[str] = []
        self._held: list[str] = []
        """What could not be written, since the client does not read."""
        self._num_held = self._num_sent = self._num_prompt = self._num_made = 0
        self._has_pieces = self._will_flush = False

    # What the connection and the lane do.

    def give_up(self) -> None:
        """As the base."""
        if self._is_over or not self._is_begun:
            return
        self._cancel()
        self._end(200 if self.response_started else CLIENT_GONE, self._num_sent)

    def break_off(self) -> None:
        """End it, and the connection: of half an answer nothing else says that no more comes."""
        self.give_up()
        self._face.transport.abort()

    def go_on(self) -> None:
        """The client reads again."""
        if self._held and not self._is_over:
            self._write("")

    def flush(self) -> None:
        """Write what came since the last time, all at once."""
        self._will_flush = False
        if self._is_over or not self._out:
            return
        now_s = time.monotonic()
        self._wait_s = self._state.limits.timeout_s  # for each piece after the first
        self.until_s = now_s + self._wait_s
        text, self._out = "".join(self._out), []
        if self._face.flow.write_paused:
            self._hold(text)
        else:
            self._write(text)

    # Its way.

    def _admitted(self) -> None:
        place, state = self._place, self._state
        if place is not None and place.state is not state:
            place = self._place = placed(state, place.path)
            self._target = place.target
            check_ready(place.target)

    def _decode(self) -> None:
        self._is_sent = True
        self._body = b"".join(self._parts)
        self._parts = []
        asked = None
        if len(self._body) < OFF_LOOP_BYTES:
            try:
                asked = lane_texts.read(self._state, self._scope["path"], self._target, self._body)
                key = None if self._ticket is None else self._ticket.key
                if asked is not None and key is not None:
                    key.require_model(asked.target.name)
            except EaglerayError:
                asked = None  # the application says what is wrong
        if asked is None:
            self._hand_over()
        else:
            self._ask(asked)

    def _ask(self, asked: lane_texts.Asked) -> None:
        assert self._ticket is not None
        target, request, self._events = asked
        self._target = target
        self._watch.mark("decode")
        door.reserve_tokens(self._ticket, request)
        self._wait(time.monotonic())
        self._asked = request
        self._enter(1)

    def _begin(self) -> None:
        assert self._ticket is not None
        assert self._target is not None
        assert self._asked is not None
        request, self._asked = self._asked, None
        line, sent = self._lane.transport.way(self._target), None
        if line is not None:
            body = generating.request_bytes(request, self._ticket.account.key_id)
            sent = line.pool.generate(body, 0, self._take, self._ended)
        if line is None or sent is None:
            self._hand_over()
            return
        line.num_by_lane += 1
        self._line, self._sent = line, sent
        self._ticket.turn_s = time.monotonic()

    def _take(self, piece: bytes, num_made: int) -> None:
        """The link's: a piece."""
        try:
            text = str(piece[_TEXT_AT:], "utf-8")
            (self._num_prompt,) = _prompt_of(piece)
        except (UnicodeDecodeError, struct.error) as error:
            assert self._target is not None
            self._cancel()
            self._fail(failing.failed(self._target, f"its replica's answer cannot be read: {error}"))
            return
        self._num_made = num_made
        if not self._has_pieces:
            self._begin_answer()
        if not self._will_flush:
            self._will_flush = True
            self._lane.flush_soon(self)
        assert self._events is not None
        self._out.append(self._events.piece(text, self._num_prompt, num_made))

    def _begin_answer(self) -> None:
        self._has_pieces = True
        self._body = b""
        self._watch.mark("replica")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ended(self, answer: Answer) -> None:
        """The link's: there are no more pieces."""
        line, sent, self._line, self._sent = self._line, self._sent, None, None
        assert line is not None
        if not self._has_pieces and goes_by_serve(line, sent, answer):
            assert self._ticket is not None
            self._ticket.was_lost = is_second_try(sent, answer)
            self._guarded(self._hand_over)
            return
        if answer.kind == Kind.RESULT and self._ticket is not None:
            self._ticket.text_ended(time.monotonic())
        self._guarded(self._take_last, answer)

    def _take_last(self, answer: Answer) -> None:
        assert self._target is not None
        assert self._events is not None
        try:
            chunk = last_chunk(self._target, answer)
        except TimeoutError:
            raise no_answer(self._target, self._wait_s) from None
        finally:
            if not self._has_pieces:
                self._watch.mark("replica")
        self._num_prompt, self._num_made = chunk.prompt_tokens, chunk.completion_tokens
        self._out.append(self._events.last(chunk))
        self._write_last()

    # Its end.

    def _hold(self, text: str) -> None:
        """Keep it for a client that does not read, up to a limit."""
        self._held.append(text)
        self._num_held += len(text)
        if self._num_held > MAX_HELD:
            _log.info("request %s: its client does not read, and is left", self._request_id)
            self._cancel()
            self._face.transport.abort()  # which gives it up

    def _fail(self, error: Exception) -> None:
        if self._is_over:
            return
        if not self._has_pieces:
            super()._fail(error)
            return
        assert self._events is not None
        found = failures.failure(error, self._request_id)
        self._out.append(self._events.error(found.status, found.message))
        self._write_last()

    def _write(self, text: str, *, is_last: bool = False) -> None:
        """Write it, after all that is held."""
        transport = self._face.transport
        if transport.is_closing():  # uvloop raises where a closed transport is written to
            self.give_up()
            return
        if self._held:
            text = "".join((*self._held, text))
            self._held, self._num_held = [], 0
        parts = [] if self.response_started else [self._head()]
        self.response_started = True
        if text:
            data = text.encode("ascii")
            self._num_sent += len(data)
            parts += (b"%x\r\n" % len(data), data, b"\r\n")
        if is_last:
            parts.append(b"0\r\n\r\n")
        transport.write(b"".join(parts))

    def _write_last(self) -> None:
        """Write all that is left, and let the next request begin."""
        text, self._out = "".join(self._out), []
        self._write(text, is_last=True)
        if not self._is_over:
            self._finish(200, self._num_sent)

    def _head(self) -> bytes:
        assert self._ticket is not None
        before = self._face.server_state.default_headers
        headers = self._ticket.account.state(time.monotonic())
        headers |= {"x-request-id": self._request_id, **self._watch.headers()}
        return stream_head_of(headers, before, keep_alive=self.keep_alive)

    def _end(self, status: int, num_sent: int) -> None:
        if self._ticket is not None:
            self._ticket.used_tokens(self._num_prompt + self._num_made)
        super()._end(status, num_sent)

    def _leave(self) -> None:
        super()._leave()
        self._body = b""
        self._out, self._held = [], []

    def _hand_over(self) -> None:
        """Have the application answer it, which nobody has begun to."""
        ticket, body = self._ticket, self._body
        assert ticket is not None
        ticket.on_end = None
        ticket.used_tokens(0)
        self._leave()
        admitted = door.Admitted(ticket, self._request_id, self._watch, self._started_s)
        self._face.hand_over(self, self._scope, body, admitted)
