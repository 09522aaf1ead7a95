"""Recovery with every recipe against the known factors, and steering along the directions that carry them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.activations import Activations, TokenWindows, extract_all, window_start
from core.basis import project, recover_basis
from core.demo import world
from core.demo.card import Share
from core.demo.default import MODEL
from core.demo.report.factors import Carried, carried, codes_of
from core.demo.report.tuning import roll_out_all, worker_processes
from core.evaluation import Interval
from core.evaluation.passk import Difference, Tally, paired_difference, pass_at_intervals
from core.evaluation.rollouts import Rollout
from core.examples import Columns, DataSource, ReadReport, read_examples, tokenize
from core.model import LanguageModel, load_model, resolve_blocks
from core.steering.intervention import Directions, Steering
from core.workspace import Run

EXAMPLES, K, SEED = 1_000, 10, 7
POOLINGS, SCALES = ("mean-response", "mean", "last"), ("raw", "rms")
UNTRAINED = 3
"""Random initialisations that the default recipe is held against; the other recipes meet the first of them."""
STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
RIVALS = ("combined", "mean difference", "random")
"""What the recovered direction is held against: the combination of all directions that best tells the factor
(Fisher's linear discriminant), the difference of the activations' means over its two values (Panickssery et al.
2023), and a random direction."""
RIVAL_STRENGTHS = (-2.0, -1.0, 1.0, 2.0)
PROBLEMS = 100
"""Strengths are in standard deviations of the direction's scores."""
PASS_STRENGTHS, PASS_PROBLEMS, ROLLOUTS = (-2.0, -1.0, 1.0, 2.0), 64, 8
NEW_TOKENS = 420
COLUMNS = {"prompt": "prompt", "response": "response"}


# --- recovery -------------------------------------------------------------------------------------------


def recovery() -> pd.DataFrame:
    """A row for every model (`trained`, `random 1`, ...), pooling, block scale and factor, with the fields of
    Carried."""
    from core.demo.train import Settings, build_model, build_tokenizer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer = Path(folder) / "problems.jsonl", build_tokenizer()
        world.write_jsonl(data, EXAMPLES, f"report {SEED}")
        facts = pd.read_json(data, lines=True)
        models = {"trained": MODEL}
        for i in range(UNTRAINED):
            fresh = models[f"random {i + 1}"] = Path(folder) / str(i)
            build_model(replace(Settings(), seed=SEED + i), tokenizer).save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        for name, path in models.items():
            model = load_model(str(path), device="cpu")
            for pooling in POOLINGS if name in ("trained", "random 1") else POOLINGS[:1]:
                activations = pooled(model, data, pooling)
                for scale in SCALES:
                    recovered = recover_basis(activations, K, scale, SEED)
                    scores = project(activations, recovered).scores
                    order = np.argsort(scores.example_id)
                    for one in carried(scores.scores[order], facts, SEED):
                        rows.append({"model": name, "pooling": pooling, "scale": scale, **vars(one)})
    return pd.DataFrame(rows)


def pooled(model: LanguageModel, data: Path, pooling: str) -> Activations:
    """Activations of all examples in memory."""
    examples = list(
        read_examples(DataSource(str(data)), Columns(**COLUMNS), "plain", model.tokenizer, ReadReport())
    )
    texts = tokenize(examples, model.tokenizer, model.context or 1_024, pooling == "mean-response")
    first = [window_start(text, pooling) for text in texts]
    if None in first:
        raise ValueError("an example of the world has no token to pool")
    offsets = np.cumsum([0, *(len(text.ids) for text in texts)])
    ids = np.array([example.example_id for example in examples])
    windows = TokenWindows(np.concatenate([text.ids for text in texts]), offsets, np.array(first), ids)
    blocks = resolve_blocks("1:-1", len(model.blocks))
    return extract_all(model, windows, np.arange(len(windows)), blocks)


# --- steering -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SteeredShare:
    """What the responses to PROBLEMS problems show at one strength, in standard deviations: of all, how many are
    well formed, right, check each step; of the well-formed, how many are symbolic."""

    direction: str
    strength: float
    well_formed: Share
    symbolic: Share
    check: Share
    right: Share


@dataclass(frozen=True)
class SteeredPass:
    """Pass@1 and Pass@ROLLOUTS at one strength, in standard deviations, and what they are more than without
    steering, paired by problem; no such gaps without steering."""

    direction: str
    strength: float
    pass_at: Mapping[int, Interval]
    gaps: Mapping[int, Difference]


def steer_factor(run: Run, factor: Carried) -> list[SteeredShare]:
    """The factor's direction over STRENGTHS, and RIVALS over RIVAL_STRENGTHS."""
    settings = itertools.chain(
        itertools.product(["recovered"], STRENGTHS), itertools.product(RIVALS, RIVAL_STRENGTHS)
    )
    trials = [
        Trial(run.folder, factor.factor, factor.direction, name, strength, f"steering {SEED}", PROBLEMS)
        for name, strength in settings
    ]
    return [
        SteeredShare(trial.name, trial.strength, *shares(trial.problems, [one.text for one in rollouts]))
        for trial, rollouts in tried(trials)
    ]


def pass_at(run: Run, factor: Carried) -> list[SteeredPass]:
    """No steering, and the factor's direction and a random one of the same norm over PASS_STRENGTHS."""
    settings = [("none", 0.0), *itertools.product(("recovered", "random"), PASS_STRENGTHS)]
    trials = [
        Trial(
            run.folder,
            factor.factor,
            factor.direction,
            name,
            strength,
            f"rollouts {SEED}",
            PASS_PROBLEMS,
            ROLLOUTS,
        )
        for name, strength in settings
    ]
    (_, before), *rest = tried(trials)
    every = (1, ROLLOUTS)
    found = [SteeredPass("none", 0.0, pass_at_intervals(Tally.of(before), every), {})]
    for trial, after in rest:
        gaps = {k: paired_difference(trial.name, after, before, k, SEED) for k in every}
        found.append(SteeredPass(trial.name, trial.strength, pass_at_intervals(Tally.of(after), every), gaps))
    return found


@dataclass(frozen=True)
class Trial:
    """r responses to each of n problems of a stream, steered along the direction (from 1) of the run in `folder`
    that best tells a factor, or along one of RIVALS of that `name`, by so many standard deviations of scores."""

    folder: Path
    factor: str
    direction: int
    name: str
    strength: float
    stream: str
    n: int
    r: int = 1

    @property
    def problems(self) -> list[world.Example]:
        return world.generate(self.n, self.stream)


def tried(trials: Sequence[Trial]) -> list[tuple[Trial, list[Rollout]]]:
    """Every trial with its responses, some at once."""
    with worker_processes() as workers:
        return list(zip(trials, workers.map(respond, trials), strict=True))


def respond(trial: Trial) -> list[Rollout]:
    """The verified responses at temperature 1, by problem; the same noise at every strength."""
    run = Run(trial.folder)
    directions = Directions.of(run)
    vector, deviation = steering_vector(run, trial.factor, trial.direction, trial.name)
    rows = directions.basis.directions.copy()
    rows[trial.direction - 1] = vector
    directions = Directions(replace(directions.basis, directions=rows), directions.blocks)
    model = load_model(str(MODEL), dtype=run.manifest["model"]["dtype"], device="cpu")
    steering = Steering(((trial.direction, deviation * trial.strength),))
    return roll_out_all(model, trial.problems, NEW_TOKENS, trial.r, steering, directions, SEED)


def steering_vector(run: Run, factor: str, direction: int, name: str) -> tuple[np.ndarray, float]:
    """A unit vector (d,) and the standard deviation of the examples along it: the direction (from 1) of a run with
    raw blocks, or one of RIVALS that points to the second of the factor's two sorted values."""
    directions = Directions.of(run)
    rows, deviation = directions.basis.directions, float(directions.deviations[direction - 1])
    if name == "recovered":
        return rows[direction - 1], deviation
    if name == "random":
        chance = np.random.default_rng(SEED).standard_normal(rows.shape[1:])
        chance /= np.linalg.norm(chance)
        return chance, deviation
    second = codes_of(run.examples([factor])[factor]) == 1
    if name == "combined":
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        scores = run.scores().drop(columns="example_id").to_numpy()
        weights = LinearDiscriminantAnalysis().fit(scores, second).coef_[0]
        weights /= np.linalg.norm(weights)
        combined: np.ndarray = weights @ rows
        return combined, float((scores @ weights).std())
    activations = run.activations()
    order = np.argsort(activations.example_id)
    values = np.concatenate([shard.float().numpy() for shard in activations.shards])[order]
    difference: np.ndarray = values[second].mean(axis=0) - values[~second].mean(axis=0)
    difference /= np.linalg.norm(difference)
    return difference, float((values @ difference).std())


def shares(problems: Sequence[world.Example], responses: Sequence[str]) -> tuple[Share, Share, Share, Share]:
    """(well formed, symbolic, check, right)."""
    read = [world.read_response(response) for response in responses]
    n = len(problems)
    formed = [one for one in read if one.answer is not None and one.style is not None]
    right = sum(world.verify(problem, response) for problem, response in zip(problems, responses, strict=True))
    return (
        Share(len(formed), n),
        Share(sum(one.style == "symbolic" for one in formed), len(formed)),
        Share(sum(one.check for one in read), n),
        Share(right, n),
    )
