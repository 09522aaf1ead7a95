"""The demo model fine-tuned on selections from a large pool: which rule trains best? Every finished training is
kept in the workspace, so that a stopped report goes on."""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from core.activations import Recipe
from core.demo import train, world
from core.demo.default import MODEL
from core.evaluation import Interval
from core.evaluation.problems import Problem
from core.evaluation.rollouts import UNSTEERED, Rollout, encode_problems, roll_out
from core.evaluation.verifiers import verifier
from core.examples import Columns, DataSource
from core.model import LanguageModel, load_model
from core.recovery import Request, recover
from core.selection.pool import Constraints, Pool, Rule, parse_quotas, pool_of
from core.selection.step import Request as Asked
from core.selection.step import find_selection
from core.steering.generation import Sampling
from core.steering.intervention import Directions, Steering
from core.usefulness.development import Solutions, losses, written_solutions
from core.workspace import Run, Workspace, content_hash, read_json, write_atomic, write_json

POOL, BUDGET, SEEDS, PROBLEMS = 20_000, 1_000, (0, 1, 2), 400
RARE = ("fraction", "conversion")
"""The operations that the model's training made rare."""
MIX = dict.fromkeys(RARE, 0.5)
"""How often the pool has them for each of another operation; among the problems all are alike."""
ALONG = 500
"""The budget along one end of one direction."""
RATES, WARMUP = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), 10
LARGER = 10
"""So many times the rate that does no harm is tried, too, to see what a habit learned faster is worth."""
DEVELOPMENT, TEST = "development", "tuning loss"
"""Streams of problems with right solutions: what a rate is chosen on, and what losses are reported of."""
JUDGED = 1_000
"""So many solutions of the pool, drawn at random, have a verdict from which useful directions are told."""
WORKERS = os.cpu_count() or 1
"""Trainings at once, of one thread each: twice as fast as one training on two threads."""
ROWS = 64
NONE = Steering()
USEFUL, RIGHT = "along useful directions (proxies)", "along useful directions (utility)"
HUMAN, TRUTH = "human label (operation)", "only right solutions (the truth)"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """One training. right: a verdict for each of PROBLEMS held-out problems, or none; checked: whether these
    responses check their steps; losses: in nats per token, on right solutions to as many other problems; the
    shares and the mean length are those of the examples trained on, where there are any; seconds: of one core."""

    arm: str
    seed: int
    right: tuple[bool, ...]
    losses: tuple[float, ...]
    rate: float = 0.0
    correct: float | None = None
    rare: float | None = None
    check: float | None = None
    tokens: float | None = None
    checked: tuple[bool, ...] = ()
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class Task:
    """A training to be done: on what is `asked` of the run in `folder`, or none, which is the model as it is;
    with verdicts or not, and losses on right solutions to the problems of a stream."""

    arm: str
    asked: Asked | None
    seed: int
    rate: float
    folder: Path
    workspace: Path
    with_verdicts: bool = True
    stream: str = TEST


def recover_pool(workspace: Workspace) -> Run:
    """The basis of POOL solutions to problems that the model has not seen, operations by MIX."""
    data = workspace.root / "demo" / "pool.jsonl"
    write_atomic(data, lambda path: world.write_jsonl(path, POOL, "pool", MIX))
    columns, recipe = Columns(prompt="prompt", response="response"), Recipe(pooling="mean-response")
    return recover(Request(str(MODEL), DataSource(str(data)), columns, recipe, with_map=False), workspace)


def right_directions(pool: Pool) -> dict[int, float]:
    """Direction, signed, -> how strongly its scores go with `correct` among JUDGED solutions: those that do
    (Benjamini-Hochberg, 5%), or the strongest one where none does."""
    from scipy.stats import false_discovery_control, pearsonr

    judged = np.random.default_rng(SEEDS[0]).permutation(pool.n)[:JUDGED]
    correct = pool.facts["correct"].astype(float).to_numpy()[judged]
    found = [pearsonr(column, correct) for column in pool.scores[judged].T]
    passes = false_discovery_control([one.pvalue for one in found]) < 0.05
    if not passes.any():
        passes[np.argmax([abs(one.statistic) for one in found])] = True
    return {
        int(math.copysign(j + 1, found[j].statistic)): abs(float(found[j].statistic))
        for j in np.flatnonzero(passes)
    }


