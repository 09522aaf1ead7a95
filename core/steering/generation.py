"""Generation of many differently steered rows in one batch, token by token."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import BasiscopeError
from core.examples import Turns, prompt_text, token_ids
from core.model import CACHE_ARGUMENTS, LanguageModel, cache_argument, cached_tokens, check_tokens, named_arguments
from core.steering.check import abilities
from core.steering.intervention import Columns, Directions, Steering, steered

if TYPE_CHECKING:
    import torch

REPEATED_TOKENS, ROUNDS = 24, 3
"""A text that ends in so many tokens of a cycle, and in so many rounds of it, is called repetition."""
WHOLE_TOKENS, WHOLE_ROUNDS = 12, 4
"""So is a shorter text that is nothing but a cycle, from so many tokens and rounds on."""
KEPT_ROWS = 0.75
"""Rows that ended are taken out of the batch once no more than this share of it goes on."""
LARGEST_SEED = 10**18 - 1
NOT_A_NUMBER = "the steered model's logits are not numbers: the strength is too large"
REPEATS = "it ends in the same words over and over"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0. Rows of one seed meet the same noise, whatever their
    steering, so that their differences are the steering's."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise BasiscopeError(f"Max new tokens {self.max_new_tokens}: it must be at least 1.")
        if not 0 <= self.temperature < np.inf:
            raise BasiscopeError(f"Temperature {self.temperature}: it must be 0 or more.")
        if not 0 < self.top_p <= 1:
            raise BasiscopeError(f"Top-p {self.top_p}: it must be above 0 and at most 1.")
        if not -LARGEST_SEED <= self.seed <= LARGEST_SEED:
            raise BasiscopeError(f"Seed {self.seed}: it must have at most 18 digits.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    """What a model is to go on from: a text, or a user's message after those `before` it (a system's, earlier
    turns). `answer` is what a response is to give, where that is known; `number` its row in its file, from 0."""

    text: str
    answer: str | None = None
    number: int | None = None
    before: Turns = ()

    @classmethod
    def of(cls, prompt: str | Prompt) -> Prompt:
        return cls(prompt) if isinstance(prompt, str) else prompt


@dataclass(frozen=True)
class Row:
    """One row of a batch: the prompt's token ids, what is done to it, and the seed of its noise."""

    prompt: tuple[int, ...]
    steering: Steering
    seed: int = 0


class NoRoomError(BasiscopeError):
    """A prompt that leaves no room for the new tokens."""


def encode_prompt(
    model: LanguageModel, prompt: str | Prompt, columns: Mapping[str, str], template: str, max_new_tokens: int
) -> tuple[int, ...]:
    """Token ids of a prompt as it stands before the response in the run's examples.

    Raises BasiscopeError for an empty prompt, and NoRoomError for one that leaves no room for the new tokens.
    """
    ids = prompt_ids(model, prompt, columns, template)
    if model.context and len(ids) + max_new_tokens > model.context:
        raise NoRoomError(
            f"The prompt has {len(ids):,} tokens, and {max_new_tokens:,} new ones would exceed the model's "
            f"context of {model.context:,}: shorten it, or lower the number of new tokens."
        )
    return ids


def encode_prompts(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    columns: Mapping[str, str],
    template: str,
    max_new_tokens: int,
) -> list[tuple[int, ...]]:
    """As `encode_prompt`; where one of several cannot be used, the error says which."""
    found = []
    for number, prompt in enumerate(prompts, 1):
        try:
            found.append(encode_prompt(model, prompt, columns, template, max_new_tokens))
            check_tokens(model, found[-1], "The prompt")
        except BasiscopeError as error:
            row = Prompt.of(prompt).number
            name = f"Prompt {number}" if row is None else f"Prompt of row {row}"
            raise BasiscopeError(f"{name}: {error}" if len(prompts) > 1 else str(error)) from error
    return found


def row_batches(model: LanguageModel, lengths: Sequence[int], size: int) -> Iterator[range]:
    """Neighbouring prompts of these lengths, up to `size` at a time; only of one length where padding changes what
    the model writes."""
    start, one_length = 0, not abilities(model).padding
    for stop in range(1, len(lengths) + 1):
        is_full = stop == len(lengths) or stop - start == size
        if is_full or (one_length and lengths[stop] != lengths[start]):
            yield range(start, stop)
            start = stop


def prompt_ids(
    model: LanguageModel, prompt: str | Prompt, columns: Mapping[str, str], template: str
) -> tuple[int, ...]:
    """Token ids of a prompt of any length. Raises BasiscopeError where it is empty, or nothing is left of it."""
    asked = Prompt.of(prompt)
    if not asked.text.strip():
        raise BasiscopeError("The prompt is empty: write a text to go on from.")
    text, special = prompt_text(asked.text, columns, template, model.tokenizer, asked.before)
    ids = token_ids(text, model.tokenizer, special)
    while len(ids) > 1 and ids[-1] in end_ids(model):
        ids.pop()
    if not ids:
        raise BasiscopeError("The prompt has no token that the model knows: write another text to go on from.")
    return tuple(ids)


