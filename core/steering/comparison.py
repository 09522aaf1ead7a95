"""A comparison: one prompt, several steerings side by side, the baseline first."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.examples import Turns
from core.model import LanguageModel
from core.reading import token_texts
from core.recovery import check_model
from core.steering.assessment import Assessment, assess
from core.steering.check import notes_of
from core.steering.generation import Generation, Prompt, Row, Sampling, encode_prompts, row_batches
from core.steering.intervention import Directions, Steering, both_units
from core.steering.prompts import how_encoded
from core.workspace import Run, now

BATCH_ROWS = 32
BASELINE = "baseline"


@dataclass(frozen=True)
class Variant:
    """A steering under a name; `strength` is as the person gave it, in `unit`."""

    name: str
    steering: Steering
    strength: float = 0.0


def make_variants(
    directions: Directions, direction: int, strengths: Sequence[float], unit: str, **choices: Any
) -> list[Variant]:
    """The baseline and one variant for each strength of a direction (from 1); `choices` are the operation,
    scope and blocks. A strength of 0 is the baseline, but for `clamp`."""
    variants = [Variant(BASELINE, Steering())]
    for strength in strengths:
        steering = Steering(((direction, directions.in_unit(direction, strength, unit)),), **choices)
        if not steering.is_baseline:
            variants.append(Variant(f"{strength:+g}{' sd' if unit == 'sd' else ''}", steering, strength))
    return variants


@dataclass(frozen=True)
class Response:
    """What one variant wrote. `tokens` join to the text; `scores` are theirs on the comparison's direction in
    the unsteered model; `ended` as in Generation, `note` what is wrong with it; None, or empty, while it comes."""

    variant: str
    strength: float
    steering: Steering
    text: str = ""
    token_ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    perplexity: float | None = None
    divergence: float | None = None
    ended: str | None = None
    note: str | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Response:
        steering = stored["steering"]
        blocks = steering["blocks"]
        made = Steering(
            tuple((int(j), float(strength)) for j, strength in steering["strengths"]),
            steering["operation"],
            steering["scope"],
            None if blocks is None else tuple(blocks),
        )
        lists = {name: tuple(stored[name]) for name in ("token_ids", "tokens", "scores")}
        return cls(**{**stored, **lists, "steering": made})


@dataclass(frozen=True)
class Comparison:
    """One prompt and its responses. `direction` (from 1) is the one that tokens are scored on; `seconds` from
    the start of the batch to its end, `first_token` to its first token; `deviations` are those of the scores
    on each direction used, the second unit of strength (none in what older versions have kept); `before` the
    messages before the prompt; `notes` what was done otherwise than usual, in words."""

    run: str
    model: str
    prompt: str
    direction: int
    label: str
    sampling: Sampling
    responses: tuple[Response, ...]
    unit: str = "unit"
    seconds: float = 0.0
    first_token: float = 0.0
    created: str = field(default_factory=now)
    name: str = ""
    deviations: tuple[tuple[int, float], ...] = ()
    before: Turns = ()
    notes: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)

    @property
    def steered(self) -> str:
        """The directions that any response was steered along."""
        used = {j for response in self.responses for j, _ in response.steering.strengths} or {self.direction}
        return f"direction{'s' * (len(used) > 1)} {', '.join(map(str, sorted(used)))}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Comparison:
        try:
            responses = tuple(Response.from_dict(response) for response in stored["responses"])
            deviations = tuple((int(j), float(one)) for j, one in stored.get("deviations", ()))
            before = tuple(tuple(map(str, turn)) for turn in stored.get("before", ()))
            made: dict[str, Any] = {"responses": responses, "deviations": deviations, "before": before}
            made["notes"] = tuple(map(str, stored.get("notes", ())))
            made["sampling"] = Sampling(**stored["sampling"])
            return cls(**{**stored, **made, "direction": int(stored["direction"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasiscopeError(f"A saved comparison is damaged: {error}.") from error

    def as_markdown(self) -> str:
        """For other documents: prompt and responses as indented code and all else escaped, so that nothing in
        them is interpreted."""
        title = f"# {_escaped(self.name) or 'Steering'}: {self.steered}"
        facts = [f"run {self.run}", f"model {self.model}", f"{self.created}"]
        facts += [f"label of direction {self.direction}: {self.label or 'none'}"]
        facts += [f"{key.replace('_', ' ')} {value}" for key, value in self.sampling.as_dict().items()]
        parts = [title, _escaped("; ".join(facts))]
        for role, *told in self.before:
            parts += [f"## Before the prompt: {_escaped(role)}", _indented("\n".join(filter(None, told)))]
        parts += ["## Prompt", _indented(self.prompt)]
        for response in self.responses:
            parts += [
                f"## {_escaped(response.variant)}",
                _escaped(self.describe(response)),
                _indented(response.text),
            ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def describe(self, response: Response) -> str:
        """What was done to a response, in both units of strength, and what is wrong with it, in a line."""
        steering = response.steering
        deviations = {} if steering.operation == "remove" else dict(self.deviations)
        if steering.is_baseline:
            done = "not steered"
        else:
            pairs = ", ".join(f"direction {j} {both_units(s, deviations.get(j))}" for j, s in steering.strengths)
            blocks = steering.blocks
            where = f", blocks {blocks[0]} to {blocks[-1]}" if blocks else ""
            done = f"{steering.operation} {pairs} on {steering.scope}{where}"
        cut = " (the most asked for: it is cut off)" if response.ended == "length" else ""
        facts = [done, f"{len(response.token_ids)} tokens{cut}"]
        if response.divergence is not None and not steering.is_baseline:
            facts.append(f"KL {response.divergence:.2g} nats a token from unsteered")
        if response.perplexity is not None:
            facts.append(f"perplexity {response.perplexity:.3g} unsteered")
        return "; ".join([*facts, *([response.note] if response.note else [])])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _escaped(text: str) -> str:
    """One line of Markdown that reads as the text: nothing in it is a link, a picture or HTML.

    >>> _escaped("![x](http://a)")
    '\\\\!\\\\[x\\\\]\\\\(http\\\\://a\\\\)'
    """
    return re.sub(r"([!\"#$&()*.:<>?@\[\\\]^_`{|}~])", r"\\\1", " ".join(text.split()))


Watch = Callable[[int | None, Callable[[], tuple[Comparison, ...]]], bool]
"""Called as watch(tokens so far, snapshot) before every token of a batch, and with None for the tokens once all
is written and before it is assessed; returns whether to go on. snapshot() gives the comparisons of the batch as
they stand. What is stopped is not assessed."""


def compare(
    run: Run,
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    variants: Sequence[Variant],
    sampling: Sampling,
    direction: int,
    unit: str = "unit",
    watch: Watch | None = None,
    progress: Progress = silent,
) -> list[Comparison]:
    """Every prompt under every variant, in batches of up to BATCH_ROWS rows. The progress of one prompt counts
    tokens, that of several prompts.

    Raises BasiscopeError where a prompt cannot be used, before anything is generated.
    """
    check_model(run, model)
    encoded = encode_prompts(model, prompts, *how_encoded(run), sampling.max_new_tokens)
    directions, labels = Directions.of(run), run.labels()
    label = labels[direction].text if direction in labels else ""
    used = sorted({j for variant in variants for j, _ in variant.steering.strengths})
    deviations = tuple((j, float(directions.deviations[j - 1])) for j in used)
    name = run.manifest["model"]["name"]
    notes = notes_of(model, name)
    base = Comparison(run.id, name, "", direction, label, sampling, (), unit, deviations=deviations, notes=notes)
    size = max(1, BATCH_ROWS // len(variants))
    done: list[Comparison] = []
    for numbers in row_batches(model, [len(ids) for ids in encoded], size):
        rows = [Row(encoded[i], variant.steering, sampling.seed + i) for i in numbers for variant in variants]
        batch = _Batch(model, directions, rows, [Prompt.of(prompts[i]) for i in numbers], variants, base)
        done += batch.run(_counting(watch, progress, numbers, len(prompts), sampling.max_new_tokens))
        if batch.was_stopped:
            break
    return done


def _counting(watch: Watch | None, progress: Progress, numbers: range, prompts: int, most: int) -> Watch:
    """The watch, which also tells the progress of the batch with the prompts of these numbers."""

    def told(step: int | None, snapshot: Callable[[], tuple[Comparison, ...]]) -> bool:
        tokens = most if step is None else step
        if prompts == 1:
            progress("generate", tokens, most)
        else:
            progress("prompts", numbers.start + len(numbers) * tokens // most, prompts)
        return watch is None or watch(step, snapshot)

    return told


class _Batch:
    """The comparisons of one batch of rows, prompt by prompt and variant by variant."""

    def __init__(
        self,
        model: LanguageModel,
        directions: Directions,
        rows: list[Row],
        prompts: Sequence[Prompt],
        variants: Sequence[Variant],
        base: Comparison,
    ) -> None:
        self.model, self.directions, self.rows, self.base = model, directions, rows, base
        self.prompts, self.variants = prompts, variants
        self.generation = Generation(model, directions, rows, base.sampling)
        self.was_stopped = False
        self._start, self._first = time.perf_counter(), 0.0

    def run(self, watch: Watch) -> tuple[Comparison, ...]:
        steps, done = self.generation.steps(), 0
        while watch(done, self._snapshot):
            if next(steps, None) is None:
                break
            done += 1
            self._first = self._first or time.perf_counter() - self._start
        else:
            self.was_stopped = True
        steps.close()
        self.generation.ended = [end or "stopped" for end in self.generation.ended]
        seconds = time.perf_counter() - self._start
        if not self.was_stopped:
            watch(None, self._snapshot)
        if self.was_stopped:
            return self._snapshot(seconds)
        return self._snapshot(seconds, assess(self.model, self.directions, self.rows, self.generation.tokens))

    def _snapshot(
        self, seconds: float | None = None, assessed: Sequence[Assessment] | None = None
    ) -> tuple[Comparison, ...]:
        took = time.perf_counter() - self._start if seconds is None else seconds
        found = []
        for p, prompt in enumerate(self.prompts):
            responses = tuple(
                self._response(p * len(self.variants) + v, variant, assessed)
                for v, variant in enumerate(self.variants)
            )
            said = replace(self.base, prompt=prompt.text, before=prompt.before, responses=responses)
            found.append(replace(said, seconds=took, first_token=self._first))
        return tuple(found)

    def _response(self, i: int, variant: Variant, assessed: Sequence[Assessment] | None) -> Response:
        ids, generation = self.generation.tokens[i], self.generation
        partial = Response(variant.name, variant.strength, variant.steering, generation.text(i), tuple(ids))
        if assessed is None:
            ended = generation.ended[i]
            return replace(partial, ended=ended, note=generation.note(i) if ended else None)
        scores = assessed[i].scores[:, self.base.direction - 1]
        return replace(
            partial,
            tokens=token_texts(self.model.tokenizer, ids),
            scores=tuple(float(f"{score:.5g}") for score in scores),
            perplexity=_finite(assessed[i].perplexity),
            divergence=_finite(assessed[i].divergence),
            ended=generation.ended[i],
            note=generation.note(i),
        )


def _finite(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None
