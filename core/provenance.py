"""Who contributed to a selection, what that is worth to its coverage, and under which licences.

The value of a set T of chosen examples is U(T), the mean over the pool of the similarity 1 / (1 + d^2 / 2k) to the
nearest example of T: a value of coverage, not of training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf

import numpy as np
import pandas as pd

from core.errors import BasiscopeError
from core.selection.farthest import nearest_by_group
from core.selection.pool import MISSING, Pool
from core.selection.rules import similarity_scale

USES = ("research", "commercial")
VALUE_NOTE = (
    "Coverage value says how much of the pool's spread a source's chosen examples stand for. It is not training "
    "value: nothing here was trained."
)
NO_SOURCE = "No source column was named (--source), so nothing is said of who contributed what."
LEDGER_CELLS = 4_000_000
"""Distances that are valued at once."""
NOT_COMMERCIAL = "non-commercial"
NEGATED = r"\b(?:no|not|never|without|isn't|nor)\b[^.;,]*"
"""What a licence's text denies states none of the terms below."""
DENIED = (
    r"(?:(?<!not )\b(?:prohibited|forbidden|excluded|disallowed|denied|restricted)\b"
    r"|\bnot (?:be |been )?(?:allowed|permitted|granted|included))"
)
"""How what stands before it is denied."""
CHANGES = r"(?:alter|modif|adapt(?:ed|ing|ation)|chang|remix)"
LICENCES = (
    (
        r"\bnc\b|\bnon-?\s?commercial|no money is charged"
        r"|\b(?:no|not|never|without|except)\b[^.;,]*\bcommercial|\b(?:research|academic|educational)[\w\s]* only"
        rf"|\bcommercial[^.;,]*{DENIED}",
        NOT_COMMERCIAL,
    ),
    (
        r"\bnd\b|\bno-?\s?derivat|\bnot?\b[^.;,]*\bderivat|\bunaltered\b|\bunmodified\b|\bverbatim\b"
        rf"|\b(?:no|not|never|without)\b[^.;,]*\b{CHANGES}|\b(?:derivat|{CHANGES})[^.;,]*{DENIED}",
        "no derivatives",
    ),
    (r"proprietary|all rights reserved|\bunlicensed\b|\bnot licensed\b", "forbidden"),
)
"""Patterns of the terms that a licence's name states by saying no."""
GRANTS = (
    (r"\bsa\b|share-?\s?alike|\bgfdl\b|free documentation|\b[al]?gpl|cdla-sharing|\bodbl\b", "share-alike"),
    (
        r"\bcc[\s-]*by\b|^by(?=-|$)|attribution|\bmit\b(?! press)|\bapache|\bbsd\b|\bgfdl\b|free documentation"
        r"|\bcdla|\bodc\b(?!-pddl)",
        "attribution",
    ),
    (r"\bcc-?0\b|\bpublic domain\b|\bpddl\b|\bunlicense\b", "free"),
)
"""Patterns of those that it states by allowing; they are looked for outside what it denies."""


@dataclass(frozen=True)
class Origins:
    """Which columns say where an example is from; a sum to be paid, and the intended use."""

    source: str | None = None
    licence: str | None = None
    author: str | None = None
    date: str | None = None
    total: float = 0.0
    use: str = "research"

    def __post_init__(self) -> None:
        if self.use not in USES:
            raise BasiscopeError(f"Use {self.use!r} is not one of {', '.join(USES)}.")
        if not 0 <= self.total < inf:
            raise BasiscopeError(f"Sum {self.total}: it must be a number, and must not be negative.")


@dataclass(frozen=True)
class Terms:
    """What a licence asks for, as far as its name says; `known` is False where the name says nothing."""

    names: frozenset[str] = field(default=frozenset())
    known: bool = False

    def forbids(self, use: str) -> bool:
        commercial = use == "commercial" and NOT_COMMERCIAL in self.names
        return commercial or "no derivatives" in self.names or "forbidden" in self.names

    def __str__(self) -> str:
        return ", ".join(sorted(self.names)) if self.known else "unspecified"


