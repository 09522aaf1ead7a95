"""Utility and proxies against plain references: brute force, SciPy, finite differences, simulation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic import synthetic_run

from bench.intervals import area_coverage, correlation_coverage
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.usefulness import PROXIES, SIGNIFICANCE
from core.usefulness import association as assoc
from core.usefulness.controls import bag_of_words, random_scores
from core.usefulness.development import NO_BETTER
from core.usefulness.evidence import (
    Cost,
    Effect,
    Evidence,
    Measure,
    false_discovery,
    level_of_best,
    p_against_best,
)
from core.usefulness.recommend import recommend
from core.usefulness.traces import column_values, read_traces
from core.usefulness.utility import MOST_PERMUTATIONS, UtilityRequest, permutations_for, utility
from core.workspace import Workspace

# --- association ----------------------------------------------------------------------------------------


def traces(problems=40, each=4, k=3, effect=0.0, seed=0):
    """Scores, verdicts and problems; problems differ in difficulty and in their scores."""
    rng = np.random.default_rng(seed)
    problem = np.repeat(np.arange(problems), each)
    difficulty = rng.standard_normal(problems)
    scores = rng.standard_normal((problems * each, k)) + 0.7 * difficulty[problem, None]
    right = difficulty[problem] + effect * scores[:, 0] + rng.logistic(size=len(problem)) > 0
    return scores, right, problem


def plain_partial(x, y, controls):
    design = np.column_stack([np.ones(len(x)), controls])
    x, y = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y))
    return stats.pearsonr(x, y).statistic


def constant(n):
    return np.full((n, 1), n**-0.5)


def test_correlations_equal_scipy_and_least_squares():
    scores, right, problem = traces()
    controls = np.random.default_rng(1).standard_normal((len(right), 2)) + scores[:, :1]
    found = assoc.correlations(scores, right.astype(float), constant(len(right)), problem)
    for j, one in enumerate(found):
        assert one.interval.value == pytest.approx(stats.pointbiserialr(right, scores[:, j]).statistic, abs=1e-9)
    span = assoc.orthonormal(assoc.with_intercept(controls))
    for j, one in enumerate(assoc.correlations(scores, right.astype(float), span, problem)):
        assert one.interval.value == pytest.approx(plain_partial(scores[:, j], right * 1.0, controls), abs=1e-7)
    dummies = (problem[:, None] == np.arange(problem.max())).astype(float)
    moved = [assoc.within_problem(part, problem) for part in (scores, right.astype(float))]
    within = assoc.correlations(*moved, assoc.orthonormal(assoc.within_problem(controls, problem)), problem)
    both = np.column_stack([dummies, controls])
    for j, one in enumerate(within):
        assert one.interval.value == pytest.approx(plain_partial(scores[:, j], right * 1.0, both), abs=1e-7)


def test_the_interval_of_a_correlation_leaves_out_one_problem_at_a_time():
    scores, right, problem = traces(problems=12)
    (found,) = assoc.correlations(scores[:, :1], right.astype(float), constant(len(right)), problem)
    z = [
        np.arctanh(stats.pearsonr(scores[problem != p, 0], right[problem != p]).statistic)
        for p in range(problem.max() + 1)
    ]
    squares = (z - np.mean(z)) ** 2
    half = stats.t.ppf(0.975, freedom_of(z - np.mean(z))) * np.sqrt(11 / 12 * squares.sum())
    middle = np.arctanh(stats.pearsonr(scores[:, 0], right).statistic)
    expected = np.tanh([middle - half, middle + half])
    np.testing.assert_allclose([found.interval.low, found.interval.high], expected, atol=1e-6)


def freedom_of(deviations):
    """Twice the squared sum of squares by its variance, which the squares' own variance gives."""
    squares = deviations**2
    return min(2 * squares.sum() ** 2 / (len(squares) * squares.var()), len(squares) - 1)


