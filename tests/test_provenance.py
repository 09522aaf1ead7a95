import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import provenance
from core.activations import Recipe
from core.errors import BasiscopeError
from core.examples import Columns, DataSource
from core.provenance import Origins, judge, leave_one_out, ledger, licence_conflicts, shapley, terms_of
from core.recovery import Request, recover
from core.selection.choose import choose
from core.selection.pool import MISSING, Constraints, Pool, Rule, pool_of
from core.workspace import Workspace


@pytest.fixture(scope="module")
def college(stories, data_folder, tmp_path_factory):
    """600 problems of several text books, each with its licence, by the real small model."""
    source = DataSource(str(data_folder / "math" / "college_math.jsonl"))
    recipe = Recipe(dtype="float32", max_tokens=60)
    columns = Columns(prompt="question", response="answer")
    request = Request(stories, source, columns, recipe, k=6, device="cpu", with_map=False)
    return pool_of(recover(request, Workspace(tmp_path_factory.mktemp("college"))))


def by_coalitions(best):
    """Shapley values of max by all sets of the others that a source may join."""
    n, m = best.shape
    shares = np.zeros((n, m))
    for source in range(m):
        others = [j for j in range(m) if j != source]
        for size in range(m):
            weight = math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m)
            for joined in itertools.combinations(others, size):
                before = best[:, joined].max(axis=1) if joined else np.zeros(n)
                shares[:, source] += weight * np.maximum(best[:, source] - before, 0)
    return shares


def by_enumeration(best):
    """Shapley values of max by all orders of joining."""
    n, m = best.shape
    shares = np.zeros((n, m))
    for order in itertools.permutations(range(m)):
        before = np.zeros(n)
        for source in order:
            after = np.maximum(before, best[:, source])
            shares[:, source] += after - before
            before = after
    return shares / math.factorial(m)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_shapley_is_that_of_enumeration(seed, sources, with_ties):
    best = np.random.default_rng(seed).random((9, sources))
    best = best.round(1) if with_ties else best
    np.testing.assert_allclose(shapley(best), by_enumeration(best), atol=1e-12)
    np.testing.assert_allclose(shapley(best), by_coalitions(best), atol=1e-12)
    np.testing.assert_allclose(shapley(best).sum(axis=1), best.max(axis=1), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_leave_one_out_is_the_difference(seed, sources, with_ties):
    best = np.random.default_rng(seed).random((9, sources))
    best = best.round(1) if with_ties else best
    padded = np.concatenate([best, np.zeros((9, 1))], axis=1)
    plain = [best.max(axis=1) - np.delete(padded, j, axis=1).max(axis=1) for j in range(sources)]
    np.testing.assert_allclose(leave_one_out(best), np.stack(plain, axis=1), atol=1e-12)


def test_two_identical_sources_share_what_leaving_one_out_gives_neither():
    best = np.array([[0.8, 0.8, 0.2]])
    assert leave_one_out(best).tolist() == [[0, 0, 0]]
    np.testing.assert_allclose(shapley(best), [[0.2 / 3 + 0.3, 0.2 / 3 + 0.3, 0.2 / 3]])


def test_the_ledger_of_real_sources(college, monkeypatch):
    chosen = choose(college, Rule("coverage"), Constraints(budget=200), list)
    origins = Origins("data_source", "license", total=1_000.0, use="commercial")
    found = ledger(college, chosen.rows, origins)
    source = college.facts["data_source"].to_numpy()
    rows = {name: chosen.rows[source[chosen.rows] == name] for name in found["source"]}
    points = college.whitened.astype(np.float64)
    best = np.stack(
        [
            1 / (1 + ((points[:, None] - points[own][None]) ** 2).sum(axis=2).min(axis=1) / (2 * college.k))
            for own in rows.values()
        ],
        axis=1,
    )
    assert len(rows) == 9
    exact = by_coalitions(best).mean(axis=0)
    np.testing.assert_allclose(found["shapley"], exact, rtol=1e-4)
    assert found["payment"].sum() == pytest.approx(1_000)
    assert found["examples"].tolist() == [len(own) for own in rows.values()]
    assert found["tokens"].sum() == college.lengths[chosen.rows].sum()
    problem = dict(zip(found["source"], found["problem"], strict=True))
    assert "forbids commercial use" in problem["college_math.ELEMENTARY_DIFFERENTIAL_EQUATIONS"]
    assert "terms not stated" in problem["college_math.PRECALCULUS"]
    assert problem["college_math.Beginning_and_Intermediate_Algebra"] == ""
    monkeypatch.setattr(provenance, "LEDGER_CELLS", 50)
    pd.testing.assert_frame_equal(ledger(college, chosen.rows, origins), found, rtol=1e-12)
    research = ledger(college, chosen.rows, Origins("data_source", "license"))
    forbidden = research[research["problem"].str.contains("forbids research use")]
    (name,) = forbidden["source"]  # "provided it is not altered"
    assert name == "college_math.Probability_and_Statistics-The_Science_of_Uncertainty"


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("Creative Commons Attribution 3.0 Unported License (CC BY 3.0)", "attribution"),
        ("CC BY-NC-SA 4.0", "attribution, non-commercial, share-alike"),
        ("cc_by_nd_4.0", "attribution, no derivatives"),
        ("Apache-2.0", "attribution"),
        ("GNU Free Documentation License", "attribution, share-alike"),
        ("CC0 1.0", "free"),
        ("The Unlicense", "free"),
        ("Public domain, no attribution required", "free"),
        ("UNLICENSED", "forbidden"),
        ("not in the public domain", "unspecified"),
        ("no attribution required", "unspecified"),
        ("Copyright 2019 by Pearson", "unspecified"),
        ("Attribution required, not for commercial use", "attribution, non-commercial"),
        ("MIT, commercial use allowed", "attribution"),
        ("GPLv3", "share-alike"),
        ("CC0, but attribution is asked for", "attribution"),
        (
            "Copied without restriction, provided appropriate attribution is given and no money is charged.",
            "attribution, non-commercial",
        ),
        ("Creative Commons License", "unspecified"),
        ("Attribution, provided it is not altered", "attribution, no derivatives"),
        ("CC BY 4.0, modifications are prohibited", "attribution, no derivatives"),
        ("CC BY 4.0 (commercial use prohibited)", "attribution, non-commercial"),
        ("CC BY 4.0; commercial use is not permitted", "attribution, non-commercial"),
        ("CC BY 4.0, commercial use not prohibited", "attribution"),
        ("CC BY 4.0, changes must be indicated", "attribution"),
        ("", "unspecified"),
        ("see source", "unspecified"),
    ],
)
def test_what_the_name_of_a_licence_states(licence, terms):
    assert str(terms_of(licence)) == terms


