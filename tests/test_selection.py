import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import synthetic_run

from core.activations import Recipe
from core.errors import BasiscopeError
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.selection import farthest, live, measures
from core.selection.choose import choose
from core.selection.farthest import covering_curve, farthest_points, knee, nearest_by_group
from core.selection.pool import (
    NESTED,
    RULES,
    Constraints,
    Pool,
    Quota,
    Rule,
    as_json,
    constraints_from,
    parse_directions,
    parse_quotas,
    pool_of,
    rule_from,
    show_quotas,
)
from core.selection.quotas import length_strata
from core.selection.rules import utilities
from core.selection.screening import GRAM, NEAR, Screening, jaccard, screen, shingles, split_tokens, split_words
from core.selection.vectors import text_vectors
from core.workspace import Workspace


@pytest.fixture(scope="module")
def math(stories, data_folder, tmp_path_factory):
    """The run of MATH, level 1 (564 examples with subjects), by the real small model."""
    source = DataSource(str(data_folder / "math" / "math_train_level1.json"))
    columns = Columns(prompt="problem", response="solution")
    recipe = Recipe(dtype="float32", max_tokens=400)
    request = Request(stories, source, columns, recipe, k=10, device="cpu", with_map=False)
    return recover(request, Workspace(tmp_path_factory.mktemp("math")))


@pytest.fixture(scope="module")
def pool(math):
    return pool_of(math)


@pytest.fixture(scope="module")
def texts(math, pool):
    vectors = text_vectors(math.all_texts())
    return lambda: vectors


def plain_farthest(points, budget, allowed=None):
    """The loop of the published notebook, in float64."""
    points = points.astype(np.float64)
    able = np.ones(len(points), bool) if allowed is None else allowed
    from_mean = ((points - points[able].mean(axis=0)) ** 2).sum(axis=1)
    chosen = [int(np.argmax(np.where(able, from_mean, -1)))]
    nearest = np.where(able, np.inf, -1)
    while len(chosen) < budget:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    return chosen


def distances(points, rows):
    points = points.astype(np.float64)
    return np.sqrt(((points[:, None] - points[rows][None]) ** 2).sum(axis=2))


def some(rule, **kwargs):
    needs = {
        "along": {"directions": (1, -3)},
        "both": {"directions": (2,)},
        "label": {"column": "subject"},
        "quality": {"column": "n_tokens"},
    }
    return Rule(rule, **needs.get(rule, {}), **kwargs)


# --- farthest points ------------------------------------------------------------------------------------


def test_farthest_points_are_those_of_the_plain_loop_on_real_scores(pool):
    order = farthest_points(pool.whitened, pool.n)
    assert order.rows.tolist() == plain_farthest(pool.whitened, pool.n)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 700), st.integers(1, 30), st.booleans())
def test_farthest_points_are_those_of_the_plain_loop(seed, n, k, with_ties):
    rng = np.random.default_rng(seed)
    points = rng.standard_t(3, (n, k)).astype(np.float32)
    if with_ties:
        points = points.round()
    allowed = rng.random(n) < 0.7
    allowed[rng.integers(n)] = True
    budget = min(60, int(allowed.sum()))
    order = farthest_points(points, budget, allowed=allowed)
    assert order.rows.tolist() == plain_farthest(points, budget, allowed)


def test_the_order_does_not_depend_on_the_size_of_a_block(pool, monkeypatch):
    from core.selection import kernels

    whole = farthest_points(pool.whitened, 200).rows
    monkeypatch.setattr(kernels, "BLOCK", 17)
    assert (farthest_points(pool.whitened, 200).rows == whole).all()


def test_the_reach_is_the_covering_radius_and_the_curve_is_exact(pool):
    order = farthest_points(pool.whitened, 120)
    radius, mean = covering_curve(pool.whitened, order.rows)
    exact = np.minimum.accumulate(distances(pool.whitened, order.rows), axis=1)
    np.testing.assert_allclose(order.reach[1:], exact.max(axis=0)[:-1], rtol=1e-9)
    np.testing.assert_allclose(radius, exact.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-5)


def test_the_curve_does_not_depend_on_chunks(pool, monkeypatch):
    rows = np.arange(40)
    whole = covering_curve(pool.whitened, rows)
    monkeypatch.setattr(farthest, "CHUNK", 64)
    parts = covering_curve(pool.whitened, rows)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-12)


def test_nearest_by_group(pool):
    rows, group = np.arange(30), np.arange(30) % 3
    found = nearest_by_group(pool.whitened, pool.whitened[rows], group, 4)
    exact = distances(pool.whitened, rows) ** 2
    for g in range(3):
        np.testing.assert_allclose(found[:, g], exact[:, group == g].min(axis=1), rtol=1e-4, atol=1e-6)
    assert np.isinf(found[:, 3]).all()


def test_the_knee_of_two_lines():
    assert knee(np.concatenate([np.linspace(10, 2, 9), np.linspace(1.9, 1, 50)])) == pytest.approx(9, abs=1)


