"""A seeded, endless world of word problems with worked solutions, known ground truth and an exact verifier.

A problem starts with a quantity and tells one to five events that change it; a solution works through them
in one of two styles, with or without a plan and with or without checking each step. Some solutions are
careless: a slip in one step is carried on to a wrong answer, far more often where nothing is checked. Who
checks says so before the result: of a habit that shows only after it, no model could learn to slip less.

Operation, steps, difficulty and source are drawn independently; style, check and plan depend a little on
the source, the licence on the source, and correct on check. Nothing else depends on anything else, except
length, which sums up steps, style, habits and how detailed the writer happens to be.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from core.demo import grammar

# A word or a digit takes the space before it along, so joining the tokens of a text gives the text.
TOKEN = r" ?[A-Za-z]+| ?[0-9]|\n| ?[^A-Za-z0-9\s]"

OPERATIONS = ("addition", "subtraction", "multiplication", "division", "fraction", "comparison", "conversion")
LIMITS = {"easy": 50, "medium": 80, "hard": 150}  # no quantity exceeds the limit of its difficulty
SPANS = {"easy": 9, "medium": 12, "hard": 25}  # nor does what is added or taken at once
START = {"multiplication": 8, "conversion": 3}  # a start is at most this part of the limit, else one half
STEPS = (1, 2, 3, 4, 5)
CARELESS = {False: 0.50, True: 0.04}  # share of wrong solutions, by whether each step is checked
CAREFULLY = "Carefully: "  # so begins each step that will be checked
REPAIRED = 0.08  # share of checked steps whose first try is wrong, found out and done again
UNLICENSED = 0.15


@dataclass(frozen=True)
class Source:
    """An invented contributor: how often it writes in symbols, checks and plans, and its usual licence."""

    symbolic: float
    check: float
    plan: float
    license: str | None


SOURCES = {
    "harbor school": Source(0.40, 0.60, 0.50, "CC-BY-4.0"),
    "night tutors": Source(0.50, 0.40, 0.40, None),
    "old textbook": Source(0.60, 0.50, 0.60, "CC0-1.0"),
    "puzzle club": Source(0.55, 0.60, 0.45, "MIT"),
    "open forum": Source(0.45, 0.40, 0.55, "CC-BY-SA-4.0"),
}

Move = tuple[str, int]  # a sign and a number, as in Step


@dataclass(frozen=True)
class Step:
    """One event: `sign` is + - * / or, for taking one part in `b` away, %; the rest is how it is told.

    `owner`, `unit` and `things` say whose quantity of what it is after the event, `fact` what one has to
    know for it.
    """

    sign: str
    b: int
    clause: str
    owner: str
    unit: str
    things: str
    fact: str = ""

    def apply(self, a: int) -> int:
        if self.sign == "%":
            return a - a // self.b
        return {"+": a + self.b, "-": a - self.b, "*": a * self.b, "/": a // self.b}[self.sign]


@dataclass(frozen=True)
class Problem:
    """A question and what it asks for; `things` is what is counted at the start."""

    prompt: str
    operation: str
    difficulty: str
    start: int
    things: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        return str(self.results()[-1])

    def results(self) -> tuple[int, ...]:
        """The quantity after each step."""
        return tuple(itertools.accumulate(self.steps, lambda a, step: step.apply(a), initial=self.start))[1:]


@dataclass(frozen=True)
class Example:
    """A problem with one solution, and every factor that made it. `length` is the response's in tokens."""

    prompt: str
    response: str
    answer: str
    operation: str
    steps: int
    difficulty: str
    style: str
    check: bool
    plan: bool
    correct: bool
    source: str
    license: str | None
    length: int

    @property
    def text(self) -> str:
        return f"{self.prompt}\n{self.response}"


@dataclass(frozen=True)
class Reading:
    """What a response shows of its factors; None for a style that is mixed or an answer that is missing."""

    style: str | None
    check: bool
    plan: bool
    answer: str | None


def generate(n: int, seed: int | str, mix: Mapping[str, float] | None = None) -> list[Example]:
    """The first `n` examples of `stream`."""
    return list(itertools.islice(stream(seed, mix), n))


