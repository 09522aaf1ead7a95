"""A sweep: one direction over several strengths, what it does to the texts, and where it becomes damage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval, Verify, mean_interval, share_interval, verifier
from core.evaluation.intervals import mean_share_interval
from core.evaluation.rollouts import thought
from core.model import LanguageModel
from core.recovery import check_model
from core.steering.assessment import assess
from core.steering.check import notes_of
from core.steering.generation import Generation, Prompt, Row, Sampling, encode_prompts, row_batches
from core.steering.intervention import Directions, Steering
from core.steering.prompts import how_encoded
from core.workspace import Run

BATCH_ROWS = 32
USUAL_VERIFIER = verifier("math")
PERPLEXITY_LIMIT, REPETITION_LIMIT, BROKEN_LIMIT = 2.0, 0.2, 0.2
"""The guard: damage is a text twice as surprising to the unsteered model as its own, or a fifth more of it
repeated, or a fifth more of the texts broken."""
CALIBRATION = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Strengths of the calibrating sweep, in standard deviations of the scores."""
CALIBRATION_PROMPTS, CALIBRATION_TOKENS = 12, 40


def parse_strengths(text: str) -> tuple[float, ...]:
    """`-4:4:9` is nine strengths from -4 to 4; else a list such as `0,+2,-2`.

    >>> parse_strengths("-1:1:3"), parse_strengths("0,+2")
    ((-1.0, 0.0, 1.0), (0.0, 2.0))
    """
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            if int(count) < 2:
                raise ValueError
            values = [round(float(x), 10) for x in np.linspace(float(start), float(stop), int(count))]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BasiscopeError(f"Strengths {text!r}: write from:to:count such as -4:4:9, or 0,+2,-2.") from error
    if not np.isfinite(values).all():
        raise BasiscopeError(f"Strengths {text!r}: they must be numbers.")
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class SweepRequest:
    """What to sweep: a direction (from 1) over strengths in `unit`; 0 is added where it is missing."""

    direction: int
    strengths: tuple[float, ...]
    unit: str = "unit"
    operation: str = "add"
    scope: str = "all"
    blocks: tuple[int, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def with_zero(self) -> tuple[float, ...]:
        return tuple(sorted({0.0, *self.strengths}))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Point:
    """One strength. Intervals are over prompts, with the unsteered text of the same prompt as the pair.

    effect: change of the text's mean score on the direction, in standard deviations of the scores
    surprise: log of the text's perplexity over that of the unsteered text
    repetition: share of repeated n-grams; divergence: KL in nats; tokens: length
    broken: share of texts that are not numbers, empty or only repeat; correct: of verified answers
    """

    strength: float
    effect: Interval
    surprise: Interval
    repetition: Interval
    divergence: Interval
    tokens: Interval
    broken: Interval
    correct: Interval | None
    is_damaged: bool

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Point:
        intervals = {name: Interval(**value) for name, value in stored.items() if isinstance(value, Mapping)}
        return cls(**{**stored, **intervals})


NAMED = {"direction", "operation", "unit", "scope", "prompts"}
"""What a kept sweep says of its request at least."""


@dataclass(frozen=True)
class Sweep:
    """Points by rising strength in `request.unit`, the texts behind them, and the range without damage.

    baseline: the unsteered texts, where no strength means them: a clamp to 0 is not nothing
    notes: what was wrong with the prompts that were read
    """

    run: str
    request: dict[str, Any]
    deviation: float
    points: tuple[Point, ...]
    rows: tuple[dict[str, Any], ...]
    low: float
    high: float
    baseline: Point | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return _without_nan(asdict(self))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Sweep:
        """Raises BasiscopeError where it is damaged."""
        try:
            points = tuple(Point.from_dict(_with_nan(point)) for point in stored["points"])
            baseline = stored.get("baseline") and Point.from_dict(_with_nan(stored["baseline"]))
            if not points or not set(stored["request"]) >= NAMED:
                raise ValueError("it does not say what was swept")
            made = {"points": points, "baseline": baseline, "rows": tuple(stored["rows"])}
            made |= {"notes": tuple(map(str, stored.get("notes", ())))}
            return cls(**{**stored, **made})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasiscopeError(f"A kept sweep is damaged: {error}.") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(point: Mapping[str, Any]) -> dict[str, Any]:
    """The intervals of a stored point, whose missing numbers JSON holds as null."""
    return {
        name: {key: math.nan if part is None else part for key, part in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in point.items()
    }


def sweep(
    run: Run,
    model: LanguageModel,
    request: SweepRequest,
    prompts: Sequence[Prompt],
    verify: Verify = USUAL_VERIFIER,
    progress: Progress = silent,
    notes: Sequence[str] = (),
) -> Sweep:
    """Generate from every prompt at every strength, assess the texts, and find the range without damage.

    Raises BasiscopeError where there is no prompt, one cannot be used, or the model is not the run's.
    """
    directions = Directions.of(run)
    steerings: dict[float | None, Steering] = {
        strength: Steering(
            ((request.direction, directions.in_unit(request.direction, strength, request.unit)),),
            request.operation,
            request.scope,
            request.blocks,
        )
        for strength in request.with_zero
    }
    if request.operation == "clamp":
        steerings[None] = Steering()
    if not prompts:
        raise BasiscopeError("There is no prompt to sweep over; give --prompts.")
    check_model(run, model)
    texts = [prompt.text for prompt in prompts]
    encoded = encode_prompts(model, prompts, *how_encoded(run), request.sampling.max_new_tokens)
    jobs = [(i, strength) for i in range(len(prompts)) for strength in steerings]
    facts: list[dict[str, Any]] = []
    progress("sweep", 0, len(jobs))
    for numbers in row_batches(model, [len(encoded[i]) for i, _ in jobs], BATCH_ROWS):
        batch = [jobs[number] for number in numbers]
        rows = [Row(encoded[i], steerings[strength], request.sampling.seed + i) for i, strength in batch]
        generation = Generation(model, directions, rows, request.sampling).run()
        assessed = assess(model, directions, rows, generation.tokens)
        for row, ((i, strength), assessment) in enumerate(zip(batch, assessed, strict=True)):
            text, answer = generation.text(row), prompts[i].answer
            facts.append(
                {
                    "prompt": i,
                    "strength": strength,
                    "text": text,
                    "tokens": len(generation.tokens[row]),
                    "note": generation.note(row),
                    "score": _mean(assessment.scores[:, request.direction - 1]),
                    "perplexity": assessment.perplexity,
                    "divergence": assessment.divergence,
                    "repetition": assessment.repetition,
                    "correct": None if answer is None else bool(verify(answer, thought(model, encoded[i]) + text)),
                }
            )
        progress("sweep", numbers.stop, len(jobs))
    deviation = float(directions.deviations[request.direction - 1])
    points, baseline = summarise(facts, deviation), None
    if request.operation == "clamp":
        unsteered = [fact for fact in facts if fact["strength"] is None]
        (baseline,) = summarise([fact | {"strength": 0.0} for fact in unsteered], deviation)
    low, high = undamaged_range(points)
    named = request.as_dict() | {"prompts": texts, "answers": [prompt.answer for prompt in prompts]}
    if any(prompt.before for prompt in prompts):
        named["before"] = [prompt.before for prompt in prompts]
    slow = notes_of(model, model.name)
    return Sweep(run.id, named, deviation, points, tuple(facts), low, high, baseline, (*notes, *slow))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def summarise(facts: Sequence[Mapping[str, Any]], deviation: float) -> tuple[Point, ...]:
    """A Point for each strength in the facts of single texts, which include the unsteered ones: those of the
    strength None, else of 0."""
    by_strength: dict[float | None, dict[int, Mapping[str, Any]]] = {}
    for fact in facts:
        by_strength.setdefault(fact["strength"], {})[fact["prompt"]] = fact
    zero = by_strength.pop(None) if None in by_strength else by_strength[0.0]
    points: list[Point] = []
    for strength in sorted(found for found in by_strength if found is not None):
        own = by_strength[strength]
        pairs = [(fact, zero[prompt]) for prompt, fact in sorted(own.items())]
        broken = share_interval([fact["note"] is not None or fact["tokens"] == 0 for fact, _ in pairs])
        verified = [fact["correct"] for fact, _ in pairs if fact["correct"] is not None]
        point = Point(
            strength=strength,
            effect=mean_interval([(fact["score"] - base["score"]) / deviation for fact, base in pairs]),
            surprise=mean_interval([np.log(fact["perplexity"] / base["perplexity"]) for fact, base in pairs]),
            repetition=mean_share_interval(np.array([fact["repetition"] for fact, _ in pairs])),
            divergence=mean_interval([fact["divergence"] for fact, _ in pairs]),
            tokens=mean_interval([fact["tokens"] for fact, _ in pairs]),
            broken=broken,
            correct=share_interval(verified) if verified else None,
            is_damaged=_is_damaged(pairs, broken.value),
        )
        points.append(point)
    return tuple(points)


def _is_damaged(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], broken: float) -> bool:
    surprise = mean_interval([np.log(fact["perplexity"] / base["perplexity"]) for fact, base in pairs]).value
    repeated = float(np.mean([fact["repetition"] - base["repetition"] for fact, base in pairs]))
    before = float(np.mean([base["note"] is not None or base["tokens"] == 0 for _, base in pairs]))
    if not np.isfinite(surprise):
        if any(np.isfinite(base["perplexity"]) for _, base in pairs):
            return True
        surprise = 0.0  # the unsteered texts are empty, too
    too_much = (surprise / np.log(PERPLEXITY_LIMIT), repeated / REPETITION_LIMIT, (broken - before) / BROKEN_LIMIT)
    return bool(max(too_much) > 1)


def zero_damages(points: Sequence[Point]) -> bool:
    """Whether steering at strength 0 does damage, as a clamp to it can."""
    return any(point.is_damaged for point in points if point.strength == 0)


def undamaged_range(points: Sequence[Point]) -> tuple[float, float]:
    """The strengths from 0 outward up to the last one before damage, on either side; 0 to 0 where 0 itself does
    damage."""
    low = high = 0.0
    if zero_damages(points):
        return low, high
    for point in (p for p in points if p.strength > 0):
        if point.is_damaged:
            break
        high = point.strength
    for point in reversed([p for p in points if p.strength < 0]):
        if point.is_damaged:
            break
        low = point.strength
    return low, high


@dataclass(frozen=True)
class SuggestedRange:
    """Strengths of a direction that do no damage by the guard, in multiples of the unit direction, as the
    calibrating sweep found them with `prompts` prompts; `reaches` says whether it met damage beyond."""

    low: float
    high: float
    deviation: float
    prompts: int
    reaches: tuple[bool, bool]

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> SuggestedRange:
        """Raises BasiscopeError where it is damaged."""
        try:
            low, high, deviation = (float(stored[name]) for name in ("low", "high", "deviation"))
            below, above = stored["reaches"]
            return cls(low, high, deviation, int(stored["prompts"]), (bool(below), bool(above)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasiscopeError(f"A suggested range is damaged: {error}.") from error

    @classmethod
    def of(cls, found: Sweep) -> SuggestedRange:
        factor = found.deviation if found.request["unit"] == "sd" else 1.0
        strengths = [point.strength for point in found.points]
        return cls(
            found.low * factor,
            found.high * factor,
            found.deviation,
            len(found.request["prompts"]),
            (found.low > min(strengths), found.high < max(strengths)),
        )
