"""What a text gives as its final answer, and the number that this is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from core.evaluation.notation import LAKHS, SCALED, SCIENTIFIC, STYLE, TEXT, THOUSANDS, in_ascii, rewritten

TAIL = 100_000
"""An answer is looked for in so many characters at the end of a text."""
LONGEST = 2_000
"""So many characters of what stands after a mark are looked at."""
NUMBER = r"(?:(?<![\w)])[-+])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.]))?(?:/\d+)?"
DIGITS = 1_000
"""A number of more characters is not read."""
CURRENCY = r"[$€£¥₹₽₩₺₪฿₫₦]"
SYMBOL = r"(?:[kcm]?m|k?g|lbs?|oz|ft|yd|m?s|hrs?|h|[kM]?W|k?[NJV]|k?Hz|k?Pa|[mM]?L|ml|mph|mol|sq)(?![a-zA-Z])"
NO_UNIT = (
    r"(?:squared|cubed|factorial|mod(?:ulo)?|choose|dozen|half(?=\W*$)|halves|thirds|f(?:our|if)ths|sixths|eighths|"
    r"(?:ten|hundred|thousand)ths|cube\sroot|over(?=\s\d+\W*$)|divided|multiplied|raised|sqrt|(?:arc)?(?:sin|cos|tan))"
    r"(?![^\W\d_])"
)
"""Words after a number that make another number of it."""
UNIT = rf"(?:{SYMBOL}|[\u3040-\u9fff]{{1,4}}|(?!{NO_UNIT})[^\W\d_]{{3,30}})"
RAISED = r"(?:\s?\^\s?\{?-?\d\}?|[²³])?"
UNITS = (
    rf"(?:{SYMBOL}|[\u3040-\u9fff]{{1,4}}|\s{{1,3}}{UNIT}{RAISED}|\s?/\s?{UNIT}{RAISED})"
    rf"(?:\s?[/·⋅*]\s?{UNIT}{RAISED}){{0,4}}"
)
"""What a number may be of: `m/s^2`, `/hour`. What is no usual symbol, such as x, is a variable, and so is any that
is raised right after its number, as in `5s^2`."""
ANSWER = r"(?i:answers?|final result|réponse|respuesta|resposta|risposta|antwort|ответ|答案|答え)"
IS = r"\s*(?:\bis(?:\b|(?=n['’]t))|\bare\b|\bes\b|\best\b|\bist\b|[:：=]|是|为|為|は)"
MARK = rf"{ANSWER}(?:[\s*_]{{0,9}}{IS}|[^.:\n$]{{1,60}}?\s(?:is|be|equals)\b|\s*\*\*[ \t]*\n)[\s:：*_]*"
HASHES = r"(?<!#)####(?!#)[ \t]*(.+)"
TAG = r"<answer>(.*?)(?:</answer>|\Z)"
FUNCTIONS = r"\\[a-zA-Z]+|(?:sqrt|sin|cos|tan|log|exp)(?![a-zA-Z])"
WORD = r"[a-zA-Z]{3}|[^\W\d_a-zA-Z]{2}"
BOX = r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*"
CONNECTED = (
    rf"(?:[\s$,;~]|\\[,;!()\[\]]|\\q?quad(?![a-z])|{TEXT}\s*\{{[\s,]*(?:and|or)\s*\}}|and|or"
    r"(?:\s+(?:maybe|perhaps|possibly)\b)?|[a-zA-Z]\w?\s*=)*"
)
"""What stands between boxes, or formulas, that are one answer together."""
FORMULA = (
    r"(?<![\\\w])(\$\$.{1,1000}?\$\$|\$(?![\s$])(?:\\.|[^$\n\\]){1,500}?(?<!\s)\$(?![\d$])"
    r"|\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\])"
)
"""A formula between dollar signs, which are not those of prices, or brackets with backslashes."""
THOUGHT = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|scratchpad)"
OPENED = rf"(?i:[<\[◁]{THOUGHT}[>\]▷])|<\|channel\|>(?:analysis|commentary)"
CLOSED = rf"(?i:[<\[◁]/{THOUGHT}[>\]▷])|<\|channel\|>final<\|message\|>"
QUALIFIED = rf"\s{{0,3}}(?!and|or){UNIT}{RAISED}(?:\s?[/·⋅*]\s?{UNIT}{RAISED}){{0,4}}"
"""The unit after a formula."""
BOUND = r"(?i:\b(?:not|at (?:least|most)|(?:more|less|fewer|greater) than|up to))\s*"
BEFORE_BOX = (
    rf"(?:(?m:^\W*)|{MARK}|(?i:(?=\b(?:not|cannot|never|either)\b|n['’]t\b)))"
    rf"({BOUND}|(?i:not|cannot|never|n['’]t)(?:\s+(?:be|equal))?|(?i:either))[\s$*(\[\\]*\Z"
)
"""What denies the number in a box; or bounds it, where its sentence says no more. Else the box holds the answer to
a question of bounds, as in `has to sell at least \\boxed{126}`."""
IN_TEXT = rf"{TEXT}\s*\{{[^{{}}]*[^\W\d_][^{{}}]*\}}{RAISED}"
UNIT_IN_TEXT = rf"(.*[\w)}}\]!%])\s*((?:{IN_TEXT})(?:[\s/~]*(?:\\cdot)?\s*{IN_TEXT})*)[\s.]*"
VALUE = r"(?:[^a-zA-Z]|\\(?:pi|frac|sqrt|cdot|times)(?![a-z]))*"
UNIT_AFTER_NUMBER = rf"({VALUE}(?:[\d)}}]|\\pi))({UNITS})[\s.]*"
UNMARKED = (*SCIENTIFIC, SCALED, (r"\$\^\{?(\d)\}?\$", r"^\1"))
SPECIAL = r"</?s>|<\|[^|<>\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>"
"""Tokens of tokenizers that are no text."""
LATEX = (
    *STYLE,
    *SCIENTIFIC,
    (rf"{TEXT}\s*\{{([^{{}}]*)\}}", r" \1"),
    (r"(?<![\d^_{}])(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", lambda one: _mixed(*one.groups())),
    (r"(?<!\d)\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\^\{?\\circ\}?|°", " degrees"),
    (r"\\(?=[$%])", ""),
)
"""What LaTeX writes around numbers and words, and what it means."""


def final_answer(text: str) -> str | None:
    """What stands after the text's last mark (a box; else an `<answer>`; else `####`; else `answer is`, `Answer:`
    or the like); without one its last formula or number, or its last line where it holds none.

    >>> final_answer("So 3 + 4 = 7 apples."), final_answer("The answer is 12.")
    ('7', '12')
    """
    text = spoken(text)
    return _marked(text) or _last_formula(rewritten(in_ascii(text), UNMARKED)) or _last_line(text)


def stated_answer(text: str) -> str | None:
    """What stands after the text's last mark; without one its last line."""
    text = spoken(text)
    return _marked(text) or _last_line(text)


