"""The demo model fine-tuned on selections from a large pool: which rule trains best? Every finished training is
kept in the workspace, so that a stopped report goes on."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from random import Random

import numpy as np

from core.activations import Recipe
from core.demo import train, world
from core.demo.default import MODEL
from core.evaluation import Interval
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.selection.step import Request as Asked
from core.selection.step import find_selection
from core.workspace import Run, Workspace, content_hash, read_json, write_atomic, write_json

POOL, BUDGET, SEEDS, PROBLEMS = 20_000, 1_000, (0, 1), 200
RATE, WARMUP = 1e-3, 10
RESAMPLES = 2_000
USEFUL, HUMAN = "along useful directions", "human label (operation)"
RARE = ("fraction", "conversion")
"""The operations that the model saw least of."""


@dataclass(frozen=True)
class Tuned:
    """One training: right has a verdict for each of PROBLEMS held-out problems; the shares and the mean length
    are those of the examples trained on, where there are any."""

    arm: str
    seed: int
    right: tuple[bool, ...]
    correct: float | None = None
    rare: float | None = None
    tokens: float | None = None


def recover_pool(workspace: Workspace) -> Run:
    """The basis of POOL solutions to problems that the model has not seen, all operations alike."""
    data = workspace.root / "demo" / "pool.jsonl"
    write_atomic(data, lambda path: world.write_jsonl(path, POOL, "pool"))
    columns, recipe = Columns(prompt="prompt", response="response"), Recipe(pooling="mean-response")
    return recover(Request(str(MODEL), DataSource(str(data)), columns, recipe, with_map=False), workspace)


def useful_directions(pool: Pool) -> tuple[int, ...]:
    """The directions, signed, whose scores go with `correct` (Benjamini-Hochberg, 5%); the strongest one where
    none does."""
    from scipy.stats import false_discovery_control, pearsonr

    correct = pool.facts["correct"].astype(float).to_numpy()
    found = [pearsonr(column, correct) for column in pool.scores.T]
    passes = false_discovery_control([one.pvalue for one in found]) < 0.05
    if not passes.any():
        passes[np.argmax([abs(one.statistic) for one in found])] = True
    return tuple(int(math.copysign(j + 1, found[j].statistic)) for j in np.flatnonzero(passes))


def rules(pool: Pool) -> dict[str, Callable[[int], Asked]]:
    """What is compared: a name, and what it asks for under a seed."""

    def asked(name: str, weights_by: str | None = None, **choices: object) -> Callable[[int], Asked]:
        def with_seed(seed: int) -> Asked:
            rule = Rule(name, seed=seed, **choices)  # type: ignore[arg-type]
            return Asked(pool.run, rule, Constraints(budget=BUDGET), weights_by=weights_by)

        return with_seed

    return {
        "random": asked("random"),
        USEFUL: asked("along", weights_by="correct", directions=useful_directions(pool)),
        "coverage": asked("coverage"),
        "longest": asked("longest"),
        "text diversity": asked("text"),
        HUMAN: asked("label", column="operation"),
    }


def compare_rules(run: Run, workspace: Workspace, tell: Callable[[str], None]) -> list[Tuned]:
    """Every rule under every seed, and the model as it is (arm "not tuned")."""
    pool = pool_of(run)
    done = [untuned(run, workspace)]
    for seed, (name, asked) in itertools.product(SEEDS, rules(pool).items()):
        done.append(tuned(name, asked(seed), seed, run, pool, workspace))
        tell(f"{name}, seed {seed}: {np.mean(done[-1].right):.1%}")
    return done


def compare_directions(run: Run, workspace: Workspace, tell: Callable[[str], None]) -> list[Tuned]:
    """One training along each end of each direction; the arm is the signed direction."""
    pool = pool_of(run)
    done = []
    for direction in (signed for j in range(1, pool.k + 1) for signed in (j, -j)):
        asked = Asked(pool.run, Rule("along", (direction,)), Constraints(budget=BUDGET))
        done.append(tuned(f"{direction:+d}", asked, SEEDS[0], run, pool, workspace))
        tell(f"direction {direction:+d}: {np.mean(done[-1].right):.1%}")
    return done


def untuned(run: Run, workspace: Workspace) -> Tuned:
    def measure() -> Tuned:
        model, tokenizer = load()
        return Tuned("not tuned", 0, verdicts(model, tokenizer))

    return _kept(workspace, {"run": run.id, "arm": "not tuned"}, measure)


def tuned(arm: str, asked: Asked, seed: int, run: Run, pool: Pool, workspace: Workspace) -> Tuned:
    """Train on one selection, or read what an earlier training gave."""

    def measure() -> Tuned:
        found = find_selection(asked, run, pool, workspace)
        model, tokenizer = load()
        fine_tune(model, tokenizer, run.texts(found.rows), seed)
        facts = pool.facts.iloc[found.rows]
        shares = facts["correct"].mean(), facts["operation"].isin(RARE).mean(), facts["n_tokens"].mean()
        return Tuned(arm, seed, verdicts(model, tokenizer), *map(float, shares))

    return _kept(workspace, {"request": asked.as_dict(), "seed": seed}, measure)


def _kept(workspace: Workspace, asked: dict[str, object], measure: Callable[[], Tuned]) -> Tuned:
    identity = asked | {"training": [RATE, WARMUP, PROBLEMS], "model": _model_digest()}
    path = workspace.root / "demo" / "tuned" / f"{content_hash(identity)}.json"
    if path.exists():
        stored = read_json(path)
        return Tuned(**{**stored, "right": tuple(stored["right"])})
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
    return found


@cache
def _model_digest() -> str:
    return hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()


def load():  # type: ignore[no-untyped-def]
    """The demo model and its tokenizer, to be trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)