def test_the_most_restrictive_wins_and_missing_is_never_free():
    assert judge(["CC0", "CC BY-NC 4.0"], "commercial") == (
        "attribution, non-commercial",
        "conflicting licences, the most restrictive holds; forbids commercial use",
    )
    assert judge(["CC0", "see source"], "research")[0] == "unspecified"
    assert judge([MISSING], "research") == ("unspecified", "licence missing")
    assert judge([MISSING, "MIT"], "research") == (
        "attribution; in part unspecified",
        "licence missing in part",
    )


def test_one_licence_spelt_two_ways_is_no_conflict():
    assert "conflicting" not in judge(["CC BY-SA 4.0", "cc-by-sa-4.0"], "research")[1]
    facts = pd.DataFrame({"n_tokens": [1, 1], "licence": ["CC BY-SA 4.0", "cc_by-sa 4.0"], "who": ["a", "b"]})
    pool = Pool("run", np.arange(2), np.zeros((2, 1), np.float32), facts)
    assert licence_conflicts(pool, np.arange(2), Origins(source="who", licence="licence")) == ()


def test_licences_of_different_sources_that_conflict():
    licences = ["CC BY-SA 4.0", "CC BY-NC 4.0", "GFDL", "CC BY 4.0", "CC BY-NC-SA 3.0", None]
    facts = pd.DataFrame({"by": list("abcdef"), "licence": licences, "n_tokens": 9})
    pool = Pool("run", np.arange(6), np.arange(12.0).reshape(6, 2), facts)
    origins = Origins("by", "licence")
    assert licence_conflicts(pool, np.array([0, 3, 5]), origins) == ()
    (alike,) = licence_conflicts(pool, np.array([0, 2]), origins)
    assert alike == "'CC BY-SA 4.0' (a) and 'GFDL' (c) both ask for sharing alike, each under its own terms."
    (forbids,) = licence_conflicts(pool, np.array([0, 1]), origins)
    assert "'CC BY-SA 4.0' (a) asks for sharing alike, 'CC BY-NC 4.0' (b) forbids" in forbids
    assert licence_conflicts(pool, np.array([1, 4]), origins) == ()
    assert len(licence_conflicts(pool, np.arange(6), origins)) == 3 + 2


def test_bad_origins(college):
    with pytest.raises(BasiscopeError, match="no such column"):
        ledger(college, np.arange(3), Origins("nope"))
    for total in (-1, math.nan, math.inf):
        with pytest.raises(BasiscopeError, match="must not be negative"):
            Origins(total=total)
    with pytest.raises(BasiscopeError, match="not one of research, commercial"):
        Origins(use="fun")
