"""Ask an OpenAI-compatible server, on guard: bytes and seconds are limited, the key goes to the one address it is
for and stands in no sentence, and an answer that is none is a reason in words."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.errors import BasiscopeError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MIB = 2**20
LIST_BYTES = 16 * MIB
"""Of the list of a server's models."""
REDIRECTS = 3
OF_ONE_REQUEST = (400, 413, 422)
"""The status of a refusal that may be of one request alone, such as of one that is too long."""
BUSY = (408, 409, 429)
"""The status of one that the client makes again by itself."""
MOST_TOKENS = 10_000_000
"""No text has more, whatever a server says of it."""
SECRET_CHARACTERS = 8
"""A shorter key, such as `none`, is a word that an answer may hold by chance."""
CUT = "used up its tokens in its reasoning; raise --max-new-tokens"
CUT_UNSAID = "used up its tokens before it said anything; raise --max-new-tokens"
UNSAID = "says nothing after its reasoning"
REFUSED = "is a refusal by the model"
ENDED = {
    "content_filter": "ended by the server's content filter",
    "tool_calls": "calls a tool where none was offered",
    "function_call": "calls a tool where none was offered",
}
"""What ends an answer that is one, with or without a text, by the reason that servers give."""
NO_COMPLETION = ("not JSON", "not a JSON object", "nested too deeply", "without choices")
"""Why an answer cannot be read that may come from an address that is not the server's."""
HALVES = "halves of surrogate pairs replaced"
NO_LOGPROBS = "log-probabilities that are none (not finite, or above 0) not used"
NO_TOKENS = "a number of tokens that is none not used"


class Unreadable(BasiscopeError):
    """An answer that cannot be used; the text is the reason."""


