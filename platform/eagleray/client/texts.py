"""What a stream of text has told so far."""

from __future__ import annotations

from eagleray.client.calls import Settings
from eagleray.client.errors import NoAnswerError, TookTooLongError
from eagleray.errors import EaglerayError, ServiceError
from eagleray.protocol import openai_answers


class TextPieces:
    """The pieces that came, and their counts; the classes that read add how they read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._texts: list[str] = []
        self.finish_reason: str | None = None
        """"stop" or "length"; None while the text is not whole."""
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def text(self) -> str:
        """All that came so far."""
        return "".join(self._texts)

    def _take(self, line: str) -> str | None:
        """The text of an event's line, if there is any. Raises: ServiceError where the server reports one."""
        chunk = openai_answers.read_event(line)
        if chunk is None:
            return None
        self.prompt_tokens, self.completion_tokens = chunk.prompt_tokens, chunk.completion_tokens
        self.finish_reason = chunk.finish_reason or self.finish_reason
        if chunk.text:
            self._texts.append(chunk.text)
        return chunk.text or None

    def _check_end(self) -> None:
        if self.finish_reason is None:
            raise ServiceError(
                f"the text broke off after {self.completion_tokens} tokens; {self._settings.url}"
            )

    def _broken(self, error: Exception) -> EaglerayError:
        after = f"after {self.completion_tokens} tokens ({str(error) or type(error).__name__})"
        if "Timeout" in type(error).__name__:
            return TookTooLongError(f"the text stood still {after}")
        return NoAnswerError(f"the text broke off {after}; {self._settings.url}")
