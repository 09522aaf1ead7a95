from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from core.activations import Activations
from core.demo import world
from core.demo.report.factors import UNCHECKED, area_under_curve, carried, codes_of, eta_squared
from core.demo.report.measures import RIVALS, shares, steering_vector
from core.steering.intervention import Directions

N = 400


@pytest.fixture
def factors():
    """The columns of real examples of the world."""
    return pd.DataFrame([vars(example) for example in world.generate(N, "factors")])


def test_auc_and_eta_squared_equal_the_plain_ones(factors):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((N, 3)).round(1)  # with ties
    positive = factors["check"].to_numpy(dtype=bool)
    ranks = pd.DataFrame(scores).rank().to_numpy()
    expected = [roc_auc_score(positive, column) for column in scores.T]
    np.testing.assert_allclose(area_under_curve(ranks, positive), expected)
    groups = pd.DataFrame(scores).groupby(factors["operation"]).transform("mean").to_numpy()
    between = ((groups - scores.mean(axis=0)) ** 2).sum(axis=0) / ((scores - scores.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(eta_squared(scores, codes_of(factors["operation"])), between)


def test_planted_factors_are_found_and_the_others_are_not(factors):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((N, 6))
    scores[:, 2] -= 3 * (factors["style"] == "verbal")  # of the sorted values `verbal` is last
    scores[:, 4] += codes_of(factors["operation"])
    found = {one.factor: one for one in carried(scores, factors)}
    assert (found["style"].direction, found["style"].sign) == (3, -1)
    assert found["style"].value > 0.95 > 0.65 > found["style"].null and found["style"].p < 0.01
    assert found["operation"].direction == 5 and found["operation"].value > 0.6 and found["operation"].p < 0.01
    assert found["style"].low < found["style"].value < found["style"].high
    for name in ("plan", "steps", "difficulty"):  # the source goes with the style
        assert found[name].value < 0.6 and found[name].p > 0.01
    assert abs(found["difficulty"].null) < 0.1  # cross-validated: nothing is near nothing


def test_what_tells_the_habit_alone_tells_no_right_solution(factors):
    scores = np.random.default_rng(2).standard_normal((N, 3))
    scores[:, 1] += 4 * factors["check"]
    found = {one.factor: one for one in carried(scores, factors)}
    assert found["correct"].value > 0.7 and found["correct"].p < 0.01, "checked solutions are mostly right"
    assert found[UNCHECKED].value < 0.62 and found[UNCHECKED].p > 0.01


def test_shares_read_solutions_as_the_world_wrote_them():
    problems = world.generate(200, "shares")
    formed, symbolic, check, right = shares(problems, [problem.response for problem in problems])
    assert (formed.hits, formed.n) == (200, 200)
    assert symbolic.hits == sum(problem.style == "symbolic" for problem in problems)
    assert check.hits == sum(problem.check for problem in problems)
    assert right.hits == sum(problem.correct for problem in problems)
    assert [share.hits for share in shares(problems, ["nonsense"] * 200)] == [0, 0, 0, 0]


def test_what_a_direction_is_steered_against():
    """A planted run: a factor lies half on each of two directions, and on a third dimension of no direction."""
    rng = np.random.default_rng(3)
    second = rng.random(N) < 0.5
    scores = rng.standard_normal((N, 2)) + 2 * second[:, None] * [1, -1]
    activations = np.concatenate([scores, rng.standard_normal((N, 1)) + 2 * second[:, None]], axis=1)
    ids = rng.permutation(N)
    run = SimpleNamespace(
        examples=lambda _columns: pd.DataFrame({"check": second}),
        scores=lambda: pd.DataFrame({"example_id": range(N), "d1": scores[:, 0], "d2": scores[:, 1]}),
        activations=lambda: Activations(ids, [torch.from_numpy(activations[ids])], (0,)),
    )
    deviations = scores.std(axis=0)
    directions = SimpleNamespace(basis=SimpleNamespace(directions=np.eye(2, 3)), deviations=deviations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Directions, "of", lambda _run: directions)
        found = {name: steering_vector(run, "check", 2, name) for name in ("recovered", *RIVALS)}
    assert all(np.linalg.norm(vector) == pytest.approx(1) for vector, _ in found.values())
    np.testing.assert_array_equal(found["recovered"][0], [0, 1, 0])
    assert found["recovered"][1] == found["random"][1] == deviations[1]
    np.testing.assert_allclose(found["combined"][0], [0.5**0.5, -(0.5**0.5), 0], atol=0.1)
    np.testing.assert_allclose(found["mean difference"][0], np.array([1, -1, 1]) / 3**0.5, atol=0.1)
    for name in ("combined", "mean difference"):
        vector, deviation = found[name]
        assert deviation == pytest.approx((activations @ vector).std(), rel=1e-6)


def test_all_directions_together_tell_what_none_tells_alone(factors):
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((N, 4))
    scores[:, 0] += 3 * scores[:, 1]
    scores[:, 1] += 0.5 * factors["plan"]
    scores[:, 0] += 0.5 * factors["plan"]
    (found,) = (one for one in carried(scores, factors) if one.factor == "plan")
    alone = np.abs(found.by_direction - 0.5).max() + 0.5
    assert found.together is not None and alone < 0.7 < 0.75 < found.together
    assert found.beyond.dtype == bool and not found.beyond[3]