def stream(seed: int | str, mix: Mapping[str, float] | None = None) -> Iterator[Example]:
    """Examples without end; `mix` weighs the operations (1 for each that it does not name)."""
    rng = Random(f"world {seed}")
    weights = [(mix or {}).get(operation, 1.0) for operation in OPERATIONS]
    while True:
        operation = rng.choices(OPERATIONS, weights)[0]
        problem = make_problem(rng, operation, rng.choice(list(LIMITS)), rng.choice(STEPS))
        name, source = rng.choice(list(SOURCES.items()))
        style = "symbolic" if rng.random() < source.symbolic else "verbal"
        check, plan = rng.random() < source.check, rng.random() < source.plan
        correct = rng.random() >= CARELESS[check]
        response = solve(rng, problem, style, check, plan, correct)
        yield Example(
            prompt=problem.prompt,
            response=response,
            answer=problem.answer,
            operation=operation,
            steps=len(problem.steps),
            difficulty=problem.difficulty,
            style=style,
            check=check,
            plan=plan,
            correct=correct,
            source=name,
            license=None if rng.random() < UNLICENSED else source.license,
            length=len(re.findall(TOKEN, response)),
        )


def vocabulary() -> list[str]:
    """Every token that a text of the world can hold, sorted; all digits come with and without a space."""
    digits = {space + digit for space in (" ", "") for digit in "0123456789"}
    return sorted(digits.union(*(re.findall(TOKEN, example.text) for example in generate(20_000, "words"))))


def write_jsonl(path: Path, n: int, seed: int | str, mix: Mapping[str, float] | None = None) -> None:
    """Write `n` examples to `path`, one JSON object of all columns a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(example)) + "\n" for example in generate(n, seed, mix))


def verify(problem: Problem | Example, response: str) -> bool:
    """Whether the response ends in the answer form with exactly the problem's answer."""
    return final_answer(response) == problem.answer


def final_answer(response: str) -> str | None:
    """The number in the closing line "Answer: 57", or None if the response does not end in one."""
    match = re.search(r"(?:^|\n)Answer: ([0-9]+)\s*\Z", response)
    return match.group(1) if match else None


def read_response(response: str) -> Reading:
    """Read style, habits and answer back from any response, such as one that a model wrote."""
    steps = [line for line in response.split("\n") if re.search(r"=| (is|gives|makes) [0-9]", line)]
    styles = {"symbolic" if "=" in line else "verbal" for line in steps}
    style = styles.pop() if len(styles) == 1 else None
    return Reading(style, "Check:" in response, response.startswith("Plan:"), final_answer(response))


