"""Utility over all 5,276 GSM8K model solutions with the real small model, against plain SciPy."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, pearsonr, pointbiserialr

from core.activations import Recipe
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.usefulness.utility import UtilityRequest, utility
from core.workspace import Workspace

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@pytest.fixture(scope="module")
def run(data_folder, stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("all traces")
    lines = (data_folder / "gsm8k" / "model_solutions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    traces = [{"question": row["question"], "solver": one, **row[one]} for row in rows for one in SOLVERS]
    (folder / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in traces))
    request = Request(
        stories,
        DataSource(str(folder / "traces.jsonl")),
        Columns(prompt="question", response="solution"),
        Recipe(pooling="mean-response", dtype="float32"),
        device="cpu",
        with_map=False,
    )
    return recover(request, Workspace(folder / "workspace"))


@pytest.fixture(scope="module")
def table(run):
    """Scores d1 to dk, verdicts, problem and the length's three forms, read as anyone would with pandas."""
    found = pd.read_parquet(run.folder / "examples.parquet")
    found = found.merge(pd.read_parquet(run.folder / "scores.parquet"), on="example_id")
    found["right"] = found["is_correct"].astype(float)
    tokens = found["n_tokens"].astype(float)
    return found.assign(length=tokens, log=np.log(tokens), inverse=1 / tokens)


@pytest.fixture(scope="module")
def found(run):
    return utility(run, UtilityRequest(correct="is_correct", problem="question"))


LENGTH = ["length", "log", "inverse"]


def less(values, columns):
    """What of the values a least-squares fit on the columns leaves."""
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def within(table, name):
    return (table[name] - table.groupby("question")[name].transform("mean")).to_numpy()


def pairs_in_order(table, scores):
    """The share of pairs of a right and a wrong trace of one problem in which the right one scores higher."""
    won = pairs = 0.0
    for _, one in table.assign(score=scores).groupby("question"):
        right, wrong = one["score"][one["right"] == 1], one["score"][one["right"] == 0]
        if len(right) and len(wrong):
            won += mannwhitneyu(right, wrong).statistic
            pairs += len(right) * len(wrong)
    return won / pairs


def test_every_figure_is_that_of_scipy(run, table, found):
    assert found.facts["traces"] == len(table) == 5_276 and found.primary == "auc-within-controlled"
    values = {(effect.measure, effect.direction): effect.effect.value for effect in found.effects}
    right, intercept = table["right"].to_numpy(), np.ones((len(table), 1))
    whole = np.hstack([intercept, table[LENGTH]])
    inside = np.column_stack([within(table, name) for name in LENGTH])
    for j in range(1, run.k + 1):
        scores, centred = table[f"d{j}"].to_numpy(), within(table, f"d{j}")
        kept = less(centred, inside)
        by_pairs = (
            {  # seconds each by SciPy
                "auc-within": pairs_in_order(table, scores),
                "auc-within-controlled": pairs_in_order(table, kept),
            }
            if j in (1, run.k)
            else {}
        )
        plain = by_pairs | {
            "r": pointbiserialr(right, scores).statistic,
            "r-controlled": pearsonr(less(scores, whole), less(right, whole)).statistic,
            "r-within": pearsonr(centred, within(table, "right")).statistic,
            "r-within-controlled": pearsonr(kept, less(within(table, "right"), inside)).statistic,
            "auc": _area(scores, right),
            "auc-controlled": _area(less(scores, whole), right),
        }
        for measure, value in plain.items():
            tolerance = 2e-3 if measure.startswith("auc") else 1e-6  # areas: near-ties within a problem
            assert values[measure, j] == pytest.approx(value, abs=tolerance), (measure, j)


def _area(scores, right):
    wins = mannwhitneyu(scores[right == 1], scores[right == 0]).statistic
    return wins / (right.sum() * (len(right) - right.sum()))


def test_nothing_is_evidence_that_random_directions_reach(found):
    (random,) = [one for one in found.controls if one.name == "random directions"]
    away = max(abs(one.effect.value - 0.5) for one in found.by(found.primary))
    assert away < random.level.value - 0.5 + 0.05
    for one in found.by(found.primary):
        reached = abs(one.effect.value - 0.5) > random.level.value - 0.5
        assert not one.is_evidence or reached