def marked_answer(text: str) -> str | None:
    """What stands after the text's last mark, or None where it has none. A box goes before `####`, which counts
    where a number or formula is all that follows on its line (else it is a heading), and that before words."""
    return _marked(spoken(text))


def spoken(text: str) -> str:
    """The end of a text without what was only thought, between `<think>` and `</think>`, and without the tokens
    that end it. Nothing of a text that is cut within its thoughts."""
    text = re.split(CLOSED, text)[-1]
    return "" if re.search(OPENED, text) else re.sub(SPECIAL, "\n", text[-TAIL:])


def opened_thought(prompt: str) -> str:
    """The tag at the end of a prompt that opens a thought, which the text after it is a part of; else nothing."""
    match = re.search(rf"(?:{OPENED})\s*\Z", prompt[-100:])
    return match[0] if match else ""


def _marked(text: str) -> str | None:
    return _in_boxes(text) or _tagged(text) or _after_hashes(text) or _after_words(text)


def _in_boxes(text: str) -> str | None:
    """What the last box that is not empty holds, with those that it is listed with."""
    found: list[str] = []
    start = len(text)
    for box in reversed(list(re.finditer(BOX, text))):
        held, end = _boxed(text, box.end())
        if not held:
            continue
        if found and not _is_list(text[end:start]):
            break
        found = [held, *(one for one in found if one != held)]
        start = box.start()
    bound = re.search(BEFORE_BOX, text[:start][-200:]) if len(found) == 1 else None
    return (f"{bound[1]} " if bound else "") + ", ".join(found) or None


