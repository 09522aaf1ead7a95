"""Duplicates within the pool, and overlaps of the pool with held-out files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from errno import ENOENT
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.paths import is_seen_file, typed_path

if TYPE_CHECKING:
    from core.examples import ReadReport

NEAR = 0.8
"""Jaccard similarity of the trigrams of words and signs from which two texts are near duplicates."""
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
    against: file -> SHA-256; problems: what could not be read of them."""

    exact: dict[int, int]
    near: dict[int, int]
    overlaps: tuple[Overlap, ...]
    against: dict[str, str]
    problems: tuple[str, ...] = ()

    def duplicates(self, kind: str) -> dict[int, int]:
        return self.exact if kind == "exact" else {**self.near, **self.exact}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Screening:
        pairs = {name: {int(a): int(b) for a, b in stored[name].items()} for name in ("exact", "near")}
        overlaps = tuple(Overlap(**o) for o in stored["overlaps"])
        return cls(**pairs, overlaps=overlaps, against=stored["against"], problems=tuple(stored["problems"]))


def screen(
    example_id: np.ndarray,
    texts: Sequence[str],
    against: Sequence[str] = (),
    near: bool = True,
    progress: Progress = silent,
) -> Screening:
    """Duplicates among the texts of the examples (n,), and their overlaps with the held-out files. Raises
    BasiscopeError for a file that cannot be read, or that holds no text."""
    from core.examples import ReadReport

    files = {path: file_digest(path) for path in against}
    exact = _by_id(example_id, exact_duplicates(texts))
    close = _by_id(example_id, near_duplicates(texts, progress)) if near else {}
    overlaps: list[Overlap] = []
    problems: list[str] = []
    for path in against:
        report = ReadReport()
        overlaps += find_overlaps(example_id, texts, path, report, progress)
        problems += [f"Held-out file {Path(path).name}: {sentence}" for sentence in report.sentences()]
    return Screening(exact, close, tuple(overlaps), files, tuple(problems))


def _by_id(example_id: np.ndarray, rows: dict[int, int]) -> dict[int, int]:
    return {int(example_id[a]): int(example_id[b]) for a, b in rows.items()}


def file_digest(path: str) -> str:
    try:
        if not is_seen_file(typed_path(path)):
            raise FileNotFoundError(ENOENT, "there is no such file")
        with typed_path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BasiscopeError(f"Held-out file {path}: it cannot be read ({error.strerror}).") from error


def split_words(text: str) -> list[str]:
    """
    >>> split_words("It's 3.5 km!")
    ['it', 's', '3', '5', 'km']
    """
    return re.findall(r"\w+", text.lower())


def split_tokens(text: str) -> list[str]:
    """Words and single signs, which tell sums apart.

    >>> split_tokens("2 + 3.5 = x")
    ['2', '+', '3', '.', '5', '=', 'x']
    """
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def exact_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Row -> the first row with the same text, case and spaces aside; by a digest of 16 bytes each."""
    first: dict[bytes, int] = {}
    found = {}
    for row, text in enumerate(texts):
        plain = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
        earlier = first.setdefault(hashlib.blake2b(plain, digest_size=16).digest(), row)
        if earlier != row:
            found[row] = earlier
    return found


def shingles(words: list[str]) -> set[str]:
    """The trigrams of a text's words and signs, or the whole of a shorter one."""
    if len(words) <= SHINGLE:
        return {" ".join(words)}
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def near_duplicates(texts: Sequence[str], progress: Progress = silent) -> dict[int, int]:
    """Row -> an earlier row that is kept and of which it is a near duplicate: MinHash with banding proposes
    (Broder 1997), the exact Jaccard similarity of the trigrams decides. Of a text no more than its hashes is kept;
    what is proposed is read again."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(NEAR, PERMUTATIONS, BANDS)
    again = lru_cache(maxsize=EVERY)(lambda row: shingles(split_tokens(texts[row])))
    found = {}
    for row, text in enumerate(texts):
        if row % EVERY == 0:
            progress("duplicates", row, len(texts))
        mine = shingles(split_tokens(text))
        hashed = RMinHash(PERMUTATIONS, SEED)
        hashed.update(sorted(mine))
        alike = (other for other in sorted(index.query(hashed)) if jaccard(mine, again(other)) >= NEAR)
        first = next(alike, None)
        if first is None:
            index.insert(row, hashed)
        else:
            found[row] = first
    return found


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def find_overlaps(
    example_id: np.ndarray,
    texts: Sequence[str],
    path: str,
    report: ReadReport,
    progress: Progress = silent,
) -> list[Overlap]:
    """The examples that share GRAM words in a row with a text of the held-out file. Shorter texts cannot be
    flagged. Raises BasiscopeError for a file without a text: nothing could overlap it."""
    grams: dict[tuple[str, ...], int] = {}
    held_out = 0
    for row, text in held_out_texts(path, report):
        held_out += 1
        for gram in _grams(split_words(text)):
            grams.setdefault(gram, row)
    if not held_out:
        problems = "; ".join(report.sentences()) or "it holds none"
        raise BasiscopeError(f"Held-out file {path}: no text can be read in it ({problems}).")
    found = []
    name = Path(path).name
    for i, text in enumerate(texts):
        if i % EVERY == 0:
            progress("overlaps", i, len(texts))
        own = split_words(text)
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


def held_out_texts(path: str, report: ReadReport) -> Iterable[tuple[int, str]]:
    """(row, text) of every string in a data file, nested ones too."""
    from core.examples import DataSource, read_rows

    for number, row in read_rows(DataSource(path), report):
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