def test_coverage_picks_the_outer_shell(pool, texts):
    budget = 100
    covering = choose(pool, Rule("coverage"), Constraints(budget=budget), texts).rows
    chance = choose(pool, Rule("random"), Constraints(budget=budget), texts).rows
    ours, theirs = measures.summary(pool, covering), measures.summary(pool, chance)
    assert ours["covering radius"] < theirs["covering radius"]
    assert ours["mean distance"] > theirs["mean distance"]
    assert ours["norm percentile"] > 0.7 > 0.6 > theirs["norm percentile"]


# --- rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NESTED)
def test_a_smaller_budget_is_a_prefix(pool, texts, name):
    rule = some(name)
    whole = choose(pool, rule, Constraints(budget=60), texts).example_id
    part = choose(pool, rule, Constraints(budget=23), texts).example_id
    assert (whole[:23] == part).all()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_fills_its_budget_without_repeats_and_again_the_same(pool, texts, name):
    first, second = (choose(pool, some(name), Constraints(budget=40), texts) for _ in range(2))
    assert len(set(first.example_id.tolist())) == 40
    assert (first.example_id == second.example_id).all()


def test_along_one_direction_is_the_ranking(pool, texts):
    rows = choose(pool, Rule("along", (-2,)), Constraints(budget=50), texts).rows
    assert rows.tolist() == np.argsort(pool.scores[:, 1], kind="stable")[:50].tolist()


def test_along_several_counts_what_both_want_once_and_keeps_the_weights(pool, texts):
    rule = Rule("along", (1, -3), weights=(3.0, 1.0))
    chosen = choose(pool, rule, Constraints(budget=80), texts)
    first, second = np.argsort(-pool.scores[:, 0], kind="stable"), np.argsort(pool.scores[:, 2], kind="stable")
    plain, ends = [], {0: list(first), 1: list(second)}
    for turn in itertools.islice(itertools.cycle([0, 0, 1, 0]), 80):  # 3 : 1 by largest credit
        plain.append(next(row for row in ends[turn] if row not in plain))
    assert chosen.rows.tolist() == plain


def test_the_floor_is_kept(pool, texts):
    able = int((pool.whitened[:, 0] >= 1.0).sum())
    rule = Rule("along", (1,), floor=1.0)
    assert (pool.whitened[choose(pool, rule, Constraints(budget=able), texts).rows, 0] >= 1.0).all()
    with pytest.raises(BasiscopeError, match=f"only {able} examples"):
        choose(pool, rule, Constraints(budget=able + 1), texts)


def test_both_stays_within_the_end(pool, texts):
    rows = choose(pool, Rule("both", (2,), useful_end=0.3), Constraints(budget=60), texts).rows
    end = pool.scores[:, 1] >= np.quantile(pool.scores[:, 1], 0.7)
    assert end[rows].all()
    assert rows.tolist() == plain_farthest(pool.whitened, 60, end)


def test_facility_location_is_greedy(pool):
    from core.selection.rules import facility, similarity_scale

    small = Pool(pool.run, pool.example_id[:150], pool.scores[:150], pool.facts[:150])
    alike = 1 / (1 + distances(small.whitened, np.arange(150)) ** 2 / similarity_scale(small.whitened))
    best, plain = np.zeros(150), []
    for _ in range(20):
        gains = np.maximum(alike, best[:, None]).sum(axis=0)
        plain.append(int(np.argmax(gains)))
        best = np.maximum(best, alike[:, plain[-1]])
    nothing = np.zeros(0, dtype=int)
    assert facility(small.whitened, 20, np.arange(150), nothing).rows.tolist() == plain


@pytest.mark.parametrize("must", [0, 2])
def test_facility_location_in_turns_heeds_what_all_cells_cover(pool, texts, must):
    from core.selection.rules import similarity_scale

    some = np.arange(0, 450, 3)
    small = Pool(pool.run, pool.example_id[some], pool.scores[some], pool.facts.iloc[some])
    alike = 1 / (1 + distances(small.whitened, np.arange(150)) ** 2 / similarity_scale(small.whitened))
    cell = np.where(small.facts["subject"] == "Algebra", 0, 1)
    pinned = tuple((int(i), "mine") for i in small.example_id[:must])
    quotas = parse_quotas("subject=Algebra:0.5")
    chosen = choose(
        small, Rule("facility"), Constraints(budget=24, quotas=quotas, must=pinned), texts
    ).rows.tolist()
    assert chosen[:must] == list(range(must)) and (cell[chosen] == 0).sum() == 12
    best = alike[:, :must].max(axis=1, initial=0.0)
    plain = list(range(must))
    for row in chosen[must:]:  # the plan says from which cell, the greedy loop which row of it
        gains = np.maximum(alike, best[:, None]).sum(axis=0)
        gains[(cell != cell[row]) | np.isin(np.arange(150), plain)] = -np.inf
        plain.append(int(np.argmax(gains)))
        best = np.maximum(best, alike[:, plain[-1]])
    assert chosen == plain