def terms_of(licence: str) -> Terms:
    """The terms that a licence's name states; where several apply the most restrictive wins. A missing licence, or
    a name that states nothing, is unspecified, never free.

    >>> str(terms_of("CC BY-NC-SA 4.0"))
    'attribution, non-commercial, share-alike'
    >>> str(terms_of(""))
    'unspecified'
    """
    text = licence.lower().replace("_", "-")
    affirmed = re.sub(NEGATED, " ", text)
    names = frozenset(name for pattern, name in LICENCES if re.search(pattern, text))
    names |= {name for pattern, name in GRANTS if re.search(pattern, affirmed)}
    return Terms(_without_free(names), bool(names))


def _without_free(names: frozenset[str]) -> frozenset[str]:
    """Terms where free holds only if it stands alone."""
    return names - {"free"} if len(names) > 1 else names


def shapley(best: np.ndarray) -> np.ndarray:
    """(n, sources) each source's Shapley share of max over sources of best (n, sources) >= 0, row by row: an
    airport game. Sorted from the lowest, every increment is shared among those that reach it (Littlechild and
    Owen 1973); exact for any number of sources."""
    m = best.shape[1]
    order = np.argsort(best, axis=1, kind="stable")
    ranked = np.take_along_axis(best, order, axis=1)
    steps = np.diff(ranked, axis=1, prepend=0.0) / np.arange(m, 0, -1)
    shares = np.empty_like(ranked)
    np.put_along_axis(shares, order, np.cumsum(steps, axis=1), axis=1)
    return shares


def leave_one_out(best: np.ndarray) -> np.ndarray:
    """(n, sources) by how much the best falls without each source: nothing for one whose equal is there, too."""
    m = best.shape[1]
    if m == 1:
        return best.copy()
    second, first = np.partition(best, m - 2, axis=1)[:, -2:].T
    alone = best >= first[:, None]
    return np.where(alone, (first - second)[:, None], 0.0)


def count_sources(pool: Pool, rows: np.ndarray, origins: Origins) -> int:
    """Sources of the chosen rows (b,). Raises BasiscopeError for a column that is not there."""
    return len(pd.unique(_values(pool, origins.source, "--source")[rows]))


def ledger(pool: Pool, rows: np.ndarray, origins: Origins) -> pd.DataFrame:
    """Per source of the chosen rows (b,), the largest share of coverage first: examples, tokens, share, coverage
    alone, Shapley share, leave-one-out value, payment, licences with their terms, authors, dates, problems.

    Raises BasiscopeError for a column that is not there.
    """
    column = _values(pool, origins.source, "--source")[rows]
    codes, names = pd.factorize(pd.Series(column), sort=True)
    alone, value, lost = _values_of(pool.whitened, pool.whitened[rows], codes, len(names))
    total = value.sum()
    tokens = np.bincount(codes, weights=pool.lengths[rows], minlength=len(names)).astype(int)
    counts = np.bincount(codes, minlength=len(names))
    found = pd.DataFrame(
        {
            "source": names,
            "examples": counts,
            "tokens": tokens,
            "share": counts / len(rows),
            "coverage alone": alone,
            "shapley": value,
            "shapley share": value / total,
            "leave one out": lost,
            "payment": origins.total * value / total,
        }
    )
    for name, chosen in (("licence", origins.licence), ("author", origins.author), ("date", origins.date)):
        if chosen:
            own = pd.Series(_values(pool, chosen, f"--{name}")[rows])
            found[name] = [_distinct(own[codes == j]) for j in range(len(names))]
    licences = pd.Series(_values(pool, origins.licence, "--licence")[rows])
    judged = [judge(licences[codes == j].unique().tolist(), origins.use) for j in range(len(names))]
    found["terms"], found["problem"] = [list(part) for part in zip(*judged, strict=True)]
    return found.sort_values(["shapley", "source"], ascending=[False, True]).reset_index(drop=True)


