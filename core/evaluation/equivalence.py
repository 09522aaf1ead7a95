"""The child process that verifiers ask: are two formulas the same, and what does a pattern find.

It reads a JSON object a line and writes a JSON value a line. It is run as a file and knows nothing of Basiscope.
Questions are answered by a fork of it, which the system ends when it has used its processor time; then there is
another one at once, and who asked gets null. Formulas are parsed by a grammar; nothing is evaluated as code.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 4 * 2**30
ALARM_SECONDS = 240
DIGITS = 100
"""Irrational numbers that agree in so many digits are the same. math-verify's 15 digits are absolute."""
SHARED_DIGITS = 50
"""Likewise where they are parts of something else, such as a vector, and compared by math-verify."""
ROUNDED_DIGITS = 6
"""A decimal of so many significant digits is the number that it is the rounding of."""
DECIMAL = r"(?<![\d.\\])(\d*)\.(\d+)(?![\d.])"
RELATION = r"[<>]|\\(?:l|g)(?:e|eq|eqslant|t)(?![a-z])|\\neq?(?![a-z])"
EITHER = r"\\(?:text|mathrm)\s*\{\s*or\s*\}|\bor\b|\\cup|\\vee|\\lor"


def same_formula(answer: str, found: str, answer_unit: str = "", found_unit: str = "") -> bool:
    """Whether two LaTeX or plain formulas are equal, by math-verify (Kydlicek 2024), but numbers exactly."""
    ratio = _ratio(answer_unit, found_unit)
    if ratio is None:
        return False
    if _same(answer, found) if ratio == "1" else _same(answer, _times(found, ratio)):
        return True
    size = None if answer_unit and found_unit else _size(answer_unit or found_unit)
    if size is None:  # else the bare number can be of radians
        return False
    return _same(_times(answer, size), found) if answer_unit else _same(answer, _times(found, size))


def _times(formula: str, factor: str) -> str:
    return rf"({formula}) \cdot ({factor})"


def value(formula: str) -> str | None:
    """The number that a formula is, or an equation ends in: a fraction where it is one, else its first digits."""
    from sympy import Integer, N

    found = _sides(Integer(0), parsed[0])[1] if (parsed := _parsed(formula)) else None
    if found is None or not found.is_real:
        return None
    return str(found if found.is_Rational else N(found, DIGITS))


def _same(answer: str, found: str) -> bool:
    from math_verify import verify

    gold, other = _parsed(answer), _parsed(found)
    if not gold or not other:
        return False
    gold, other = _as_tuple(gold, other), _as_tuple(other, gold)
    a, b = _sides(gold[0], other[0])
    if a is not None and b is not None:
        return _same_number(a, b, answer, found)
    return verify(gold, other, numeric_precision=SHARED_DIGITS, allow_set_relation_comp=True, timeout_seconds=None)


def _as_tuple(parsed: list[Any], other: list[Any]) -> list[Any]:
    """A column as the point that it is where the other one is no matrix."""
    from sympy import MatrixBase, Tuple

    is_column = isinstance(parsed[0], MatrixBase) and 1 in parsed[0].shape
    return [Tuple(*parsed[0])] if is_column and not isinstance(other[0], MatrixBase) else parsed


def _sides(gold: Any, other: Any) -> tuple[Any, Any]:
    """The numbers to compare, of equations those that they end in; None for what is no number. An equation that
    is asked for is its number only where it names one, as in `x = 5`; of two both name the same."""
    from sympy import Eq
    from sympy.core.function import AppliedUndef

    if isinstance(gold, Eq):
        is_naming = isinstance(gold.lhs, AppliedUndef) or getattr(gold.lhs, "is_Symbol", False)
        if not is_naming or (isinstance(other, Eq) and other.lhs != gold.lhs):
            return None, None
        gold = gold.rhs
    if isinstance(other, Eq):
        is_turned = _number(other.lhs) is not None and _number(other.rhs) is None
        other = other.lhs if is_turned else other.rhs
    return _number(gold), _number(other)