class RefusedRequest(BasiscopeError):
    """The server refused what it was asked, with a status that says nothing of other requests."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Connection:
    """Where a server is. The key is read from `key_variable` of the environment when it is needed.

    timeout: seconds that a request may take until its answer begins, and as many until it ends
    retries: how often a request is made again, after a growing pause, where the server is down, busy or slow
    """

    url: str
    key_variable: str
    timeout: float = 600.0
    retries: int = 5

    def check(self) -> None:
        """Raises BasiscopeError for an address that is none or holds a password, which would be kept with the
        results, and for a key that cannot be sent."""
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise BasiscopeError(f"Endpoint {self.url!r}: give its address, such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BasiscopeError(
                f"Endpoint at {parts.hostname}: give its address without a name, password or `?`, which would be "
                f"kept with the results; a key goes into {self.key_variable}."
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise BasiscopeError(f"The key in {self.key_variable} has characters that cannot be sent.")

    @property
    def key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def client(self, most_bytes: int) -> AsyncOpenAI:
        """A client that reads at most so many bytes of an answer, and as many when it is unpacked. Raises
        BasiscopeError as `check` does."""
        from openai import AsyncOpenAI

        self.check()
        return AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            default_headers={"Accept-Encoding": "identity"},
            http_client=_guarded(most_bytes, self.timeout),
        )

    async def ask(self, call: Callable[..., Awaitable[Any]], **what: Any) -> dict[str, Any]:
        """The JSON object that a call of the client with its raw response, such as
        `client.models.with_raw_response.list`, answers.

        Raises Unreadable where it is none, RefusedRequest, and BasiscopeError where the server cannot be used.
        """
        from openai import OpenAIError

        try:
            response = (await call(**what)).http_response
        except OpenAIError as error:
            raise self._refusal(error) from None
        if fault := response.extensions.get("fault"):
            raise Unreadable(fault)
        try:
            found = json.loads(response.content)
        except RecursionError:
            raise Unreadable("nested too deeply") from None
        except ValueError:
            raise Unreadable("not JSON") from None
        if not isinstance(found, dict):
            raise Unreadable("not a JSON object")
        if (told := found.get("error")) and not (found.get("choices") or found.get("data")):
            said = told.get("message", told) if isinstance(told, dict) else told
            text = said if isinstance(said, str) else json.dumps(said)
            raise Unreadable(f"an error instead of an answer: {self.plain(text)}")
        return found

    def models(self) -> list[str]:
        """The names that the server lists. Raises BasiscopeError where it lists none that can be read."""

        async def listed() -> dict[str, Any]:
            async with self.client(LIST_BYTES) as client:
                return await self.ask(client.models.with_raw_response.list)

        try:
            data = asyncio.run(listed()).get("data")
        except Unreadable:
            data = None
        if not isinstance(data, list):
            raise BasiscopeError(f"The server {self.url} gave no list of models; its address usually ends in /v1.")
        names = [one.get("id") for one in data if isinstance(one, dict)]
        return [self.plain(name) for name in names if isinstance(name, str)]

    def holds_key(self, text: str) -> bool:
        return len(self.key) >= SECRET_CHARACTERS and self.key in text

    def plain(self, text: str) -> str:
        """One line of at most 300 characters that can be shown, without the key, however it is written."""
        if self.key:
            text = _written(self.key).sub("***", text)
        return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:300]

    def _refusal(self, error: Exception) -> BasiscopeError:
        from openai import APIStatusError

        if not isinstance(error, APIStatusError):
            return self._no_answer(f"{error} {error.__cause__ or ''}")
        response, status = error.response, error.status_code
        reason = f"status {status}: {response.extensions.get('fault') or response.text}"
        if status in (401, 403):
            return BasiscopeError(
                f"The server {self.url} wants a key: set {self.key_variable} ({self.plain(reason)})."
            )
        if 300 <= status < 400:
            place = self.plain(response.headers.get("location", "nowhere"))
            return BasiscopeError(
                f"The server {self.url} sends elsewhere ({place}), where neither key nor texts are sent; give "
                "that address if you trust it."
            )
        if status >= 500 or status in BUSY:
            return self._no_answer(reason)
        sentence = f"The server {self.url} refused what it was asked ({self.plain(reason)})."
        return RefusedRequest(sentence, status) if status in OF_ONE_REQUEST else BasiscopeError(sentence)

    def _no_answer(self, reason: str) -> BasiscopeError:
        return BasiscopeError(
            f"The server {self.url} did not answer after {self.retries + 1} tries ({self.plain(reason)}). "
            "What has come is kept; the same command continues."
        )


def _written(key: str) -> re.Pattern[str]:
    """The key as it stands, in capitals or not, in base64, in an address, or escaped once or more, as in JSON."""
    letters = (rf"\\*(?:{re.escape(letter)}|u{ord(letter):04x}|%{ord(letter):02x})" for letter in key)
    packed = base64.b64encode(key.encode()).decode()
    return re.compile(f"{''.join(letters)}|{re.escape(packed)}", re.IGNORECASE)


# --- the transport --------------------------------------------------------------------------------------


def _guarded(most_bytes: int, seconds: float) -> Any:
    """An HTTP client whose answers are whole, at most `most_bytes` long, and come from the address that was asked.
    One that is not to be read is empty, with the reason as the extension `fault`."""
    from openai import DefaultAsyncHttpxClient

    class Guarded(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            chosen = options | {"stream": True, "follow_redirects": False}
            package = import_module(type(request).__module__.partition(".")[0])  # httpx, whichever openai has
            for _ in range(REDIRECTS):
                try:
                    async with asyncio.timeout(
                        seconds + 1
                    ):  # the client's own limit comes first where all is still
                        response = await super().send(request, **chosen)
                except TimeoutError:
                    raise package.ReadTimeout("no answer in time", request=request) from None
                body, fault = await _body(response, most_bytes, seconds)
                following = response.next_request
                if following is None or _place(following.url) != _place(request.url):
                    break
                request = following
            dropped = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.items() if name not in dropped]
            return type(response)(
                response.status_code,
                headers=headers,
                content=body,
                request=request,
                extensions={"fault": fault} if fault else {},
            )

    return Guarded()


def _place(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _body(response: Any, most_bytes: int, seconds: float) -> tuple[bytes, str | None]:
    """The body of a response under way, which is closed, or none and why."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in response.aiter_raw():
                body += part
                if len(body) > most_bytes:
                    return b"", f"longer than {most_bytes / MIB:,.1f} MiB"
    except TimeoutError:
        return b"", f"still coming after {seconds:g} seconds"
    finally:
        await response.aclose()
    return _unpacked(bytes(body), response.headers.get("content-encoding", "identity").lower(), most_bytes)


