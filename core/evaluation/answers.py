"""What a text gives as its final answer, and whether it is the one asked for."""

from __future__ import annotations

import re

TAIL = 100_000
"""An answer is looked for in so many characters at the end of a text."""
LONGEST = 2_000
"""So many characters of what stands after a mark are looked at."""
NUMBER = r"[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"
HASHES, WORDS = r"####\s*(.+)", r"(?i:answer)\s*(?:is|:)\s*(.+)"
BOX = r"\\(?:boxed|fbox)\b\s*"
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
    expected = marked_answer(answer) or answer.strip()
    if numbers := numbers_of(expected):
        found = final_answer(text)
        return found is not None and bool(numbers & (numbers_of(found) or number_in_words(found)))
    words = stated_answer(text)
    return bool(expected) and words is not None and plain(expected) == plain(words)


def final_answer(text: str) -> str | None:
    """What stands after the text's last mark (`####` or a box; else `answer is` or `Answer:`); without one its
    last number, or its last line where it holds none.

    >>> final_answer("So 3 + 4 = 7 apples."), final_answer("The answer is 12.")
    ('7', '12')
    """
    text = text[-TAIL:]
    if marked := marked_answer(text):
        return marked
    if numbers := re.findall(NUMBER, text):
        return str(numbers[-1])
    return _last_line(text)


def stated_answer(text: str) -> str | None:
    """What stands after the text's last mark; without one its last line."""
    return marked_answer(text) or _last_line(text)


def marked_answer(text: str) -> str | None:
    """What stands after the text's last mark, or None where it has none. A box or `####` goes before words."""
    text = text[-TAIL:]
    found = [(match.start(), match[1]) for match in re.finditer(HASHES, text)]
    boxes = [match for match in re.finditer(BOX, text) if text[match.end() : match.end() + 1].strip()]
    if boxes:
        found.append((boxes[-1].start(), _boxed(text[boxes[-1].end() :])))
    found = found or [(match.start(), match[1]) for match in re.finditer(WORDS, text)]
    return max(found)[1][:LONGEST].strip().rstrip(".") if found else None


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
    return lines[-1].strip()[:LONGEST] if lines else None


def numbers_of(text: str) -> set[float]:
    """The number that a text is as a whole; a percentage is also its share. Empty where it is something else."""
    match = re.fullmatch(rf"(?:\w\s*=\s*)?[$€£]?\s*({NUMBER})\s*(%?)\.?", without_latex(text).strip(" $"))
    if match is None:
        return set()
    top, _, bottom = re.sub("[,$]", "", match[1]).partition("/")
    value = float(top) / float(bottom) if bottom and float(bottom) else float(top)
    return {value, value / 100} if match[2] else {value}


def number_in_words(text: str) -> set[float]:
    """The number that a text begins with before words, or the only one among them; none in a formula."""
    plain = without_latex(text)
    number = rf"({NUMBER}\s*%?)"
    if match := re.match(rf"\s*[$€£]?{number}(?:[.,;:]?\s+(?=[^\W\d_]{{2,}})|[.;:]\s)", plain):
        return numbers_of(match[1])
    around = r"[^\W\d_]|[\s.,;:!?'\"()$€£]"
    match = re.fullmatch(rf"(?:{around})*?(?<![^\W_]){number}(?![^\W\d_]\b)(?:{around})*", plain)
    return numbers_of(match[1]) if match else set()


def without_latex(text: str) -> str:
    for pattern, meaning in LATEX:
        text = re.sub(pattern, meaning, text)
    return text


def plain(text: str) -> str:
    """Words and formulas without what means nothing in either."""
    kept = re.sub(r"[\s\"#$%&'(),:;?@\[\]`{|}~“”‘’]|\.(?!\d)|(?<![\d)])!", " ", without_latex(text))
    return re.sub(r"\s*([-+*/=<>^])\s*", r"\1", " ".join(kept.split())).casefold()
