"""Rollouts: several texts for each problem, verified; here in process, every variant a row of the same batch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation.answers import opened_thought
from core.evaluation.problems import Problem, asked
from core.evaluation.verifiers import Verify
from core.model import LanguageModel, check_tokens
from core.steering.generation import Generation, NoRoomError, Row, Sampling, encode_prompt, row_batches
from core.steering.intervention import Directions, Steering

BATCH_ROWS = 32
THOUGHT_TOKENS = 16
"""So many tokens at the end of a prompt hold the tag that opens a thought."""
UNSTEERED = "unsteered"

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Rollout:
    """One text for one problem.

    right: whether it was verified, None where that could not be said
    cut: it reached the limit of new tokens
    n_tokens: without the one that ends it; None where a server does not say
    logprob: mean per token, at temperature 1, under the model that wrote it, steered as it was
    note: what is wrong with the text, in words, where something is
    reasoning: what a server gave apart from the text, where it did
    """

    variant: str
    problem_id: int
    rollout: int
    text: str
    right: bool | None
    cut: bool
    n_tokens: int | None
    logprob: float | None = None
    note: str | None = None
    reasoning: str | None = None

    @property
    def key(self) -> Key:
        return self.variant, self.problem_id, self.rollout

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Rollout:
        """Raises BasiscopeError where a part is missing."""
        try:
            return cls(**stored)
        except TypeError as error:
            raise BasiscopeError(f"A kept rollout is damaged: {error}.") from error


def noise_seed(seed: int, problem_id: int, rollout: int) -> int:
    """The seed of one rollout's noise, the same for every variant and in any batch."""
    digest = hashlib.sha256(f"{seed} {problem_id} {rollout}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def encode_problems(
    model: LanguageModel,
    problems: Sequence[Problem],
    wording: str,
    template: str,
    max_new_tokens: int,
    refused: dict[int, str] | None = None,
) -> dict[int, tuple[int, ...]]:
    """Problem id -> token ids of what the model is asked; without the problems that leave no room for the new
    tokens, and those that cannot be asked. template: `chat`, `plain`, or `auto` for the first of them that the
    tokenizer has. refused: filled with the ids of the latter -> why, such as that the chat template refuses them.

    Raises BasiscopeError where no problem can be asked.
    """
    template = resolve_asking(model, template)
    columns = {"prompt": "problem", "response": "answer"}
    encoded, first = {}, None
    for problem in problems:
        try:
            text = asked(problem, wording)
            encoded[problem.problem_id] = encode_prompt(model, text, columns, template, max_new_tokens)
        except BasiscopeError as error:
            first = first or BasiscopeError(f"Problem {problem.problem_id}: {error}")
            if refused is not None and not isinstance(error, NoRoomError):
                refused[problem.problem_id] = str(error)
        else:
            check_tokens(model, encoded[problem.problem_id], f"Problem {problem.problem_id}")
    if first and not encoded:
        raise first
    return encoded


def resolve_asking(model: LanguageModel, template: str) -> str:
    """`auto` becomes `chat` where the tokenizer has a chat template, else `plain`."""
    has_chat = bool(getattr(model.tokenizer, "chat_template", None))
    if template == "auto":
        return "chat-prompt" if has_chat else "plain"
    if template == "chat" and not has_chat:
        raise BasiscopeError("Template 'chat': this model's tokenizer has no chat template; use --template plain.")
    return "chat-prompt" if template == "chat" else "plain"


def roll_out(
    model: LanguageModel,
    problems: Sequence[Problem],
    prompts: Mapping[int, Sequence[int]],
    verify: Verify,
    r: int,
    sampling: Sampling,
    variants: Mapping[str, Steering] | None = None,
    directions: Directions | None = None,
    done: Collection[Key] = frozenset(),
    progress: Progress = silent,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[list[Rollout]]:
    """r verified texts per problem and variant, batch by batch; those whose keys are in `done` are left out.

    prompts: as `encode_problems` gives them; a problem that is not among them is left out
    variants: name -> steering; the unsteered model alone by default. Those of one problem and rollout meet the
    same noise, which hangs on `sampling.seed`, problem and rollout alone
    Raises BasiscopeError where the directions are not the model's.
    """
    variants = {UNSTEERED: Steering()} if variants is None else variants
    chosen = sorted((p for p in problems if p.problem_id in prompts), key=lambda p: len(prompts[p.problem_id]))
    wanted = [(problem, i, name) for problem in chosen for i in range(r) for name in variants]
    finished = len(done)
    progress("rollouts", finished, len(wanted))
    for numbers in row_batches(model, [len(prompts[problem.problem_id]) for problem, _, _ in wanted], batch_rows):
        batch = [wanted[number] for number in numbers]
        keys = [(name, problem.problem_id, i) for problem, i, name in batch]
        if all(key in done for key in keys):
            continue
        rows = [
            Row(
                tuple(prompts[problem.problem_id]),
                variants[name],
                noise_seed(sampling.seed, problem.problem_id, i),
            )
            for problem, i, name in batch
        ]
        generation = Generation(model, directions, rows, sampling, with_logprobs=True).run()
        made = [
            _rollout(generation, row, key, problem, verify, thought(model, rows[row].prompt))
            for row, (key, (problem, _, _)) in enumerate(zip(keys, batch, strict=True))
            if key not in done
        ]
        finished += len(made)
        yield made
        progress("rollouts", finished, len(wanted))


def thought(model: LanguageModel, prompt: Sequence[int]) -> str:
    """As `opened_thought`, of token ids."""
    return opened_thought(str(model.tokenizer.decode(list(prompt[-THOUGHT_TOKENS:]))))


def _rollout(generation: Generation, row: int, key: Key, problem: Problem, verify: Verify, opened: str) -> Rollout:
    text, logprobs = generation.text(row), generation.logprobs[row]
    return Rollout(
        *key,
        text=text,
        right=verify(problem.answer, opened + text),
        cut=generation.ended[row] == "length",
        n_tokens=len(generation.tokens[row]),
        logprob=float(np.mean(logprobs)) if logprobs else None,
        note=generation.note(row),
    )