def test_representative_rules_stay_nearer_than_coverage(pool, texts):
    constraints = Constraints(budget=50)
    mean = {
        name: measures.summary(pool, choose(pool, Rule(name), constraints, texts).rows)["mean distance"]
        for name in ("coverage", "facility", "medoids")
    }
    assert mean["facility"] < mean["coverage"] and mean["medoids"] < mean["coverage"]


def test_sentence_embeddings_are_those_of_the_model_itself(math, stories):
    import torch
    from transformers import AutoModel, AutoTokenizer

    pytest.importorskip("sentence_transformers", reason="the extra `sentences` is not installed")
    own = math.texts(range(30))
    found = text_vectors(own, stories)
    tokenizer, model = AutoTokenizer.from_pretrained(stories), AutoModel.from_pretrained(stories)
    for row in (0, 29):
        with torch.no_grad():
            ids = tokenizer(own[row], return_tensors="pt", truncation=True).input_ids
            plain = model(ids).last_hidden_state[0, -1].double().numpy()  # its default pooling for causal models
        np.testing.assert_allclose(found[row], plain / np.linalg.norm(plain), atol=1e-5)
    with pytest.raises(BasiscopeError, match="there is no folder"):
        text_vectors(own, str(Path(stories).parent / "nothing"))


def test_the_trim_leaves_out_the_outliers(pool, texts):
    rows = choose(pool, Rule("coverage", trim=0.1), Constraints(budget=50), texts).rows
    assert pool.norms[rows].max() <= np.quantile(pool.norms, 0.9)


def test_label_takes_every_value_in_turn(pool, texts):
    rows = choose(pool, some("label"), Constraints(budget=35), texts).rows
    counts = pool.facts["subject"].iloc[rows].value_counts()
    assert counts.max() - counts.min() <= 1


def test_quality_weighs_the_distance(pool, texts):
    rows = choose(pool, some("quality"), Constraints(budget=30), texts).rows
    weight = pool.facts["n_tokens"].rank(pct=True).to_numpy()
    points, plain = pool.whitened.astype(np.float64), []
    nearest = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
    for _ in range(30):
        plain.append(int(np.argmax(np.where(np.isin(np.arange(pool.n), plain), -1, nearest * weight**2))))
        fresh = ((points - points[plain[-1]]) ** 2).sum(axis=1)
        nearest = fresh if len(plain) == 1 else np.minimum(nearest, fresh)
    assert rows.tolist() == plain


# --- constraints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coverage", "along", "random", "facility"])
def test_quotas_hold_in_every_prefix(pool, texts, name):
    quota = Quota("subject", (("Algebra", 0.5), ("Geometry", 0.2)))
    rows = choose(pool, some(name), Constraints(budget=60, quotas=(quota,)), texts).rows
    subject = pool.facts["subject"].to_numpy()[rows]
    for value, share in quota.shares:
        counts = np.cumsum(subject == value)
        assert (np.abs(counts - share * np.arange(1, 61)) <= 1.5).all()
        assert counts[-1] == share * 60


@pytest.mark.parametrize(
    "shares",
    [{"quotas": parse_quotas("subject=Algebra:0.5,subject=Geometry:0.2")}, {"within_length_strata": True}],
)
def test_what_is_called_nested_is_a_prefix(pool, texts, shares):
    rule = Rule("along", (1,))
    for constraints in (Constraints(budget=60), Constraints(budget=60, **shares)):
        whole = choose(pool, rule, constraints, texts)
        smaller = [choose(pool, rule, replace(constraints, budget=b), texts).rows for b in range(20, 60, 7)]
        prefixes = all((rows == whole.rows[: len(rows)]).all() for rows in smaller)
        assert prefixes == live.is_prefix_stable(rule, constraints)
        assert prefixes == (not any("not always a prefix" in note for note in whole.notes))


def test_quotas_on_two_columns_and_a_cap(pool, texts):
    long = np.where(pool.lengths > np.median(pool.lengths), "long", "short")
    facts = pool.facts.assign(size=long)
    wide = Pool(pool.run, pool.example_id, pool.scores, facts)
    constraints = Constraints(
        budget=100,
        quotas=(Quota("subject", (("Algebra", 0.4),)), Quota("size", (("short", 0.7),))),
        caps=(("subject", 0.4),),
    )
    chosen = facts.iloc[choose(wide, Rule("coverage"), constraints, texts).rows]
    assert (chosen["subject"] == "Algebra").sum() == 40
    assert (chosen["size"] == "short").sum() == 70
    assert chosen["subject"].value_counts().max() <= 40


@pytest.mark.parametrize("budget", [7, 23, 60])
def test_caps_hold_to_the_example_with_must_haves(pool, texts, budget):
    subject = pool.facts["subject"].to_numpy()
    must = tuple((int(pool.example_id[row]), "pinned") for row in np.flatnonzero(subject == "Algebra")[:2])
    rule, cap = Rule("along", (1,)), (("subject", 0.3),)
    for strata in (False, True):
        constraints = Constraints(budget=budget, caps=cap, must=must, within_length_strata=strata)
        rows = choose(pool, rule, constraints, texts).rows
        assert len(rows) == budget
        assert pd.Series(subject[rows]).value_counts().max() <= int(0.3 * budget)