def end_ids(model: LanguageModel) -> frozenset[int]:
    """The tokens that end a text."""
    generation = getattr(model.module, "generation_config", None)
    found = [getattr(generation, "eos_token_id", None), model.tokenizer.eos_token_id]
    listed = (one if isinstance(one, list | tuple) else [one] for one in found if one is not None)
    return frozenset(int(i) for ids in listed for i in ids)


class Generation:
    """Steered rows on their way: `tokens[i]` grows by one with every step while `ended[i]` is None; then it
    says how the row ended: `end`, `length`, `not a number`, or `stopped` by who asked for no further step.
    Without directions no row can be steered.
    `logprobs[i]`, where asked for, has each token's log-probability at temperature 1 under the steered model."""

    def __init__(
        self,
        model: LanguageModel,
        directions: Directions | None,
        rows: Sequence[Row],
        sampling: Sampling,
        use_cache: bool = True,
        with_logprobs: bool = False,
    ) -> None:
        if directions is None and not all(row.steering.is_baseline for row in rows):
            raise BasiscopeError("Steering needs the directions of a run.")
        self.model, self.directions, self.rows, self.sampling = model, directions, list(rows), sampling
        self.use_cache, self.with_logprobs = use_cache and abilities(model).cache, with_logprobs
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.ended: list[str | None] = [None for _ in rows]
        self.logprobs: list[list[float]] = [[] for _ in rows]

    def steps(self) -> Generator[int, None, None]:
        """Generate, yielding the number of tokens so far after each step. Close it to stop. Where padding changes
        what the model writes, rows of one length after those of another."""
        lengths = [len(row.prompt) for row in self.rows]
        batches = [list(range(len(self.rows)))]
        if not abilities(self.model).padding:
            batches = [[i for i, n in enumerate(lengths) if n == length] for length in dict.fromkeys(lengths)]
        try:
            for batch in batches:
                yield from self._steps(batch)
        finally:
            self.ended = [end or "stopped" for end in self.ended]

    def _steps(self, going: list[int]) -> Generator[int, None, None]:
        """Those of the rows of these numbers."""
        trunk = Trunk(self.model, [self.rows[i].prompt for i in going], self.use_cache)
        noise = _Noise([row.seed for row in self.rows], self.sampling)
        ends = end_ids(self.model)
        counts = iter(range(1, self.sampling.max_new_tokens + 1))
        while going:
            with self._steered(going) as columns:
                for step in counts:
                    if columns is not None:
                        columns.at(trunk.begins)
                    chosen = self._step(trunk, noise, going, ends)
                    places = [place for place, i in enumerate(going) if self.ended[i] is None]
                    if places:
                        trunk.append(chosen)
                    yield step
                    if not places or (len(places) <= KEPT_ROWS * len(going) and trunk.can_drop):
                        break
            going = [going[place] for place in places]
            if going:
                trunk.keep(places)

    def _step(self, trunk: Trunk, noise: _Noise, going: Sequence[int], ends: frozenset[int]) -> torch.Tensor:
        """A token for each row of these numbers, (rows,)."""
        import torch

        with torch.inference_mode():
            logits = trunk.logits()
            broken = torch.isnan(logits).any(dim=1).tolist()
            chosen = choose_tokens(logits, self.sampling, noise.draw(logits.shape[1], going))
            if self.with_logprobs:
                logprobs = logits.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0].tolist()
        for i, token, is_broken in zip(going, chosen.tolist(), broken, strict=True):
            self._take(i, token, is_broken, ends)
        if self.with_logprobs:
            self._keep_logprobs(going, logprobs)
        return chosen

    def _steered(self, going: Sequence[int]) -> AbstractContextManager[Columns | None]:
        if self.directions is None:
            return nullcontext()
        rows = [self.rows[i] for i in going]
        return steered(
            self.model, self.directions, [row.steering for row in rows], [len(row.prompt) for row in rows]
        )

    def _take(self, i: int, token: int, broken: bool, ends: frozenset[int]) -> None:
        if self.ended[i] is not None:
            return
        if broken:
            self.ended[i] = "not a number"
        elif token in ends:
            self.ended[i] = "end"
        else:
            self.tokens[i].append(token)
            if len(self.tokens[i]) == self.sampling.max_new_tokens:
                self.ended[i] = "length"

    def _keep_logprobs(self, going: Sequence[int], found: list[float]) -> None:
        for i, value in zip(going, found, strict=True):
            if len(self.tokens[i]) > len(self.logprobs[i]):
                self.logprobs[i].append(value)

    def run(self) -> Generation:
        """All steps at once."""
        for _ in self.steps():
            pass
        return self

    def text(self, i: int) -> str:
        return decode(self.model, self.tokens[i])

    def note(self, i: int) -> str | None:
        """What is wrong with a row's text, in words, where something is."""
        if self.ended[i] == "not a number":
            return NOT_A_NUMBER
        return REPEATS if is_repetition(self.tokens[i]) else None


