"""Verifiers by name: whether a generated text gives the answer asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    split_equation,
    split_unit,
    spoken,
    stated_answer,
    without_latex,
)
from core.evaluation.child import CHILD
from core.evaluation.notation import DENIED, LIMITED, TEXT, in_ascii, in_digits, in_one_notation

Verify = Callable[[str, str], bool | None]
"""Called as verify(answer, text): whether a generated text gives the answer; None where it cannot be said."""

VERSION = 2
"""Of what the verifiers say. An evaluation that was begun with another is not continued."""
VERIFIERS = ("math", "numeric", "exact", "normalised", "choice", "regex", "world")
TOLERANCE = 1e-6
"""Where none is given: for numbers that are not whole. Whole ones are met exactly."""
LETTER = r"[\s\"$*(]{0,9}(?!I\s+[a-z])([A-J]|(?<=\()[a-j](?=\)))(?![\w'’])"
MARKED_LETTER = (
    rf"(?i:answer|option|choice)\s{{0,9}}(?i:is|:)[\s:*]{{0,9}}(?i:(?:the\s)?(?:option|choice)\s)?{LETTER}"
)
LONE_LETTER = r"\(?([A-Ja-j])(?:[).:]\W|[).:]?\**$|\*\*)"
RIGHT = r"\s+is\s+(?:the\s+)?(?:correct|right|best|answer)"
LOOSE_LETTER = (
    rf"\*\*\(?([A-J])[).:]?\*\*|\(([A-J])\)|(?<!not )\b([B-HJ])\b(?!['’])|\b(A)(?=[\s.*]{{0,9}}$|{RIGHT})"
)
"""A choice: right after a mark; as all that is stated or before its option; else anywhere, but an article."""
LABEL = r"\(?[A-J]\)?\.?"
CHOICE_LABEL = rf"^[\s$]*(?:{TEXT}\s*\{{\s*)?\(?[A-J]\)[.:]?\s*\}}?[\s~\\]*(?=\S)"
"""The letter before an option's value."""
BASE = r"^\w+_\{?(\w+)\}?$"
NAME = r"\\?[a-zA-Z]+(?:\s[a-zA-Z]+)?(?:_\{?\w+\}?)?(?:\([^()=]*\))?'?"
"""What an equation is for where it says no more than its right side, as in `x = 5` or `f(2) = 5`."""
NUMERAL = r"[-+]?[0-9]{1,300}(?:\.[0-9]{1,300})?"
ARTICLE = r"^(?:(?:it|this|that) (?:is|was) )?(?:the |an? )?"
ANGLE = r"degree|radian|\brad\b|\bdeg\b"
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
    if len(expected) > LONGEST:
        return None
    if re.fullmatch(LABEL, without_latex(expected).strip(" $")) and (letter := _label(found)):
        return letter == without_latex(expected).strip(" $().").upper()
    if _is_words(expected):
        return _same_words(expected, stated_answer(text) or "")
    if _dense(expected) in (_dense(found), _dense(stated_answer(text) or "")):
        return True
    return _same(expected, found, tolerance=0)


def _is_words(expected: str) -> bool:
    words = without_latex(in_digits(in_one_notation(expected))).strip()
    return re.fullmatch(r"[^\W\d_]{2,}[^\d\\{}^_=+*/<>()\[\]|]*", words) is not None


def _same_words(expected: str, stated: str) -> bool:
    """Of what is stated, all or what goes before a comma or a reason, or what is bold in it."""
    stated = without_latex(stated)
    said = [stated, re.split(r"[,;:.!]\s+(?!(?:and|or|but)\b)|\s+(?:because|since)\s", stated)[0]]
    said += re.findall(r"\*\*(.+?)\*\*", stated)[-1:]
    return re.sub(ARTICLE, "", plain(expected)) in [re.sub(ARTICLE, "", plain(one)) for one in said]


def _dense(formula: str) -> str:
    return re.sub(r"[\s$]", "", without_latex(in_ascii(formula))).rstrip(".")


@dataclass(frozen=True)
class Reading:
    """A formula in one notation, its unit, what an equation is for, and the number that it is, where it is one."""

    formula: str
    unit: str
    name: str
    number: Number | None

    @classmethod
    def of(cls, said: str, with_words: bool = False) -> Reading:
        """with_words: a number may stand among words."""
        if re.fullmatch(NUMERAL, said := said.strip()):
            return cls(said, "", "", Number(Fraction(said)))
        one = in_one_notation(said)
        formula, unit = split_unit(one)
        name, value = split_equation(formula)
        number = number_of(value) or number_of(in_digits(value))
        if number is None and with_words:
            number = number_in_words(one) or number_in_words(in_digits(one))
        return cls(formula, unit, name, number)