def test_areas_equal_brute_force_and_delong():
    scores, right, _ = traces(problems=60, each=1)
    scores = scores.round(1)  # ties
    alone = np.arange(len(right))
    found = assoc.areas(scores, right, alone)
    for j, one in enumerate(found):
        wins = scores[right, j][:, None] - scores[~right, j][None]
        kernel = (wins > 0) + 0.5 * (wins == 0)
        area = kernel.mean()
        assert one.interval.value == pytest.approx(area, abs=1e-12)
        error = np.sqrt(kernel.mean(1).var(ddof=1) / right.sum() + kernel.mean(0).var(ddof=1) / (~right).sum())
        parts = [kernel.mean(1), kernel.mean(0)]
        variances = np.array([part.var(ddof=1) / len(part) for part in parts])
        known = variances**2 @ [1 / freedom_of(part - area) for part in parts]
        expected = stats.t.ppf(0.975, min(variances.sum() ** 2 / known, 59)) * error / (area * (1 - area))
        low, high = (np.log(x / (1 - x)) for x in (one.interval.low, one.interval.high))
        assert (high - low) / 2 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("problems", "each", "share", "area"),
    [(100, 1, 0.05, 0.5), (100, 1, 0.05, 0.7), (100, 1, 0.1, 0.9), (30, 1, 0.2, 0.7), (25, 4, 0.1, 0.7)],
)
def test_areas_and_correlations_are_covered_where_few_are_right(problems, each, share, area):
    """With all in one variance and the freedom of all problems five right ones of a hundred would have 86%. The 40
    draws of verdicts, each with 20 scores, tell a coverage to one or two points."""
    assert 0.9 < area_coverage(problems, each, share, area, draws=40) < 0.99
    assert 0.9 < correlation_coverage(problems, each, share, area, draws=40) < 0.99


def test_one_problem_with_all_the_right_ones_tells_no_interval():
    right = np.arange(30) < 3
    scores = np.random.default_rng(0).standard_normal((30, 1))
    (found,) = assoc.areas(scores, right, np.arange(30) // 3)
    assert 0 < found.interval.value < 1 and np.isnan([found.interval.low, found.interval.high, found.p]).all()


def test_areas_within_problems_equal_brute_force():
    scores, right, problem = traces(problems=30)
    scores = scores.round(1)
    found = assoc.areas_within(scores, right, problem)
    for j, one in enumerate(found):
        won = pairs = 0.0
        for p in np.unique(problem):
            mine = problem == p
            wins = scores[mine & right, j][:, None] - scores[mine & ~right, j][None]
            won, pairs = won + (wins > 0).sum() + 0.5 * (wins == 0).sum(), pairs + wins.size
        assert one.interval.value == pytest.approx(won / pairs, abs=1e-12)


def test_a_hard_problem_confounds_across_and_not_within():
    scores, right, problem = traces(problems=300)
    assert assoc.areas(scores, right, problem)[0].p < 1e-6
    assert assoc.areas_within(scores, right, problem)[0].p > 0.01


@pytest.mark.parametrize("kind", ["r", "r-within", "auc", "auc-within"])
def test_intervals_cover_and_do_not_cover_too_much(kind):
    """95% intervals over problems cover 93 to 97%; such that take traces for independent would cover 80%."""

    def measure(seed, problems):
        scores, right, problem = traces(problems=problems, k=1, effect=0.4, seed=seed)
        if kind == "r":
            return assoc.correlations(scores, right * 1.0, constant(len(right)), problem)[0].interval
        if kind == "r-within":
            moved = [assoc.within_problem(part, problem) for part in (scores, right * 1.0)]
            return assoc.correlations(*moved, np.zeros((len(right), 0)), problem)[0].interval
        area = assoc.areas if kind == "auc" else assoc.areas_within
        return area(scores, right, problem)[0].interval

    truth = measure(10**6, 100_000).value
    found = [measure(seed, 60) for seed in range(1_500)]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize(
    ("within", "problems", "shift"), [(False, 12, 3.0), (False, 40, 4.0), (True, 12, 3.0), (True, 40, 3.0)]
)
def test_areas_of_nearly_separate_verdicts_are_covered(within, problems, shift):
    """Where many samples are separated entirely, those among them: 92 to 99%. Without an interval at the edge none
    of those would be covered, a tenth to two thirds of all."""
    area = assoc.areas_within if within else assoc.areas

    def measure(seed, problems, each=4 if within else 1):
        rng = np.random.default_rng(seed)
        problem = np.repeat(np.arange(problems), each)
        right = rng.random(len(problem)) < 0.5
        scores = 0.7 * rng.standard_normal(problems)[problem] + shift * right + rng.standard_normal(len(problem))
        return area(scores[:, None], right, problem)[0].interval

    truth = measure(10**6, 60_000).value
    found = [one for seed in range(500) if not np.isnan((one := measure(seed, problems)).value)]
    assert np.mean([one.value == 1 for one in found]) > 0.1, "entirely separated"
    assert 0.92 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.99


def test_an_area_of_one_has_newcombes_interval_and_an_exact_p():
    right = np.arange(20) % 2 == 0
    up, down = assoc.areas(np.column_stack([right * 1.0, ~right * 1.0]), right, np.arange(20))
    low, shape = up.interval.low, 1 + 9 * (1 - up.interval.low) / (2 - up.interval.low)
    shape += 9 * low / (1 + low)
    assert (1 - low) == pytest.approx(1.96 * np.sqrt(low * (1 - low) * shape / 100), rel=1e-6)
    assert (down.interval.value, down.interval.low, down.interval.high) == pytest.approx((0, 0, 1 - low))
    x, y = np.arange(10) + 100.0, np.arange(10) * 1.0
    assert up.p == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue)
    problem = np.repeat(np.arange(10), 2)
    (within,) = assoc.areas_within(right[:, None] * 1.0, right, problem)
    assert 0.6 < within.interval.low < 0.75 and within.p == pytest.approx(2**-9)