def rules(pool: Pool, useful: tuple[int, ...]) -> dict[str, Callable[[int], Asked]]:
    """What is compared: a name, and what it asks for under a seed. useful: directions, signed."""
    right = right_directions(pool)

    def asked(name: str, **choices: Any) -> Callable[[int], Asked]:
        return lambda seed: Asked(pool.run, Rule(name, seed=seed, **choices), Constraints(budget=BUDGET))

    return {
        "random": asked("random"),
        USEFUL: asked("along", directions=useful),
        RIGHT: asked("along", directions=tuple(right), weights=tuple(right.values())),
        "coverage": asked("coverage"),
        "longest": asked("longest"),
        "text diversity": asked("text"),
        HUMAN: asked("label", column="operation"),
        TRUTH: partial(only_right, pool),
    }


def only_right(pool: Pool, seed: int) -> Asked:
    """Right solutions, drawn at random: what no rule can know."""
    within = Constraints(budget=BUDGET, quotas=parse_quotas("correct=True:1"))
    return Asked(pool.run, Rule("random", seed=seed), within)


def compare_rates(run: Run, workspace: Workspace, tell: Tell) -> list[Tuned]:
    """The same right solutions at every rate, after the model as it is (rate 0), by the loss on the problems of
    DEVELOPMENT."""
    asked = only_right(pool_of(run), SEEDS[0])
    tasks = [_task(TRUTH, asked if rate else None, SEEDS[0], rate, run, workspace) for rate in (0.0, *RATES)]
    return train_all([replace(task, with_verdicts=False, stream=DEVELOPMENT) for task in tasks], tell)


def largest_harmless(rates: Sequence[Tuned]) -> float:
    """The largest rate that leaves the loss no higher than that of the model as it is, which comes first; the one
    of the lowest loss where none does. The most that a selection can show before the training itself does harm."""
    before, *tried = rates
    harmless = [one.rate for one in tried if one.loss <= before.loss]
    return max(harmless) if harmless else min(tried, key=lambda one: one.loss).rate


def compare_rules(run: Run, workspace: Workspace, rate: float, useful: tuple[int, ...], tell: Tell) -> list[Tuned]:
    """Every rule under every seed, and the model as it is (arm "not tuned")."""
    asked = rules(pool_of(run), useful)
    tasks = [_task("not tuned", None, 0, 0.0, run, workspace)]
    tasks += [_task(name, asked[name](s), s, rate, run, workspace) for s, name in itertools.product(SEEDS, asked)]
    return train_all(tasks, tell)


def compare_larger(run: Run, workspace: Workspace, rate: float, tell: Tell) -> list[Tuned]:
    """`random` and `RIGHT` under every seed, at LARGER times the rate."""
    asked = rules(pool_of(run), ())
    pairs = itertools.product(SEEDS, ("random", RIGHT))
    larger = round(LARGER * rate, 12)
    return train_all([_task(name, asked[name](s), s, larger, run, workspace) for s, name in pairs], tell)


def compare_directions(run: Run, workspace: Workspace, rate: float, tell: Tell) -> list[Tuned]:
    """One training along each end of each direction; the arm is the end, such as `1+`. Without verdicts: Pass@1 of
    one training has an interval of five points either way, wider than what lies between most directions."""
    ends = [(j, sign) for j in range(1, pool_of(run).k + 1) for sign in (1, -1)]
    asked = {
        f"{j}{'+' if sign > 0 else '-'}": Asked(run.id, Rule("along", (sign * j,)), Constraints(budget=ALONG))
        for j, sign in ends
    }
    tasks = [_task(end, one, SEEDS[0], rate, run, workspace) for end, one in asked.items()]
    return train_all([replace(task, with_verdicts=False) for task in tasks], tell)