def test_quotas_count_the_must_haves(pool, texts):
    subject = pool.facts["subject"].to_numpy()
    must = tuple((int(pool.example_id[row]), "pinned") for row in np.flatnonzero(subject == "Geometry")[:4])
    constraints = Constraints(budget=40, quotas=parse_quotas("subject=Geometry:0.2"), must=must)
    assert (subject[choose(pool, Rule("random"), constraints, texts).rows] == "Geometry").sum() == 8
    with pytest.raises(BasiscopeError, match="must-have examples with 'Geometry' are too many"):
        choose(pool, Rule("random"), replace(constraints, budget=10), texts)


def test_columns_with_very_many_values_together_end_in_a_sentence(pool, texts):
    n = 5_001
    wide = Pool(
        "run", np.arange(n), np.ones((n, 1)), pd.DataFrame({"a": np.arange(n), "n_tokens": np.ones(n, int)})
    )
    with pytest.raises(BasiscopeError, match="divide the pool into 5,001 parts"):
        choose(wide, Rule("random"), Constraints(budget=9, caps=(("a", 0.5),)), texts)


def test_length_strata_match_the_pool(pool, texts):
    rows = choose(pool, Rule("along", (1,)), Constraints(budget=100, within_length_strata=True), texts).rows
    strata = length_strata(pool.lengths)
    share = np.bincount(strata, minlength=10) / pool.n
    assert np.abs(np.bincount(strata[rows], minlength=10) - 100 * share).max() <= 1
    free = choose(pool, Rule("along", (1,)), Constraints(budget=100), texts).rows
    assert abs(measures.length_shift(pool, rows).longer - 0.5) < abs(
        measures.length_shift(pool, free).longer - 0.5
    )


def test_a_budget_in_tokens(pool, texts):
    chosen = choose(pool, Rule("coverage"), Constraints(budget_tokens=3_000), texts).rows
    spent = np.cumsum(pool.lengths[chosen])
    more = choose(pool, Rule("coverage"), Constraints(budget=len(chosen) + 1), texts).rows
    assert spent[-1] <= 3_000 < pool.lengths[more].sum()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shares", [{}, {"caps": (("subject", 0.4),)}, {"within_length_strata": True}])
def test_a_token_budget_is_spent_and_not_exceeded(pool, texts, name, shares):
    tokens = 8_000
    constraints = Constraints(budget_tokens=tokens, **shares)
    rows = choose(pool, some(name), constraints, texts).rows
    assert tokens - pool.lengths.max() < pool.lengths[rows].sum() <= tokens or shares or name == "medoids"
    assert 0.7 * tokens < pool.lengths[rows].sum() <= tokens
    if "caps" in shares:
        assert pool.facts["subject"].iloc[rows].value_counts().max() <= int(0.4 * len(rows))
    if not shares and name in NESTED:
        wider = choose(pool, some(name), Constraints(budget_tokens=3 * tokens), texts).rows
        assert wider[: len(rows)].tolist() == rows.tolist()


def test_what_the_rule_itself_leaves_out_is_named(pool, texts):
    rule = Rule("both", (2,), useful_end=0.3, trim=0.05)
    chosen = choose(pool, rule, Constraints(budget=20), texts)
    far = pool.norms > np.quantile(pool.norms, 0.95)
    outside = pool.scores[:, 1] < np.quantile(pool.scores[:, 1], 0.7)
    why = dict(zip(chosen.dropped["example_id"], chosen.dropped["reason"], strict=True))
    outliers = {e for e, reason in why.items() if reason.startswith("outlier: among the 5.0%")}
    assert outliers == set(pool.example_id[far].tolist())
    ends = {e for e, reason in why.items() if reason == "outside the useful end"}
    assert ends == set(pool.example_id[outside & ~far].tolist())
    chosen = choose(pool, Rule("along", (1, -3), floor=1.0), Constraints(budget=20), texts)
    low = (pool.whitened[:, 0] < 1) & (pool.whitened[:, 2] > -1)
    assert set(chosen.dropped["example_id"]) == set(pool.example_id[low].tolist())
    assert set(chosen.dropped["reason"]) == {"below the floor of 1 SD"}


def test_utilities_are_correlations_with_their_interval(pool):
    from scipy.stats import pearsonr

    verdict = (pool.scores[:, 0] + pool.scores[:, 2] > 0).astype(float)
    judged = Pool(pool.run, pool.example_id, pool.scores, pool.facts.assign(right=verdict))
    for one, sign, column in zip(utilities(judged, (1, -3), "right"), (1, -1), (0, 2), strict=True):
        exact = pearsonr(sign * pool.scores[:, column], verdict)
        assert one.value == pytest.approx(exact.statistic, abs=1e-6)
        assert (one.low, one.high) == pytest.approx(tuple(exact.confidence_interval(0.95)), abs=1e-4)


