import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from core.demo import world
from core.demo.card import Share
from core.demo.report import text, tuning
from core.demo.report.factors import UNCHECKED, carried
from core.demo.report.measures import POOLINGS, ROLLOUTS, SCALES, SteeredPass, SteeredShare
from core.demo.report.proxies import Foretold
from core.demo.report.text import Trainings, training_parts, write_report
from core.demo.report.tuning import HUMAN, RIGHT, TRUTH, USEFUL, Tuned
from core.evaluation import Interval
from core.evaluation.passk import Tally, paired_difference, pass_at_intervals
from core.evaluation.rollouts import Rollout
from core.usefulness.evidence import Cost, Effect, Evidence, Measure

N, K = 400, 10
SURE = Interval(0.02, 0.01, 0.03, 100)


@pytest.fixture(autouse=True)
def problems(monkeypatch):
    monkeypatch.setattr(tuning, "PROBLEMS", N)
    tuning.problems.cache_clear()
    yield
    tuning.problems.cache_clear()


def arm(name, share, loss, seeds=3):
    rng = np.random.default_rng(len(name))
    easy = np.random.default_rng(0).random(N)
    return [
        Tuned(
            name,
            seed,
            tuple((easy + 0.05 * rng.standard_normal(N) < share).tolist()),
            tuple(loss + 0.01 * easy + 1e-4 * rng.standard_normal(N)),
            1e-4,
            correct=0.7,
            rare=0.2,
            check=0.5,
            tokens=200.0,
            checked=tuple((easy < 0.5).tolist()),
            seconds=60.0,
        )
        for seed in range(seeds)
    ]


def trainings(useful=0.6, right=0.6):
    shares = {
        "not tuned": 0.5,
        "random": 0.5,
        USEFUL: useful,
        RIGHT: right,
        "coverage": 0.4,
        HUMAN: 0.5,
        TRUTH: 0.65,
    }
    arms = {
        name: arm(name, share, 0.06 - 0.01 * share, seeds=1 if name == "not tuned" else 3)
        for name, share in shares.items()
    }
    effects = tuple(Effect(j, sign, "loss", SURE, 0.001, 0.001, 0.001) for j in range(1, K + 1) for sign in "+-")
    measures = (Measure("loss", "Loss", "nats"),)
    evidence = Evidence("sft", "run", "loss", measures, effects, (), {}, Cost(60.0, 1_000), ("36 trainings",))
    directions = [arm(f"{j}{sign}", 0.5, 0.05, 1)[0] for j in range(1, K + 1) for sign in "+-"]
    chosen = {USEFUL: "3+", RIGHT: "3+,7-"}
    ranked = [Foretold("sft", Interval(0.5, -0.1, 0.8, K), 60.0)]
    rates = [Tuned(TRUTH, 0, (), (loss,), rate) for rate, loss in ((0.0, 0.06), (1e-4, 0.059))]
    larger = {name: arm(name, share, 0.07) for name, share in (("random", 0.45), (RIGHT, 0.65))}
    reason = "what the proxies recommend"
    return Trainings(chosen, reason, 1e-4, rates, arms, larger, directions, [evidence], ranked)


def verdict(by, **shares):
    return text._verdict(trainings(**shares).arms, by)


def test_what_a_rule_is_worth_is_said_as_the_trainings_tell_it():
    said = verdict("right")
    assert f"Better than random: {USEFUL}, {RIGHT}, {TRUTH}." in said and "Worse than random: coverage." in said
    assert f"Better than {HUMAN}: {USEFUL}, {RIGHT}." in said
    equal = verdict("right", useful=0.5, right=0.4)
    assert f"Not to be told from {HUMAN}: {USEFUL}." in equal and f"Worse than {HUMAN}: {RIGHT}." in equal
    assert f"Better than random: {USEFUL}, {RIGHT}, {TRUTH}." in verdict("losses"), "a lower loss is better"


def test_a_habit_that_a_selection_brings_is_told():
    easy, rng, arms = np.random.default_rng(0).random(N), np.random.default_rng(1), dict(trainings().arms)
    some = [easy + 0.1 * rng.standard_normal(N) < 0.7 for _ in arms[RIGHT]]
    arms[RIGHT] = [replace(one, checked=tuple(row)) for one, row in zip(arms[RIGHT], some, strict=True)]
    said = text._verdict(arms, "checked")
    assert f"More often than random: {RIGHT}." in said and f"More often than not tuned: {RIGHT}." in said
    assert f"Not to be told from random: {USEFUL}, coverage, {HUMAN}, {TRUTH}." in said


def test_why_says_what_the_truth_and_the_habit_are_worth():
    (truth, habit) = text._why(trainings().arms)
    gap = tuning.against(trainings().arms[TRUTH], trainings().arms["random"]).interval
    assert f"worth {gap.value:+.1%}" in truth and gap.value == pytest.approx(0.15, abs=0.02)
    (before,) = trainings().arms["not tuned"]
    right, checked = np.array(before.right), np.array(before.checked)
    assert f"solves {right[checked].mean():.1%}" in habit and f"{right[~checked].mean():.1%}" in habit