def _task(arm: str, asked: Asked | None, seed: int, rate: float, run: Run, workspace: Workspace) -> Task:
    return Task(arm, asked, seed, rate, run.folder, workspace.root)


def train_all(tasks: Sequence[Task], tell: Tell) -> list[Tuned]:
    """What the trainings gave, WORKERS of them at a time."""

    def collected(found: Iterable[Tuned]) -> list[Tuned]:
        done = []
        for one in found:
            share = f"{np.mean(one.right):.1%}, " if one.right else ""
            tell(f"{one.arm}, seed {one.seed}, rate {one.rate:g}: {share}loss {one.loss:.4f}")
            done.append(one)
        return done

    if WORKERS == 1:
        return collected(map(tuned, tasks))
    with worker_processes() as workers:
        return collected(workers.map(tuned, tasks))


def worker_processes() -> ProcessPoolExecutor:
    """WORKERS processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_use_one_thread)


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def tuned(task: Task) -> Tuned:
    """Train on one selection, or read what an earlier training gave."""
    asked = task.asked.as_dict() if task.asked else None
    training = [task.rate, WARMUP, PROBLEMS, ROWS, task.with_verdicts, task.stream]
    identity = {"request": asked, "seed": task.seed, "training": training, "model": _model_digest()}
    path = task.workspace / "demo" / "tuned" / f"{content_hash(identity | {'run': task.folder.name})}.json"
    if path.exists():
        stored = read_json(path)
        lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
        return Tuned(**{**stored, **lists, "arm": task.arm})
    start, model = time.process_time(), load()
    facts: dict[str, float] = {}
    if task.asked:
        pool = _pool(task.folder)
        found = find_selection(task.asked, Run(task.folder), pool, Workspace(task.workspace))
        fine_tune(model, Run(task.folder).texts(found.rows), task.seed, task.rate)
        chosen = pool.facts.iloc[found.rows]
        columns = {"correct": chosen["correct"], "rare": chosen["operation"].isin(RARE)}
        columns |= {"check": chosen["check"], "tokens": chosen["n_tokens"]}
        facts = {name: float(values.mean()) for name, values in columns.items()}
    responses = respond(model) if task.with_verdicts else []
    right = tuple(one.right is True for one in responses)
    checked = tuple(world.read_response(one.text).check for one in responses)
    found_losses = held_out_losses(model, task.stream)
    seconds = time.process_time() - start
    made = Tuned(task.arm, task.seed, right, found_losses, task.rate, checked=checked, seconds=seconds, **facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(made))
    return made


@cache
def _pool(folder: Path) -> Pool:
    return pool_of(Run(folder))


@cache
def _model_digest() -> str:
    return hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()


def load() -> LanguageModel:
    """The demo model in float32, to be trained."""
    model = load_model(str(MODEL), dtype="float32")
    model.module.requires_grad_(True)
    return model


def fine_tune(model: LanguageModel, texts: Sequence[str], seed: int, rate: float) -> None:
    """One epoch over the texts in the seed's order, all weights, packed as in the training; the rate rises over
    WARMUP steps to `rate` and falls linearly to 0. The last step is filled with the first texts again."""
    import torch

    settings, module, tokenizer = train.Settings(), model.module, model.tokenizer
    ids: list[int] = []
    positions: list[int] = []
    for text in Random(seed).sample(list(texts), len(texts)):
        tokens = [*tokenizer.encode(text), tokenizer.eos_token_id]
        ids += tokens
        positions += range(len(tokens))
    steps = math.ceil(len(ids) / (settings.rows * settings.length))
    shape = (steps, settings.rows, settings.length)
    batches, places = (torch.from_numpy(np.resize(row, shape)).to(model.device) for row in (ids, positions))
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=settings.decay, betas=(0.9, 0.95), fused=True)
    usual = module.config._attn_implementation
    module.set_attn_implementation(train.PACKED)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / WARMUP, 1 - step / steps)
        train.update(module, optimizer, batches[step], places[step], settings.clip)
    module.eval()
    module.set_attn_implementation(usual)


@cache
def problems() -> tuple[world.Example, ...]:
    """The held-out problems that `respond` asks."""
    return tuple(train.held_out(PROBLEMS, "tuning"))


def respond(model: LanguageModel) -> list[Rollout]:
    """One rollout of each of the `problems` at temperature 1; every model meets the same noise."""
    return roll_out_all(model, problems(), train.LONGEST)


def roll_out_all(
    model: LanguageModel,
    examples: Sequence[world.Example],
    new_tokens: int,
    r: int = 1,
    steering: Steering = NONE,
    directions: Directions | None = None,
    seed: int = 0,
) -> list[Rollout]:
    """r verified responses to each example's problem at temperature 1, by problem."""
    asked = [Problem(i, one.prompt, one.answer) for i, one in enumerate(examples)]
    prompts = encode_problems(model, asked, "bare", "plain", new_tokens)
    sampling = Sampling(new_tokens, temperature=1.0, seed=seed)
    variants = {UNSTEERED: steering}
    batches = roll_out(
        model, asked, prompts, verifier("world"), r, sampling, variants, directions, batch_rows=ROWS
    )
    return sorted(itertools.chain.from_iterable(batches), key=lambda one: (one.problem_id, one.rollout))


