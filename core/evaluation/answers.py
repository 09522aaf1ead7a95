"""What a text gives as its final answer, and whether it is the one asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

TAIL = 100_000
"""An answer is looked for in so many characters at the end of a text."""
LONGEST = 2_000
"""So many characters of what stands after a mark are looked at."""
NUMBER = r"[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?(?:/\d+)?"
THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+"
"""Groups of three: `1,234` is a number, `1,23` and `36,36,108` are lists. A list that looks like one, such as
`60,180`, cannot be told from it; in brackets it is one."""
DIGITS = 1_000
"""A number of more characters is not read."""
SYMBOL = r"(?:[kcm]?m|k?g|lbs?|oz|ft|yd|m?s|hrs?|h|[kM]?W|k?[NJV]|k?Hz|k?Pa|[mM]?L|ml|mph|mol|sq)(?![a-zA-Z])"
UNIT = rf"(?:{SYMBOL}|(?!sqrt|sin|cos|tan|log|exp)[^\W\d_]{{3,30}})"
RAISED = r"(?:\s?\^\s?\{?-?\d\}?|[²³])?"
UNITS = rf"(?:{SYMBOL}|\s{{1,3}}{UNIT}{RAISED}|\s?/\s?{UNIT}{RAISED})(?:\s?[/·⋅*]\s?{UNIT}{RAISED}){{0,4}}"
"""What a number may be of: `m/s^2`, `/hour`. What is no usual symbol, such as x, is a variable, and so is any that
is raised right after its number, as in `5s^2`."""
HASHES, WORDS = r"(?<!#)####(?!#)[ \t]*(.+)", r"(?i:answer)\s*(?:is|:)\s*(.+)"
FUNCTIONS = r"\\[a-zA-Z]+|(?:sqrt|sin|cos|tan|log|exp)(?![a-zA-Z])"
WORD = r"[a-zA-Z]{3}|[^\W\d_a-zA-Z]{2}"
BOX = r"\\(?:boxed|fbox)\b\s*"
POWER = r"10\s{0,3}\^\s{0,3}(?:\{\s{0,3}([-+]?\d{1,3})\s{0,3}\}|([-+]?\d{1,3})(?!\d))"
SCIENTIFIC = (
    (rf"(?<=\d)\s{{0,9}}(?:\\times|\\cdot|[×*])\s{{0,9}}{POWER}", r"e\1\2"),
    (rf"(?<![\w.^}}])(?<!\\times )(?<!\\cdot ){POWER}(?![\w^])", r"1e\1\2"),
)
"""Powers of ten as a number writes them: `4.5 \\times 10^{33}` is 4.5e33."""
LATEX = (
    *SCIENTIFIC,
    (r"(?<=\d)(?:\{,\}|,\\!)\s{0,9}(?=\d{3}(?!\d))", ","),
    (r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r" \1"),
    (r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\^\{?\\circ\}?|°", " degrees"),
    (r"\\[,!;: ]|\\(?=[$%])|\\left(?!\w)|\\right(?!\w)", ""),
)
"""What LaTeX writes around numbers and words, and what it means."""


def verify(answer: str, text: str) -> bool:
    """Whether the text's final answer is the one asked for: the same number, or the same words or formula but
    for case, spaces and punctuation that means nothing."""
    expected = marked_answer(answer) or answer.strip()
    if number := number_of(expected):
        found = final_answer(text) or ""
        return same_number(number, number_of(found) or number_in_words(found))
    words = stated_answer(text)
    return bool(expected) and words is not None and plain(expected) == plain(words)


def final_answer(text: str) -> str | None:
    """What stands after the text's last mark (a box; else `####`; else `answer is` or `Answer:`); without one its
    last number, or its last line where it holds none.

    >>> final_answer("So 3 + 4 = 7 apples."), final_answer("The answer is 12.")
    ('7', '12')
    """
    text = text[-TAIL:]
    if marked := marked_answer(text):
        return marked
    if numbers := re.findall(NUMBER, _rewritten(text, (*SCIENTIFIC, (rf"(?<=\d)(?:{UNITS})", " ")))):
        return str(numbers[-1])
    return _last_line(text)


def stated_answer(text: str) -> str | None:
    """What stands after the text's last mark; without one its last line."""
    return marked_answer(text) or _last_line(text)


def marked_answer(text: str) -> str | None:
    """What stands after the text's last mark, or None where it has none. A box goes before `####`, which counts
    where a number or formula is all that follows on its line (else it is a heading), and that before words."""
    text = text[-TAIL:]
    boxes = [match for match in re.finditer(BOX, text) if text[match.end() : match.end() + 1].strip()]
    if boxes:
        return _boxed(text[boxes[-1].end() :])[:LONGEST].strip().rstrip(".")
    hashes = [match[1] for match in re.finditer(HASHES, text) if _is_formula(match[1][:LONGEST])]
    found = hashes or [match[1] for match in re.finditer(WORDS, text)]
    return found[-1][:LONGEST].strip(" \t\r*").rstrip(".").rstrip("*") if found else None


