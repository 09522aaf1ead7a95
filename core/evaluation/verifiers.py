"""Verifiers by name: whether a generated text gives the answer asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from core.errors import BasiscopeError
from core.evaluation.answers import (
    LONGEST,
    TAIL,
    Number,
    final_answer,
    marked_answer,
    number_in_words,
    number_of,
    plain,
    readings,
    same_number,
    stated_answer,
    without_latex,
)
from core.evaluation.child import CHILD

Verify = Callable[[str, str], bool | None]
"""Called as verify(answer, text): whether a generated text gives the answer; None where it cannot be said."""

VERIFIERS = ("math", "numeric", "exact", "normalised", "choice", "regex", "world")
TOLERANCE = 1e-6
"""Where none is given: for numbers that are not whole. Whole ones are met exactly."""
LETTER = r"[\s\"$*(]{0,9}(?!I\s+[a-z])([A-J])(?![\w'’])"
MARKED_LETTER = (
    rf"(?i:answer|option|choice)\s{{0,9}}(?i:is|:)[\s:*]{{0,9}}(?i:(?:the\s)?(?:option|choice)\s)?{LETTER}"
)
LONE_LETTER = r"\(?([A-Ja-j])(?:[).:]\W|[).:]?\**$|\*\*)"
LOOSE_LETTER = r"\*\*\(?([A-J])[).:]?\*\*|\(([A-J])\)|(?<!not )\b([B-HJ])\b(?!['’])|\b(A)(?=[\s.*]{0,9}$)"
"""A choice: right after a mark; as all that is stated or before its option; else anywhere, but an article."""
FORMULA_CHARACTERS = 1_000
"""A longer formula is not compared: parsing takes more than linear time."""


def verifier(name: str) -> Verify:
    """The verifier of a name: `math`, `numeric` or `numeric:TOLERANCE`, `exact`, `normalised`, `choice`,
    `regex:PATTERN` with one group, or `world`, the embedded demo's.

    Raises BasiscopeError for another name, a tolerance that is none, or a pattern without exactly one group.
    """
    kind, _, detail = name.partition(":")
    if kind == "numeric":
        return partial(_same_number, _tolerance(detail))
    if kind == "regex":
        return partial(_same_group, _pattern(detail))
    found = {"math": _same_value, "exact": _exact, "normalised": _normalised, "choice": _choice, "world": _world}
    if kind not in found or detail:
        raise BasiscopeError(f"Verifier {name!r} is not one of {', '.join(VERIFIERS)}.")
    return found[kind]


def can_verify(name: str, answer: str) -> bool:
    """Whether a text that states nothing but the answer would be verified: where it is not, no text can be. What
    a pattern asks for cannot be known: any answer will do."""
    verify = verifier(name)
    stated = (rf"\boxed{{{answer}}}", f"Answer: {answer}")
    return bool(answer.strip()) and (name.startswith("regex:") or any(verify(answer, text) for text in stated))


def _tolerance(detail: str) -> float | None:
    if not detail:
        return None
    try:
        tolerance = float(detail)
    except ValueError:
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise BasiscopeError(f"Verifier numeric:{detail}: the tolerance must be a number from 0.")
    return tolerance


def _pattern(detail: str) -> str:
    try:
        groups = re.compile(detail).groups
    except (re.error, RecursionError) as error:
        raise BasiscopeError(f"Verifier regex:{detail}: it is not a regular expression ({error}).") from error
    if groups != 1:
        raise BasiscopeError(f"Verifier regex:{detail}: it needs exactly one group, the answer, and has {groups}.")
    return detail


def _same_value(answer: str, text: str) -> bool | None:
    """Mathematical equality of the text's final answer: numbers and words at once, formulas by the child."""
    expected, found = marked_answer(answer) or answer.strip(), final_answer(text)
    if not expected or found is None:
        return False
    if number := number_of(expected):
        if same_number(number, number_of(found) or number_in_words(found)):
            return True
    elif _is_words(expected):
        return plain(expected) == plain(stated_answer(text) or "")
    if _dense(expected) == _dense(found):
        return True
    if max(len(expected), len(found)) > FORMULA_CHARACTERS:
        return None if len(expected) > FORMULA_CHARACTERS else False
    answered: bool | None = CHILD.ask("same_formula", _formula(expected), _formula(found))
    return answered


def _is_words(expected: str) -> bool:
    return re.fullmatch(r"[^\W\d_]{2,}[^\d\\{}^_=+*/<>()\[\]|]*", without_latex(expected).strip()) is not None


def _dense(formula: str) -> str:
    return re.sub(r"[\s$]", "", without_latex(formula))


def _formula(found: str) -> str:
    return found.replace("$", "").strip()


def _same_number(tolerance: float | None, answer: str, text: str) -> bool | None:
    """Within the tolerance, which counts multiples of the answer where that is larger than 1."""
    expected, found = (_number(part) for part in (answer, final_answer(text) or ""))
    if expected is None:
        return None
    return any(_near(a, b, tolerance) for a, b in readings(expected, found))


def _near(a: Fraction, b: Fraction, tolerance: float | None) -> bool:
    if tolerance is None and 1 in (a.denominator, b.denominator):
        return a == b
    return abs(a - b) <= Fraction(TOLERANCE if tolerance is None else tolerance) * max(Fraction(1), abs(a))


def _number(text: str) -> Number | None:
    stated = marked_answer(text) or text.strip()
    return number_of(stated) or number_in_words(stated)


def _exact(answer: str, text: str) -> bool:
    return answer.strip() == (stated_answer(text) or "") != ""


def _normalised(answer: str, text: str) -> bool:
    """But for case, spaces, punctuation and what LaTeX writes around words."""
    expected = plain(answer)
    return expected != "" and expected == plain(stated_answer(text) or "")


def _choice(answer: str, text: str) -> bool | None:
    """One letter from A to J, alone or before its option: `B`, `(B)`, `B. 12`, `answer is B`."""
    expected = _letter(answer)
    return None if expected is None else expected == _letter(text[-TAIL:])


def _letter(text: str) -> str | None:
    """The letter right after a mark, else what is stated, else the last one that stands for an option."""
    marked = without_latex(marked_answer(text) or "")
    stated = marked or without_latex(stated_answer(text) or "")
    if match := re.match(LETTER, marked) or re.match(LONE_LETTER, stated.strip(" $*")):
        return match[1].upper()
    found: list[tuple[str, ...] | str] = re.findall(MARKED_LETTER, text) or re.findall(LOOSE_LETTER, stated)
    return "".join(found[-1]) if found else None


def _same_group(pattern: str, answer: str, text: str) -> bool | None:
    """The group of the pattern's last match, compared as numbers or as words. By the child: a pattern can take
    for ever, too."""
    reply = CHILD.ask("last_group", pattern, text[-TAIL:])
    if reply is None:
        return None
    (found,) = reply
    if found is None:
        return False
    number, other = number_of(answer), number_of(found[:LONGEST])
    return (number is not None and same_number(number, other)) or plain(answer) == plain(found[:LONGEST]) != ""


def _world(answer: str, text: str) -> bool:
    from core.demo.world import final_answer as world_answer

    return world_answer(text[-TAIL:]) == answer.strip()
