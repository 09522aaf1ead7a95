"""Rollouts by any OpenAI-compatible server, such as vLLM or `transformers serve`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation.problems import Problem
from core.evaluation.rollouts import UNSTEERED, Key, Rollout, noise_seed
from core.evaluation.verifiers import Verify
from core.steering.generation import Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Client = TypeVar("Client")
KEY_VARIABLE = "BASISCOPE_ENDPOINT_KEY"
PART = 16
"""So many answers are written at once."""
PAUSES = (0.5, 1.0)
"""Seconds before an answer that could not be read is asked for again."""
HOPELESS = 8
"""So many unreadable answers in a row, or refused ones before the first good one, and the server is given up."""
OF_ONE_REQUEST = (400, 413, 422)
"""The status of a refusal that may be of one request alone, such as of one that is too long."""
BUSY = (408, 409, 429)
"""The status of one that the client makes again by itself."""


@dataclass(frozen=True)
class Server:
    """A server and the model to ask there. The key stays in the environment and is written nowhere.

    template: `chat` sends messages, which the server puts into its model's chat template; `plain` sends text
    retries: how often a request is made again, after a growing pause, where the server is down, busy or slow
    """

    url: str
    model: str
    template: str = "chat"
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5

    @classmethod
    def at(cls, url: str, model: str | None = None, template: str = "auto", **choices: Any) -> Server:
        """The server with the one model that it lists, unless one is named. Raises BasiscopeError where it
        lists none or several, or cannot be reached."""
        if not url.startswith(("http://", "https://")):
            raise BasiscopeError(f"Endpoint {url!r}: give its address, such as http://localhost:8000/v1.")
        server = cls(url.rstrip("/"), model or "", "plain" if template == "plain" else "chat", **choices)
        if model:
            return server
        listed = server.listed_models()
        if len(listed) != 1:
            known = f"lists {', '.join(listed[:8])}" if listed else "lists no model"
            raise BasiscopeError(f"The server {url} {known}; name one with --model-name.")
        return cls(server.url, listed[0], server.template, **choices)

    def facts(self) -> dict[str, Any]:
        """What decides the texts, for a manifest."""
        return {"url": self.url, "model": self.model, "template": self.template}

    def listed_models(self) -> list[str]:
        from openai import OpenAI, OpenAIError

        try:
            return [str(model.id) for model in self._client(OpenAI).models.list().data]
        except (OpenAIError, ValueError) as error:
            raise self._refusal(error) from None
        except (AttributeError, TypeError):
            raise BasiscopeError(
                f"The server {self.url} gave no list of models; its address usually ends in /v1."
            ) from None

    def roll_out(
        self,
        problems: Sequence[Problem],
        prompts: Mapping[int, str],
        verify: Verify,
        r: int,
        sampling: Sampling,
        done: Collection[Key] = frozenset(),
        progress: Progress = silent,
        refused: dict[int, str] | None = None,
        unread: set[Key] | None = None,
    ) -> Iterator[list[Rollout]]:
        """r verified texts per problem in the order that they come, `concurrency` requests under way at a time;
        those whose keys are in `done` are left out. An answer that cannot be read is asked for again, after a
        growing pause; where it never can, `unread` has its key. A problem that the server refuses while it answers
        others, such as one that is too long, is asked no more; `refused` then has the reason by its id.

        Raises BasiscopeError where the server stays down, slow or busy over all retries, wants a key or knows no
        such model, refuses the first HOPELESS problems or all, or answers nothing that can be read at first or
        HOPELESS times in a row; what has come by then has been yielded.
        """
        from openai import AsyncOpenAI

        keys = [(p, i) for p in problems for i in range(r) if (UNSTEERED, p.problem_id, i) not in done]
        finished, total = len(done), len(done) + len(keys)
        waiting, is_readable, in_a_row = iter(keys), bool(done), 0
        made: list[Rollout] = []
        refused = {} if refused is None else refused
        unread = set() if unread is None else unread
        asked: set[asyncio.Task[_Reply | _Refused | BasiscopeError]] = set()
        with asyncio.Runner() as runner:
            client, loop = self._client(AsyncOpenAI), runner.get_loop()
            try:
                while True:
                    progress("rollouts", finished + len(made), total)
                    wanted = (key for key in waiting if key[0].problem_id not in refused)
                    for problem, i in islice(wanted, self.concurrency - len(asked)):
                        asking = self._one(client, problem, i, prompts[problem.problem_id], sampling)
                        asked.add(loop.create_task(asking))
                    if not asked:
                        break
                    ready, asked = runner.run(_first_of(asked))
                    replies = [task.result() for task in ready]
                    for reply in replies:
                        if isinstance(reply, _Reply) and reply.answer:
                            made.append(_rollout(reply, reply.answer, verify))
                            is_readable, in_a_row = True, 0
                        elif isinstance(reply, _Reply):
                            unread.add((UNSTEERED, reply.problem.problem_id, reply.i))
                            in_a_row += 1
                    for reply in replies:
                        if isinstance(reply, _Refused):
                            refused[reply.problem_id] = str(reply.error)
                            if not is_readable and len(refused) >= min(HOPELESS, len(problems)):
                                raise reply.error
                        elif isinstance(reply, BasiscopeError):
                            raise reply
                    if in_a_row >= (HOPELESS if is_readable else min(HOPELESS, len(keys))):
                        raise self._unreadable(is_readable)
                    if len(made) >= PART:
                        yield made
                        finished, made = finished + len(made), []
            except (BasiscopeError, KeyboardInterrupt):
                if made:
                    yield made
                raise
            finally:
                for task in asked:
                    task.cancel()
                runner.run(client.close())
        if unread and not is_readable:
            raise self._unreadable(is_readable)
        if made:
            yield made

    def _unreadable(self, was_readable: bool) -> BasiscopeError:
        if was_readable:
            return BasiscopeError(
                f"The server {self.url} gave {HOPELESS} answers in a row that cannot be read. What has come "
                "before is kept; the same command continues."
            )
        return BasiscopeError(
            f"The server {self.url} gave no answer that can be read; its address usually ends in /v1."
        )

    async def _one(
        self, client: AsyncOpenAI, problem: Problem, i: int, prompt: str, sampling: Sampling
    ) -> _Reply | _Refused | BasiscopeError:
        seed = noise_seed(sampling.seed, problem.problem_id, i) % 2**31
        try:
            for pause in (0.0, *PAUSES):
                await asyncio.sleep(pause)
                if found := _read(await self._reply(client, prompt, sampling, seed)):
                    return _Reply(problem, i, found)
        except _RefusedRequest as error:
            return _Refused(problem.problem_id, error)
        except BasiscopeError as error:
            return error
        return _Reply(problem, i, None)

    async def _reply(
        self, client: AsyncOpenAI, prompt: str, sampling: Sampling, seed: int, logprobs: bool = True
    ) -> Any:
        from openai import APIStatusError, OpenAIError

        chosen: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed,
        }
        try:
            if self.template == "plain":
                chosen |= {"logprobs": 0} if logprobs else {}
                return await client.completions.create(prompt=prompt + "\n", **chosen)
            chosen |= {"logprobs": True} if logprobs else {}
            return await client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **chosen)
        except APIStatusError as error:
            if logprobs and error.status_code in (400, 422):
                return await self._reply(client, prompt, sampling, seed, logprobs=False)
            raise self._refusal(error) from None
        except OpenAIError as error:
            raise self._refusal(error) from None
        except ValueError:  # not JSON
            return None

    def _client(self, kind: Callable[..., Client]) -> Client:
        key = os.environ.get(KEY_VARIABLE) or "none"
        return kind(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)

    def _refusal(self, error: Exception) -> BasiscopeError:
        """In a sentence, without the key."""
        from openai import APIStatusError

        key = os.environ.get(KEY_VARIABLE)
        reason = " ".join(f"{error} {getattr(error, 'body', None) or ''}".split())[:300]
        reason = reason.replace(key, "***") if key else reason
        if isinstance(error, APIStatusError) and error.status_code in (401, 403):
            return BasiscopeError(f"The server {self.url} wants a key: set {KEY_VARIABLE} ({reason}).")
        if isinstance(error, APIStatusError) and error.status_code < 500 and error.status_code not in BUSY:
            kind = _RefusedRequest if error.status_code in OF_ONE_REQUEST else BasiscopeError
            return kind(f"The server {self.url} refused what it was asked ({reason}).")
        return BasiscopeError(
            f"The server {self.url} did not answer after {self.retries + 1} tries ({reason}). "
            "What has come is kept; the same command continues."
        )


class _RefusedRequest(BasiscopeError):
    """The server refused what it was asked, which says nothing of other requests."""


async def _first_of(
    asked: set[asyncio.Task[_Reply | _Refused | BasiscopeError]],
) -> tuple[
    set[asyncio.Task[_Reply | _Refused | BasiscopeError]], set[asyncio.Task[_Reply | _Refused | BasiscopeError]]
]:
    return await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)


@dataclass(frozen=True)
class _Answer:
    text: str
    cut: bool
    n_tokens: int
    logprob: float | None


@dataclass(frozen=True)
class _Reply:
    problem: Problem
    i: int
    answer: _Answer | None


@dataclass(frozen=True)
class _Refused:
    problem_id: int
    error: BasiscopeError


def _read(reply: Any) -> _Answer | None:
    """What a completion holds, or None where it is none."""
    try:
        choice = reply.choices[0]
        text = choice.message.content if hasattr(choice, "message") else choice.text
        tokens = reply.usage.completion_tokens if reply.usage else 0
        is_cut = choice.finish_reason == "length"
        return _Answer(text, is_cut, int(tokens), _mean_logprob(choice)) if isinstance(text, str) else None
    except (AttributeError, IndexError, TypeError):
        return None


def _rollout(reply: _Reply, answer: _Answer, verify: Verify) -> Rollout:
    right = verify(reply.problem.answer, answer.text)
    key = (UNSTEERED, reply.problem.problem_id, reply.i)
    return Rollout(*key, answer.text, right, answer.cut, answer.n_tokens, answer.logprob)


def _mean_logprob(choice: Any) -> float | None:
    found = getattr(choice, "logprobs", None)
    values, content = getattr(found, "token_logprobs", None), getattr(found, "content", None)
    if values is None and content:
        values = [token.logprob for token in content]
    known = [value for value in values or () if value is not None]
    return float(np.mean(known)) if known else None
