"""Duplicates within the pool, and overlaps of the pool with held-out files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError

NEAR = 0.8
"""Jaccard similarity of the word trigrams from which two texts are near duplicates."""
SHINGLE, PERMUTATIONS, BANDS, SEED = 3, 128, 32, 0
GRAM = 13
"""Words in a row that two texts must share to overlap (Brown et al. 2020, appendix C)."""
EVERY = 500


@dataclass(frozen=True)
class Overlap:
    """An example that shares words in a row with a held-out row: share of its 13-grams that are there, too, and
    the longest run of shared words."""

    example_id: int
    file: str
    row: int
    share: float
    words: str


@dataclass(frozen=True)
class Screening:
    """What was found: exact, near: example id -> the earlier example it repeats; overlaps with held-out files;
    against: file -> SHA-256."""

    exact: dict[int, int]
    near: dict[int, int]
    overlaps: tuple[Overlap, ...]
    against: dict[str, str]

    def duplicates(self, kind: str) -> dict[int, int]:
        return self.exact if kind == "exact" else {**self.near, **self.exact}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Screening:
        pairs = {name: {int(a): int(b) for a, b in stored[name].items()} for name in ("exact", "near")}
        return cls(**pairs, overlaps=tuple(Overlap(**o) for o in stored["overlaps"]), against=stored["against"])


def screen(
    example_id: np.ndarray,
    texts: Sequence[str],
    against: Sequence[str] = (),
    near: bool = True,
    progress: Progress = silent,
) -> Screening:
    """Duplicates among the texts of the examples (n,), and their overlaps with the held-out files. Raises
    BasiscopeError for a file that cannot be read."""
    files = {path: file_digest(path) for path in against}
    words = [split_words(text) for text in texts]
    exact = _by_id(example_id, exact_duplicates(words))
    close = _by_id(example_id, near_duplicates(words, progress)) if near else {}
    overlaps = []
    for path in against:
        overlaps += find_overlaps(example_id, words, path, progress)
    return Screening(exact, close, tuple(overlaps), files)


def _by_id(example_id: np.ndarray, rows: dict[int, int]) -> dict[int, int]:
    return {int(example_id[a]): int(example_id[b]) for a, b in rows.items()}


def file_digest(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BasiscopeError(f"Held-out file {path}: it cannot be read ({error.strerror}).") from error


def split_words(text: str) -> list[str]:
    """
    >>> split_words("It's 3.5 km!")
    ['it', 's', '3', '5', 'km']
    """
    return re.findall(r"\w+", text.lower())


def exact_duplicates(words: Sequence[list[str]]) -> dict[int, int]:
    """Row -> the first row with the same words in the same order, case and punctuation aside."""
    first: dict[tuple[str, ...], int] = {}
    found = {}
    for row, own in enumerate(words):
        earlier = first.setdefault(tuple(own), row)
        if earlier != row:
            found[row] = earlier
    return found


def shingles(words: list[str]) -> set[str]:
    """The word trigrams of a text, or the whole of a shorter one."""
    if len(words) <= SHINGLE:
        return {" ".join(words)}
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def near_duplicates(words: Sequence[list[str]], progress: Progress = silent) -> dict[int, int]:
    """Row -> an earlier row that is kept and of which it is a near duplicate: MinHash with banding proposes
    (Broder 1997), the exact Jaccard similarity of the trigrams decides."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
    kept: dict[int, set[str]] = {}
    found = {}
    for row, own in enumerate(words):
        if row % EVERY == 0:
            progress("duplicates", row, len(words))
        mine = shingles(own)
        hashed = RMinHash(PERMUTATIONS, SEED)
        hashed.update(sorted(mine))
        alike = [other for other in sorted(index.query(hashed)) if jaccard(mine, kept[other]) >= NEAR]
        if alike:
            found[row] = alike[0]
        else:
            index.insert(row, hashed)
            kept[row] = mine
    return found


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def find_overlaps(
    example_id: np.ndarray, words: Sequence[list[str]], path: str, progress: Progress = silent
) -> list[Overlap]:
    """The examples that share GRAM words in a row with a text of the held-out file. Shorter texts cannot be
    flagged."""
    grams: dict[tuple[str, ...], int] = {}
    for row, text in held_out_texts(path):
        for gram in _grams(split_words(text)):
            grams.setdefault(gram, row)
    found = []
    name = Path(path).name
    for i, own in enumerate(words):
        if i % EVERY == 0:
            progress("overlaps", i, len(words))
        hits = [gram in grams for gram in _grams(own)]
        if any(hits):
            start, length = _longest(hits)
            held = grams[tuple(own[start : start + GRAM])]
            shared = " ".join(own[start : start + length + GRAM - 1])
            found.append(Overlap(int(example_id[i]), name, held, round(sum(hits) / len(hits), 4), shared))
    return found


def _grams(words: list[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(GRAM)), strict=False)


def _longest(hits: list[bool]) -> tuple[int, int]:
    """(start, length) of the longest run of True."""
    best, start = (0, 0), None
    for i, hit in enumerate([*hits, False]):
        if hit and start is None:
            start = i
        elif not hit and start is not None:
            best = max(best, (start, i - start), key=lambda run: run[1])
            start = None
    return best


def held_out_texts(path: str) -> Iterable[tuple[int, str]]:
    """(row, text) of every string in a data file, nested ones too."""
    from core.examples import DataSource, ReadReport, read_rows

    for number, row in read_rows(DataSource(path), ReadReport()):
        for text in _strings(row):
            yield number, text


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
