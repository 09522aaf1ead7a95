"""The proxy SFT, its selections and its verdicts by simulation; what the recommendation says of all proxies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic import synthetic_run

from core.errors import BasiscopeError
from core.evaluation import Interval
from core.evaluation.rollouts import UNSTEERED, Rollout
from core.selection.pool import pool_of
from core.usefulness.evidence import CONSTANT, Control, Cost, Effect, Evidence, Measure
from core.usefulness.first_order import CONTRAST, GAIN
from core.usefulness.recommend import recommend
from core.usefulness.sft import SLACK, SftRequest, Trained, fill, judge, selections
from core.usefulness.steering import Arm
from core.usefulness.steering import judge as judge_steering
from core.usefulness.table import all_proxies
from core.workspace import Workspace

RANDOM, SEEDS, DIRECTIONS, PROBLEMS = 8, 2, 10, 60


@pytest.fixture
def pool(tmp_path):
    """Lengths from 3 tokens to thousands that follow direction 1, as those of real runs may."""
    pool = pool_of(synthetic_run(Workspace(tmp_path), n=400, k=3))
    lengths = np.exp(4 + 1.2 * pool.whitened[:, 0] + np.random.default_rng(0).normal(0, 0.3, pool.n)).astype(int)
    return replace(pool, facts=pool.facts.assign(n_tokens=np.maximum(lengths, 3)))


@pytest.mark.parametrize("examples", [2, 8, 64, 200])
def test_every_selection_has_as_many_tokens(pool, examples):
    found = selections(pool, SftRequest((1, 2, 3), examples))
    tokens = {name: int(pool.lengths[rows].sum()) for name, rows in found.items()}
    budget = round(examples * pool.lengths.mean())
    assert len(found) == 6 + 8
    assert all((1 - SLACK) * budget - 3 < count <= budget for count in tokens.values()), (budget, tokens)
    assert all(len(set(rows.tolist())) == len(rows) for rows in found.values())


def test_a_selection_along_a_direction_is_of_its_end(pool):
    found = selections(pool, SftRequest((2,), 20))
    scores = pool.scores[:, 1]
    order = np.argsort(-scores, kind="stable")
    reached = order[: order.tolist().index(found["2+"][0]) + 1]
    assert len(reached) == 1, "the most extreme example comes first"
    assert scores[found["2+"]].mean() > np.quantile(scores, 0.8)
    assert scores[found["2-"]].mean() < np.quantile(scores, 0.2)


def test_what_does_not_fit_is_passed_over():
    lengths = np.array([50, 4, 9, 3, 2, 1])
    assert fill(np.arange(6), lengths, 12).tolist() == [1, 3, 4, 5]
    assert fill(np.arange(6), lengths, 54).tolist() == [0, 1]
    assert fill(np.arange(6)[::-1], lengths, 1).tolist() == [5]


def test_a_single_example_is_enough_and_all_of_them_are_too_many(pool):
    assert all(len(rows) for rows in selections(pool, SftRequest((1, 2), examples=1)).values())
    with pytest.raises(BasiscopeError, match=r"where run \w+ has 400. Lower --examples"):
        selections(pool, SftRequest((1,), examples=400))
    with pytest.raises(BasiscopeError, match="directions 1 to 3"):
        selections(pool, SftRequest((4,)))


def simulated(rng, seed_effect, helps=0.0):
    """Trainings on selections that all are as good but `1+`; a seed moves all that are trained with it alike."""
    base, common = rng.normal(2, 0.3, PROBLEMS), rng.normal(0, seed_effect, SEEDS)
    names = [f"{j}{end}" for j in range(1, DIRECTIONS + 1) for end in "+-"]
    made = []
    for name in [*names, *(f"random {i + 1}" for i in range(RANDOM))]:
        shift = rng.normal(0, 0.004) - 0.1 - (helps if name == "1+" else 0.0)
        for seed in range(SEEDS):
            noise = rng.normal(0, 0.002) + rng.normal(0, 0.005, PROBLEMS)
            made.append(Trained(name, seed, {"loss": -(base + shift + common[seed] + noise)}, 1))
    return judge(made, {"loss": -base})[0]


@pytest.mark.parametrize("seed_effect", [0.0, 0.008, 0.05])
def test_nothing_is_found_where_nothing_helps_whatever_a_seed_does(seed_effect):
    """Of 300 experiments with 20 arms at most 5% find anything; intervals cover 0 in about 95%."""
    rng = np.random.default_rng(0)
    found = [simulated(rng, seed_effect) for _ in range(300)]
    assert np.mean([any(effect.is_evidence for effect in effects) for effects in found]) <= 0.05 + 0.025
    covered = [effect.effect.low <= 0 <= effect.effect.high for effects in found for effect in effects]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_what_helps_is_found_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(1)
    told = [simulated(rng, 0.008, helps=0.04)[0] for _ in range(100)]
    assert np.mean([effect.is_evidence for effect in told]) > 0.8
    assert 0.9 <= np.mean([effect.effect.low <= 0.04 <= effect.effect.high for effect in told]) <= 0.99


# --- recommendation -------------------------------------------------------------------------------------

POINTS = Measure("pass@1", "change of Pass@1", "Pass@1")
AREA = Measure("auc", "area under the curve", "AUC", 0.5)


def evidence_of(proxy, measures, *effects):
    return Evidence(proxy, "run", measures[-1].name, measures, effects, (), {}, Cost(1.0, 1))


def effect(name, measure, value, told=True):
    interval = Interval(value, value - 0.01, value + 0.01, 50)
    numbers = (0.0001, 0.001, 0.01) if told else (0.5, 0.9, -0.1)
    return Effect(int(name[:-1]), name[-1], measure.name, interval, *numbers)


def test_directions_that_were_never_tried_are_not_called_random():
    steering = evidence_of("steering", (POINTS,), effect("1+", POINTS, 0.1), effect("3-", POINTS, 0.0, told=False))
    (said,) = recommend("run", 4, {"a": steering}).sentences
    assert "; the other (3) cannot be told from a random direction; directions 2, 4 were not tried." in said
    (nothing,) = recommend("run", 4, {"a": evidence_of("steering", (POINTS,), steering.effects[1])}).sentences
    assert "none of the 1 tried beats the controls of steering; directions 1, 2, 4 were not tried. What" in nothing
    both = {
        "a": steering,
        "b": evidence_of("utility", (AREA,), *(effect(f"{j}±", AREA, 0.5, False) for j in (2, 4))),
    }
    said, silent = recommend("run", 4, both).sentences
    assert silent == "By utility no direction beats the controls."
    assert said.endswith("the others (2, 3, 4) cannot be told from a random direction.")


def test_directions_that_halving_dropped_are_said_to_be():
    """By the verdict that steering itself gives on an arm it has dropped."""
    arms = [Arm("1+", 1, 1.0), Arm("2+", 2, 1.0), Arm("3+", 3, 1.0)]
    chance = [Arm(f"random {i}", 3 + i, 1.0, is_random=True) for i in (1, 2, 3)]
    rng = np.random.default_rng(0)
    share = {UNSTEERED: 0.5, "1+": 1.0, "2+": 0.5, "3+": 0.5} | {arm.name: 0.5 for arm in chance}
    rollouts = {
        name: [Rollout(name, p, 0, "", bool(rng.random() < right), False, 1) for p in range(200)]
        for name, right in share.items()
    }
    effects, controls = judge_steering(rollouts, arms, chance, {"3+": 1}, 1, "pass@1")
    steering = replace(evidence_of("steering", (POINTS,), *effects), controls=tuple(controls))
    (said,) = recommend("run", 3, {"a": steering}).sentences
    assert said.startswith("1+ helps") and "the other (2) cannot be told" in said
    assert said.endswith("; direction 3 was dropped early, before there was enough evidence.")


def test_the_contrast_is_not_called_a_lower_loss():
    """The loss on right solutions rises along 1+, that on wrong ones by more."""
    effects = (effect("1±", GAIN, -0.02), effect("1±", CONTRAST, 0.02))
    said, _ = recommend("run", 1, {"a": evidence_of("first-order", (GAIN, CONTRAST), *effects)}).sentences
    assert said.startswith("1+ favours right solutions over wrong ones (+0.02 nats per token")
    assert "lower the loss" not in said
    said, _ = recommend("run", 1, {"a": evidence_of("first-order", (GAIN,), effects[0])}).sentences
    assert said.startswith("1- would lower the loss on right solutions")


def test_proxies_that_contradict_each_other_recommend_nothing():
    utility = evidence_of("utility", (AREA,), effect("1±", AREA, 0.7), effect("2±", AREA, 0.7))
    opposite = evidence_of("steering", (POINTS,), effect("1-", POINTS, 0.1), effect("2-", POINTS, -0.1))
    found = recommend("run", 2, {"a": utility, "b": opposite})
    assert {one.name for one in found.findings if one.helps} == {"1+", "1-", "2+"}
    assert found.helpful == ("2+",), "what harms at its other end agrees"
    assert found.sentences[1:] == ("On direction 1 steering and utility disagree: 1- and 1+ are not recommended.",)
    same = evidence_of("steering", (POINTS,), effect("1+", POINTS, -0.1))
    found = recommend("run", 2, {"a": utility, "b": same})
    assert found.helpful == ("2+",)
    assert found.sentences[1] == "On direction 1 steering and utility disagree: 1+ is not recommended."
    alone = evidence_of("sft", (POINTS,), effect("1+", POINTS, 0.1), effect("1-", POINTS, 0.1))
    assert recommend("run", 2, {"a": alone}).helpful == ("1+", "1-"), "either end may be good to train on"


def test_what_only_the_number_of_proxies_undoes_is_said_so():
    """Its proxy's table has a star."""
    almost = replace(effect("2±", AREA, 0.7), adjusted=0.03)
    utility = evidence_of("utility", (AREA,), almost, *(effect(f"{j}±", AREA, 0.5, False) for j in (1, 3)))
    steering = evidence_of("steering", (POINTS,), effect("1+", POINTS, 0.1), effect("3+", POINTS, 0.0, False))
    assert all_proxies(3, [utility])["utility"].str.rpartition("*")[2].tolist()[2:4] == [" helps", " harms"]
    lapsed = "By utility 2+ beats the controls, but no longer when corrected for 2 proxies."
    found = recommend("run", 3, {"a": utility, "b": steering})
    assert found.helpful == ("1+",) and lapsed in found.sentences
    assert "the other (3) cannot be told" in found.sentences[0]
    assert "By utility no direction beats" not in " ".join(found.sentences)
    nothing = replace(steering, effects=(effect("1+", POINTS, 0.0, False),))
    said = recommend("run", 3, {"a": utility, "b": nothing}).sentences
    assert said == (
        "No direction can be recommended: none of 3 beats the controls of utility and steering when corrected for "
        "2 proxies.",
        lapsed,
        "By steering no direction beats the controls.",
    )
    assert recommend("run", 3, {"a": utility}).helpful == ("2+",)