def test_must_and_never_and_sets_and_what_was_dropped(pool, texts):
    limit = int(np.quantile(pool.lengths[:50], 0.7))
    constraints = Constraints(
        budget=20,
        must=((int(pool.example_id[7]), "pinned"),),
        never=((int(pool.example_id[3]), "wrong answer"),),
        only=tuple(int(i) for i in pool.example_id[:50]),
        max_tokens=limit,
    )
    chosen = choose(pool, Rule("coverage"), constraints, texts)
    assert chosen.rows[0] == 7 and chosen.reasons[0] == "must-have: pinned"
    assert 3 not in chosen.rows and chosen.rows.max() < 50
    why = dict(zip(chosen.dropped["example_id"], chosen.dropped["reason"], strict=True))
    assert why[int(pool.example_id[3])] == "never: wrong answer"
    assert why[int(pool.example_id[60])] == "outside the set"
    assert (chosen.rows == 7).sum() == 1
    short = pool.lengths[chosen.rows[1:]]
    assert short.max() <= limit < pool.lengths[:50].max()


def test_duplicates_are_those_of_all_pairs(math, pool):
    own = math.texts(range(150))
    own += [own[3].upper(), own[5] + " again", own[9]]
    found = screen(np.arange(len(own)), own)
    plain = [" ".join(text.lower().split()) for text in own]
    sets = [shingles(split_tokens(text)) for text in own]
    exact = {i: plain.index(w) for i, w in enumerate(plain) if plain.index(w) < i}
    near, kept = {}, []
    for i, mine in enumerate(sets):
        alike = [j for j in kept if jaccard(mine, sets[j]) >= NEAR]
        if alike:
            near[i] = alike[0]
        else:
            kept.append(i)
    assert found.exact == exact and {150: 3, 152: 9}.items() <= exact.items()
    assert found.near == near and near[151] == 5


def test_sums_that_differ_in_a_sign_are_no_duplicates():
    found = screen(np.arange(4), ["What is 2 + 3?", "What is 2 * 3?", "what  is\n2 + 3?", "2 3"])
    assert found.exact == {2: 0} and found.near == {2: 0}


def test_of_duplicates_the_first_that_can_be_chosen_stays(pool, texts):
    a, b, c, d, e = (int(i) for i in pool.example_id[:5])
    screening = Screening({b: a, d: c}, {c: a}, (), {})
    full = Constraints(budget=1, dedup="near")

    def left(**constraints):
        gone = choose(pool, Rule("order"), replace(full, **constraints), texts, screening).dropped
        return {a, b, c, d, e} - set(gone["example_id"])

    assert left() == {a, e}
    assert left(never=((a, "wrong"),)) == {b, e}
    assert left(never=((a, "wrong"), (b, "wrong"))) == {c, e}
    assert left(only=(c, d, e)) == {c, e}
    assert left(must=((d, "right"),)) == {d, e}
    assert left(must=((d, "right"), (b, "right"))) == {b, d, e}


def test_a_must_have_that_is_named_twice_is_in_once(pool, texts):
    example = int(pool.example_id[7])
    for rule in (Rule("coverage"), Rule("random")):
        chosen = choose(pool, rule, Constraints(budget=5, must=((example, "a"), (example, "b"))), texts)
        assert len(set(chosen.example_id.tolist())) == 5 and chosen.example_id[0] == example


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shares", [{}, {"caps": (("subject", 0.5),)}, {"within_length_strata": True}])
@pytest.mark.parametrize("budget", [{"budget": 4}, {"budget": 3}, {"budget_tokens": 10_000}])
def test_all_that_can_be_chosen_may_be_must_haves(pool, texts, name, shares, budget):
    subject = pool.facts["subject"].to_numpy()
    rows = np.array([0, *np.flatnonzero(subject != subject[0])[:3]])
    only = tuple(int(i) for i in pool.example_id[rows])
    constraints = Constraints(**budget, **shares, only=only, must=tuple((i, "mine") for i in only))
    try:
        chosen = choose(pool, some(name), constraints, texts).rows
        assert chosen.tolist() == rows[: len(chosen)].tolist() and len(chosen) >= 3
    except BasiscopeError as error:
        assert "too many" in str(error) and "caps" in shares


def test_what_shares_mean_is_said_where_it_is_not_plain(pool, texts):
    quotas = parse_quotas("subject=Algebra:0.5")
    notes = choose(pool, Rule("medoids"), Constraints(budget_tokens=2_000, quotas=quotas), texts).notes
    assert any("shares of the examples, not of their tokens" in note for note in notes)
    assert any("Medoids are those of each part" in note for note in notes)
    plain = choose(pool, Rule("facility"), Constraints(budget=20, quotas=quotas), texts).notes
    assert not any("tokens" in note or "Medoids" in note for note in plain)