@lru_cache(maxsize=64)
def _parsed(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    if re.search(RELATION, formula) and re.search(EITHER, formula):
        return _union(re.split(EITHER, formula))
    exact = re.sub(DECIMAL, lambda one: rf"(\frac{{{int(one[1] + one[2])}}}{{{10 ** len(one[2])}}})", formula)
    only_boxes = LatexExtractionConfig(boxed_match_priority=0)
    return parse(rf"\boxed{{{exact}}}", extraction_config=[only_boxes], parsing_timeout=None)


def _union(parts: list[str]) -> list[Any]:
    """`x < 1 or x > 2` as the set that it is."""
    from sympy import Set, Union

    found = [_parsed(part.strip()) for part in parts]
    if not all(found):
        return []
    return [Union(*(one[0] if isinstance(one[0], Set) else one[0].as_set() for one in found))]


def _number(parsed: Any) -> Any:
    """The value of an expression that is a number; None of anything else."""
    from sympy import Expr

    value = parsed.doit() if isinstance(parsed, Expr) else None
    return value if value is not None and value.is_number and value.is_finite is not False else None


def _same_number(a: Any, b: Any, answer: str, found: str) -> bool:
    from sympy import N, Rational

    if a.is_Rational and b.is_Rational and a == b:
        return True
    exact = a.is_Rational and b.is_Rational
    difference = abs(N(a - b, 15, maxn=4 * DIGITS))
    if not exact and difference <= abs(N(a, 15)) * Rational(1, 10**DIGITS):
        return True
    places = [_places(formula) for formula in (answer, found)]
    if (places[0] is None) is (places[1] is None) or (a.is_Integer or b.is_Integer):
        return False
    return bool(difference <= Rational(1, 2 * 10 ** (places[0] or places[1] or 0)))


def _places(formula: str) -> int | None:
    """The places after the point of a decimal with enough significant digits; None of anything else."""
    match = re.fullmatch(r"\s*-?\s*(\d*)\.(\d+)\s*", formula)
    digits = (match[1] + match[2]).lstrip("0") if match else ""
    return len(match[2]) if match and len(digits) >= ROUNDED_DIGITS else None


# --- units ----------------------------------------------------------------------------------------------

SPELT = {
    **{"min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour", "sec": "second", "secs": "second"},
    **{"lb": "pound", "lbs": "pound", "in": "inch", "metre": "meter", "litre": "liter", "gm": "gram", "ml": "mL"},
    **{
        "c": "C",
        "amp": "ampere",
        "amps": "ampere",
        "cc": "mL",
        "euros": "euro",
        "meter": "meter",
        "dollars": "dollar",
    },
    **{
        "kilometre": "kilometer",
        "centimetre": "centimeter",
        "millimetre": "millimeter",
        "foot": "foot",
        "kgs": "kg",
    },
    **{"¢": "cent", "cents": "cent", "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "sterling"},
    **{"gbp": "sterling", "¥": "yen", "₹": "rupee", "rupees": "rupee", "rs": "rupee", "weeks": "week"},
}
OWN = ("dollar", "euro", "sterling", "yen", "rupee", "celsius", "fahrenheit")
PREFIXED = r"([kMGmµμ])(W|J|N|V|Hz|Pa|A|C|s|g|Wh|eV)"
PREFIXES = {"k": 3, "M": 6, "G": 9, "m": -3, "µ": -6, "μ": -6}


def _ratio(answer: str, found: str) -> str | None:
    """What one of the found unit is in units of the answer; 1 where one of them has none or is not known, None
    where they measure something else."""
    a, b = _unit(answer), _unit(found)
    return "1" if a is None or b is None or answer == found else _plain_number(b / a)


def _size(unit: str) -> str | None:
    """What a unit is that is a number itself, as a degree is; else None."""
    found = _unit(unit)
    return None if found is None else _plain_number(found)


def _plain_number(unit: Any) -> str | None:
    from sympy import latex
    from sympy.physics.units import Quantity

    found = _in_base(unit)
    return None if found.has(Quantity) else latex(found)


def _in_base(unit: Any) -> Any:
    from sympy import sympify
    from sympy.physics.units import ampere, candela, convert_to, kelvin, kilogram, meter, mole, second

    return convert_to(sympify(unit), [meter, kilogram, second, ampere, kelvin, mole, candela])


@lru_cache(maxsize=256)
def _unit(text: str) -> Any:
    """`m/s^2`, `square feet` or `km per hour` as sympy's units; None where a part is not known."""
    from sympy import Integer

    text = re.sub(r"\bper\b", "/", text.strip(" ."))
    text = re.sub(
        r"\b(square|sq|cubic|cu)\b\.?\s*([^\W\d_]+)", lambda one: f"{one[2]}^{2 + (one[1][0] == 'c')}", text
    )
    parts = re.findall(r"(/?)\s*([^\W\d_]+|[$€£¥₹¢])\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?", text)
    whole = Integer(1)
    for over, name, power in parts:
        one = _named(name)
        if one is None:
            return None
        whole *= one ** (int(power or 1) * (-1 if over else 1))
    return whole if parts else None


def _named(name: str) -> Any:
    from sympy import Integer, Rational, pi
    from sympy.physics import units
    from sympy.physics.units.quantities import PhysicalConstant, Quantity

    for spelt in (name, name.lower(), name.lower().removesuffix("s")):
        spelt = SPELT.get(spelt, spelt)
        if spelt in OWN:
            return Quantity(spelt)
        if spelt.removesuffix("s") in ("degree", "deg", "radian", "rad"):
            return pi / 180 if spelt.startswith("deg") else Integer(1)
        if spelt in ("mph", "kph", "kmph"):
            return (units.mile if spelt == "mph" else units.km) / units.hour
        if spelt in ("cent", "week"):
            return Quantity("dollar") / 100 if spelt == "cent" else 7 * units.day
        found = getattr(units, spelt, None)
        if isinstance(found, Quantity) and not isinstance(found, PhysicalConstant):
            return found
        if match := re.fullmatch(PREFIXED, spelt):
            return Rational(10) ** PREFIXES[match[1]] * getattr(units, match[2], Quantity(match[2]))
    return None


# --- the process ----------------------------------------------------------------------------------------


def last_group(pattern: str, text: str) -> list[str | None]:
    """The group of the pattern's last match in the text, in a list; [None] where there is no match."""
    found = None
    for match in re.finditer(pattern, text):
        found = match[1]
    return [found]


QUESTIONS: dict[str, Callable[..., Any]] = {"same_formula": same_formula, "value": value, "last_group": last_group}


def main() -> None:
    import logging

    with suppress(ImportError, ValueError, OSError):  # no such limit on this system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401

    same_formula("0.5", "\\frac{1}{2}")
    answers, sys.stdout = sys.stdout, sys.stderr
    print("true", file=answers, flush=True)
    while hasattr(os, "fork") and (fork := os.fork()):
        _, status = os.waitpid(fork, 0)
        if status == 0:
            return
        print("null", file=answers, flush=True)
    _serve(answers)


def _serve(answers: Any) -> None:
    """Answer questions until there are no more. A limit that is met ends the process, even within one long
    multiplication."""
    alarm = getattr(signal, "alarm", int)  # some systems have none
    timer = getattr(signal, "setitimer", lambda *_: None)
    used = getattr(signal, "ITIMER_PROF", 0)
    for line in sys.stdin:
        asked = json.loads(line)
        alarm(ALARM_SECONDS)
        timer(used, asked["seconds"])
        try:
            value = QUESTIONS[asked["question"]](*asked["arguments"])
        except (Exception, RecursionError, MemoryError):
            value = None
        timer(used, 0)
        alarm(0)
        print(json.dumps(value), file=answers, flush=True)


if __name__ == "__main__":
    main()
