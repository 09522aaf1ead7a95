"""The proxies: first-order against finite differences of actual steering, steering and SFT by simulation."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_run

from core.basis import Basis
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.evaluation.overlap import overlap_notes
from core.evaluation.problems import read_problems
from core.evaluation.rollouts import UNSTEERED, Rollout, encode_problems
from core.model import load_model
from core.recovery import load_run_model
from core.selection.pool import pool_of
from core.steering.generation import Sampling
from core.steering.intervention import Directions, Steering, steered
from core.tables import evaluation_row
from core.usefulness.controls import MODELS, random_model_directions, random_units
from core.usefulness.development import Solutions, losses, written_solutions
from core.usefulness.evidence import Control, Evidence, p_outlier
from core.usefulness.first_order import (
    GAIN,
    _judged,
    by_problem,
    contrasts,
    derivatives,
    first_order,
    loss_gradients,
    random_derivatives,
    shuffled_control,
)
from core.usefulness.recommend import Finding, Recommendation
from core.usefulness.sft import Answers, SftRequest, Trained, control_selections, selections
from core.usefulness.sft import judge as judge_trained
from core.usefulness.steering import (
    Arm,
    SteeringRequest,
    judge,
    make_plan,
    model_arms,
    random_arms,
    steer_proxy,
    variant_of,
    with_random,
    with_units,
)
from core.workspace import Workspace

# --- first-order ----------------------------------------------------------------------------------------


def solutions_of(texts, first, problem=None, right=None):
    n = len(texts)
    problem = np.arange(n) if problem is None else np.asarray(problem)
    right = np.ones(n, dtype=bool) if right is None else np.asarray(right)
    return Solutions(tuple(map(tuple, texts)), tuple(first), problem, right, {})


def random_directions(model, blocks, k=3, seed=0, scale=None):
    rng = np.random.default_rng(seed)
    d = len(blocks) * model.hidden_size
    rows = np.linalg.qr(rng.standard_normal((d, k)))[0].T.astype(np.float32)
    scale = np.ones(len(blocks), np.float32) if scale is None else np.asarray(scale, np.float32)
    zeros = np.zeros(d, np.float32)
    basis = Basis(rows, zeros, np.ones(k, np.float32), scale, 1.0, 10, np.zeros(k))
    return Directions(basis, blocks)


def double(folder):
    model = load_model(folder, dtype="float32", device="cpu")
    model.module.double()
    return model


def central_difference(model, directions, solutions, direction, step, block=None):
    """Of actual steering, by the hooks that steer."""
    found = []
    for sign in (1, -1):
        blocks = None if block is None else (block,)
        with steered(model, directions, Steering(((direction, sign * step),), blocks=blocks)):
            found.append(losses(model, solutions))
    return (found[0] - found[1]) / (2 * step)


def test_the_derivative_is_that_of_actual_steering_in_float64(tmp_path):
    """Of a model that computes in float64 throughout; a Llama's norms are in float32 whatever it is loaded as."""
    from tiny import save_tiny
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    model = double(save_tiny(config, tmp_path))
    directions = random_directions(model, (0, 2), scale=(1.5, 0.5))
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 90, n).tolist() for n in (9, 30, 17, 9)]
    solutions = solutions_of(texts, (3, 11, 1, 8))
    gradients = loss_gradients(model, solutions, directions.blocks)
    np.testing.assert_allclose(gradients.losses, losses(model, solutions), rtol=1e-12)
    slopes = derivatives(directions, gradients.sums)
    for j in (1, 2, 3):
        # what is added is rounded to float32, 6e-8 of it; the step's own error is of its square
        whole = central_difference(model, directions, solutions, j, 2**-9)
        np.testing.assert_allclose(slopes[:, j - 1].sum(axis=1), whole, rtol=2e-5, atol=1e-7)
        for place, block in enumerate(directions.blocks):
            part = central_difference(model, directions, solutions, j, 2**-9, block)
            np.testing.assert_allclose(slopes[:, j - 1, place], part, rtol=2e-5, atol=1e-7)
    assert not any(block._forward_hooks for block in model.blocks)