def _boxed(text: str, start: int) -> tuple[str, int]:
    """What a box holds, and where it ends: the group in braces, or what `\\boxed 5` says without them."""
    if not text.startswith("{", start):
        bare = re.compile(r"[^\s$]*").match(text, start)
        return (bare[0][:LONGEST].rstrip("."), bare.end()) if bare else ("", start)
    depth = 0
    for brace in re.compile(r"\\.|[{}]", flags=re.S).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()][:LONGEST].strip().rstrip("."), brace.end()
    return text[start + 1 :][:LONGEST].strip().rstrip("."), len(text)


def _is_list(between: str) -> bool:
    return re.fullmatch(CONNECTED, between[:200]) is not None and re.search(r"[,;]|and|or", between) is not None


def _tagged(text: str) -> str | None:
    found = re.findall(TAG, text, flags=re.S)
    return (_after_words(found[-1]) or found[-1][:LONGEST].strip().rstrip(".")) if found else None


def _after_hashes(text: str) -> str | None:
    found = [match[1] for match in re.finditer(HASHES, text) if _is_formula(match[1][:LONGEST])]
    return _trimmed(found[-1]) if found else None


def _after_words(text: str) -> str | None:
    """The formula that follows after `answer is`, with those that it is listed with, else the line."""
    marks = list(re.finditer(MARK, text))
    if not marks:
        return None
    rest = text[marks[-1].end() :][:LONGEST]
    formulas = list(re.finditer(FORMULA, rest, flags=re.S))
    if formulas and re.fullmatch(r"[^\d\n.]{0,80}", rest[: formulas[0].start()]):
        n = 1
        while n < len(formulas) and _is_list(rest[formulas[n - 1].end() : formulas[n].start()]):
            n += 1
        bound = re.search(rf"{BOUND}$", rest[: formulas[0].start()])
        return (bound[0] if bound else "") + _said(rest, formulas[:n])
    return _trimmed(rest.split("\n", 1)[0])


def _last_formula(text: str) -> str | None:
    """The last number, or formula where none follows on it."""
    formulas = list(re.finditer(FORMULA, text, flags=re.S))
    after = text[formulas[-1].end() :] if formulas else text
    after = rewritten(
        re.sub(QUALIFIED, " ", after, count=1) if formulas else after, ((rf"(?<=\d)(?:{UNITS})", " "),)
    )
    if numbers := re.findall(rf"{INEQUALITY}|{NUMBER}(?:\s?\\?%)?", after):
        return str(numbers[-1])[:LONGEST]
    first = len(formulas) - 1
    while first > 0 and _is_list(text[formulas[first - 1].end() : formulas[first].start()]):
        first -= 1
    return _said(text, formulas[first:]) if formulas else None


def _said(text: str, formulas: list[re.Match[str]]) -> str:
    """Formulas without what sets them off, and the unit after them."""
    said = ", ".join(one[0].strip("$") if one[0][0] == "$" else one[0][2:-2] for one in formulas)
    unit = re.match(QUALIFIED, text[formulas[-1].end() :])
    return said.strip().rstrip(".") + (rf" \text{{{unit[0].strip()}}}" if unit else "")


def _trimmed(line: str) -> str:
    line = line[:LONGEST].strip(" \t\r*`\"'").rstrip(".").rstrip("*`\"'")
    return re.sub(r"(?<=\d)!(?=\W*$)", " !", line)  # no factorial


def _is_formula(line: str) -> bool:
    """Whether a line has no words."""
    bare = re.sub(rf"{FUNCTIONS}|{BOUND}(?=\d)", "", without_latex(line))
    return re.search(r"\w", line) is not None and re.search(WORD, bare) is None


def _last_line(text: str) -> str | None:
    lines = text[-TAIL:].strip().splitlines()
    return re.sub(r"^#+\s+", "", lines[-1].strip())[:LONGEST] if lines else None


