"""Prompts to steer: from a file, or the run's own examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import BasiscopeError
from core.examples import (
    DataSource,
    ReadReport,
    Row,
    as_messages,
    column_paths,
    field_value,
    guess_columns,
    kept_columns,
    read_rows,
)
from core.model import LanguageModel
from core.steering.generation import encode_prompt
from core.workspace import Run

OPENING_WORDS = 16
"""A run without prompts is asked to go on from so many words of its texts."""
TRIES = 10
"""So many of a run's prompts are looked at for each that is wanted."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, with the answer that a response is to give where there is one."""

    text: str
    answer: str | None = None


def read_prompts(path: str, run: Run, answer: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Prompts from a text file, one a line, or from a data file's prompt column: the run's own where the file
    has it, else one of the usual names. `answer`: the column with the answers.

    Raises BasiscopeError for a file that cannot be read, a column that is not there, or no prompt at all.
    """
    if Path(path).suffix == ".txt":
        if answer:
            raise BasiscopeError(
                f"Prompts {path}: a text file has no column {answer!r}; give a JSONL or CSV file."
            )
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BasiscopeError(f"Prompts {path}: it cannot be read ({error}).") from error
        prompts = [Prompt(line.strip()) for line in lines if line.strip()][:limit]
    else:
        rows = [row for _, row in read_rows(DataSource(path, limit=limit), ReadReport())]
        prompts = _from_rows(path, rows, run.manifest["data"]["columns"], answer)
    if not prompts:
        raise BasiscopeError(f"Prompts {path}: there is no prompt in it.")
    return prompts


def _from_rows(path: str, rows: list[Row], columns: Mapping[str, str], answer: str | None) -> list[Prompt]:
    names = column_paths(rows)
    own = columns.get("prompt") or columns.get("text") or columns.get("messages")
    guessed = guess_columns(names) if names else None
    column = own if own in names else guessed and (guessed.prompt or guessed.messages)
    column = column or ("text" if "text" in names else None)
    if column is None:
        raise BasiscopeError(f"Prompts {path}: no column of prompts among {', '.join(names) or 'none'}.")
    if answer and answer not in names:
        raise BasiscopeError(f"Prompts {path}: no column {answer!r} among {', '.join(names)}.")
    found = ((_question(field_value(row, column)), field_value(row, answer) if answer else None) for row in rows)
    return [Prompt(text, None if a is None else str(a)) for text, a in found if text and text.strip()]


def run_prompts(run: Run, n: int, seed: int = 0, most_characters: int = 2_000) -> list[str]:
    """Prompts of up to `n` random examples of the run, not too long ones first of all; texts without a prompt
    of their own give their first words. They are as a person would write them, before any template."""
    texts = _asked(run)
    order = np.random.default_rng(seed).permutation(len(texts))
    chosen = [texts[i] for i in order if texts[i].strip()]
    return sorted(chosen, key=lambda text: len(text) > most_characters)[:n]


def usable_prompts(run: Run, model: LanguageModel, n: int, max_new_tokens: int) -> list[Prompt]:
    """Those of `run_prompts` that the model can go on from. Raises BasiscopeError where there is none."""
    found = []
    for text in run_prompts(run, TRIES * n):
        with suppress(BasiscopeError):
            encode_prompt(model, text, *how_encoded(run), max_new_tokens)
            found.append(Prompt(text))
    if not found:
        raise BasiscopeError(
            f"Run {run.id}: no prompt of its examples leaves room for {max_new_tokens} new tokens; give --prompts."
        )
    return found[:n]


def how_encoded(run: Run) -> tuple[Mapping[str, str], str]:
    """The columns (role -> column) and the template of a run's examples, as `encode_prompt` takes them."""
    return run.manifest["data"]["columns"], run.manifest["recipe"]["template"]


def _asked(run: Run) -> list[str]:
    """What is asked in each of the run's examples."""
    columns, template = how_encoded(run)
    if "prompt" in columns:
        return [str(text) for text in run.examples(["prompt"])["prompt"].fillna("")]
    if "text" in columns and template == "plain":
        return [" ".join(text.split()[:OPENING_WORDS]) for text in run.examples(["text"])["text"]]
    path = columns.get("messages") or columns["text"]
    top = path if set(kept_columns({path: None})) <= set(run.columns()) else path.split(".")[0]
    (kept,) = kept_columns({top: None})
    values = run.examples([kept])[kept]
    if kept in run.manifest["data"].get("json_columns", ()):
        values = values.map(lambda value: None if value is None else json.loads(value))
    return [_question(field_value({top: value}, path)) or "" for value in values]


def _question(value: Any) -> str | None:
    """A prompt column's value as text: of chat messages the first that a user wrote."""
    if messages := as_messages(value):
        return next((message["content"] for message in messages if message["role"] == "user"), None)
    return None if value is None or value != value else str(value)
