import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.demo import train, world
from core.demo.default import write_development
from core.demo.report import proxies, tuning
from core.demo.report.tuning import Tuned, against, average, fine_tune, load, right_directions
from core.selection.pool import pool_of
from core.usefulness.table import towards
from core.workspace import Workspace


def loss(model, texts):
    with torch.no_grad():
        losses = [
            model.module(**(one := model.tokenizer(text, return_tensors="pt")), labels=one.input_ids).loss
            for text in texts
        ]
    return float(np.mean(losses))


def test_training_on_texts_makes_them_likelier_and_is_seeded():
    texts = [" ".join(reversed(example.text.split())) for example in world.generate(16, "tuning test")]
    model = load()
    before = loss(model, texts[:8])
    fine_tune(model, texts, 0, 1e-3)
    assert loss(model, texts[:8]) < before - 0.5
    again, other = load(), load()
    fine_tune(again, texts, 0, 1e-3)
    fine_tune(other, texts, 1, 1e-3)
    weights = [next(m.module.parameters()).detach() for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def arm(name, rate, seeds, rng, n=200):
    return [
        Tuned(name, seed, tuple((rng.random(n) < rate).tolist()), (1.0,), 1e-3, correct=0.8, tokens=150.0)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("by_seed", "by_problem"), [(0.0, 0.0), (0.0, 3.0), (0.5, 1.0), (3.0, 1.0)])
def test_intervals_cover_the_truth_whether_seeds_or_problems_differ(by_seed, by_problem):
    rng = np.random.default_rng(0)
    covered, rejected = [0, 0], 0
    for _ in range(500):
        problems = by_problem * rng.standard_normal(100)
        ours, theirs = (
            [
                Tuned("a", seed, (), tuple(problems + by_seed * rng.standard_normal() + rng.standard_normal(100)))
                for seed in range(3)
            ]
            for _ in range(2)
        )
        one, gap = average(ours, by="losses"), against(ours, theirs, by="losses")
        covered[0] += one.low <= 0 <= one.high
        covered[1] += gap.interval.low <= 0 <= gap.interval.high
        rejected += gap.p < 0.05
    # 2,000 of each kind: 93 to 97% of differences, and 90 to 96% of single shares, where little tells of the seeds
    assert covered[0] >= 435 and covered[1] >= 450
    assert rejected == 500 - covered[1]


def test_one_training_has_the_interval_of_its_problems():
    (only,) = arm("a", 0.4, 1, np.random.default_rng(0))
    found, right = average([only]), np.array(only.right, dtype=float)
    assert found.value == right.mean()
    assert found.high - found.value == pytest.approx(1.972 * right.std(ddof=1) / np.sqrt(200), rel=1e-3)


def test_the_largest_rate_without_harm_is_taken():
    rates = [
        Tuned("a", 0, (), (loss,), rate) for rate, loss in ((0.0, 2.0), (1e-5, 1.9), (1e-4, 2.0), (1e-3, 2.1))
    ]
    assert tuning.largest_harmless(rates) == 1e-4
    assert tuning.largest_harmless([rates[0], rates[3], replace(rates[3], rate=1e-2, losses=(3.0,))]) == 1e-3


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """A workspace with the run of a small pool."""
    root = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "POOL", 150)
        tuning.recover_pool(Workspace(root))
    return root


@pytest.fixture
def run(recovered, tmp_path, monkeypatch):
    """That run in a workspace of its own, and everything small."""
    shutil.copytree(recovered, tmp_path, dirs_exist_ok=True)
    for name, value in (("BUDGET", 12), ("ALONG", 12), ("PROBLEMS", 2), ("SEEDS", (0,)), ("WORKERS", 1)):
        monkeypatch.setattr(tuning, name, value)
    monkeypatch.setattr(proxies, "PROBLEMS", 6)
    monkeypatch.setattr(train, "LONGEST", 40)
    tuning.problems.cache_clear()
    (run,) = Workspace(tmp_path).runs()
    yield run
    tuning.problems.cache_clear()