def fine_tune(model, tokenizer, texts: Sequence[str], seed: int) -> None:  # type: ignore[no-untyped-def]
    """One epoch over the texts in the seed's order, all weights, packed as in the training; the rate rises over
    WARMUP steps to RATE and falls linearly to 0. The last step is filled with the first texts again."""
    import torch

    settings = train.Settings()
    ids: list[int] = []
    positions: list[int] = []
    for text in Random(seed).sample(list(texts), len(texts)):
        tokens = [*tokenizer.encode(text), tokenizer.eos_token_id]
        ids += tokens
        positions += range(len(tokens))
    steps = math.ceil(len(ids) / (settings.rows * settings.length))
    shape = (steps, settings.rows, settings.length)
    batches, places = (torch.from_numpy(np.resize(row, shape)) for row in (ids, positions))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.decay, betas=(0.9, 0.95), fused=True)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, 1 - step / steps)
        train.update(model, optimizer, batches[step], places[step], settings.clip)
    model.eval()


def verdicts(model, tokenizer) -> tuple[bool, ...]:  # type: ignore[no-untyped-def]
    """One rollout of each problem at temperature 1, with the same seed for every model; in batches of problems of
    like length, whose solutions end together."""
    problems = sorted(train.held_out(PROBLEMS, "tuning"), key=lambda problem: len(problem.prompt))
    responses = train.sample(model, tokenizer, [problem.prompt for problem in problems], 0, size=40)
    return tuple(world.verify(problem, text) for problem, text in zip(problems, responses, strict=True))


def against(arm: Sequence[Tuned], other: Sequence[Tuned], seed: int = 0) -> Interval:
    """The difference of two arms' Pass@1: by bootstrap over problems, which are the same for both, and over each
    arm's seeds."""
    ours, theirs = (np.array([one.right for one in side], dtype=float) for side in (arm, other))
    return _bootstrap(lambda a, b, i: float(a[:, i].mean() - b[:, i].mean()), ours, theirs, seed)


def pass_at_1(arm: Sequence[Tuned], seed: int = 0) -> Interval:
    """Over problems and seeds."""
    ours = np.array([one.right for one in arm], dtype=float)
    return _bootstrap(lambda a, _b, i: float(a[:, i].mean()), ours, ours, seed)


def _bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, seed: int
) -> Interval:
    """a, b (seeds, problems); the statistic is called with rows of both and the numbers of the problems."""
    rng = np.random.default_rng(seed)
    n = a.shape[1]

    def drawn(size: int) -> np.ndarray:
        return rng.integers(size, size=size)

    resampled = [statistic(a[drawn(len(a))], b[drawn(len(b))], drawn(n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(statistic(a, b, np.arange(n)), float(low), float(high), n)