def _same(expected: str, said: str, tolerance: float | None) -> bool | None:
    """Whether a stated answer is the expected one, in any of the forms in which it is given (`a \\approx b`)."""
    asked, said = Reading.of(expected, with_words=tolerance != 0), re.sub(DENIED, "", said)
    if asked.number is not None and re.match(LIMITED, in_digits(without_latex(said))):
        return False
    forms = [one for one in re.split(r"\\approx|≈", re.sub(CHOICE_LABEL, "", said)) if one.strip()]
    verdicts = [_same_reading(asked, Reading.of(one, asked.number is not None), tolerance) for one in forms]
    return True if True in verdicts else None if None in verdicts else False


def _same_reading(expected: Reading, found: Reading, tolerance: float | None) -> bool | None:
    asked, said = (base[1] if (base := re.search(BASE, one.formula)) else "" for one in (expected, found))
    if said and said != (asked or "10"):
        return False
    if tolerance != 0 and found.number is None:
        found = _valued(found)
    if (values := _values(expected, found)) is not None:
        if any(_near(a, b, tolerance) for a, b in values):
            return True
        if tolerance != 0 or not _is_rounded(expected.formula, found.formula):
            return False
    if max(len(expected.formula), len(found.formula)) > FORMULA_CHARACTERS:
        return None if len(expected.formula) > FORMULA_CHARACTERS else False
    if _is_other_bracket(expected.formula, found.formula) or _is_other_bracket(found.formula, expected.formula):
        return False
    answered: bool | None = CHILD.ask(
        "same_formula", _formula(expected.formula), _formula(found.formula), expected.unit, found.unit
    )
    return answered


def _is_other_bracket(a: str, b: str) -> bool:
    """Whether one is a set by its braces and the other a point or an interval."""
    return a.startswith("\\{") and re.fullmatch(r"[(\[][^()\[\]]*[)\]]", b) is not None


def _is_rounded(a: str, b: str) -> bool:
    """Whether one of two numbers is a decimal of many digits and the other is none."""
    return ("." in a) is not ("." in b) and len((a if "." in a else b).lstrip("-0.")) >= 6


def _values(expected: Reading, found: Reading) -> list[tuple[Fraction, Fraction]] | None:
    """Numbers to compare as they are, of the same unit and the same name where they have both; else None."""
    if expected.number is None or found.number is None:
        return None
    is_named = not expected.name or (re.fullmatch(NAME, expected.name) and found.name in ("", expected.name))
    is_bare = not (expected.unit and found.unit) and not re.search(ANGLE, expected.unit or found.unit)
    return (
        readings(expected.number, found.number) if is_named and (is_bare or expected.unit == found.unit) else None
    )


def _formula(found: str) -> str:
    return found.replace("$", "").strip()


def _same_number(tolerance: float | None, answer: str, text: str) -> bool | None:
    """Within the tolerance, which counts multiples of the answer where that is larger than 1."""
    expected, found = marked_answer(answer) or answer, final_answer(text)
    if Reading.of(expected, with_words=True).number is None:
        return None
    return found is not None and _same(expected, found, tolerance)


def _valued(found: Reading) -> Reading:
    """With the number that its formula is, by the child."""
    value = CHILD.ask("value", _formula(found.formula)) if len(found.formula) <= FORMULA_CHARACTERS else None
    return replace(found, number=Number(Fraction(value))) if value else found


def _near(a: Fraction, b: Fraction, tolerance: float | None) -> bool:
    if tolerance == 0 or (tolerance is None and 1 in (a.denominator, b.denominator)):
        return a == b
    if tolerance is None:
        return abs(a - b) <= Fraction(TOLERANCE) * abs(a)
    return abs(a - b) <= Fraction(tolerance) * max(Fraction(1), abs(a))


def _exact(answer: str, text: str) -> bool:
    return answer.strip() == (stated_answer(text) or "") != ""


def _normalised(answer: str, text: str) -> bool:
    """But for case, spaces, punctuation and what LaTeX writes around words."""
    expected = plain(answer)
    return expected != "" and expected == plain(stated_answer(text) or "")


def _choice(answer: str, text: str) -> bool | None:
    """One letter from A to J, alone or before its option: `B`, `(B)`, `B. 12`, `answer is B`."""
    expected = _letter(answer)
    return None if expected is None else expected == _letter(spoken(text))


def _label(found: str) -> str | None:
    match = re.match(LONE_LETTER, without_latex(found).strip(" $*"))
    return match[1].upper() if match else None


def _letter(text: str) -> str | None:
    """The letter right after a mark, else what is stated, else the last one that stands for an option."""
    marked = without_latex(marked_answer(text) or "")
    stated = marked or without_latex(stated_answer(text) or "")
    if match := re.match(LETTER, marked) or re.match(LONE_LETTER, stated.strip(" $*")):
        return match[1].upper()
    found: list[tuple[str, ...] | str] = re.findall(MARKED_LETTER, text) or re.findall(LOOSE_LETTER, stated)
    return "".join(found[-1]).upper() if found else None


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
