"""The steering proxy from its pilot to its evidence, with rollouts that are drawn instead of generated, on a clock
that only they move: what it makes, what a stop changes, what it costs."""

import hashlib
import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import synthetic_run

from core.errors import BasiscopeError
from core.evaluation.problems import Problem, ProblemSet
from core.evaluation.rollouts import UNSTEERED, Rollout
from core.examples import DataSource
from core.steering.generation import Sampling
from core.usefulness import steering
from core.usefulness.controls import ModelDirections
from core.usefulness.steering import LEAST_PROBLEMS, PILOT_ROLLOUTS, SteeringRequest, steer_proxy
from core.workspace import Workspace

ROWS = 32


class Drawn:
    """Stands in for `roll_out`: every text is right with a chance that hangs on its problem and variant alone.

    seconds: of a batch, steered or not; helps: variant -> what it adds to the log-odds; stop_at: the batch that is
    cut off half way.
    """

    def __init__(self, seconds=1.0, steered_seconds=None, helps=None, stop_at=None):
        self.seconds, self.steered_seconds = seconds, steered_seconds or seconds
        self.helps, self.stop_at = helps or {}, stop_at
        self.now, self.batches = 1_000.0, 0
        self.made = Counter()

    def monotonic(self):
        return self.now

    def roll_out(self, model, problems, prompts, verify, r, sampling, variants, directions, done):
        keys = [(name, p.problem_id, i) for p in problems for i in range(r) for name in variants]
        for start in range(0, len(keys), ROWS):
            batch = [key for key in keys[start : start + ROWS] if key not in done]
            if not batch:
                continue
            took = self.steered_seconds if len(variants) > 1 else self.seconds
            if self.batches == self.stop_at:
                self.stop_at, self.now = None, self.now + took / 2
                raise KeyboardInterrupt
            self.now, self.batches = self.now + took, self.batches + 1
            self.made.update(batch)
            yield [Rollout(*key, "", self.is_right(key, sampling.seed), False, 1) for key in batch]

    def is_right(self, key, seed):
        name, problem, _ = key
        odds = 4 * share(f"{seed} {problem}") - 2 + self.helps.get(name, 0.0)
        return share(f"{seed} {key}") < 1 / (1 + math.exp(-odds))