def test_a_token_budget_where_nothing_can_be_chosen(pool, texts):
    for rule, constraints in (
        (Rule("coverage"), Constraints(budget_tokens=900, min_tokens=10**6)),
        (Rule("along", (1,), floor=1e6), Constraints(budget_tokens=900)),
    ):
        with pytest.raises(BasiscopeError, match="only 0 examples can be chosen"):
            choose(pool, rule, constraints, texts)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rule("random", seed=-1), "Seed -1"),
        (lambda: Rule("along", (1,), weights=(float("nan"),)), "one number above 0"),
        (lambda: Rule("along", (1,), weights=(float("inf"),)), "one number above 0"),
        (lambda: Rule("along", (1,), floor=float("nan")), "Floor nan"),
        (lambda: parse_quotas("a=b:."), "column=value:share"),
        (lambda: parse_quotas("a=b:1.2.3"), "column=value:share"),
        (lambda: parse_quotas("a=b, c:0.3"), "a value with a comma in quotes"),
        (lambda: parse_quotas('a="b:0.3'), "column=value:share"),
        (lambda: parse_quotas(" "), "column=value:share"),
        (lambda: parse_quotas("a=b:0.3,c=b:0.1,a=b:0.2"), "a=b has two shares"),
        (lambda: Constraints(budget=1, min_tokens=-3), "Least tokens -3"),
        (lambda: Constraints(budget=1, max_tokens=-1), "Most tokens -1"),
    ],
)
def test_numbers_that_are_none_end_in_a_sentence(make, sentence):
    with pytest.raises(BasiscopeError, match=sentence):
        make()


