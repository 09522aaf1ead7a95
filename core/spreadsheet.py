"""Tables that people open in a spreadsheet, which would run a text that begins like a formula."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def as_csv(table: pd.DataFrame) -> str:
    """CSV for people. A text or column name that a spreadsheet would take for a formula gets an apostrophe before
    it, as it would be typed there; numbers, and texts that are one, stay as they are. Not for data to train on.

    Texts stand in quotes: a semicolon or carriage return in one begins a cell of its own in some spreadsheets."""
    return table.rename(columns=plain).map(plain).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def plain(cell: Any) -> Any:
    """
    >>> plain("=1+1"), plain("-5"), plain(-5), plain("a=b")
    ("'=1+1", '-5', -5, 'a=b')
    """
    return (
        f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) and not NUMBER.fullmatch(cell) else cell
    )