def test_where_nothing_is_found_it_is_said_that_nothing_was_tried_on_the_model():
    utility = evidence_of("utility", (AREA,), effect("1±", AREA, 0.5, False))
    said = recommend("run", 1, {"a": utility}).sentences
    assert (
        said[0].startswith("No direction can be recommended") and "Nothing has been tried on the model" in said[1]
    )
    acted = evidence_of("sft", (POINTS,), effect("1+", POINTS, 0.0, False))
    assert len(recommend("run", 1, {"a": utility, "b": acted}).sentences) == 1


def test_a_direction_that_tells_nothing_apart_was_not_left_untried():
    nothing = Effect(2, "±", AREA.name, Interval(math.nan, math.nan, math.nan, 50), note=CONSTANT)
    utility = evidence_of("utility", (AREA,), effect("1±", AREA, 0.7), nothing)
    said = recommend("run", 2, {"a": utility}).sentences[0]
    assert said.endswith("; direction 2 was the same on all examples.") and "not tried" not in said
    steering = evidence_of("steering", (POINTS,), effect("2+", POINTS, 0.0, False))
    assert "the other (2) cannot be told" in recommend("run", 2, {"a": utility, "b": steering}).sentences[0]


def test_all_proxies_say_what_their_controls_reach_and_what_they_cost():
    levels = {"random directions": 0.6, "bag of words": 0.66}
    controls = tuple(
        Control(name, AREA.name, Interval(value, math.nan, math.nan, 9), "") for name, value in levels.items()
    )
    utility = replace(evidence_of("utility", (AREA,), effect("1±", AREA, 0.7)), controls=controls)
    utility = replace(utility, cost=Cost(2.5, 4_000))
    harm = (Control("length alone -", POINTS.name, Interval(-0.3, -0.4, -0.2, 9), ""),)
    sft = replace(evidence_of("sft", (POINTS,), effect("1+", POINTS, 0.1)), controls=harm)
    shown = all_proxies(1, [utility, sft]).set_index("direction")
    assert shown.loc["controls reach"].tolist() == ["0.66 by bag of words", "-30.0 by length alone -"]
    assert shown.loc["cost"].tolist() == ["2.5 s, 4,000 tokens", "1.0 s, 1 tokens"]
    assert list(shown.index) == ["1+", "1-", "controls reach", "cost"]
