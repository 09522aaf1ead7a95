"""Problem sets: files and hub data sets with a column of problems and one of answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.errors import BasiscopeError
from core.evaluation.answers import marked_answer
from core.examples import (
    PROMPT_NAMES,
    DataSource,
    ReadReport,
    cell_text,
    column_paths,
    data_fingerprint,
    is_local,
    preview_rows,
    read_rows,
)

ANSWER_NAMES = ("answer", "final_answer", "ground_truth", "target", "label")
BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."
WORDINGS = {"boxed": BOXED, "bare": "{problem}"}
"""Ways of asking by name. `boxed` is that of Qwen2.5-Math's evaluation (Yang et al. 2024)."""


@dataclass(frozen=True)
class Preset:
    """A usual problem set: where the hub has it, how it is named in paths, its columns by preference, and the
    verifier that fits its answers."""

    path: str
    split: str
    named: str
    verifier: str = "math"
    config: str | None = None
    problem: tuple[str, ...] = ("problem", "question")
    answer: tuple[str, ...] = ("answer",)


PRESETS = {
    "gsm8k": Preset("openai/gsm8k", "test", "gsm8k", "numeric", "main", ("question",)),
    "math500": Preset("HuggingFaceH4/MATH-500", "test", r"math[-_]?500", problem=("problem",)),
    "amc": Preset("math-ai/amc23", "test", r"amc(?![a-z])", "numeric"),
    "aime": Preset(
        "HuggingFaceH4/aime_2024",
        "train",
        r"aime(?![a-z])",
        "numeric",
        problem=("problem", "question", "Problem"),
        answer=("answer", "Answer"),
    ),
    "minerva": Preset("math-ai/minervamath", "test", "minerva"),
    "olympiadbench": Preset(
        "Hothan/OlympiadBench",
        "train",
        "olympiad",
        config="OE_TO_maths_en_COMP",
        answer=("final_answer", "answer"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """One problem. `problem_id` is its row number in the source, from 0; `prompt` as it stands there."""

    problem_id: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class ProblemSet:
    """Problems in the order of their source, with what names them: source, columns, and the preset used."""

    source: DataSource
    problem: str
    answer: str
    preset: str | None
    problems: tuple[Problem, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def verifier(self) -> str | None:
        """The name of the verifier that fits the answers, where the preset knows."""
        return PRESETS[self.preset].verifier if self.preset else None

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        names = {"problem": self.problem, "answer": self.answer, "preset": self.preset}
        facts = {"n": len(self.problems), "fingerprint": self.fingerprint, "notes": list(self.notes)}
        return asdict(self.source) | names | facts


def read_problems(
    source: DataSource | str | None = None,
    problem: str | None = None,
    answer: str | None = None,
    preset: str | None = None,
    limit: int | None = None,
) -> ProblemSet:
    """Problems with answers. Columns that are not named are the preset's, which is known from the path where it
    can be only one, else those with the usual names. Without a source the preset's hub data set is read.

    Raises BasiscopeError for a source that cannot be read, columns that are not there, and where no row has both.
    """
    if preset is not None and preset not in PRESETS:
        raise BasiscopeError(f"Preset {preset!r} is not one of {', '.join(PRESETS)}.")
    if source is None:
        if preset is None:
            raise BasiscopeError("Problems: give --problems FILE, or a --preset.")
        source = DataSource(PRESETS[preset].path)
    source = DataSource(source) if isinstance(source, str) else source
    source = _of_the_hub(replace(source, limit=limit or source.limit))
    paths = column_paths(preview_rows(source, 20))
    preset = preset or detect_preset(source.path, paths)
    usual = PRESETS[preset] if preset else None
    problem = _column(source, "problem", problem, usual.problem if usual else PROMPT_NAMES, paths)
    answer = _column(source, "answer", answer, usual.answer if usual else ANSWER_NAMES, paths)
    report = ReadReport()
    problems = tuple(_problems(source, problem, answer, report))
    if not problems:
        problems_met = "; ".join(report.sentences()) or "it is empty"
        raise BasiscopeError(f"Problems {source.path}: no row has a problem and its answer ({problems_met}).")
    return ProblemSet(
        source, problem, answer, preset, problems, data_fingerprint(source), tuple(report.sentences())
    )


def detect_preset(path: str, columns: Sequence[str]) -> str | None:
    """The one preset that a path names and whose columns are there, or None."""
    if by_id := [name for name, preset in PRESETS.items() if preset.path == path]:
        return by_id[0]
    found = [
        name
        for name, preset in PRESETS.items()
        if re.search(preset.named, path, flags=re.I)
        and any(column in columns for column in preset.problem)
        and any(column in columns for column in preset.answer)
    ]
    return found[0] if len(found) == 1 else None


def _of_the_hub(source: DataSource) -> DataSource:
    """A preset's hub data set with its config and split, where none are given."""
    usual = next((preset for preset in PRESETS.values() if preset.path == source.path), None)
    if usual is None or is_local(source.path):
        return source
    return replace(source, config=source.config or usual.config, split=source.split or usual.split)


def _column(source: DataSource, role: str, named: str | None, usual: Sequence[str], paths: Sequence[str]) -> str:
    if named is None:
        named = next((name for name in usual if name in paths), None)
        if named is None:
            raise BasiscopeError(
                f"Problems {source.path}: name the column of the {role}s with --{role}. "
                f"Its columns: {', '.join(paths) or 'none'}."
            )
    return named


def _problems(source: DataSource, problem: str, answer: str, report: ReadReport) -> list[Problem]:
    found, missing = [], {problem, answer}
    rows = 0
    for number, row in read_rows(source, report):
        rows += 1
        prompt, expected = cell_text(row, problem), cell_text(row, answer)
        missing -= {name for name, value in ((problem, prompt), (answer, expected)) if value is not None}
        if not prompt or not expected:
            report.count(f"left out, no {'answer' if prompt else 'problem'}", number)
            continue
        found.append(Problem(number, prompt, marked_answer(expected) or expected))
    if rows and missing:
        paths = column_paths(preview_rows(source, 20))
        raise BasiscopeError(
            f"Problems {source.path}: no row has the column {min(missing)!r}. Its columns: {', '.join(paths)}."
        )
    return found


def asked(problem: Problem, wording: str) -> str:
    """What a model is asked: `wording` is one of WORDINGS or a text with {problem} in it.

    Raises BasiscopeError where it is neither.
    """
    text = WORDINGS.get(wording, wording)
    if "{problem}" not in text:
        raise BasiscopeError(
            f"Wording {wording!r}: choose {' or '.join(WORDINGS)}, or a text with {{problem}} in it."
        )
    return text.replace("{problem}", problem.prompt)