def test_every_rule_is_trained_once_and_then_read(run, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    told = []
    first = tuning.compare_rules(run, workspace, 3e-4, (-2,), told.append)
    assert [one.arm for one in first] == ["not tuned", *tuning.rules(pool_of(run), (-2,))]
    assert len(told) == 9 and len(list((tmp_path / "demo" / "tuned").glob("*.json"))) == 9
    assert all(0 <= one.correct <= 1 and one.tokens > 20 for one in first[1:])
    longest = next(one for one in first if one.arm == "longest")
    assert longest.tokens > next(one for one in first if one.arm == "random").tokens
    monkeypatch.setattr(tuning, "load", None)  # no model is needed any more
    truth = next(one for one in first if one.arm == tuning.TRUTH)
    assert truth.correct == 1
    larger = tuning.compare_larger(run, workspace, 3e-5, told.append)
    assert [(one.arm, one.rate) for one in larger] == [("random", 3e-4), (tuning.RIGHT, 3e-4)]
    again = tuning.compare_rules(run, workspace, 3e-4, (-2,), told.append)
    assert [one.right for one in again] == [one.right for one in first]


def test_what_judges_a_training_is_in_no_pool():
    pool = {one.prompt for one in world.generate(2_000, "pool", tuning.MIX)}
    streams = ("tuning", tuning.DEVELOPMENT, tuning.TEST)
    held_out = {name: {one.prompt for one in train.held_out(400, name)} for name in streams}
    assert all(pool.isdisjoint(prompts) for prompts in held_out.values())
    assert sum(map(len, held_out.values())) == len(set().union(*held_out.values()))


def test_the_directions_of_utility_are_those_that_go_with_correct(run, tmp_path):
    pool = pool_of(run)
    pool.facts["correct"] = pool.scores[:, 2] < np.median(pool.scores[:, 2])
    assert -3 in right_directions(pool)


def test_the_rates_differ_in_nothing_but_the_rate(run, tmp_path):
    workspace = Workspace(tmp_path)
    found = tuning.compare_rates(run, workspace, lambda _: None)
    assert [one.rate for one in found] == [0, *tuning.RATES]
    assert len({one.losses for one in found}) == len(found) and len({one.tokens for one in found[1:]}) == 1
    assert found[0].losses == tuning.held_out_losses(load(), tuning.DEVELOPMENT)


def test_the_held_out_losses_are_those_of_the_responses(run):
    model = load()
    examples = train.right_solutions(2, "tuning loss")
    assert all(example.correct for example in examples)
    plain = []
    for example in examples:
        ids = model.tokenizer(example.text, return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : len(model.tokenizer(f"{example.prompt}\n").input_ids)] = -100
        with torch.no_grad():
            plain.append(float(model.module(ids, labels=labels).loss))
    assert tuning.held_out_losses(model) == pytest.approx(plain, abs=1e-5)  # padded, in float32


def test_proxies_are_ranked_by_what_training_gave(run, tmp_path, monkeypatch):
    source = write_development(Workspace(tmp_path), proxies.PROBLEMS)
    found = proxies.measure("first-order", run.folder, tmp_path, source)
    told = proxies.measure("utility", run.folder, tmp_path, source)
    monkeypatch.setattr(proxies, "_measured", None)  # nothing is measured again
    assert proxies.measure("first-order", run.folder, tmp_path, source) == found
    assert proxies.measure("utility", run.folder, tmp_path, source).effects == told.effects
    ends = towards(found)
    rng = np.random.default_rng(0)
    arms = [replace(arm(end, 0.5, 1, rng)[0], losses=(-ends[end].value,)) for end in ends]
    (before,) = arm("not tuned", 0.5, 1, rng)
    (ranked,) = proxies.foretold([found], arms, before)
    assert ranked.agreement.value == pytest.approx(1.0) and ranked.agreement.n == run.k
    assert proxies.gains(arms, before)["2-"].value == pytest.approx(1.0 + ends["2-"].value)


def test_useful_directions_are_those_that_the_proxies_recommend(run, tmp_path):
    source = write_development(Workspace(tmp_path), proxies.PROBLEMS)
    found = proxies.measure("first-order", run.folder, tmp_path, source)
    planted = [replace(one, gap=1.0, adjusted=1e-6) if one.direction == 4 else one for one in found.effects]
    (best, *_), reason = proxies.useful_directions([replace(found, effects=tuple(planted))], run.k)
    assert abs(best) == 4 and "by first-order" in reason
    silent = replace(found, proxy="sft", effects=tuple(replace(one, adjusted=1.0) for one in found.effects))
    (best,), reason = proxies.useful_directions([silent], run.k)
    assert "recommend none" in reason
    ends = towards(found)
    assert ends[f"{abs(best)}{'+' if best > 0 else '-'}"].value == max(one.value for one in ends.values())
