"""One notation for what mathematics is written in: Unicode, ways of LaTeX, numbers and bounds in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from fractions import Fraction

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+"
"""Groups of three: `1,234` is a number, `1,23` and `36,36,108` are lists. A list that looks like one, such as
`60,180`, cannot be told from it; in brackets it is one."""
LAKHS = r"(?=.*,0)[1-9]\d?(?:,\d\d)+,\d{3}"
"""Groups of two before the last three, as in `1,00,000`, known by one that no member of a list could be."""
POWER = r"10\s{0,3}\^\s{0,3}(?:[{(]\s{0,3}([-+]?\d{1,3})\s{0,3}[)}]|([-+]?\d{1,3})(?!\d))"
SCIENTIFIC: tuple[Rule, ...] = (
    (rf"(?<=\d)\s{{0,9}}(?:\\times|\\cdot|[×*]|(?<=\s)x(?=\s))\s{{0,9}}{POWER}", r"e\1\2"),
    (rf"(?<![\w.^}}])(?<!\\times )(?<!\\cdot ){POWER}(?![\w^])", r"1e\1\2"),
)
"""Powers of ten as a number writes them: `4.5 \\times 10^{33}` is 4.5e33."""
TEXT = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|normal)|boldsymbol|bm|mbox|hbox|operatorname)\*?"
)
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
VALUES = {word: i for i, word in enumerate(SMALL)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
WORD = rf"(?:{'|'.join(sorted((*VALUES, *SCALES), key=len, reverse=True))})"
IN_WORDS = rf"(?i:\b(?:(minus|negative)\s+)?({WORD}(?:(?:[\s-]+|\s+and\s+){WORD})*)\b)"
PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
PART_IN_WORDS = rf"(?i:\b({'|'.join(SMALL[1:10])}|an?)[\s-]+({'|'.join(PARTS)})s?\b)"


def _characters() -> dict[int, str]:
    """Unicode characters and what they are in LaTeX or ASCII."""
    table = dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", "") | dict.fromkeys("−‐‑‒–﹣－", "-")
    table |= dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000", " ")
    table |= dict.fromkeys("“”″", '"') | dict.fromkeys("‘’′", "'") | {"，": ", ", "。": ". ", "⁄": "/", "∶": ":"}
    table |= {
        "×": "\\times ",
        "⋅": "\\cdot ",
        "∙": "\\cdot ",
        "·": "\\cdot ",
        "÷": "/",
        "±": "\\pm ",
        "∓": "\\mp ",
    }
    table |= {
        "≤": "\\le ",
        "≥": "\\ge ",
        "⩽": "\\le ",
        "⩾": "\\ge ",
        "≠": "\\ne ",
        "≈": "\\approx ",
        "≅": "\\approx ",
    }
    table |= {"∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "°": "^\\circ "}
    table |= {
        "ℝ": "\\mathbb{R}",
        "ℤ": "\\mathbb{Z}",
        "∠": "\\angle ",
        "→": "\\to ",
        "⟨": "\\langle ",
        "⟩": "\\rangle ",
    }
    table |= {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in table}
    for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ":
        kind, name = unicodedata.name(letter).split()[1], unicodedata.name(letter).split()[-1].lower()
        name = name.replace("lamda", "lambda")
        table[letter] = f"\\{name if kind == 'SMALL' else name.title()} "
    for part in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
        value = Fraction(unicodedata.numeric(part)).limit_denominator(8)
        table[part] = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return str.maketrans(table)


CHARACTERS = _characters()
RAISED, LOWERED = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", "[₀₁₂₃₄₅₆₇₈₉]+"


def in_ascii(text: str) -> str:
    """A text whose mathematical characters are LaTeX.

    >>> in_ascii("x² ≤ −5")
    'x^{2} \\\\le  -5'
    """
    if text.isascii():
        return text
    text = re.sub(RAISED, lambda run: f"^{{{unicodedata.normalize('NFKC', run[0]).replace('−', '-')}}}", text)
    text = re.sub(LOWERED, lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = re.sub(r"√\s*(\d+|\w|\([^()]*\))", lambda root: rf"\sqrt{{{root[1].strip('()')}}}", text)
    return text.translate(CHARACTERS)


def _repeating(number: re.Match[str]) -> str:
    """`0.1\\overline{6}` as a fraction."""
    whole, fixed, again = number[1] or "0", number[2], number[3]
    value = (int(whole + fixed + again) - int(whole + fixed)) if fixed or whole else int(again)
    return rf"\frac{{{value}}}{{{10 ** len(fixed + again) - 10 ** len(fixed)}}}"


def _scaled(number: re.Match[str]) -> str:
    value = Fraction(number[1].replace(",", "")) * SCALES[number[2].lower()]
    return str(value.numerator) if value.denominator == 1 else number[0]


SCALED: Rule = (
    rf"(?<![\d,.])(\d[\d,]{{0,40}}(?:\.\d{{1,40}})?)\s{{0,3}}(?:{TEXT}\{{\s*)?\b(?i:({'|'.join(SCALES)}))s?\b(?:\s*\}})?",
    _scaled,
)
GREATER = r">=?|\\g(?:eq|eqslant|e|t)(?![a-z])"


def _turned(chain: re.Match[str]) -> str:
    """`1 > x \\ge 0` with its smallest side first."""
    first, above, middle, below, last = chain.groups()
    lower, upper = (sign.replace(">", "<").replace("\\g", "\\l") for sign in (below, above))
    return f"{last.strip()} {lower} {middle.strip()} {upper} {first.strip()}"


STYLE: tuple[Rule, ...] = (
    (r"\\(?:display|text|script)style(?![a-z])|\\(?:bf|rm|it|sf|tt|limits)(?![a-zA-Z])", " "),
    (r"\\(?:begin|end)\{(?:aligned|align|gathered|gather|equation|split|cases)\*?\}", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s{0,3}\.?", ""),
    (r"\\[tdc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s{0,3}(\d)\s{0,3}(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s{0,3}(\d)\s{0,3}\{", r"\\frac{\1}{"),
    (r"(\\frac\{[^{}]*\})\s{0,3}(\d)", r"\1{\2}"),
    (r"(?<=\d)(?:\{,\}|,\\!|\\[, ]|~)\s{0,9}(?=\d{3}(?!\d))", ","),
    (r"(?<=\d)\{,\}(?=\d)", "."),
    (
        r"(?<![\w.,])\d{1,3}(?:(?: \d{3})+|(?:\.\d{3}){2,}|(?:_\d{3})+|(?:'\d{3})+)(?!\w)",
        lambda one: re.sub(r"\D", "", one[0]),
    ),
    (r"(?<!\\)\\[,;:!> ]|~|\\q?quad(?![a-z])", " "),
    (rf"{TEXT}\s{{0,3}}\{{([^{{}}a-zA-Z]*|[^{{}}]*\d[^{{}}]*)\}}", r" \1 "),
    (r"\\(?:mathbf|boldsymbol|bm)\s{0,3}\{([^{}]*)\}", r"\1"),
    (r"^\s*\{([^{}]*)\}\s*$", r"\1"),
    (r"(?<!\d)(\d{0,40})\.(\d{0,40})\\(?:overline|bar|dot)\s{0,3}\{?(\d+)\}?", _repeating),
    (r"\{([-+])\}", r"\1"),
    (r"\\langle", "("),
    (r"\\rangle", ")"),
    (r"\\varnothing|\\oslash", r"\\emptyset"),
)
"""What is written in many ways in LaTeX, in one."""
FUNCTION = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp"
ASCII: tuple[Rule, ...] = (
    (r"(?i)(?<!cube )(?<![\\a-z])(?:square\s)?(?:root\s(?:of\s)?|sqrt\s?)(\d{1,40})(?![\w.])", r"\\sqrt{\1}"),
    (r"(?:\\|(?<![\\a-zA-Z]))sqrt\s{0,3}\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"(?<![\\a-zA-Z])({FUNCTION})(?=\s{{0,3}}[({{\\\d]|\s{{1,3}}[a-z]\b)", r"\\\1"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi"),
    (r"(?<![\\a-zA-Z])(?:oo|inf)(?![a-zA-Z])", r"\\infty"),
    (r"(?<=\d)\s{1,3}squared\b", "^2"),
    (r"(?<=\d)\s{1,3}cubed\b", "^3"),
    (r"(?<=\d)\s{1,3}factorial\b", "!"),
)
"""Formulas without LaTeX: what follows on a number there is another number, no unit."""
MEANING: tuple[Rule, ...] = (
    *ASCII,
    (r"(?i)\bnegative\s{1,3}(?=\$?\d)|^\W{0,3}minus\s{1,3}(?=\$?\d)", "-"),
    (rf"^([^<>=]{{1,100}}?)({GREATER})([^<>=]{{1,100}}?)({GREATER})([^<>=]{{1,100}})$", _turned),
    (r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d+)\s*\^\s*\{?\s*\\circ\s*\}?", r"\1{\\frac{\2\\pi}{180}}"),
    (rf"\s{{0,3}}(?:{TEXT}\{{\s*)?\b(?:percent|per\scent|pct)\b(?:\s*\}})?", r"\\%"),
    (rf"(?:{TEXT}\{{\s*)?\b(?i:infinity)\b(?:\s*\}})?", r"\\infty"),
    (rf"\^\s*\{{?\s*\\circ\s*\}}?\s*(?:{TEXT}\{{\s*)?C\b\s*\}}?", r"\\text{ celsius}"),
    (rf"\^\s*\{{?\s*\\circ\s*\}}?\s*(?:{TEXT}\{{\s*)?F\b\s*\}}?", r"\\text{ fahrenheit}"),
    (r"\^\s*\{?\s*\\circ\s*\}?", r"\\text{ degrees}"),
    SCALED,
    (r"(?<![\w/.^}])(\d+)\s+(\d+)/(\d+)(?![\w/.])", r"\1\\frac{\2}{\3}"),
    (r"(?<!\d)(\d+) and (?:a|one) half", r"\1\\frac{1}{2}"),
)
SOME = r"\s*(?:\}\s*)?(\S+?)(?:\s*\}|[\s~]+[^\W\d_]{2}.*)?\s*\.?"
LE, GE, NE = r"\\le(?:q|qslant)?(?![a-z])|<=", r"\\ge(?:q|qslant)?(?![a-z])|>=", r"\\neq?(?![a-z])|!="
FEWER, MORE = r"(?:less|fewer|smaller)", r"(?:more|greater|larger)"
LEAST = rf"(?:at least|{MORE} than or equal to|(?:no|not) {FEWER} than|a minimum of|{GE}){SOME}"
MOST = rf"(?:at most|{FEWER} than or equal to|(?:no|not) {MORE} than|a maximum of|up to|{LE}){SOME}"
NOT = rf"(?:not(?: equal to)?|n['’]t|never|anything but|all (?:real numbers )?(?:but|except)|{NE}){SOME}"
BOUNDS: tuple[Rule, ...] = tuple(
    (rf"(?is)\W*(?:[a-z]\s*(?=\\text))?(?:{TEXT}\s*\{{\s*)?(?:is\s+)?{words}", bound)
    for words, bound in (
        (LEAST, r"[\1,\\infty)"),
        (MOST, r"(-\\infty,\1]"),
        (rf"(?:{MORE} than|over|above|>){SOME}", r"(\1,\\infty)"),
        (rf"(?:{FEWER} than|under|below|<){SOME}", r"(-\\infty,\1)"),
        (NOT, r"(-\\infty,\1)\\cup(\1,\\infty)"),
        (rf"(\S+?)\s*(?:{TEXT}\s*\{{\s*)?or (?:{MORE}|above)\W*", r"[\1,\\infty)"),
        (rf"(\S+?)\s*(?:{TEXT}\s*\{{\s*)?or (?:{FEWER}|below)\W*", r"(-\\infty,\1]"),
    )
)
"""What only bounds a number, or denies it, as the set that it leaves."""
LIMIT = (
    r"not|cannot|never|neither|either|except|all but|at (?:least|most)|(?:minimum|maximum)(?= of| \S*\d)|up to|"
    rf"under|over|above|below|between|{FEWER} than|{MORE} than"
)
LIMITED = (
    rf"(?i)\D*?(?:\b(?:{LIMIT})\b|n['’]t\b)\W+(?:[^\W\d]+\W+){{0,3}}?\d"
    r"|\D*[\d,.]*\d\s+at (?:least|most)\b(?!\W+\d)"
)
"""How a text begins whose first number is bounded or denied by words."""
DENIED = r"(?i)^\W*not\s+\$?[-\d.,/]{1,40}\$?,?\s+but\s+"
"""What goes before the number in `not 6, but 5`."""
WHOLE: tuple[Rule, ...] = (
    *BOUNDS,
    (
        rf"\W*(?:{TEXT}\{{\s*)?(?i:there (?:is|are) )?(?i:no (?:real )?solutions?|(?:the )?empty set)\W*",
        r"\\emptyset",
    ),
    (rf"\W*(?:{TEXT}\{{\s*)?(?i:all real(?:s| numbers?))\W*", r"\\mathbb{R}"),
    (r"\s*\](.*[,;].*)\[\s*", r"(\1)"),
    (r"\s*\](.*[,;].*\])\s*", r"(\1"),
    (r"(\s*[(\[].*[,;].*)\[\s*", r"\1)"),
    (r"([(\[][^;,()\[\]]+);([^;,()\[\]]+[)\]])", r"\1,\2"),
    (r"\\?\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\\vert|[|:])\s*(.*[<>=\\].*)\\\}", r"\1"),
)
"""What an answer can be as a whole."""


def rewritten(text: str, rules: Iterable[Rule]) -> str:
    for pattern, meaning in rules:
        text = re.sub(pattern, meaning, text)
    return text


def in_one_notation(text: str) -> str:
    """An answer in the one notation: LaTeX without style, numbers in digits, bounds as sets."""
    text = rewritten(in_ascii(text), (*STYLE, *MEANING)).strip()
    text = re.sub(
        r"(?i)^\W*?(?:about|approximately|approx\.?|around|roughly|exactly|only|just|\\approx|\\sim)\s*", "", text
    )
    for pattern, meaning in WHOLE:
        if match := re.fullmatch(pattern, text, flags=re.S):
            return match.expand(str(meaning)).strip()
    return text


def in_digits(text: str) -> str:
    """Numbers in words as digits, in a text without any.

    >>> in_digits("one hundred and five apples"), in_digits("three quarters")
    ('105 apples', '3/4')
    """
    if re.search(r"\d", text):
        return text
    text = re.sub(PART_IN_WORDS, lambda one: f"{VALUES.get(one[1].lower(), 1)}/{PARTS[one[2].lower()]}", text)
    return re.sub(IN_WORDS, lambda one: ("-" if one[1] else "") + str(_counted(one[2])), text)


def _counted(words: str) -> int:
    total = part = 0
    for word in re.findall(WORD, words.lower()):
        if word in VALUES:
            part += VALUES[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        else:
            total, part = total + max(part, 1) * SCALES[word], 0
    return total + part