def test_a_held_out_file_that_cannot_be_parsed_is_not_clean(tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("not json\nnor this\n")
    with pytest.raises(BasiscopeError, match="no text can be read in it"):
        screen(np.arange(1), ["a"], [str(held)])
    held.write_text('{"n": 3}\n')
    with pytest.raises(BasiscopeError, match="no text can be read in it"):
        screen(np.arange(1), ["a"], [str(held)])
    held.write_text('not json\n{"question": "two"}\n')
    found = screen(np.arange(1), ["a"], [str(held)])
    assert len(found.problems) == 1 and "held.jsonl: 1 row" in found.problems[0]
    assert Screening.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_overlaps_are_those_of_a_plain_search(math, pool, tmp_path):
    own = math.texts(range(80))
    held = tmp_path / "held.jsonl"
    middle = " ".join(split_words(own[4])[2 : 2 + GRAM + 4])
    held.write_text(json.dumps({"a": {"b": ["x " + middle]}}) + "\n" + json.dumps({"a": own[9]}) + "\n")
    found = {o.example_id: o for o in screen(np.arange(80), own, [str(held)], near=False).overlaps}
    lines = [" ".join(split_words(text)) for text in ("x " + middle, own[9])]
    for i, text in enumerate(own):
        words = split_words(text)
        grams = [" ".join(words[j : j + GRAM]) for j in range(len(words) - GRAM + 1)]
        hits = [any(f" {gram} " in f" {line} " for line in lines) for gram in grams]
        assert (i in found) == any(hits)
        if i in found:
            assert found[i].share == pytest.approx(np.mean(hits), abs=1e-4)
    assert found[4].row == 0 and found[4].words == middle and found[9].share == 1.0


def test_what_leaked_into_gsm8k_is_found_and_hardly_anything_else(gsm8k, data_folder, tmp_path):
    rows = [json.loads(line) for line in Path(gsm8k).read_text().splitlines()[:800]]
    own = [f"{row['question']}\n{row['answer']}" for row in rows]
    test = (data_folder / "gsm8k" / "test.jsonl").read_text().splitlines()
    leaked = {j: len(test) + i for i, j in enumerate((3, 401, 799))}
    held = tmp_path / "test_with_leaks.jsonl"
    held.write_text("\n".join([*test, *(json.dumps({"question": rows[j]["question"]}) for j in leaked)]) + "\n")
    found = {o.example_id: o for o in screen(np.arange(len(own)), own, [str(held)], near=False).overlaps}
    for j, row in leaked.items():
        assert found[j].row == row and found[j].words == " ".join(split_words(rows[j]["question"]))
    joined = " | ".join(" ".join(split_words(value)) for line in test for value in json.loads(line).values())
    for j in found.keys() - leaked.keys():  # each true: its words are in the held-out texts
        assert len(found[j].words.split()) >= GRAM and found[j].words in joined
    assert len(found) < 0.05 * len(own)


def test_texts_are_read_a_part_at_a_time(tmp_path):
    run = synthetic_run(Workspace(tmp_path), n=2_300, words=3)
    texts = run.all_texts()
    assert len(texts) == 2_300 and list(texts) == run.texts(range(2_300))
    assert texts[2_299] == run.texts([2_299])[0] and texts[998:1_002] == run.texts(range(998, 1_002))
    wanted = [2_299, 3, 1_001, 3]
    assert [record["text"] for record in run.records(wanted)] == run.texts(wanted)
    exact = screen(np.arange(2_300), texts, near=False).exact
    first: dict[str, int] = {}
    plain = {i: first[t] for i, t in enumerate(texts) if first.setdefault(t, i) != i}
    assert exact == plain


# --- measures -------------------------------------------------------------------------------------------


def test_length_shift_is_the_share_of_pairs(pool):
    rows = np.arange(0, 90, 3)
    own, all_ = pool.lengths[rows][:, None], pool.lengths[None]
    plain = ((own > all_) + 0.5 * (own == all_)).mean()
    assert measures.length_shift(pool, rows).longer == pytest.approx(plain)


def test_the_whole_pool_covers_everything(pool):
    whole = np.arange(pool.n)
    facts = measures.summary(pool, whole)
    assert facts["covering radius"] == 0 and facts["bins covered"] == 1
    assert facts["longer than pool"] == pytest.approx(0.5)
    shares = measures.composition(measures.counted(pool.facts["subject"]), {"all": whole})
    pd.testing.assert_series_equal(shares["pool"], shares["all"], check_names=False)


def test_what_a_page_shows_of_a_large_budget_is_that_of_all_its_picks():
    scores = np.random.default_rng(0).standard_normal((2_600, 3)).astype(np.float32)
    pool = Pool("run", np.arange(2_600), scores, pd.DataFrame({"n_tokens": np.full(2_600, 9)}))
    wanted = Constraints(budget=2_400)
    widest = live.widest(pool, Rule("random"), wanted, 2_500, None)
    found = live.within(live.prospect(pool, Rule("random"), widest, list), pool, wanted)
    exact = distances(pool.whitened, found.rows).min(axis=1)
    shown = measures.summary(pool, found.rows, found.curve)
    assert shown["covering radius"] == pytest.approx(exact.max(), rel=1e-5)
    assert shown["mean distance"] == pytest.approx(exact.mean(), rel=1e-4)
    chance = live.baseline(pool, Rule("random"), live.budget_alone(widest), list)
    assert len(chance.orders[0]) == 2_500 and chance.band("radius")[0][-1] == 2_500


def test_a_page_does_not_wait_for_a_large_budget():
    n = 50_000
    pool = Pool("run", np.arange(n), np.zeros((n, 1), np.float32), pd.DataFrame({"n_tokens": np.full(n, 9)}))
    assert live.is_quick(pool, Rule("coverage"), Constraints(budget=1_000))
    assert live.is_quick(pool, Rule("coverage"), Constraints(budget_tokens=9_000))
    for wanted in (Constraints(budget=5_000), Constraints(budget_tokens=45_000)):
        assert not live.is_quick(pool, Rule("coverage"), wanted)
    lengths = np.r_[np.full(n // 2, 1), np.full(n // 2, 99)]
    uneven = Pool("run", np.arange(n), np.zeros((n, 1), np.float32), pd.DataFrame({"n_tokens": lengths}))
    assert live.examples_within(uneven, Constraints(budget_tokens=25_000), Rule("shortest")) == 25_000
    assert live.is_quick(uneven, Rule("longest"), Constraints(budget_tokens=25_000))
    assert not live.is_quick(uneven, Rule("shortest"), Constraints(budget_tokens=25_000))
    assert not live.is_quick(pool, Rule("text"), Constraints(budget=10))
    assert live.is_quick(pool, Rule("text"), Constraints(budget=10), has_vectors=True)


def test_a_page_does_not_wait_for_a_cap_on_thousands_of_values():
    n = 3_000
    facts = pd.DataFrame({"n_tokens": np.full(n, 9), "id": np.arange(n), "kind": np.arange(n) % 7})
    pool = Pool("run", np.arange(n), np.zeros((n, 1), np.float32), facts)
    assert live.is_quick(pool, Rule("random"), Constraints(budget=9, caps=(("kind", 0.5),)))
    assert not live.is_quick(pool, Rule("random"), Constraints(budget=9, caps=(("id", 0.5),)))


def test_a_baseline_that_the_budget_does_not_allow_is_none(pool, texts):
    budget = Constraints(budget_tokens=50_000)
    one = live.baseline(pool, Rule("longest"), budget, texts)
    assert live.within_budget(pool, one, budget) is one
    few = Constraints(budget_tokens=int(pool.lengths.max()) - 1)
    with pytest.raises(BasiscopeError, match="the first example alone has"):
        live.within_budget(pool, one, few)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    st.dictionaries(
        names, st.dictionaries(names, st.sampled_from([0.1, 0.25]), min_size=1, max_size=3), min_size=1
    )
)
def test_quotas_on_any_names_come_back(shares):
    quotas = tuple(Quota(column, tuple(values.items())) for column, values in shares.items())
    assert parse_quotas(show_quotas(quotas)) == quotas


def test_overlap_is_jaccard():
    found = measures.overlap({"a": [1, 2, 3], "b": [2, 3, 4], "c": [9]})
    assert found.loc["a", "b"] == 0.5 and found.loc["a", "c"] == 0 and found.loc["b", "b"] == 1


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "constraints", "sentence"),
    [
        (lambda: Rule("coverage"), lambda: Constraints(budget=0), "at least 1"),
        (lambda: Rule("coverage"), lambda: Constraints(budget=-3), "at least 1"),
        (lambda: Rule("coverage"), lambda: Constraints(budget=10_000), "only 564 examples can be chosen"),
        (lambda: Rule("coverage"), lambda: Constraints(budget_tokens=1), "the first example alone"),
        (lambda: Rule("coverage"), Constraints, "one of --budget"),
        (lambda: Rule("along", (11,)), lambda: Constraints(budget=5), "has directions 1 to 10"),
        (lambda: Rule("along"), lambda: Constraints(budget=5), "name at least one direction"),
        (lambda: Rule("label", column="nope"), lambda: Constraints(budget=5), "no column 'nope'"),
        (lambda: Rule("label", column="level"), lambda: Constraints(budget=5), "same value everywhere"),
        (lambda: Rule("quality", column="subject"), lambda: Constraints(budget=5), "not a number"),
        (
            lambda: Rule("random"),
            lambda: Constraints(budget=500, quotas=parse_quotas("subject=Geometry:0.9")),
            "450 of 500 examples would be needed",
        ),
        (
            lambda: Rule("random"),
            lambda: Constraints(budget=100, quotas=parse_quotas("subject=Alchemy:0.9")),
            "no value 'Alchemy'",
        ),
        (
            lambda: Rule("random"),
            lambda: Constraints(budget=100, quotas=parse_quotas("subject=Algebra:0.8"), caps=(("subject", 0.3),)),
            "clashes: subject=Algebra:0.8 and no subject above 0.3",
        ),
        (
            lambda: Rule("random"),
            lambda: Constraints(budget=3, caps=(("subject", 0.3),)),
            "cannot be met together",
        ),
        (
            lambda: Rule("random"),
            lambda: Constraints(budget=5, must=((99_999, ""),)),
            "has no example 99999",
        ),
    ],
)
def test_bad_input_ends_in_a_sentence(pool, texts, rule, constraints, sentence):
    with pytest.raises(BasiscopeError, match=sentence):
        choose(pool, rule(), constraints(), texts)


