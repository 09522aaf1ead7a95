import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from core.demo import world
from core.demo.report.factors import UNCHECKED, area_under_curve, carried, codes_of, eta_squared
from core.demo.report.measures import randomised, shares
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


def test_the_control_direction_is_a_unit_vector_in_one_place(gsm8k_run):
    real = Directions.of(gsm8k_run)
    other = randomised(real, 2)
    rows, before = other.basis.directions, real.basis.directions
    np.testing.assert_allclose(np.linalg.norm(rows[1]), 1, rtol=1e-6)
    assert abs(rows[1] @ before[1]) < 0.5 and (rows[[0, 2]] == before[[0, 2]]).all()
