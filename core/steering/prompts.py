"""Prompts to steer: from a file, or the run's own examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import BasiscopeError
from core.examples import DataSource, ReadReport, Row, column_paths, field_value, guess_columns, read_rows
from core.workspace import Run

OPENING_WORDS = 16
"""A run without prompts is asked to go on from so many words of its texts."""


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
    own = columns.get("prompt") or columns.get("text")
    column = own if own in names else guess_columns(names).prompt if names else None
    column = column or ("text" if "text" in names else None)
    if column is None:
        raise BasiscopeError(f"Prompts {path}: no column of prompts among {', '.join(names) or 'none'}.")
    if answer and answer not in names:
        raise BasiscopeError(f"Prompts {path}: no column {answer!r} among {', '.join(names)}.")
    found = ((field_value(row, column), field_value(row, answer) if answer else None) for row in rows)
    return [Prompt(str(text), None if a is None else str(a)) for text, a in found if text and str(text).strip()]


def run_prompts(run: Run, n: int, seed: int = 0, most_characters: int = 2_000) -> list[str]:
    """Prompts of up to `n` random examples of the run, not too long ones first of all; texts without a prompt
    of their own give their first words."""
    column = "prompt" if "prompt" in run.columns() else "text"
    texts = run.examples([column])[column].fillna("")
    order = np.random.default_rng(seed).permutation(len(texts))
    chosen = [str(texts.iloc[i]) for i in order]
    chosen = [text if column == "prompt" else " ".join(text.split()[:OPENING_WORDS]) for text in chosen]
    return [text for text in chosen if text.strip() and len(text) <= most_characters][:n]