def test_scores_that_are_not_numbers(tmp_path):
    run = synthetic_run(Workspace(tmp_path))
    scores = run.scores()
    scores.loc[4, "d2"] = np.nan
    with pytest.raises(BasiscopeError, match="the first: 4"):
        pool_of(run, scores)


@pytest.mark.parametrize("text", ["1", "1+,1+", "0+", "+1", "1+;2-", ""])
def test_directions_that_cannot_be_read(text):
    with pytest.raises(BasiscopeError, match="Directions"):
        parse_directions(text)


def test_a_held_out_file_that_is_not_there(pool):
    with pytest.raises(BasiscopeError, match="cannot be read"):
        screen(np.arange(1), ["a"], ["/nowhere/held.jsonl"])


def test_rules_and_constraints_survive_json():
    rule = Rule("along", (1, -3), (2.0, 1.0), 0.5)
    constraints = Constraints(
        budget=5, quotas=parse_quotas("a=b:0.5,a=c:0.1,d=e:30%"), caps=(("s", 0.3),), must=((3, "why"),)
    )
    assert rule_from(json.loads(json.dumps(as_json(rule)))) == rule
    assert constraints_from(json.loads(json.dumps(as_json(constraints)))) == constraints


def test_numbers_that_are_missing_are_counted_as_missing():
    numbers = pd.Series(np.where(np.arange(100) < 60, np.nan, np.arange(100.0)))
    shares = measures.composition(measures.counted(numbers), {"first": np.arange(30)})
    assert shares["pool"]["(missing)"] == 0.6 and shares["first"]["(missing)"] == 1
    assert shares["pool"].drop("(missing)").round(9).eq(0.04).all() and list(shares.index)[-1] == "(missing)"


def test_what_is_said_of_must_haves_is_of_the_budget_asked_for(pool):
    must = tuple((int(example), "why") for example in pool.example_id[:5])
    wanted = Constraints(budget=3, must=must)
    whole = live.prospect(pool, Rule("random"), replace(wanted, budget=20), list)
    assert not whole.selection.notes
    assert live.within(whole, pool, wanted).selection.notes == ("Only the first 3 of 5 must-have examples fit.",)
    some = live.prospect(pool, Rule("random"), replace(wanted, budget=4), list)
    assert live.within(some, pool, wanted).selection.notes == ("Only the first 3 of 5 must-have examples fit.",)


def test_a_tiny_share_is_shown_as_it_is_read():
    assert parse_quotas(show_quotas(parse_quotas("a=b:0.00005"))) == parse_quotas("a=b:0.00005")


def test_the_composition_by_a_number_is_in_its_order():
    rng = np.random.default_rng(0)
    level, length = pd.Series(rng.choice([3, 1, 2], 300, p=[0.2, 0.3, 0.5])), pd.Series(rng.integers(1, 999, 300))
    assert list(measures.composition(measures.counted(level), {}).index) == ["1", "2", "3"]
    lows = [int(name.split(" to ")[0]) for name in measures.composition(measures.counted(length), {}).index]
    assert lows == sorted(lows) and len(lows) == 10
    assert measures.what_is_shown(length) == measures.what_is_shown(level.astype(str)) == ""
    assert measures.what_is_shown(length.astype(str)).startswith(", its 12 most frequent values of 2")
