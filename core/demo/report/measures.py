"""Recovery with every recipe against the known factors, and steering along the directions that carry them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.activations import Activations, TokenWindows, extract_all, window_start
from core.basis import Basis, project, recover_basis
from core.demo import world
from core.demo.card import Share
from core.demo.default import MODEL
from core.demo.report.factors import Carried, carried
from core.examples import Columns, DataSource, ReadReport, read_examples, tokenize
from core.model import LanguageModel, load_model, resolve_blocks
from core.steering.generation import Generation, Row, Sampling, encode_prompt
from core.steering.intervention import Directions, Steering
from core.workspace import Run

EXAMPLES, K, SEED = 1_000, 10, 7
POOLINGS, SCALES = ("mean-response", "mean", "last"), ("raw", "rms")
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""In standard deviations of the direction's scores."""
PROBLEMS, ROLLOUTS = 40, 4
NEW_TOKENS = 420
COLUMNS = {"prompt": "prompt", "response": "response"}


# --- recovery -------------------------------------------------------------------------------------------


def recovery() -> pd.DataFrame:
    """A row for every model, pooling, block scale and factor, with the fields of Carried."""
    from core.demo.train import Settings, build_model, build_tokenizer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data, fresh = Path(folder) / "problems.jsonl", Path(folder) / "fresh"
        world.write_jsonl(data, EXAMPLES, f"report {SEED}")
        tokenizer = build_tokenizer()
        build_model(replace(Settings(), seed=SEED), tokenizer).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        facts = pd.read_json(data, lines=True)
        for name, path in (("trained", str(MODEL)), ("random", str(fresh))):
            model = load_model(path, device="cpu")
            for pooling in POOLINGS:
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


def steer_factor(run: Run, model: LanguageModel, factor: Carried) -> list[SteeredShare]:
    """The factor's direction and a random one of the same norm, over STRENGTHS."""
    problems = world.generate(PROBLEMS, f"steering {SEED}")
    real = Directions.of(run)
    deviation = float(real.deviations[factor.direction - 1])
    found = []
    for name, directions in (("recovered", real), ("random", randomised(real, factor.direction))):
        for strength in STRENGTHS:
            responses = generate(model, directions, factor.direction, strength * deviation, problems, SEED)
            found.append(SteeredShare(name, strength, *shares(problems, responses)))
    return found


def randomised(directions: Directions, direction: int) -> Directions:
    """The same, with a random unit vector for one direction (from 1)."""
    vector = np.random.default_rng(SEED).standard_normal(directions.basis.directions.shape[1])
    rows = directions.basis.directions.copy()
    rows[direction - 1] = vector / np.linalg.norm(vector)
    basis: Basis = replace(directions.basis, directions=rows)
    return Directions(basis, directions.blocks)


def generate(
    model: LanguageModel,
    directions: Directions,
    direction: int,
    strength: float,
    problems: Sequence[world.Example],
    seed: int,
) -> list[str]:
    """One response to each problem at temperature 1; the same seed meets the same noise at every strength."""
    steering = Steering(((direction, strength),))
    rows = [
        Row(encode_prompt(model, problem.prompt, COLUMNS, "plain", NEW_TOKENS), steering, 10_000 * seed + i)
        for i, problem in enumerate(problems)
    ]
    generation = Generation(model, directions, rows, Sampling(NEW_TOKENS, temperature=1.0)).run()
    return [generation.text(i) for i in range(len(rows))]


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


def pass_at(run: Run, model: LanguageModel, factor: Carried) -> list[tuple[float, float, float, float, float]]:
    """(strength in standard deviations, Pass@1, Pass@ROLLOUTS, and the 95% interval of its difference from no
    steering, by bootstrap over problems)."""
    problems = world.generate(PROBLEMS // 2, f"rollouts {SEED}")
    directions = Directions.of(run)
    deviation = float(directions.deviations[factor.direction - 1])
    right = {}
    for strength in (-1.0, 0.0, 1.0):
        rollouts = [
            generate(model, directions, factor.direction, strength * deviation, problems, seed)
            for seed in range(100, 100 + ROLLOUTS)
        ]
        right[strength] = np.array(
            [[world.verify(p, text) for p, text in zip(problems, texts, strict=True)] for texts in rollouts]
        )
    rng = np.random.default_rng(SEED)
    picks = rng.integers(0, len(problems), (2_000, len(problems)))
    found = []
    for strength, verdicts in right.items():
        difference = (verdicts.any(axis=0).astype(float) - right[0.0].any(axis=0))[picks].mean(axis=1)
        low, high = np.quantile(difference, (0.025, 0.975))
        found.append((strength, float(verdicts.mean()), float(verdicts.any(axis=0).mean()), low, high))
    return found