def _is_formula(line: str) -> bool:
    """Whether a line has no words."""
    bare = re.sub(FUNCTIONS, "", without_latex(line))
    return re.search(r"\w", line) is not None and re.search(WORD, bare) is None


def _boxed(text: str) -> str:
    """What a box that begins the text holds: the group in braces, or what `\\boxed 5` says without them."""
    if not text.startswith("{"):
        return re.split(r"[\s$]", text, maxsplit=1)[0]
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, flags=re.S):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[1 : brace.start()]
    return text[1:]


def _last_line(text: str) -> str | None:
    lines = text[-TAIL:].strip().splitlines()
    return re.sub(r"^#+\s+", "", lines[-1].strip())[:LONGEST] if lines else None


@dataclass(frozen=True)
class Number:
    """A number as it was written: that of percents where it is a percentage."""

    value: Fraction
    percent: bool = False


def readings(expected: Number, found: Number | None) -> list[tuple[Fraction, Fraction]]:
    """What is asked for and what was found, as values to compare; none where nothing was found.

    A percentage that is asked for may be given without its sign or as a share. A percentage for a plain number is
    a share where that number can be one, else its percents: `50%` is 0.5 and 50, `0.5%` is not 0.5.
    """
    if found is None:
        return []
    a, b = expected.value, found.value
    if expected.percent == found.percent:
        return [(a, b)]
    if expected.percent:
        return [(a, b), (a / 100, b)]
    return [(a, b)] * (abs(a) >= 1) + [(a, b / 100)] * (abs(a) <= 1)


def same_number(expected: Number, found: Number | None) -> bool:
    """Whether a number is exactly the one asked for, in one of its readings."""
    return any(a == b for a, b in readings(expected, found))


def number_of(text: str) -> Number | None:
    """The number that a text is as a whole, exactly; None where it is something else, or divided by nothing.

    >>> number_of("1,200.50"), number_of("\\\\frac{5}{0}")
    (Number(value=Fraction(2401, 2), percent=False), None)
    """
    match = re.fullmatch(rf"(?:\w\s*=\s*)?[$€£]?\s*({NUMBER})\s*(%?)\.?", without_latex(text).strip(" $"))
    if match is None or len(match[1]) > DIGITS:
        return None
    top, _, bottom = match[1].replace("$", "").partition("/")
    top = top.rstrip(",")
    if "," in top and not re.fullmatch(rf"[-+]?{THOUSANDS}(?:\.\d+)?", top):
        return None
    if bottom and not int(bottom):
        return None
    return Number(Fraction(top.replace(",", "")) / int(bottom or 1), bool(match[2]))


def number_in_words(text: str) -> Number | None:
    """The number that a text begins with before words, or the only one among them, or that of a unit; none in a
    formula."""
    plain = without_latex(text)
    if match := re.fullmatch(rf"[$€£]?\s?({NUMBER})({UNITS})[.\s]{{0,3}}", plain.replace("$", "").strip()):
        return number_of(match[1])
    number = rf"({NUMBER}\s*%?)"
    if match := re.match(rf"\s*[$€£]?{number}(?:[.,;:]?\s+(?=[^\W\d_]{{2,}})|[.;:]\s)", plain):
        return number_of(match[1])
    around = r"[^\W\d_]|[\s.,;:!?'\"()$€£]"
    match = re.fullmatch(rf"(?:{around})*?(?<![^\W_]){number}(?![^\W\d_]\b)(?:{around})*", plain)
    return number_of(match[1]) if match and not _is_pair(match[1], plain) else None


def _is_pair(number: str, text: str) -> bool:
    """Whether what looks like a number is all that brackets hold, as in `(101,102)`."""
    return "," in number.rstrip(", ") and re.search(rf"\(\s*{re.escape(number)}\s*\)", text) is not None


def without_latex(text: str) -> str:
    return _rewritten(text, LATEX)


def _rewritten(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, meaning in rules:
        text = re.sub(pattern, meaning, text)
    return text


def plain(text: str) -> str:
    """Words and formulas without what means nothing in either."""
    kept = re.sub(r"[\s\"#$%&'(),:;?@\[\]`{|}~“”‘’]|\.(?!\d)|(?<![\d)])!", " ", without_latex(text))
    return re.sub(r"\s*([-+*/=<>^])\s*", r"\1", " ".join(kept.split())).casefold()