def held_out_losses(model: LanguageModel, stream: str = TEST) -> tuple[float, ...]:
    """Nats per token of right solutions to PROBLEMS problems that `respond` is not asked."""
    return tuple(losses(model, as_solutions(model, train.right_solutions(PROBLEMS, stream))).tolist())


def as_solutions(model: LanguageModel, examples: Sequence[world.Example]) -> Solutions:
    """The examples' own responses, tokenised as the model writes them."""
    asked = [Problem(i, one.prompt, one.answer) for i, one in enumerate(examples)]
    return written_solutions(model, asked, {i: one.response for i, one in enumerate(examples)}, "bare")


@dataclass(frozen=True)
class Gap:
    """A difference of two arms with its 95% interval, and its two-sided p-value."""

    interval: Interval
    p: float


def against(arm: Sequence[Tuned], other: Sequence[Tuned], by: str = "right") -> Gap:
    """The difference of two arms' Pass@1, or of their `losses`, paired by problem."""
    return _gap([_table(arm, by), _table(other, by)])


def average(arm: Sequence[Tuned], by: str = "right", rare: bool = False) -> Interval:
    """Pass@1, or the mean of `checked` or `losses`, over problems, all or those of a rare operation, and seeds."""
    ours = _table(arm, by)
    if rare:
        ours = ours[:, [problem.operation in RARE for problem in problems()]]
    return _gap([ours]).interval


def _table(arm: Sequence[Tuned], by: str) -> np.ndarray:
    """(seeds, problems)"""
    return np.array([getattr(one, by) for one in arm], dtype=float)


def _gap(tables: Sequence[np.ndarray]) -> Gap:
    """The mean of the first table (seeds, problems), less that of the second where there is one, with Student's t.

    The same problems and other seeds would give other means. The variance is that of the problems' means, and of
    the seeds' means what they vary beyond the chance within a problem, which the former holds already; the degrees
    of freedom are Satterthwaite's. With three seeds it covers 93 to 97% of differences, 90 to 96% of single means.
    """
    from scipy.stats import t

    means = tables[0].mean(axis=0) - (tables[1].mean(axis=0) if len(tables) > 1 else 0)
    n = len(means)
    parts = [(float(means.var(ddof=1)) / n, n - 1)]
    for table in tables:
        seeds = len(table)
        if seeds > 1:
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            chance = float((rest**2).sum()) / ((seeds - 1) * (n - 1)) / n
            parts.append((max(0.0, float(table.mean(axis=1).var(ddof=1)) - chance) / seeds, seeds - 1))
    variance, value = sum(part for part, _ in parts), float(means.mean())
    if not variance:
        return Gap(Interval(value, value, value, n), 1.0 if not value else 0.0)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    p = 2 * float(t.sf(abs(value) / math.sqrt(variance), freedom))
    return Gap(Interval(value, value - half, value + half, n), p)
