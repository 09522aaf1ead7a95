"""Verified answers and intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Verify = Callable[[str, str], bool]
"""Called as verify(answer, text): whether a generated text gives the answer."""

NUMBER = r"[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"
MARKED = (r"####\s*(.+)", r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", r"(?i:answer)\s*(?:is|:)\s*(.+)")
LATEX = (
    (r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r" \1"),
    (r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\^\{?\\circ\}?|°", " degrees"),
    (r"\\[,!;: ]|\\(?=[$%])|\\left(?!\w)|\\right(?!\w)", ""),
)
"""What LaTeX writes around numbers and words, and what it means."""


def verify(answer: str, text: str) -> bool:
    """Whether the text's final answer is the one asked for: the same number, or the same words or formula but
    for case, spaces and punctuation that means nothing."""
    expected = _marked(answer) or answer.strip()
    if numbers := _numbers(expected):
        found = final_answer(text)
        return found is not None and bool(numbers & (_numbers(found) or _number_in_words(found)))
    words = _marked(text) or _last_line(text)
    return bool(expected) and words is not None and _plain(expected) == _plain(words)


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
    return _last_line(text)


def _marked(text: str) -> str | None:
    found = [match for mark in MARKED for match in re.finditer(mark, text)]
    if not found:
        return None
    return max(found, key=lambda match: match.start())[1].strip().rstrip(".")


def _last_line(text: str) -> str | None:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def _numbers(text: str) -> set[float]:
    """The number that a text is as a whole; a percentage is also its share. Empty where it is something else."""
    match = re.fullmatch(rf"(?:\w\s*=\s*)?[$€£]?\s*({NUMBER})\s*(%?)\.?", _without_latex(text).strip(" $"))
    if match is None:
        return set()
    top, _, bottom = re.sub("[,$]", "", match[1]).partition("/")
    value = float(top) / float(bottom) if bottom and float(bottom) else float(top)
    return {value, value / 100} if match[2] else {value}


def _number_in_words(text: str) -> set[float]:
    """The number that a text begins with before words, or the only one among them; none in a formula."""
    plain = _without_latex(text)
    number = rf"({NUMBER}\s*%?)"
    if match := re.match(rf"\s*[$€£]?{number}(?:[.,;:]?\s+(?=[^\W\d_]{{2,}})|[.;:]\s)", plain):
        return _numbers(match[1])
    around = r"[^\W\d_]|[\s.,;:!?'\"()$€£]"
    match = re.fullmatch(rf"(?:{around})*?(?<![^\W_]){number}(?![^\W\d_]\b)(?:{around})*", plain)
    return _numbers(match[1]) if match else set()


def _without_latex(text: str) -> str:
    for pattern, meaning in LATEX:
        text = re.sub(pattern, meaning, text)
    return text


def _plain(text: str) -> str:
    """Words and formulas without what means nothing in either."""
    kept = re.sub(r"[\s\"#$%&'(),:;?@\[\]`{|}~“”‘’]|\.(?!\d)|(?<![\d)])!", " ", _without_latex(text))
    return re.sub(r"\s*([-+*/=<>^])\s*", r"\1", " ".join(kept.split())).casefold()


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


def correlation_interval(r: float, n: int) -> Interval:
    """Pearson's correlation of n pairs and its interval by Fisher's transformation."""
    if n < 4:
        return Interval(r, float("nan"), float("nan"), n)
    z, half = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), 1.96 / np.sqrt(n - 3)
    return Interval(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n)


def share_interval(hits: Sequence[bool]) -> Interval:
    """A share and its Wilson score interval."""
    from scipy.stats import binomtest

    if not len(hits):
        return Interval(float("nan"), 0.0, 1.0, 0)
    interval = binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return Interval(sum(hits) / len(hits), float(interval.low), float(interval.high), len(hits))
