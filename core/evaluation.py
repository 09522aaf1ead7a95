"""Verified answers and intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Verify = Callable[[str, str], bool]
"""Called as verify(answer, text): whether a generated text gives the answer."""

NUMBER = r"[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
MARKED = (r"####\s*(.+)", r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", r"(?i:answer)\s*(?:is|:)\s*(.+)")


def verify(answer: str, text: str) -> bool:
    """Whether the text's final answer is the one asked for: the same number, or the same words but for case,
    punctuation and spaces."""
    expected, found = _marked(answer) or answer.strip(), final_answer(text)
    if found is None or not expected:
        return False
    numbers = [_number(value) for value in (expected, found)]
    if numbers[0] is not None:
        return numbers[0] == numbers[1]
    return _plain(expected) == _plain(found)


def final_answer(text: str) -> str | None:
    """What stands after the text's last mark (`####`, a box, `answer is`, `Answer:`); without one its last
    number, or its last line where it holds none.

    >>> final_answer("So 3 + 4 = 7 apples."), final_answer("The answer is 12.")
    ('7', '12')
    """
    if marked := _marked(text):
        return marked
    if numbers := re.findall(NUMBER, text):
        return str(numbers[-1])
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def _marked(text: str) -> str | None:
    found = [match for mark in MARKED for match in re.finditer(mark, text)]
    if not found:
        return None
    return max(found, key=lambda match: match.start())[1].strip().rstrip(".")


def _number(text: str) -> float | None:
    match = re.fullmatch(rf"\D{{0,3}}?({NUMBER})\s*%?\.?", text.strip())
    found = match[1] if match else None
    if found is None and len(numbers := re.findall(NUMBER, text)) == 1:
        found = numbers[0]
    if found is None:
        return None
    top, _, bottom = found.replace(",", "").replace("$", "").partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval over n cases; not a number where there are too few."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean and its t interval; values that are not numbers are left out."""
    from scipy.stats import t

    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2:
        return Interval(float(kept.mean()) if len(kept) else float("nan"), float("nan"), float("nan"), len(kept))
    half = float(t.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / np.sqrt(len(kept)))
    return Interval(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half, len(kept))


def share_interval(hits: Sequence[bool]) -> Interval:
    """A share and its Wilson score interval."""
    from scipy.stats import binomtest

    if not len(hits):
        return Interval(float("nan"), 0.0, 1.0, 0)
    interval = binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return Interval(sum(hits) / len(hits), float(interval.low), float(interval.high), len(hits))