def test_random_directions_are_derived_the_same_way(llama_folder):
    model = double(llama_folder)
    directions = random_directions(model, (0, 2), scale=(1.5, 0.5))
    sums = np.random.default_rng(1).standard_normal((4, 2, model.hidden_size))
    (units,) = random_units(3, 2 * model.hidden_size, 5)
    same = Directions(replace(directions.basis, directions=units), directions.blocks)
    np.testing.assert_allclose(
        random_derivatives(directions, sums, 3, 5), derivatives(same, sums).sum(axis=2), rtol=1e-6
    )


def test_the_derivative_on_the_real_small_model(gsm8k_run, stories, data_folder):
    """Float32 against float64 differences of the same model, on real text."""
    text = (data_folder / "text" / "tinystories_sample.txt").read_text().split("<|endoftext|>")[:6]
    run = gsm8k_run
    model = load_run_model(run, "cpu")
    ids = [model.tokenizer(story.strip())["input_ids"][:120] for story in text]
    solutions = solutions_of(ids, [len(one) // 2 for one in ids])
    directions = Directions.of(run)
    slopes = derivatives(directions, loss_gradients(model, solutions, directions.blocks).sums).sum(axis=2)
    wide = double(stories)
    for j in (1, 2, 3):
        plain = central_difference(wide, directions, solutions, j, 2**-6)
        np.testing.assert_allclose(slopes[:, j - 1], plain, rtol=2e-3, atol=2e-5)


def test_problems_and_contrasts_are_means_of_means():
    values = np.array([1.0, 3.0, 10.0, 20.0, 7.0])
    solutions = solutions_of([[1]] * 5, [0] * 5, [0, 0, 1, 1, 2], [True, False, True, True, False])
    np.testing.assert_allclose(by_problem(values, solutions), [2.0, 15.0, 7.0])
    np.testing.assert_allclose(contrasts(values, solutions), [3.0 - 1.0])


def test_shuffled_verdicts_are_the_best_over_all_ways_to_exchange_right_and_wrong():
    values = np.random.default_rng(0).normal([0, 0, 0.5, 0], 1, (10, 4))
    ways = np.array(list(product([1, -1], repeat=10)))
    best = np.abs(ways @ values / 10).max(axis=1)
    control = shuffled_control(values, 0)
    assert control.level.value == pytest.approx(np.quantile(best, 0.95), rel=0.03)
    assert control.level.value > np.quantile(np.abs(ways @ values[:, 0] / 10), 0.95), "not that of one direction"


def test_where_verdicts_mean_nothing_few_contrasts_exceed_shuffled_ones():
    rng = np.random.default_rng(0)
    found = [rng.standard_normal((40, 5)) * [1, 1, 1, 2, 5] for _ in range(200)]
    beyond = [np.abs(one.mean(axis=0)).max() > shuffled_control(one, 0).level.value for one in found]
    assert 0.02 <= np.mean(beyond) <= 0.08


def test_first_order_of_a_run_against_its_problems(gsm8k_run, gsm8k):
    model = load_run_model(gsm8k_run, "cpu")
    development = read_problems(gsm8k, "question", "answer", limit=12)
    rows = [json.loads(line) for line in Path(gsm8k).read_text().splitlines()[:12]]
    written = {i: row["answer"] for i, row in enumerate(rows)}
    solutions = written_solutions(model, development.problems, written, "bare")
    fewer = {i: text for i, text in written.items() if i not in (3, 5)}
    left_out = written_solutions(model, development.problems, fewer, "bare").left_out
    assert left_out["the problem has no worked solution"] == 2
    assert "the problem has no worked solution" not in solutions.left_out
    kept = next(
        i for i in range(12) if len(model.tokenizer(rows[i]["question"])["input_ids"]) == solutions.first[0] - 1
    )
    text = model.tokenizer.decode(solutions.ids[0])
    assert rows[kept]["answer"][:40] in text
    notes = overlap_notes(gsm8k_run, [problem.prompt for problem in development.problems])
    assert notes and notes[0].startswith("12 of the 12 development problems")
    assert overlap_notes(gsm8k_run, ["Who sells seven zebras to the moon on a Monday in June then?", ""]) == []
    found = first_order(gsm8k_run, model, solutions, {"x": 1}, notes)
    assert found.primary == "gain" and len(found.by("gain")) == 3 and notes[0] in found.notes
    for effect in found.by("gain"):
        assert effect.effect.value == pytest.approx(sum(effect.blocks), rel=1e-6)
        assert effect.effect.low < effect.effect.value < effect.effect.high
    assert Evidence.from_dict(json.loads(json.dumps(found.as_dict()))).by("gain") == found.by("gain")


def test_one_problem_is_no_evidence(tmp_path):
    """It has no p-value, so nothing is told, and the recommendation can be kept."""
    found = _judged(GAIN, np.full((1, 3, 2), 5.0), np.full((1, 500), 0.1), [GAIN_LEVEL])
    assert all(math.isnan(effect.p) and math.isnan(effect.adjusted) for effect in found)
    assert not any(effect.is_evidence for effect in found)
    many = _judged(
        GAIN, 5 + np.random.default_rng(0).normal(0, 0.1, (9, 3, 2)), np.full((9, 500), 0.1), [GAIN_LEVEL]
    )
    assert all(effect.is_evidence for effect in many)
    nothing = Interval(5.0, math.nan, math.nan, 1)
    said = Recommendation("r", 1, (Finding(1, "+", "first-order", "gain", True, nothing, math.nan),), (), {})
    workspace = Workspace(tmp_path)
    workspace.save_recommendation(said)
    assert said.as_dict()["findings"][0]["effect"]["low"] is None and said.as_dict()["helpful"] == ["1+"]


GAIN_LEVEL = Control("random directions", "gain", Interval(0.2, math.nan, math.nan, 50), "")


# --- steering -------------------------------------------------------------------------------------------


def test_a_plan_spends_the_cost_and_halves_the_arms():
    plan = make_plan(arms=20, random=8, r=4, problems=1_000, rate=10.0, seconds=1_800.0)
    assert plan.arms == (20, 10, 5) and 0.9 * 1_800 <= plan.seconds <= 1_800
    rows = [n * (arms + 9) for n, arms in zip(plan.problems, plan.arms, strict=True)]
    assert max(rows) - min(rows) <= 29, "every round costs the same"
    assert sum(make_plan(20, 8, 4, 30, 10.0, 1e6).problems) <= 30
    with pytest.raises(BasiscopeError, match=r"--cost: the 10 s left .* at 1 rollouts a second, .* Give about"):
        make_plan(20, 8, 4, 30, 1.0, 10.0)


def test_random_arms_have_the_norms_of_the_others(tmp_path):
    run = synthetic_run(Workspace(tmp_path))
    arms = [Arm("1+", 1, 1.0), Arm("1-", 1, -1.0), Arm("2+", 2, 3.0), Arm("2-", 2, -3.0)]
    found = random_arms(arms, 6, run.k)
    assert [arm.direction for arm in found] == [5, 6, 7, 8, 9, 10] and all(arm.is_random for arm in found)
    assert {arm.polarity for arm in found} == {"+", "-"}
    assert {abs(arm.strength) for arm in found} >= {1.0, 3.0}
    wide = with_random(Directions.of(run), 6, 0)
    assert wide.basis.k == 10
    np.testing.assert_allclose(np.linalg.norm(wide.basis.directions, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(wide.basis.directions[:4], run.basis().directions)


def simulated(arms, helps, problems=40, r=4, seed=0, odds=0.0):
    """Rollouts of arms, of which those in `helps` change the log-odds of being right by so much."""
    rng = np.random.default_rng(seed)
    difficulty = odds + rng.standard_normal(problems)
    found = {}
    for name in (UNSTEERED, *arms):
        odds = difficulty + helps.get(name, 0.0)
        right = rng.random((problems, r)) < 1 / (1 + np.exp(-odds[:, None]))
        found[name] = [
            Rollout(name, p, i, "", bool(right[p, i]), False, 1) for p in range(problems) for i in range(r)
        ]
    return found


ARMS = [Arm(f"{j}{sign}", j, 1.0 if sign == "+" else -1.0) for j in range(1, 6) for sign in "+-"]
CHANCE = [Arm(f"random {i}", 5 + i, 1.0, True) for i in range(1, 9)]


def test_an_arm_that_helps_is_told_from_random_directions():
    names = [arm.name for arm in (*ARMS, *CHANCE)]
    effects, (control,) = judge(simulated(names, {"2+": 3.0, "4-": -3.0}), ARMS, CHANCE, {"5-": 1}, 1, "pass@1")
    told = {effect.name: effect for effect in effects if effect.is_evidence}
    assert told["2+"].effect.low > 0 > told["4-"].effect.high and len(told) == 2
    assert math.isnan(next(one for one in effects if one.name == "5-").adjusted)
    assert control.level.n == 8


def test_what_directions_of_a_random_model_reach_is_no_evidence():
    models = model_arms(ARMS, ("random-model", "random-blocks"), 13)
    assert [arm.direction for arm in models] == list(range(14, 22))
    assert [arm.name for arm in models][3:5] == ["random model 4", "random blocks 1"]
    assert all(arm.is_random for arm in models)
    chance = [*CHANCE, *models]
    names, helps = [arm.name for arm in (*ARMS, *chance)], {"2+": 3.0, "4-": -1.5, "random blocks 2": 2.0}
    effects, controls = judge(simulated(names, helps, problems=80), ARMS, chance, {}, 1, "pass@1")
    assert [(one.name, one.level.n) for one in controls] == [
        ("random directions", 8),
        ("random model", 4),
        ("random blocks", 4),
    ]
    assert {effect.name for effect in effects if effect.is_evidence} == {"2+"}
    alone, _ = judge(simulated(names, helps, problems=80), ARMS, CHANCE, {}, 1, "pass@1")
    assert {effect.name for effect in alone if effect.is_evidence} == {"2+", "4-"}


def test_directions_of_random_models_are_unit_rows_of_another_basis(gsm8k_run, stories):
    model, found = load_run_model(gsm8k_run, "cpu"), {}
    for kind in MODELS:
        made = random_model_directions(gsm8k_run, model, kind, 4, 0)
        assert made.texts == 60 and made.tokens == gsm8k_run.windows().lengths.sum()
        found[kind] = made.units
        part = random_model_directions(gsm8k_run, model, kind, 4, 0, goes_on=lambda: False)
        assert part.texts == 32 and part.tokens < made.tokens
        np.testing.assert_allclose(found[kind] @ found[kind].T, np.eye(4), atol=1e-4)
    own = gsm8k_run.basis().directions
    assert all(np.abs(own @ units.T).max() < 0.9 for units in found.values())
    assert np.abs(found["random-model"] - found["random-blocks"]).max() > 0.01
    wide = with_units(Directions.of(gsm8k_run), found["random-model"])
    np.testing.assert_array_equal(wide.basis.directions[-4:], found["random-model"])


def test_where_all_directions_are_random_few_are_told():
    """20 experiments of 10 arms, 200 directions in all: false findings in at most 5% of the experiments, with the
    arms halved by what they showed on the first half of the problems."""
    names = [arm.name for arm in (*ARMS, *CHANCE)]
    false = 0
    for seed in range(20):
        rollouts = simulated(names, {}, problems=20, seed=seed)
        early = {name: np.mean([one.right for one in rollouts[name] if one.problem_id < 10]) for name in names}
        base = np.mean([one.right for one in rollouts[UNSTEERED] if one.problem_id < 10])
        order = sorted(ARMS, key=lambda arm: -abs(early[arm.name] - base))
        dropped = {arm.name: 1 for arm in order[5:]}
        effects, _ = judge(rollouts, ARMS, CHANCE, dropped, 1, "pass@1", seed)
        false += any(effect.is_evidence for effect in effects)
    assert false <= 1


@pytest.mark.parametrize("odds", [-30.0, -7.0, -5.0, -4.0])
def test_where_hardly_anything_is_solved_little_is_told(odds):
    """40 experiments of 10 arms in which 0, 0.1, 1 or 3% of the texts are right, so that often no random direction
    changes anything: false findings in at most 5%."""
    names = [arm.name for arm in (*ARMS, *CHANCE)]
    false = alike = 0
    for seed in range(40):
        rollouts = simulated(names, {}, problems=12, seed=seed, odds=odds)
        effects, (control,) = judge(rollouts, ARMS, CHANCE, {}, 1, "pass@1", seed)
        false += any(effect.is_evidence for effect in effects)
        alike += control.level.low == control.level.high
    assert false <= 2 and (alike == 40 or odds > -30)


def test_where_random_directions_do_nothing_what_helps_is_told():
    """All of them leave all wrong, so there is no spread to hold an end against."""
    names = [arm.name for arm in (*ARMS, *CHANCE)]
    rollouts = simulated(names, {"2+": 30.0}, odds=-30.0)
    effects, (control,) = judge(rollouts, ARMS, CHANCE, {}, 1, "pass@1")
    assert {effect.name for effect in effects if effect.is_evidence} == {"2+"}
    assert "they do not differ, so p-values over problems decide" in control.detail


def test_p_values_of_outliers_are_uniform_where_there_is_none():
    rng = np.random.default_rng(0)
    p = np.array([p_outlier(draws[:1], draws[1:])[0] for draws in rng.standard_normal((4_000, 9))])
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.012)
    assert np.isnan(p_outlier(np.ones(1), np.zeros(4))).all()


def test_the_proxy_on_a_real_run_is_kept_and_continues(gsm8k_copy, gsm8k):
    """The small model solves nothing of it: the result says so, and repeats itself from what is kept."""
    run = gsm8k_copy.run()
    model = load_run_model(run, "cpu")
    problems = read_problems(gsm8k, "question", "answer", limit=6)
    request = SteeringRequest(
        problems, "numeric", (1,), (1.0,), 400.0, 1, 3, Sampling(4, temperature=1.0), wording="bare"
    )
    found = steer_proxy(run, model, request, gsm8k_copy)
    kept = gsm8k_copy.evaluation(found.parts["evaluation"])
    assert kept.is_complete and {one.name for one in found.effects} == {"1+", "1-"}
    assert not any(effect.is_evidence for effect in found.effects)
    rollouts = len(kept.rollouts())
    again = steer_proxy(run, model, request, gsm8k_copy)
    assert len(kept.rollouts()) == rollouts
    assert [e.effect for e in again.effects] == [e.effect for e in found.effects]
    assert any("reached the token limit" in note for note in found.notes)
    assert any("also among the run's examples" in note for note in found.notes)
    with pytest.raises(BasiscopeError, match="too few to compare"):
        steer_proxy(run, model, replace(request, seconds=0.01), gsm8k_copy)


# --- sft ------------------------------------------------------------------------------------------------


def test_selections_are_of_as_many_tokens(tmp_path):
    run = synthetic_run(Workspace(tmp_path), n=80)
    found = selections(pool_of(run), SftRequest((1, 3), examples=10, random=4))
    assert set(found) == {"1+", "1-", "3+", "3-", "random 1", "random 2", "random 3", "random 4"}
    scores = run.scores()["d3"].to_numpy()
    assert set(found["3-"]) == set(np.argsort(scores)[:10])
    assert len({tuple(rows) for rows in found.values()}) == 8
    tokens = {name: pool_of(run).lengths[rows].sum() for name, rows in found.items()}
    assert max(tokens.values()) - min(tokens.values()) <= 13


def test_trainings_are_judged_against_random_selections():
    rng = np.random.default_rng(0)
    base = rng.normal(2, 0.3, 30)

    def one(name, seed, shift):
        loss = base + shift + rng.normal(0, 0.005, 30) + rng.normal(0, 0.004)
        return Trained(name, seed, {"loss": -loss}, 10)

    chance = [one(f"random {i}", s, -0.1) for i in range(8) for s in range(2)]
    arms = [one("1+", s, -0.2) for s in range(2)] + [one("1-", s, -0.1) for s in range(2)]
    effects, (control,) = judge_trained([*arms, *chance], {"loss": -base})
    told = {effect.name: effect for effect in effects}
    assert told["1+"].is_evidence and told["1+"].effect.low < 0.1 < told["1+"].effect.high
    assert not told["1-"].is_evidence
    said, by = control.detail.rsplit(" ", 1)
    assert said.endswith("training alone changes it by") and float(by) == pytest.approx(0.1, abs=0.005)


def test_a_training_has_to_beat_what_is_chosen_by_length_or_words():
    """On the side of 0 that it lies on: that the shortest texts harm explains nothing that helps."""
    base = np.random.default_rng(0).normal(2, 0.3, 30)

    def gained(shifts):
        rng = np.random.default_rng(1)
        names = {f"random {i + 1}": -0.1 for i in range(8)} | {"1+": -0.2, "1-": -0.1} | shifts
        made = [
            Trained(name, seed, {"loss": -(base + shift + rng.normal(0, 0.005, 30) + rng.normal(0, 0.003))}, 1)
            for name, shift in names.items()
            for seed in range(2)
        ]
        effects, controls = judge_trained(made, {"loss": -base})
        return effects[0], {one.name: one for one in controls}

    first, controls = gained({"length alone +": -0.2, "length alone -": 0.2, "random direction 1": -0.1})
    assert not first.is_evidence and first.gap < 0
    assert set(controls) == {"random selections", "random directions", "length alone +", "length alone -"}
    assert controls["length alone -"].level.value == pytest.approx(-0.3, abs=0.01)
    assert "the shortest" in controls["length alone -"].detail
    assert gained({"length alone +": -0.1, "length alone -": 0.2})[0].is_evidence
    assert not gained({f"random direction {i + 1}": shift for i, shift in enumerate((-0.1, -0.2))})[0].is_evidence


def test_control_selections_have_as_many_tokens_and_the_ends_that_they_say(gsm8k_run, stories):
    pool, model = pool_of(gsm8k_run), load_run_model(gsm8k_run, "cpu")
    request = SftRequest((1, 2), examples=6, random=3, seeds=2, models=("random-blocks",))
    found = control_selections(gsm8k_run, model, pool, request)
    ends = ("length alone", "bag of words", "random blocks")
    directions = [f"random direction {i}" for i in range(1, 5)]
    assert set(found) == {f"{name} {end}" for name in ends for end in "+-"} | set(directions)
    assert request.trainings == 2 * (len(found) + len(selections(pool, request)))
    tokens = [int(pool.lengths[rows].sum()) for rows in found.values()]
    assert max(tokens) <= round(6 * pool.lengths.mean()) and min(tokens) > 0.9 * max(tokens)
    longest, shortest = (pool.lengths[found[f"length alone {end}"]] for end in "+-")
    assert longest.mean() > shortest.mean() and longest[0] == pool.lengths.max()
    assert shortest[0] == pool.lengths.min()
    words = [set(found[f"bag of words {end}"].tolist()) for end in "+-"]
    assert len(words[0] & words[1]) < min(map(len, words)) / 2
    with pytest.raises(BasiscopeError, match="'nonsense' is not one of random-model"):
        SftRequest((1,), models=("nonsense",))


def test_a_short_training_leaves_the_model_as_it_was(gsm8k_run, gsm8k, tmp_path):
    pytest.importorskip("trl")
    from core.usefulness.sft import train_proxy

    model = load_run_model(gsm8k_run, "cpu")
    rows = [json.loads(line) for line in Path(gsm8k).read_text().splitlines()[:4]]
    problems = read_problems(gsm8k, "question", "answer", limit=4).problems
    solutions = written_solutions(model, problems, {i: row["answer"] for i, row in enumerate(rows)}, "bare")
    before = losses(model, solutions)
    asked = {"problems": {"path": gsm8k}}
    request = SftRequest((1,), examples=2, random=3, seeds=2, rate=1e-2, asked=asked)
    prompts = encode_problems(model, problems, "bare", "plain", 5)
    left_out = {"the verifier cannot verify their answers": 3}
    answers = Answers(problems, prompts, "numeric", 2, Sampling(5, temperature=1.0), left_out)
    space = Workspace(tmp_path)
    found = train_proxy(gsm8k_run, model, solutions, request, answers, workspace=space)
    np.testing.assert_array_equal(losses(model, solutions), before)
    after = [one["loss"] for one in found.facts["trainings"]]
    assert len(after) == 2 * (5 + 8) and len(set(after)) > 16 and found.facts["before"]["loss"] not in after
    assert [one.measure for one in found.effects if one.name == "1+"] == ["loss", "pass@1"]
    assert all(one.effect.n == 4 for one in found.by("pass@1")) and found.cost.tokens > 0
    assert "Pass@1: 3 problems left out: the verifier cannot verify their answers" in found.notes
    assert f"Pass@1: {8 * 27} of {8 * 27} texts reached the token limit" in found.notes
    (effect,) = (one for one in found.by("pass@1") if one.name == "1+")
    kept = space.evaluation(found.parts["evaluation"])
    texts = {one.key: one.text for one in kept.rollouts()}
    assert set(texts) == {(name, p, i) for name in (UNSTEERED, "1+", "1-") for p in range(4) for i in range(4)}
    assert variant_of(found, effect) == "1+" and kept.problems()[2].prompt == problems[2].prompt
    assert all(texts[UNSTEERED, p, i] == texts[UNSTEERED, p, i + 2] for p in range(4) for i in range(2))
    assert any(texts["1+", p, i] != texts[UNSTEERED, p, i] for p in range(4) for i in range(4))
    assert evaluation_row(kept, False)["status"] == "complete"
