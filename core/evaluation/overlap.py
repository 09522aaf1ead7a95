"""Whether a run has seen the problems that it is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from core.selection.screening import GRAM, split_words
from core.workspace import Run


def overlapping(run: Run, prompts: Sequence[str]) -> int:
    """How many of the prompts are in an example of the run: their first GRAM words in a row, or all of a shorter
    one."""
    openings = {tuple(split_words(prompt)[:GRAM]) for prompt in prompts} - {()}
    by_length: dict[int, set[tuple[str, ...]]] = {}
    for opening in openings:
        by_length.setdefault(len(opening), set()).add(opening)
    met: set[tuple[str, ...]] = set()
    for text in run.examples(["text"])["text"]:
        words = split_words(text)
        for length, wanted in by_length.items():
            met |= wanted.intersection(zip(*(words[i:] for i in range(length)), strict=False))
    return sum(tuple(split_words(prompt)[:GRAM]) in met for prompt in prompts)


def overlap_notes(run: Run, prompts: Sequence[str], what: str = "development problems") -> list[str]:
    """The flag on problems that the run's examples share some with."""
    shared = overlapping(run, prompts)
    if not shared:
        return []
    return [
        f"{shared:,} of the {len(prompts):,} {what} are also among the run's examples: what is "
        "found on them need not hold on others"
    ]
