"""Prompts to steer: from a file, or the run's own examples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.chats import BESIDE
from core.errors import BasiscopeError
from core.examples import (
    DataSource,
    ReadReport,
    Row,
    cell_text,
    column_paths,
    guess_columns,
    in_messages,
    kept_columns,
    question_of,
    read_rows,
)
from core.model import LanguageModel
from core.paths import is_seen_file, typed_path
from core.steering.generation import Prompt, encode_prompt
from core.workspace import Run

__all__ = ["Prompt", "how_encoded", "read_prompts", "run_prompts", "usable_prompts"]

OPENING_WORDS = 16
"""A run without prompts is asked to go on from so many words of its texts."""
TRIES = 10
"""So many of a run's prompts are looked at for each that is wanted."""


def read_prompts(
    path: str, run: Run, answer: str | None = None, limit: int | None = None, report: ReadReport | None = None
) -> list[Prompt]:
    """Prompts from a text file, one a line, or from a data file's prompt column: the run's own where the file
    has it, else one of the usual names. `answer`: the column with the answers. Rows without a prompt or an answer
    are counted in `report`.

    Raises BasiscopeError for a file that cannot be read, a column that is not there, or no prompt at all.
    """
    report = ReadReport() if report is None else report
    if Path(path).suffix == ".txt":
        if answer:
            raise BasiscopeError(
                f"Prompts {path}: a text file has no column {answer!r}; give a JSONL or CSV file."
            )
        try:
            lines = _text_file(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BasiscopeError(f"Prompts {path}: it cannot be read ({error}).") from error
        found = [(number, Prompt(line.strip()), None) for number, line in enumerate(lines[:limit])]
        prompts = _usable(found, report, is_answered=False)
    else:
        rows = list(read_rows(DataSource(path, limit=limit), report))
        prompts = _from_rows(path, rows, run.manifest["data"]["columns"], answer, report)
    if not prompts:
        met = "; ".join(report.sentences())
        raise BasiscopeError(f"Prompts {path}: there is no prompt in it" + (f" ({met})." if met else "."))
    return prompts


def _text_file(path: str) -> Path:
    if is_seen_file(file := typed_path(path)):
        return file
    raise FileNotFoundError("there is no such file")


def _from_rows(
    path: str, rows: list[tuple[int, Row]], columns: Mapping[str, str], answer: str | None, report: ReadReport
) -> list[Prompt]:
    if not rows:
        return []
    names = column_paths(row for _, row in rows)
    own = {role: column for role, column in columns.items() if column in names}
    guessed = guess_columns(names).named() if names else {}
    asking = own if {"prompt", "text", "messages"} & own.keys() else guessed
    if not {"prompt", "messages"} & asking.keys() and (asking.get("text") not in (columns.get("text"), "text")):
        raise BasiscopeError(f"Prompts {path}: no column of prompts among {', '.join(names) or 'none'}.")
    if answer and answer not in names:
        raise BasiscopeError(f"Prompts {path}: no column {answer!r} among {', '.join(names)}.")
    found = [(number, _asked(row, asking), cell_text(row, answer) if answer else None) for number, row in rows]
    return _usable(found, report, is_answered=bool(answer))


def _usable(
    found: Iterable[tuple[int, Prompt | None, str | None]], report: ReadReport, is_answered: bool
) -> list[Prompt]:
    """Those that have a text, with their row's number and their answer; what is missing is counted."""
    prompts = []
    for number, prompt, answer in found:
        if prompt is None or not prompt.text.strip():
            report.count("left out, empty prompt", number)
            continue
        if is_answered and not answer:
            report.count("no answer, not verified", number)
        prompts.append(replace(prompt, number=number, answer=answer or None))
    return prompts


def run_prompts(run: Run, n: int, seed: int = 0, most_characters: int = 2_000) -> list[Prompt]:
    """Prompts of up to `n` random examples of the run, not too long ones first of all; texts without a prompt
    of their own give their first words. They are as a person would write them, before any template; chat
    messages keep what was said before."""
    prompts = _prompts_of(run)
    order = np.random.default_rng(seed).permutation(len(prompts))
    chosen = [prompt for i in order if (prompt := prompts[i]) and prompt.text.strip()]
    return sorted(chosen, key=lambda prompt: _characters(prompt) > most_characters)[:n]


def _characters(prompt: Prompt) -> int:
    return len(prompt.text) + sum(len(content) for _, content, *_ in prompt.before)


def usable_prompts(run: Run, model: LanguageModel, n: int, max_new_tokens: int) -> list[Prompt]:
    """Those of `run_prompts` that the model can go on from. Raises BasiscopeError where there is none."""
    found = []
    for prompt in run_prompts(run, TRIES * n):
        with suppress(BasiscopeError):
            encode_prompt(model, prompt, *how_encoded(run), max_new_tokens)
            found.append(prompt)
    if not found:
        raise BasiscopeError(
            f"Run {run.id}: no prompt of its examples leaves room for {max_new_tokens} new tokens; give --prompts."
        )
    return found[:n]


def how_encoded(run: Run) -> tuple[Mapping[str, str], str]:
    """The columns (role -> column) and the template of a run's examples, as `encode_prompt` takes them."""
    return run.manifest["data"]["columns"], run.manifest["recipe"]["template"]


def _prompts_of(run: Run) -> list[Prompt | None]:
    """What is asked in each of the run's examples."""
    columns, template = how_encoded(run)
    if "text" in columns and template == "plain":
        return [Prompt(" ".join(text.split()[:OPENING_WORDS])) for text in run.examples(["text"])["text"]]
    rows = _rows(run, columns)
    if "prompt" not in columns:
        return [_asked(row, columns) for row in rows]
    texts = run.examples(["prompt"])["prompt"].fillna("")  # as read: a number has lost how it was written
    return [
        _asked(row, columns) if in_messages(row, columns) else Prompt(text)
        for row, text in zip(rows, texts, strict=True)
    ]


def _rows(run: Run, columns: Mapping[str, str]) -> Iterator[Row]:
    """The run's examples as rows of their source, with what `question_of` looks for."""
    known = set(run.columns())
    nested = set(run.manifest["data"].get("json_columns", ()))
    tops = [path if set(kept_columns({path: None})) <= known else path.split(".")[0] for path in columns.values()]
    kept = {top: next(iter(kept_columns({top: None}))) for top in (*tops, *BESIDE)}
    kept = {top: name for top, name in kept.items() if name in known}
    for record in run.examples(list(kept.values())).to_dict("records"):
        yield {top: _value(record[name], name in nested) for top, name in kept.items()}


def _value(stored: Any, is_nested: bool) -> Any:
    return json.loads(stored) if is_nested and isinstance(stored, str) else stored


def _asked(row: Row, columns: Mapping[str, str]) -> Prompt | None:
    """What a row asks; of chat messages the last that a user wrote, after those before it."""
    question = question_of(row, columns)
    return None if question is None else Prompt(question[0], before=question[1])