def share(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """trial(drawn, workspace=, ...) -> the evidence; the request's parts by name."""
    model = SimpleNamespace(fingerprint="f", dtype="float32", name="drawn")

    def run(drawn, name="w", seconds=1e6, problems=24, directions=(1, 2, 3, 4), seed=0, models=()):
        workspace = Workspace(tmp_path / name)
        made = workspace.runs() or [synthetic_run(workspace, k=5)]
        asked = tuple(Problem(i, f"problem {i}", "1") for i in range(problems))
        source = ProblemSet(DataSource("p.jsonl"), "problem", "answer", None, asked, "fingerprint")
        sampling = Sampling(4, temperature=1.0, seed=seed)
        request = SteeringRequest(source, "numeric", directions, (1.0,), seconds, 4, 8, sampling, models=models)
        monkeypatch.setattr(steering, "roll_out", drawn.roll_out)
        monkeypatch.setattr(steering, "time", drawn)
        monkeypatch.setattr(steering, "notes_of", lambda *_: ())
        monkeypatch.setattr(steering, "encode_problems", lambda m, ps, *_: {p.problem_id: (1,) for p in ps})
        return steer_proxy(made[0], model, request, workspace)

    run.kept = lambda name="w": Workspace(tmp_path / name).evaluations()[0]
    return run


def problems_of(made):
    """Variant -> the problems it was rolled out on."""
    found = defaultdict(set)
    for name, problem, _ in made:
        found[name].add(problem)
    return found


def found_by(evidence):
    return [(e.name, e.measure, e.effect, e.note) for e in evidence.effects], evidence.controls


@pytest.mark.parametrize("share_made", [0.5, 0.9])
def test_one_that_was_stopped_ends_as_if_it_had_not_been(trial, share_made):
    """In the second or the third round: what comes later must not decide who stays."""
    whole = Drawn()
    expected = trial(whole, "whole")
    assert len(expected.facts["plan"]["arms"]) == 3
    stopped = Drawn(stop_at=round(share_made * whole.batches))
    with pytest.raises(KeyboardInterrupt):
        trial(stopped, "stopped")
    found = trial(stopped, "stopped")
    assert set(stopped.made) == set(whole.made) and stopped.made.total() - whole.made.total() <= 4 + PILOT_ROLLOUTS
    assert found_by(found) == found_by(expected)


def test_a_finished_one_given_again_is_only_read(trial):
    """With what was drawn in later rounds other arms would stay, were it looked at."""
    for seed in range(2):
        drawn = Drawn()
        found = trial(drawn, f"w{seed}", seed=seed)
        made, kept = drawn.made.copy(), trial.kept(f"w{seed}")
        manifest = kept.manifest
        drawn.now += 500
        again = trial(drawn, f"w{seed}", seed=seed)
        assert drawn.made == made and kept.manifest == manifest
        assert found_by(again) == found_by(found) and again.cost == found.cost and again.notes == found.notes


def test_a_refused_cost_is_refused_again(trial):
    """The pilot is not made again, and none of nothing says how fast it goes."""
    drawn = Drawn(seconds=10.0)
    for _ in range(3):
        with pytest.raises(
            BasiscopeError, match=r"40 s left .* at 0\.4 rollouts a second.* too few to compare 8 arms"
        ):
            trial(drawn, seconds=60.0)
        assert drawn.made.total() == 4 + 4
    assert trial.kept().manifest["seconds"] == pytest.approx(20.0, abs=0.01)


@pytest.mark.parametrize(("batch", "made"), [(1.0, 4 + PILOT_ROLLOUTS), (4.0, 4 + 4 * 6), (30.0, 4), (500.0, 4)])
def test_the_pilot_is_as_large_as_the_cost_allows(trial, monkeypatch, batch, made):
    """One problem, then as many as a quarter of the 100 s likely buys."""
    drawn = Drawn(seconds=batch)

    def stop(*_args):
        raise BasiscopeError("after the pilot")

    monkeypatch.setattr(steering, "make_plan", stop)
    with pytest.raises(BasiscopeError, match="after the pilot"):
        trial(drawn, seconds=100.0)
    assert drawn.made.total() == made


@pytest.mark.parametrize(("n", "least"), [(5, 5), (6, 5), (7, 5), (9, 7)])
def test_five_problems_are_enough(trial, n, least):
    found = trial(Drawn(), problems=n)
    assert least <= sum(found.facts["plan"]["problems"]) <= n
    assert {effect.effect.n for effect in found.effects if not effect.was_dropped} == {
        sum(found.facts["plan"]["problems"])
    }


def test_fewer_than_five_problems_are_too_few_whatever_the_cost(trial):
    drawn = Drawn()
    with pytest.raises(
        BasiscopeError, match=r"4 problems can be asked and verified, too few .* whatever the cost"
    ):
        trial(drawn, problems=4)
    assert not drawn.made, "nothing is generated for it"


def test_directions_of_random_models_are_made_within_their_share_of_the_cost(trial, monkeypatch):
    """Of which there is kept how many texts they are of, so that one that is continued has the same."""
    drawn, texts = Drawn(stop_at=0), []
    units = np.eye(4, 128, dtype=np.float32)

    def read(run, model, kind, m, seed, most, goes_on):
        read = 0
        while read < most and (read == 0 or goes_on()):
            drawn.now, read = drawn.now + 1.0, read + 32
        texts.append(read)
        return ModelDirections(units, read, read)

    monkeypatch.setattr(steering, "random_model_directions", read)
    monkeypatch.setattr(steering, "MODEL_ARMS", 4)
    with pytest.raises(KeyboardInterrupt):
        trial(drawn, seconds=100.0, models=("random-model", "random-blocks"))
    assert texts == [13 * 32, 13 * 32], "each an eighth of the cost, 12.5 s"
    found = trial(drawn, seconds=100.0, models=("random-model", "random-blocks"))
    assert texts[2:] == texts[:2] and found.cost.seconds <= 100
    assert "random blocks: its directions are those of 416 of the run's examples" in found.notes


def test_a_stopped_pilot_is_made_again(trial):
    drawn = Drawn(seconds=10.0, stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        trial(drawn)
    assert trial(drawn).facts["plan"]["rate"] == pytest.approx(3.2)


def test_seconds_are_those_of_all_sittings(trial):
    drawn = Drawn(seconds=2.0, stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        trial(drawn)
    assert trial.kept().manifest["seconds"] == pytest.approx(20 * 2.0 + 1.0)
    drawn.now += 10_000
    found = trial(drawn)
    assert found.cost.seconds == pytest.approx(drawn.batches * 2.0 + 1.0)
    assert trial.kept().manifest["seconds"] == found.cost.seconds


@pytest.mark.parametrize("stop_at", [None, 30])
def test_the_cost_is_kept_where_steering_is_slower_than_the_pilot(trial, stop_at):
    """All arms that are left are compared on the same problems, and the notes say on how many."""
    drawn = Drawn(seconds=1.0, steered_seconds=2.0, stop_at=stop_at)
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            trial(drawn, seconds=100.0, problems=40)
    found = trial(drawn, seconds=100.0, problems=40)
    assert 90 < found.cost.seconds <= 100
    planned = sum(found.facts["plan"]["problems"])
    through = {e.effect.n for e in found.by("pass@1") if "dropped" not in e.note}
    assert len(through) == 1 and LEAST_PROBLEMS <= through.pop() < planned
    (note,) = [note for note in found.notes if "time was up" in note]
    full = set.intersection(*(problems_of(drawn.made)[f"random {i}"] for i in range(1, 9)))
    assert f"on the first {len(full)} problems" in note or f"on the first {len(full) - 1} problems" in note
    again = trial(drawn, seconds=100.0, problems=40)
    assert found_by(again) == found_by(found)


def test_too_little_time_for_a_comparison_is_said(trial):
    drawn = Drawn(seconds=1.0, steered_seconds=30.0)
    with pytest.raises(BasiscopeError, match=r"when the 100 s were over, \d of \d+ problems were through"):
        trial(drawn, seconds=100.0, problems=40)
    assert drawn.now - 1_000 <= 100


def test_what_helps_stays_to_the_end_and_is_told(trial):
    drawn = Drawn(helps={"2+": 3.0, "4-": -3.0})
    found = trial(drawn, problems=40)
    assert {e.name for e in found.by("pass@1") if e.is_evidence} == {"2+", "4-"}
    on = problems_of(drawn.made)
    assert on["2+"] == on["4-"] == on["random 1"] == on[UNSTEERED] and len(on["1+"]) < len(on["2+"])
    assert {e.effect.n for e in found.by("pass@1") if e.name in ("2+", "4-")} == {len(on["2+"])}
    behind = found.parts["problems"]
    assert all(len(behind[e.name]) == e.effect.n for e in found.by("pass@1")), "dropped ones, too"
    assert set(behind["2+"]) == on["2+"] > set(behind["1+"])


def test_where_nothing_helps_little_is_told(trial):
    """20 experiments of 10 arms with the halving that is really done: findings in at most 5% of them."""
    false = 0
    for seed in range(20):
        found = trial(Drawn(), problems=20, directions=(1, 2, 3, 4, 5), seed=seed)
        false += any(effect.is_evidence for effect in found.effects)
    assert false <= 1
