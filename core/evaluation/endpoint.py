"""Rollouts by any OpenAI-compatible server, such as vLLM or `transformers serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation.problems import Problem
from core.evaluation.rollouts import UNSTEERED, Key, Rollout, noise_seed
from core.evaluation.verifiers import Verify
from core.server import MIB, NO_COMPLETION, Completion, Connection, RefusedRequest, Unreadable, read_completion
from core.steering.generation import Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY_VARIABLE = "BASISCOPE_ENDPOINT_KEY"
PART = 16
"""So many answers are written at once."""
PAUSES = (0.5, 1.0)
"""Seconds before an answer that could not be read is asked for again."""
HOPELESS = 8
"""So many unreadable answers in a row, or refused ones before the first good one, and the server is given up."""
TOKEN_BYTES = 1024
"""As long as a token can be in an answer, with its log-probability and the names around it."""


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
        server = cls(url.rstrip("/"), model or "", "plain" if template == "plain" else "chat", **choices)
        server._connection.check()
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

    @property
    def _connection(self) -> Connection:
        return Connection(self.url, KEY_VARIABLE, self.timeout, self.retries)

    def listed_models(self) -> list[str]:
        return self._connection.models()

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
        unread: dict[Key, str] | None = None,
    ) -> Iterator[list[Rollout]]:
        """r verified texts per problem in the order that they come, `concurrency` requests under way at a time;
        those whose keys are in `done` are left out. An answer that cannot be read is asked for again, after a
        growing pause; where it never can, `unread` has the reason by its key. A problem that the server refuses
        while it answers others, such as one that is too long, is asked no more; `refused` then has the reason by
        its id.

        Raises BasiscopeError where the server stays down, slow or busy over all retries, wants a key or knows no
        such model, refuses the first HOPELESS problems or all, or answers nothing that can be read at first or
        HOPELESS times in a row; what has come by then has been yielded.
        """
        keys = [(p, i) for p in problems for i in range(r) if (UNSTEERED, p.problem_id, i) not in done]
        finished, total = len(done), len(done) + len(keys)
        waiting, is_readable, in_a_row = iter(keys), bool(done), 0
        made: list[Rollout] = []
        refused = {} if refused is None else refused
        unread = {} if unread is None else unread
        asked: set[asyncio.Task[_Reply | _Refused | BasiscopeError]] = set()
        with asyncio.Runner() as runner:
            client, loop = self._connection.client(MIB + TOKEN_BYTES * sampling.max_new_tokens), runner.get_loop()
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
                        if isinstance(reply, _Reply) and isinstance(reply.answer, Completion):
                            made.append(_rollout(reply, reply.answer, verify))
                            is_readable, in_a_row = True, 0
                        elif isinstance(reply, _Reply):
                            unread[UNSTEERED, reply.problem.problem_id, reply.i] = str(reply.answer)
                            in_a_row += 1
                    for reply in replies:
                        if isinstance(reply, _Refused):
                            refused[reply.problem_id] = str(reply.error)
                            if not is_readable and len(refused) >= min(HOPELESS, len(problems)):
                                raise reply.error
                        elif isinstance(reply, BasiscopeError):
                            raise reply
                    if in_a_row >= (HOPELESS if is_readable else min(HOPELESS, len(keys))):
                        raise self._unreadable(is_readable, unread)
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
            raise self._unreadable(is_readable, unread)
        if made:
            yield made

    def _unreadable(self, was_readable: bool, unread: Mapping[Key, str]) -> BasiscopeError:
        why = list(unread.values())[-1]
        last = f"The last was: {why.removesuffix('.')}."
        if was_readable:
            return BasiscopeError(
                f"The server {self.url} gave {HOPELESS} answers in a row that cannot be read. What has come "
                f"before is kept; the same command continues. {last}"
            )
        hint = "; its address usually ends in /v1" if why in NO_COMPLETION else ""
        return BasiscopeError(f"The server {self.url} gave no answer that can be read{hint}. {last}")

    async def _one(
        self, client: AsyncOpenAI, problem: Problem, i: int, prompt: str, sampling: Sampling
    ) -> _Reply | _Refused | BasiscopeError:
        seed = noise_seed(sampling.seed, problem.problem_id, i) % 2**31
        found: Completion | Unreadable
        for pause in (0.0, *PAUSES):
            await asyncio.sleep(pause)
            try:
                found = self._completion(await self._reply(client, prompt, sampling, seed))
                break
            except Unreadable as error:
                found = error
            except RefusedRequest as error:
                return _Refused(problem.problem_id, error)
            except BasiscopeError as error:
                return error
        return _Reply(problem, i, found)

    def _completion(self, reply: Mapping[str, Any]) -> Completion:
        found = read_completion(reply)
        if self._connection.holds_key(found.text + (found.reasoning or "")):
            raise Unreadable("holds the key that was sent")
        return found

    async def _reply(
        self, client: AsyncOpenAI, prompt: str, sampling: Sampling, seed: int, logprobs: bool = True
    ) -> dict[str, Any]:
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
                call = client.completions.with_raw_response.create
                return await self._connection.ask(call, prompt=prompt + "\n", **chosen)
            chosen |= {"logprobs": True} if logprobs else {}
            messages = [{"role": "user", "content": prompt}]
            return await self._connection.ask(
                client.chat.completions.with_raw_response.create, messages=messages, **chosen
            )
        except RefusedRequest as error:
            if logprobs and error.status in (400, 422):
                return await self._reply(client, prompt, sampling, seed, logprobs=False)
            raise


async def _first_of(
    asked: set[asyncio.Task[_Reply | _Refused | BasiscopeError]],
) -> tuple[
    set[asyncio.Task[_Reply | _Refused | BasiscopeError]], set[asyncio.Task[_Reply | _Refused | BasiscopeError]]
]:
    return await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)


@dataclass(frozen=True)
class _Reply:
    problem: Problem
    i: int
    answer: Completion | Unreadable


@dataclass(frozen=True)
class _Refused:
    problem_id: int
    error: BasiscopeError


def _rollout(reply: _Reply, answer: Completion, verify: Verify) -> Rollout:
    return Rollout(
        UNSTEERED,
        reply.problem.problem_id,
        reply.i,
        text=answer.text,
        right=verify(reply.problem.answer, answer.text),
        cut=answer.is_cut,
        n_tokens=answer.n_tokens,
        logprob=answer.logprob,
        note="; ".join(answer.notes) or None,
        reasoning=answer.reasoning,
    )