RELATION = r"(?:\\(?:neq?|[lg]e(?:q|qslant)?)(?![a-z])|[<>]=?|!=)"
INEQUALITY = (
    rf"(?:{NUMBER}\s*{RELATION}\s*)?(?<![<\w/\\])\d*[a-zA-Z]\s*{RELATION}\s*{NUMBER}"
    rf"|{NUMBER}\s*{RELATION}\s*\d*[a-zA-Z](?![\w>])"
)
"""Of one letter, so that it is no tag and no arrow."""
NO_NAME = r"[<>!,;]|\\(?:neq?|[lg]eq?|approx)(?![a-z])|\b(?:or|and)\b"
"""What makes an equation something else than one that names a number."""
LISTED = r"(?:[^\W\d_]+\s+){1,2}(?:and|or)\s+\d"
BESIDE = (
    r"(?:at (?:least|most)|or|and(?! not)|to|through|out|of|times|plus|minus|(?:more|less|fewer|greater) than|"
    rf"{NO_UNIT})\b"
)


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

    >>> number_of("1,200.50"), number_of("\\frac{5}{0}")
    (Number(value=Fraction(2401, 2), percent=False), None)
    """
    said = without_latex(text).strip(" $")
    match = re.fullmatch(rf"{CURRENCY}?\s*({NUMBER})\s*(%?)\.?", re.sub(r"^([-+])\s+", r"\1", said))
    if match is None or len(match[1]) > DIGITS:
        return None
    top, _, bottom = match[1].replace("$", "").partition("/")
    top = top.rstrip(",")
    if "," in top and not re.fullmatch(rf"[-+]?(?:{THOUSANDS}|{LAKHS})(?:\.\d+)?", top):
        return None
    if bottom and not int(bottom):
        return None
    return Number(Fraction(top.replace(",", "")) / int(bottom or 1), bool(match[2]))


def number_in_words(text: str) -> Number | None:
    """The number that a text begins with before words, or the only one among them, or that of a unit; none in a
    formula, and where another one stands beside it."""
    plain = without_latex(text)
    if match := re.fullmatch(rf"{CURRENCY}?\s?({NUMBER})({UNITS})[.\s]{{0,3}}", plain.replace("$", "").strip()):
        return number_of(match[1])
    number = rf"({NUMBER}\s*%?)"
    if match := re.match(
        rf"\s*{CURRENCY}?{number}(?:[.,;:]?\s+\(?(?!{BESIDE}|{LISTED})(?=[^\W\d_]{{2,}})|[.;:]\s)", plain
    ):
        return number_of(match[1])
    around = r"[^\W\d_]|[\s.,;:!?'\"()$€£]"
    if re.fullmatch(r"\s*\d+!\s*", plain):
        return None
    match = re.fullmatch(rf"(?:{around})*?(?<![^\W_]){number}(?![^\W\d_]\b|\s*{NO_UNIT})(?:{around})*", plain)
    return number_of(match[1]) if match and not _is_pair(match[1], plain) else None


def split_equation(formula: str) -> tuple[str, str]:
    """What a formula says before its last `=`, and after it; nothing before where it is no single equation.

    >>> split_equation("m+n = 113"), split_equation("x=2, y=3")
    (('m+n', '113'), ('', 'x=2, y=3'))
    """
    before, _, last = formula.rpartition("=")
    return (before.strip(), last.strip()) if before.strip() and not re.search(NO_NAME, before) else ("", formula)


def split_unit(formula: str) -> tuple[str, str]:
    """A formula in one notation without its unit or currency, and that.

    >>> split_unit("25\\\\pi \\\\text{ cm}^2"), split_unit("72 km/h"), split_unit("x+1")
    (('25\\\\pi', 'cm^2'), ('72', 'km/h'), ('x+1', ''))
    """
    for pattern in (UNIT_IN_TEXT, UNIT_AFTER_NUMBER):
        if match := re.fullmatch(pattern, formula, flags=re.S):
            return match[1].strip(), " ".join(re.sub(rf"{TEXT}|[{{}}~]|\\cdot", " ", match[2]).split())
    money = re.fullmatch(rf"\s*\\?({CURRENCY})\s*(\d[^$]*)", formula)
    return (money[2].strip(), money[1]) if money else (formula, "")


def _is_pair(number: str, text: str) -> bool:
    """Whether what looks like a number is all that brackets hold, as in `(101,102)`."""
    return "," in number.rstrip(", ") and re.search(rf"\(\s*{re.escape(number)}\s*\)", text) is not None


def _mixed(sign: str, whole: str, top: str, bottom: str) -> str:
    return f"{sign}{int(whole) * int(bottom) + int(top)}/{bottom}"


def without_latex(text: str) -> str:
    return rewritten(text, LATEX)


def plain(text: str) -> str:
    """Words and formulas without what means nothing in either."""
    kept = re.sub(r"[\s\"#$%&'(),:;?@\[\]`{|}~“”‘’]|\.(?!\d)|(?<![\d)])!", " ", without_latex(in_ascii(text)))
    return re.sub(r"\s*([-+*/=<>^])\s*", r"\1", " ".join(kept.split())).casefold()