def _unpacked(body: bytes, encoding: str, most_bytes: int) -> tuple[bytes, str | None]:
    if encoding in ("", "identity"):
        return body, None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return b"", "packed in a way that was not asked for"
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's or zlib's header
    try:
        found = unpacking.decompress(body, most_bytes + 1)
    except zlib.error:
        return b"", "packed, and damaged"
    return (
        (found, None) if len(found) <= most_bytes else (b"", f"longer than {most_bytes / MIB:,.1f} MiB unpacked")
    )


# --- what an answer holds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """What a server wrote.

    reasoning: what it gave apart from the text, where it did
    n_tokens: of both, None where it is not known; logprob: mean per token
    notes: what is wrong with it, in words
    """

    text: str
    reasoning: str | None
    is_cut: bool
    n_tokens: int | None
    logprob: float | None
    notes: tuple[str, ...]


def read_completion(reply: Mapping[str, Any]) -> Completion:
    """What a (chat) completion with one choice holds. Raises Unreadable where it is none."""
    choices = reply.get("choices")
    if not isinstance(choices, list):
        raise Unreadable("without choices")
    if len(choices) != 1:
        raise Unreadable(f"{len(choices):,} choices where one was asked for")
    if not isinstance(choice := choices[0], dict):
        raise Unreadable("a choice that is no object")
    is_cut = choice.get("finish_reason") in ("length", "max_tokens")
    text, reasoning, notes = _said(choice, is_cut)
    values, is_usual = _logprobs(choice.get("logprobs"))
    notes += () if is_usual else (NO_LOGPROBS,)
    usage = reply.get("usage")
    told = usage.get("completion_tokens") if isinstance(usage, dict) else None
    is_told = type(told) is int and 0 <= told <= MOST_TOKENS
    notes += () if is_told or told is None else (NO_TOKENS,)
    n_tokens = told if is_told else len(values) or None
    mean = math.fsum(values) / len(values) if values else None
    return Completion(text, reasoning, is_cut, n_tokens, mean, notes)


def _said(choice: Mapping[str, Any], is_cut: bool) -> tuple[str, str | None, tuple[str, ...]]:
    """(text, reasoning, notes) of a choice."""
    message = choice.get("message", choice)
    if not isinstance(message, dict):
        raise Unreadable("a message that is no object")
    text, reasoning = message.get("content", message.get("text")), _reasoning(message)
    if isinstance(text, list) and all(isinstance(part, dict) for part in text):
        texts = [part.get("text") for part in text if part.get("type") == "text"]
        text = "".join(part for part in texts if isinstance(part, str))
    why, refusal = choice.get("finish_reason"), message.get("refusal")
    called = message.get("tool_calls") or message.get("function_call")
    ended = ENDED.get("tool_calls" if called else why if isinstance(why, str) else "")
    if not text and isinstance(refusal, str) and refusal:
        text, ended = refusal, REFUSED
    if not isinstance(text, str) and (text is not None or not (reasoning or is_cut or ended)):
        known = why if isinstance(why, str) and why.isidentifier() and len(why) < 30 else None
        raise Unreadable("without a text" + (f", ended by {known}" if known else ""))
    unsaid = None if ended else (CUT if reasoning else CUT_UNSAID) if is_cut else (UNSAID if reasoning else None)
    whole, thought = _unicode(text or ""), None if reasoning is None else _unicode(reasoning)
    halves = whole != (text or "") or thought != reasoning
    notes = [
        *([ended] if ended else []),
        *([unsaid] if unsaid and not whole.strip() else []),
        *([HALVES] if halves else []),
    ]
    return whole, thought, tuple(notes)


def _reasoning(message: Mapping[str, Any]) -> str | None:
    found = (message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    return next((one for one in found if isinstance(one, str) and one), None)


def _unicode(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can escape and no file can keep."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(found: Any) -> tuple[list[float], bool]:
    """The tokens' log-probabilities as a completion or a chat completion has them, and whether they are ones."""
    if not isinstance(found, dict):
        return [], found is None
    values = found.get("token_logprobs", found.get("content"))
    if isinstance(values, list):
        values = [one.get("logprob", math.nan) if isinstance(one, dict) else one for one in values]
    if values is None:
        return [], True
    if not isinstance(values, list):
        return [], False
    known = [value for value in values if value is not None]
    usual = all(type(value) in (int, float) and -1e6 < value < 1e-3 for value in known)
    return (known, True) if usual else ([], False)