def test_shuffles_stay_within_problems():
    _, right, problem = traces(problems=9)
    order = np.random.default_rng(0).permutation(len(right))
    right, problem = right[order], problem[order]
    seen = np.concatenate(list(assoc.shuffled(right, problem, 100, 0)))
    assert seen.shape == (100, len(right)) and len(np.unique(seen, axis=0)) > 50
    for p in range(9):
        assert (seen[:, problem == p].sum(axis=1) == right[problem == p].sum()).all()


def test_many_directions_are_corrected_for():
    p = np.array([0.01, np.nan, 0.02, 0.5])
    np.testing.assert_allclose(false_discovery(p)[[0, 2, 3]], stats.false_discovery_control(p[[0, 2, 3]]))
    assert np.isnan(false_discovery(p)[1])
    rng = np.random.default_rng(0)
    draws = np.abs(rng.standard_normal(4_000))
    best = np.abs(rng.standard_normal((4_000, 10))).max(axis=1)
    assert level_of_best(draws, 10) == pytest.approx(np.quantile(best, 0.95), rel=0.05)
    assert np.mean(p_against_best(best, draws, 10) < 0.05) == pytest.approx(0.05, abs=0.015)


# --- utility --------------------------------------------------------------------------------------------


def verdict_run(workspace, problems=60, each=4, effect=0.0, seed=0, k=4, **more):
    """A synthetic run with verdicts that go with direction 2 as far as `effect` says."""
    rng = np.random.default_rng(seed)
    n = problems * each
    problem = [f"problem {i // each}" for i in range(n)]
    columns = {"problem": problem, "verdict": [True, False] * (n // 2), **more}
    run = synthetic_run(workspace, n=n, k=k, columns=columns, seed=seed)
    score = run.scores()["d2"].to_numpy()
    right = effect * score / score.std() + rng.logistic(size=n) > 0
    return synthetic_run(workspace, n=n, k=k, columns={**columns, "verdict": right.tolist()}, seed=seed)


def with_activations(run, seed=0):
    """Give a synthetic run activations whose scores are its scores, so that random directions can be drawn."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    basis, scores = run.basis(), run.scores().iloc[:, 1:].to_numpy()
    noise = 0.05 * rng.standard_normal((len(scores), basis.directions.shape[1]))
    noise -= noise @ basis.directions.T @ basis.directions
    rows = (scores @ basis.directions + noise + basis.mean).astype(np.float32)
    order = rng.permutation(len(rows))
    (run.folder / "activations").mkdir(exist_ok=True)
    save_file({"activations": rows[order], "example_id": order}, run.folder / "activations" / "00000.safetensors")
    return run


def test_utility_finds_the_direction_that_goes_with_the_verdicts(tmp_path):
    run = with_activations(verdict_run(Workspace(tmp_path), effect=1.5))
    found = utility(run, UtilityRequest("verdict", problem="problem"))
    primary = found.by(found.primary)
    assert found.primary == "auc-within-controlled"
    assert primary[1].effect.low > 0.6 and primary[1].adjusted < 0.05
    assert {c.name for c in found.controls} == {
        "random directions",
        "shuffled verdicts",
        "bag of words",
        "length alone",
    }
    assert not any(effect.is_evidence for effect in primary if effect.direction != 2)


@pytest.mark.parametrize("each", [1, 4])
def test_verdicts_that_a_direction_separates_entirely_are_found(tmp_path, each):
    workspace = Workspace(tmp_path)
    run = synthetic_run(workspace, n=80, columns={"problem": [0] * 80})
    problem, score = np.arange(80) // each, run.scores()["d2"].to_numpy()
    middle = np.array([np.median(score[problem == p]) if each > 1 else np.median(score) for p in problem])
    columns = {"problem": problem.tolist(), "verdict": (score > middle).tolist()}
    run = with_activations(synthetic_run(workspace, n=80, columns=columns))
    found = utility(run, UtilityRequest("verdict", problem="problem", control=()))
    told = {effect.direction: effect for effect in found.by(found.primary)}
    assert told[2].effect.value == 1 and told[2].effect.low > 0.8
    assert told[2].is_evidence and recommend(run.id, run.k, {"a": found}).helpful == ("2+",)


def test_random_directions_are_projections_of_the_stored_activations(tmp_path):
    run = with_activations(verdict_run(Workspace(tmp_path)))
    rows = np.array([5, 3, 17])
    (found,) = random_scores(run, rows, 7, seed=3)
    units = np.random.default_rng(3).standard_normal((7, run.manifest["d"]), dtype=np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    stored = run.activations()
    by_id = dict(zip(stored.example_id.tolist(), stored.shards[0].numpy(), strict=True))
    plain = np.stack([by_id[i] for i in rows.tolist()]) - run.basis().mean
    np.testing.assert_allclose(found, plain @ units.T, atol=1e-5)


def test_kept_evidence_comes_back_as_it_was(tmp_path):
    workspace = Workspace(tmp_path)
    run = with_activations(verdict_run(workspace))
    found = utility(run, UtilityRequest("verdict", problem="problem"))
    evidence_id = workspace.save_evidence(found)
    again = workspace.evidence(run.id)
    assert list(again) == [evidence_id] == [workspace.save_evidence(found)]
    assert again[evidence_id].as_dict() == json.loads(json.dumps(found.as_dict()))
    assert all(a.name == b.name for a, b in zip(again[evidence_id].effects, found.effects, strict=True))
    (tmp_path / "usefulness" / run.id / "evidence" / "broken.json").write_text("{}")
    assert list(workspace.evidence(run.id)) == [evidence_id]
    with pytest.raises(BasiscopeError, match="damaged"):
        Evidence.from_dict({"proxy": "utility"})


@pytest.mark.parametrize(
    ("column", "options", "sentence"),
    [
        ([None] * 60, {}, "holds no verdicts"),
        (["maybe"] * 60, {}, "holds no verdicts.*maybe"),
        ([True] * 60, {}, "all 60 verdicts in column 'verdict' are right"),
        ([0] * 60, {}, "all 60 verdicts in column 'verdict' are wrong"),
        ([True, False] * 30, {"correct": "nothing"}, "has no column 'nothing'. Its columns"),
        ([True, False] * 30, {"correct": "verdict.deep"}, "has no column 'verdict.deep'"),
        ([True, False] * 30, {"controls": ("text",)}, "60 different values"),
        ([True, False] * 30, {"problem": "none"}, "--problem: run .* has no column 'none'"),
    ],
)
def test_verdicts_that_cannot_be_used_are_said(tmp_path, column, options, sentence):
    run = synthetic_run(Workspace(tmp_path), columns={"verdict": column})
    with pytest.raises(BasiscopeError, match=sentence):
        read_traces(run, **{"correct": "verdict", **options})


def test_a_run_without_a_likely_column_asks_for_one(tmp_path):
    with pytest.raises(BasiscopeError, match="name it with --correct"):
        read_traces(synthetic_run(Workspace(tmp_path)))


def test_gaps_in_verdicts_are_counted_and_nested_columns_read(tmp_path):
    nested = [json.dumps({"is_correct": [True, False, None, "dunno"][i % 4]}) for i in range(60)]
    run = synthetic_run(Workspace(tmp_path), columns={"judge": nested})
    found = read_traces(run, "judge.is_correct")
    assert found.n == 30 and found.right.sum() == 15
    assert found.left_out == {"no verdict": 15, "a verdict that is neither true nor false": 15}
    assert column_values(run, "judge.is_correct", "--correct")[1] is False


def test_a_constant_score_gives_no_number_and_the_others_theirs(tmp_path, monkeypatch):
    run = with_activations(verdict_run(Workspace(tmp_path)))
    scores = run.scores()
    scores["d3"] = np.float32(0.25)
    monkeypatch.setattr(type(run), "scores", lambda _run: scores.copy())
    found = utility(run, UtilityRequest("verdict", problem="problem"))
    for effect in found.effects:
        assert (effect.note != "") == (effect.direction == 3) == np.isnan(effect.effect.value)
    scores[["d1", "d2", "d4"]] = np.float32(0.25)
    with pytest.raises(BasiscopeError, match="the same score on all traces"):
        utility(run, UtilityRequest("verdict", problem="problem"))


def test_there_are_as_many_shuffles_as_directions_and_proxies_need():
    for k in (1, 10, 40, 60):
        assert k / (1 + permutations_for(k)) * len(PROXIES) < SIGNIFICANCE
    assert permutations_for(10) == 2_000 and permutations_for(10_000) == MOST_PERMUTATIONS


def test_directions_too_many_to_tell_a_single_one_are_said_to_be(tmp_path):
    run = with_activations(verdict_run(Workspace(tmp_path), problems=30, k=60))
    found = utility(run, UtilityRequest("verdict", problem="problem"))
    assert found.facts["permutations"] == permutations_for(60) > 2_000
    (said,) = (note for note in found.notes if "are many for" in note)
    least = 1 - (1 - 1 / 4_001) ** 60
    assert said.startswith("60 directions are many for 4,000 random directions") and f"below {least:.2g}" in said
    assert min(effect.adjusted for effect in found.by(found.primary)) >= least - 1e-12
    few = utility(
        with_activations(verdict_run(Workspace(tmp_path / "few"))), UtilityRequest("verdict", problem="problem")
    )
    assert not any("are many for" in note or "were not shuffled" in note for note in few.notes)


def test_controls_that_cannot_be_made_are_named(tmp_path):
    run = with_activations(verdict_run(Workspace(tmp_path), problems=4, each=15))
    found = utility(run, UtilityRequest("verdict", problem="problem"))
    assert not {one.name for one in found.controls} & {"shuffled verdicts", "bag of words"}
    said = " ".join(found.notes)
    assert "verdicts were not shuffled" in said and "by the t-distribution" in said
    assert "bag of words: too few problems" in said and found.facts["permutations"] == 0


def test_words_are_judged_on_problems_not_seen():
    rng = np.random.default_rng(0)
    problem = np.repeat(np.arange(50), 4)
    right = rng.random(200) < 0.5
    leaky = [f"unique{p} {'good' if r else 'bad'}" for p, r in zip(problem, right, strict=True)]
    told = bag_of_words(leaky, right, problem, 0)
    assert assoc.areas_within(told[:, None], right, problem)[0].interval.value == 1.0
    solved = rng.random(50) < 0.5
    by_problem = bag_of_words([f"word{p}" for p in problem], solved[problem], problem, 0)
    assert abs(assoc.area_under_curve(assoc.average_ranks(by_problem[:, None]), solved[problem])[0] - 0.5) < 0.2
    assert bag_of_words(["a b"] * 8, right[:8], problem[:8], 0) is None


# --- recommendation -------------------------------------------------------------------------------------


def evidence_of(proxy, effects, k):
    measure = Measure(
        "m", "a measure", "Pass@1" if proxy == "steering" else "AUC", 0.0 if proxy == "steering" else 0.5
    )
    return Evidence(proxy, "run", "m", (measure,), tuple(effects), (), {"k": k}, Cost(1.0, 1))


def test_the_recommendation_names_what_beats_its_controls():
    effects = [
        Effect(1, "+", "m", Interval(0.062, 0.021, 0.104, 40), 0.001, 0.01, 0.02),
        Effect(1, "-", "m", Interval(-0.01, -0.05, 0.03, 40), 0.6, 0.9, -0.02),
        Effect(4, "-", "m", Interval(-0.08, -0.12, -0.04, 40), 0.001, 0.01, 0.03),
        Effect(2, "+", "m", Interval(0.07, 0.03, 0.11, 40), 0.001, 0.01, -0.01),
    ]
    found = recommend("run", 4, {"a": evidence_of("steering", effects, 4)})
    assert found.sentences == (
        "4- is a failure mode (-8.0 points of Pass@1, 95% interval -12.0 to -4.0); 1+ helps (+6.2 points of "
        "Pass@1, 95% interval 2.1 to 10.4); the other (2) cannot be told from a random direction; direction 3 was "
        "not tried.",
    )
    assert found.helpful == ("1+",)
    both = [Effect(3, "±", "m", Interval(0.3, 0.25, 0.35, 40), 0.001, 0.03, 0.1)]
    alone = recommend("run", 4, {"a": evidence_of("utility", both, 4)})
    assert alone.helpful == ("3-",) and "3- goes with right answers (AUC +0.2 from chance" in alone.sentences[0]
    two = recommend("run", 4, {"a": evidence_of("utility", both, 4), "b": evidence_of("steering", [], 4)})
    assert not two.findings, "0.03 does not hold for two proxies"
    assert two.sentences[0].startswith(
        "No direction can be recommended: none of the 1 tried beats the controls of utility and steering "
        "when corrected for 2 proxies; directions 1, 2, 4 were not tried."
    )
    with pytest.raises(BasiscopeError, match="no evidence yet"):
        recommend("run", 4, {})


def test_the_recommendation_says_what_it_does_not_rest_on():
    seen = evidence_of("first-order", [Effect(1, "+", "m", Interval(0.8, 0.7, 0.9, 40), 1e-4, 1e-3, 0.2)], 2)
    looked = recommend("run", 2, {"a": seen, "b": evidence_of("utility", [], 2)})
    assert looked.sentences[1:] == (
        "By utility no direction beats the controls.",
        "Nothing has been tried on the model yet: basiscope proxies --kind steering, or sft, does that.",
    )
    doubtful = replace(seen, notes=(f"{NO_BETTER} (5.7 nats per token)",))
    assert recommend("run", 2, {"a": doubtful}).sentences[1] == (
        "Do not build on first-order: the model finds these texts less likely than a guess among all its tokens "
        "(5.7 nats per token)."
    )
    tried = recommend("run", 2, {"a": seen, "b": evidence_of("steering", [], 2)})
    assert tried.sentences[1:] == ("By steering no direction beats the controls.",)


def test_random_directions_are_hardly_ever_recommended(tmp_path):
    """200 directions that are random, verdicts that follow difficulty and length: at most 5% recommended."""
    false = 0
    for seed in range(4):
        workspace = Workspace(tmp_path / str(seed))
        rng = np.random.default_rng(seed)
        problem = np.repeat(np.arange(100), 4)
        right = rng.standard_normal(100)[problem] + rng.logistic(size=400) > 0
        columns = {"problem": problem.tolist(), "verdict": right.tolist()}
        run = with_activations(synthetic_run(workspace, n=400, k=50, columns=columns, seed=seed), seed)
        found = utility(run, UtilityRequest("verdict", problem="problem", seed=seed))
        false += len(recommend(run.id, run.k, {"a": found}).findings)
    assert false <= 10