def make_problem(rng: Random, operation: str, difficulty: str, steps: int) -> Problem:
    """A problem whose first step, and most others, are of `operation`; the rest add or take something."""
    limit, span = LIMITS[difficulty], SPANS[difficulty]
    units, stuffs = rng.choice(grammar.STUFFS) if operation == "conversion" else (("",), grammar.THINGS)
    stuff, place = rng.choice(stuffs), rng.choice(grammar.PLACES)
    move = None
    while move is None:
        unit, value = rng.choice(units), rng.randint(3, limit // START.get(operation, 2))
        move = _move(rng, operation, value, limit, span, unit)
    start, things, kind = value, _things(unit, stuff), operation
    owner, *others = rng.sample(grammar.NAMES, steps + 1)
    words = {"n": owner, "m": others[0], "p": place}
    words |= {"d": rng.choice(grammar.DAYS), "mood": rng.choice(grammar.MOODS)}
    sentences = [rng.choice(grammar.OPENINGS).format(v=start, t=things, **words)]
    if rng.random() < 0.4:
        sentences.insert(rng.randint(0, 1), rng.choice(grammar.SCENES).format(**words))
    made: list[Step] = []
    for other in others:
        if made:
            kind, move = _follow(rng, operation, value, limit, span, unit)
        step = _event(rng, kind, move, owner, other, unit, stuff, place)
        link = "" if kind == "comparison" else rng.choice(grammar.LINKS).format(d=rng.choice(grammar.DAYS))
        sentences.append(f"{link}{step.clause}.")
        made.append(step)
        owner, value, unit = step.owner, step.apply(value), step.unit
    sentences.append(rng.choice(grammar.QUESTIONS).format(t=_things(unit, stuff), n=owner))
    return Problem(" ".join(sentences), operation, difficulty, start, things, tuple(made))


def _things(unit: str, stuff: str) -> str:
    return f"{unit} of {stuff}" if unit else stuff


def _event(rng: Random, kind: str, move: Move, owner: str, other: str, unit: str, stuff: str, place: str) -> Step:
    """Tell a move as something that happens to `owner`, or as a comparison that passes on to `other`."""
    sign, b = move
    words = {"n": owner, "m": other, "b": b, "t": _things(unit, stuff), "p": place, "stuff": stuff}
    fact = ""
    if kind == "conversion":
        large, small, _ = next(r for r in grammar.UNITS if r[0 if sign == "*" else 1] == unit and r[2] == b)
        unit = words["unit"] = small if sign == "*" else large
        fact = f"one {grammar.SINGULAR[large]} is {b} {small}"
    elif kind == "fraction":
        words["part"] = rng.choice([part for size, part in grammar.PARTS if size == b])
        fact = f"{words['part']} is one in {b}"
    patterns = grammar.COMPARISONS[sign] if kind == "comparison" else grammar.CLAUSES[kind]
    clause = rng.choice(patterns).format(**words)
    return Step(sign, b, clause, other if kind == "comparison" else owner, unit, _things(unit, stuff), fact)


def _follow(rng: Random, operation: str, value: int, limit: int, span: int, unit: str) -> tuple[str, Move]:
    """The kind and move of a later step: mostly the operation's own, else an addition or a subtraction."""
    plain = ["addition", "subtraction"] if value < limit // 2 else ["subtraction", "addition"]
    own = [operation] if rng.random() < 0.7 else []
    if rng.random() < 0.3:
        plain.reverse()
    moves = ((kind, _move(rng, kind, value, limit, span, unit)) for kind in (*own, *plain))
    return next((kind, move) for kind, move in moves if move)


def _move(rng: Random, kind: str, value: int, limit: int, span: int, unit: str) -> Move | None:
    """A move that this kind of event can make from `value`, staying whole and within 2..limit, if any."""
    if kind == "comparison":
        kind = rng.choice(("addition", "subtraction", "multiplication"))
    if kind == "conversion":
        moves = [("*", rate) for large, _, rate in grammar.UNITS if large == unit and value * rate <= limit]
        moves += [("/", rate) for _, small, rate in grammar.UNITS if small == unit]
    else:
        sign, numbers = {
            "addition": ("+", range(2, min(limit - value, span) + 1)),
            "subtraction": ("-", range(2, min(value - 2, span) + 1)),
            "multiplication": ("*", range(2, min(limit // value, 9) + 1)),
            "division": ("/", range(2, 10)),
            "fraction": ("%", (2, 3, 4, 5, 10)),
        }[kind]
        moves = [(sign, b) for b in numbers]
    moves = [(s, b) for s, b in moves if s in "+-*" or (value % b == 0 and value // b >= 2)]
    return rng.choice(moves) if moves else None


def solve(rng: Random, problem: Problem, style: str, check: bool, plan: bool, correct: bool) -> str:
    """Write a solution; a wrong one slips in one step and carries the slip on to another answer."""
    results = problem.results() if correct else _slip_once(rng, problem)
    symbolic, detailed, n = style == "symbolic", rng.random() < 0.6, len(problem.steps)
    lines = []
    if plan:
        signs = [step.sign if symbolic else f"we {grammar.VERBS[step.sign]}" for step in problem.steps]
        lines.append("Plan: " + (", " if symbolic else ", then ").join(signs) + ".")
    a, things = problem.start, problem.things
    for i, (step, r) in enumerate(zip(problem.steps, results, strict=True)):
        line = f"Step {i + 1} of {n}, {signs[i]}: " if plan else ""
        line += CAREFULLY if check else ""
        tried = _slip(rng, step, r) if check and rng.random() < REPAIRED else r
        if symbolic:
            line += _symbolic(rng, grammar.LETTERS[i : i + 2], step, a, tried, things, detailed)
        else:
            line += _verbal(rng, step, a, tried, things, detailed)
        if check and tried != r:
            line += _check(step, a, tried, symbolic, False) + f" Again: {_sum(step, a, r, symbolic)}."
        if check:
            line += _check(step, a, r, symbolic, True)
        lines.append(line)
        a, things = r, step.things
    last = problem.steps[-1]
    lines.append(f"So {grammar.LETTERS[n]} = {a} {things}." if symbolic else f"So {last.owner} has {a} {things}.")
    return "\n".join([*lines, f"Answer: {a}"])


def _slip(rng: Random, step: Step, r: int) -> int:
    """A wrong result near `r` that the step's check can find out."""
    delta = step.b if step.sign == "*" else rng.choice((1, 1, 2, 10))
    return r - delta if r > delta + 1 and rng.random() < 0.5 else r + delta


def _slip_once(rng: Random, problem: Problem) -> tuple[int, ...]:
    """Results with a slip in one step, the later ones computed from it; the last one is wrong."""
    while True:
        results, a, slipped = [], problem.start, rng.randrange(len(problem.steps))
        for i, step in enumerate(problem.steps):
            a = step.apply(a)
            if i == slipped:
                a = _slip(rng, step, a)
            results.append(a)
        if min(results) >= 1 and str(a) != problem.answer:
            return tuple(results)


def _sum(step: Step, a: int, r: int, symbolic: bool) -> str:
    """The step's calculation with its result `r`: "4 + 3 = 7" or "4 plus 3 is 7"."""
    if step.sign == "%":
        part = a // step.b
        if symbolic:
            return f"{a} - {a} / {step.b} = {a} - {part} = {r}"
        return f"{a} divided by {step.b} is {part} and {a} minus {part} is {r}"
    return _binary(a, step.sign, step.b, r, symbolic)


def _binary(a: int, sign: str, b: int, r: int, symbolic: bool) -> str:
    return f"{a} {sign} {b} = {r}" if symbolic else f"{a} {grammar.WORDS[sign]} {b} is {r}"


def _verbal(rng: Random, step: Step, a: int, r: int, things: str, detailed: bool) -> str:
    act = grammar.ACTS[step.sign].format(a=a, b=step.b)
    reason = f"{step.clause}, and {step.fact}" if step.fact else step.clause
    calculation = _sum(step, a, r, symbolic=False)
    if not detailed:
        return rng.choice(grammar.BRIEF).format(reason=reason, act=act, calculation=calculation)
    words = {"a": a, "r": r, "before": things, "after": step.things, "n": step.owner}
    return rng.choice(grammar.DETAILED).format(reason=reason, act=act, calculation=calculation, **words)


def _symbolic(rng: Random, names: str, step: Step, a: int, r: int, things: str, detailed: bool) -> str:
    p, q, b = names[0], names[1], step.b
    rule = f"{p} - {p} / {{}}" if step.sign == "%" else f"{p} {step.sign} {{}}"
    calculation = f"{q} = {_sum(step, a, r, symbolic=True)}"
    if not detailed:
        return f"{q} = {rule.format(b)}; {calculation}."
    given = f"{p} = {a} {things}; k = {b}" if rng.random() < 0.5 else f"{p} = {a}; k = {b}"
    return f"{given}; {q} = {rule.format('k')}; {calculation}; {q} = {r} {step.things}."


def _check(step: Step, a: int, r: int, symbolic: bool, agrees: bool) -> str:
    """Undo the step from its result `r`. A wrong result that "agrees" is the careless writer's claim."""
    sign, b = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "+"}[step.sign], step.b
    if step.sign == "%":
        b = a // b
    back = a if agrees else {"-": r - b, "+": r + b, "*": r * b, "/": r // b}[sign]
    verdict = ("right" if symbolic else "which is right") if agrees else f"{'' if symbolic else 'and '}not {a}"
    return f" Check: {_binary(r, sign, b, back, symbolic)}, {verdict}."