def decode(model: LanguageModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def is_repetition(ids: Sequence[int]) -> bool:
    """Whether a text ends in a cycle of tokens, or is nothing else.

    >>> is_repetition([5, 7] * 12), is_repetition([5] * 12), is_repetition(range(24))
    (True, True, False)
    """
    text = list(ids)
    if len(text) < REPEATED_TOKENS:
        return len(text) >= WHOLE_TOKENS and any(
            _is_cycle(text, n) for n in range(1, len(text) // WHOLE_ROUNDS + 1)
        )
    return any(_is_cycle(text[-max(REPEATED_TOKENS, ROUNDS * n) :], n) for n in range(1, len(text) // ROUNDS + 1))


def _is_cycle(tokens: Sequence[int], length: int) -> bool:
    return tokens[-1] == tokens[-1 - length] and tokens[length:] == tokens[:-length]


class Trunk:
    """The model on a growing batch, padded on the left; a mask only where the prompts differ in length. It is
    given what its `forward` names and nothing else, and its cache must have grown by what it has read."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], use_cache: bool) -> None:
        import torch

        longest = max(len(prompt) for prompt in prompts)
        ids = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.model = model
        self.ids = torch.tensor(ids, device=model.device)
        self.new = self.ids
        self.padding = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=model.device)
        self.mask: torch.Tensor | None = None
        if bool(self.padding.any()):
            self.mask = (torch.arange(longest, device=model.device)[None] >= self.padding).long()
        self.cache: Any = None
        self.past = 0
        self.named, self.cache_argument = named_arguments(model.module), cache_argument(model.module)
        self.use_cache = use_cache and self.cache_argument is not None

    @property
    def begins(self) -> torch.Tensor:
        """(rows, 1) position of the first new token, negative where it is padding."""
        return self.past - self.padding

    def logits(self) -> torch.Tensor:
        """(rows, vocabulary) float32 logits of the next token."""
        output = self.model.module(input_ids=self.new, **self._options())
        if self.use_cache:
            given = set(output.keys())
            self.cache = next((output[name] for name in CACHE_ARGUMENTS if name in given), None)
            self.use_cache = self.cache is not None  # else every step reads the whole text again
        if self.use_cache:
            self.past += self.new.shape[1]
            held = cached_tokens(self.cache)
            if held not in (None, self.past):
                raise BasiscopeError(
                    f"Model {self.model.name}: its cache has {held} of {self.past} tokens: what it writes cannot "
                    "be trusted. Another version of transformers may mend that."
                )
        return output.logits[:, -1].float()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"use_cache": self.use_cache, "logits_to_keep": 1}
        if self.cache is not None and self.cache_argument:
            options[self.cache_argument] = self.cache
        if self.mask is not None and (self.cache is None or cached_tokens(self.cache) is not None):
            options["attention_mask"] = self.mask  # a recurrent state has the padding behind it
            options["position_ids"] = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -self.new.shape[1] :]
        return {name: value for name, value in options.items() if name in self.named}

    @property
    def can_drop(self) -> bool:
        """Whether rows can be taken out: without a cache, or with one that is a plain list of keys and values."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        return self.cache is None or (
            type(self.cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in self.cache.layers)
        )

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows alone."""
        import torch

        kept = torch.tensor(places, device=self.ids.device)
        self.ids, self.new, self.padding = self.ids[kept], self.new[kept], self.padding[kept]
        if self.mask is not None:
            self.mask = self.mask[kept]
        if self.cache is not None:
            self.cache.batch_select_indices(kept)

    def append(self, tokens: torch.Tensor) -> None:
        import torch

        column = tokens[:, None].to(self.ids.device)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(column)], dim=1)
        if self.use_cache:
            self.new = column
        else:
            self.new = self.ids = torch.cat([self.ids, column], dim=1)


class _Noise:
    """Gumbel noise, one draw a step for every seed: rows of one seed get the same, in any batch."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        import torch

        self.seeds = seeds
        self.generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds if sampling.temperature > 0}

    def draw(self, vocabulary: int, rows: Sequence[int]) -> torch.Tensor | None:
        """(rows, vocabulary) for the rows of these numbers, or None where tokens are chosen greedily."""
        import torch

        if not self.generators:
            return None
        seeds = [self.seeds[i] for i in rows]
        noise = {
            seed: -torch.empty(vocabulary).exponential_(generator=self.generators[seed]).clamp_(min=1e-30).log()
            for seed in dict.fromkeys(seeds)
        }
        return torch.stack([noise[seed] for seed in seeds])


def choose_tokens(logits: torch.Tensor, sampling: Sampling, noise: torch.Tensor | None) -> torch.Tensor:
    """(rows,) token ids from logits (rows, vocabulary): the largest, or with Gumbel noise a sample of the
    tempered distribution (Gumbel 1954; Maddison et al. 2014), cut to the smallest set that holds top_p."""
    import torch

    if noise is None:
        return logits.argmax(dim=1)
    tempered = logits / sampling.temperature
    if sampling.top_p < 1:
        ordered, order = tempered.sort(dim=1, descending=True)
        before = ordered.softmax(dim=1).cumsum(dim=1) - ordered.softmax(dim=1)
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        tempered = tempered.masked_fill(outside, -torch.inf)
    return (tempered + noise.to(logits.device)).argmax(dim=1)