def _values_of(points: np.ndarray, centres: np.ndarray, codes: np.ndarray, sources: int) -> np.ndarray:
    """(3, sources): each source's coverage alone, Shapley and leave-one-out value by its centres (b, k), codes
    (b,) saying whose: the means over points (n, k), in float64, LEDGER_CELLS distances at a time."""
    n, scale = len(points), similarity_scale(points)
    step = max(1, LEDGER_CELLS // sources)
    sums = np.zeros((3, sources))
    for start in range(0, n, step):
        near = nearest_by_group(points[start : start + step], centres, codes, sources)
        best = 1.0 / (1.0 + near.astype(np.float64) / scale)
        sums += [part.sum(axis=0) for part in (best, shapley(best), leave_one_out(best))]
    return sums / n


def spelling(licence: str) -> str:
    """
    >>> spelling("CC BY-SA 4.0")
    'cc-by-sa-4.0'
    """
    return re.sub(r"[\s_-]+", "-", licence.strip().lower())


def judge(licences: Sequence[str], use: str) -> tuple[str, str]:
    """(terms, problem) of the licences of one source; no problem is an empty text."""
    terms = {licence: terms_of("" if licence == MISSING else licence) for licence in licences}
    known = all(t.known for t in terms.values())
    names = _without_free(frozenset().union(*(t.names for t in terms.values())))
    joined = Terms(names if known else names - {"free"}, known)
    problems = []
    if MISSING in licences:
        problems.append("licence missing" if len(licences) == 1 else "licence missing in part")
    unclear = [licence for licence, t in terms.items() if not t.known and licence != MISSING]
    if unclear:
        problems.append(f"terms not stated by {unclear[0]!r}")
    if len({spelling(licence) for licence in licences if licence != MISSING}) > 1:
        problems.append("conflicting licences, the most restrictive holds")
    if joined.forbids(use):
        problems.append(f"forbids {use} use")
    shown = ", ".join(sorted(joined.names)) or "unspecified"
    return shown if joined.known or not joined.names else f"{shown}; in part unspecified", "; ".join(problems)


def licence_conflicts(pool: Pool, rows: np.ndarray, origins: Origins) -> tuple[str, ...]:
    """A sentence for each two licences among the chosen rows (b,) that no one licence of the whole can satisfy:
    two that ask for sharing alike, or one that does, and one that forbids commercial use where it does not."""
    named = pd.Series(_values(pool, origins.licence, "--licence")[rows])
    sources = pd.Series(_values(pool, origins.source, "--source")[rows])
    firsts = sources.groupby(named).first()
    one_each: dict[str, str] = {}
    for licence in map(str, firsts.index.drop(MISSING, errors="ignore")):
        one_each.setdefault(spelling(licence), licence)
    terms = {licence: terms_of(licence).names for licence in one_each.values()}
    alike = [licence for licence, names in terms.items() if "share-alike" in names]

    def shown(licence: str) -> str:
        return f"{licence!r} ({firsts[licence]})" if origins.source else repr(licence)

    found = [
        f"{shown(a)} and {shown(b)} both ask for sharing alike, each under its own terms."
        for a, b in combinations(alike, 2)
    ]
    found += [
        f"{shown(a)} asks for sharing alike, {shown(b)} forbids commercial use: no one licence satisfies both."
        for a in alike
        if NOT_COMMERCIAL not in terms[a]
        for b, names in terms.items()
        if NOT_COMMERCIAL in names and b not in alike
    ]
    return tuple(found)


def licence_sentence(found: pd.DataFrame, use: str) -> str:
    """What the licences of all sources mean together; the most restrictive wins."""
    bad = found["problem"] != ""
    duties = sorted({term for terms in found["terms"] for term in re.split("[,;] ", terms)} - {"free"})
    head = f"{bad.sum()} of {len(found)} sources have a licence problem for {use} use." if bad.any() else ""
    return f"{head} Together: {', '.join(duties) or 'no duties'}.".strip()


def _values(pool: Pool, name: str | None, option: str) -> np.ndarray:
    if name is None:
        return np.full(pool.n, MISSING, dtype=object)
    if name not in pool.facts:
        raise BasiscopeError(f"{option} {name}: run {pool.run} has no such column.")
    values = pool.facts[name].astype("string").str.strip()
    return values.mask(values == "").fillna(MISSING).to_numpy(dtype=object)


def _distinct(values: pd.Series, most: int = 3) -> str:
    names = values.value_counts().index.tolist()
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