def test_a_larger_rate_is_told_beside_random_and_the_model_as_it_is():
    said = text._at_larger_rate(trainings())
    assert "At 10 times that rate: random gives Pass@1 4" in said and "loss 0.07" in said
    ours, before = trainings().larger[RIGHT], trainings().arms["not tuned"]
    assert f"as it is {tuning.against(ours, before).interval.value:+.1%}" in said


def test_items_3_and_4_hold_all_that_was_trained():
    parts = "\n".join(training_parts(trainings()))
    for told in (
        "3+ (what the proxies recommend)",
        "3+,7-",
        "0.0001 (taken)",
        "36 trainings",
        "| 7- |",
        "+0.50 (-0.10",
    ):
        assert told in parts, told
    assert parts.count("| along useful directions") == 2 and "nan" not in parts


def swept(kind, shares):
    return [
        SteeredShare(kind, strength, Share(formed, 100), Share(symbolic, formed), Share(40, 100), Share(30, 100))
        for strength, (formed, symbolic) in shares.items()
    ]


def test_a_habit_that_no_direction_moves_is_said_and_so_is_one_that_is_moved():
    (carries,) = (one for one in carried(*planted()) if one.factor == "check")
    still = [replace(one, check=Share(50, 100)) for one in swept("recovered", {0.0: (99, 50), 1.0: (99, 50)})]
    told = text._why_not_steered(carries, still)
    assert f"{carries.together:.3f} by all together) does not bring it about" in told
    damaged = replace(still[1], direction="combined", check=Share(90, 100), well_formed=Share(40, 100))
    assert text._why_not_steered(carries, [*still, damaged]) == told
    moved = replace(damaged, well_formed=Share(90, 100))
    assert text._why_not_steered(carries, [*still, moved]) == "The habit is moved along: combined."


def planted():
    facts = pd.DataFrame([vars(example) for example in world.generate(N, "report text")])
    return np.random.default_rng(0).standard_normal((N, 3)) + 4 * facts[["check"]].to_numpy() * [1, 0, 0], facts


def test_the_whole_report_is_written():
    facts = pd.DataFrame([vars(example) for example in world.generate(N, "report text")])
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((N, 3))
    scores = noise + 4 * (facts["style"] == "verbal").to_numpy()[:, None] * [1, 0, 0]
    rows = [
        {"model": model, "pooling": pooling, "scale": scale, **vars(one)}
        for model, of in (("trained", scores), *((f"random {i}", noise) for i in (1, 2, 3)))
        for pooling in POOLINGS
        for scale in SCALES
        for one in carried(of, facts)
    ]
    points = swept("recovered", {-2.0: (0, 0), -1.0: (90, 9), 0.0: (100, 50), 1.0: (85, 80), 2.0: (40, 40)})
    points += swept("random", {-1.0: (90, 45), 1.0: (90, 44)})
    before = [Rollout("none", i, j, "", i % 2 == 0, False, 1) for i in range(30) for j in range(ROLLOUTS)]
    after = [Rollout("recovered", i, j, "", i % 3 == 0, False, 1) for i in range(30) for j in range(ROLLOUTS)]
    every = (1, ROLLOUTS)
    passes = [
        SteeredPass("none", 0.0, pass_at_intervals(Tally.of(before), every), {}),
        SteeredPass(
            "recovered",
            1.0,
            pass_at_intervals(Tally.of(after), every),
            {k: paired_difference("recovered", after, before, k) for k in every},
        ),
    ]
    written = write_report(
        pd.DataFrame(rows),
        carried(scores, facts),
        {"style": points, "check": points},
        {"check": passes},
        trainings(),
        120.0,
    )
    above, rest = written.split("Above every untrained model, with its whole interval: ")[1].split(". Not so: ")
    assert above.startswith("style") and "plan" in rest.split(";")[0] and "difficulty" in rest.split(";")[0]
    assert f"| {UNCHECKED} (AUC) |" in written and written.count("| style (AUC) |") == 4
    ends = (
        "| recovered | 10.0% (5.4% to 17.9%, 9 of 90) * at -1 sd | 94.1% (87.0% to 97.5%, 80 of 85) * at +1 sd |"
    )
    assert ends in written, "the ends within what leaves texts whole"
    assert "44 of 90) at +1 sd |" in written and "| combined | none is | none is |" in written
    assert "- **Recovery** (item 1). The basis tells style" in written
    assert (
        "+1 sd take the share of symbolic solutions from 50% to 94%, that of right ones from 30% to 30%" in written
    )
    assert "best tells check, no strength that leaves the texts whole changes the share" in written
    assert "beside a random thousand: Pass@1 +" in written and "sft foretells best" in written
    assert "| recovered | -2 | none is well formed |" in written
    assert "-16.7% (" in written and not re.search(r"\bnan\b", written)
