"""What ranking k = 10 directions costs by each proxy on the demo model, in units of one evaluation (every
development problem, ROLLOUTS texts each), controls included; what first-order costs in forward passes as k grows.
The directions of first-order are random: cost does not depend on what they mean. Steering is counted by its plan
when time is no limit, SFT by its number of trainings, of which a few are made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bench.measure import clock, machine, show, spread
from core.activations import Recipe
from core.basis import Basis
from core.demo import world
from core.demo.default import MODEL
from core.demo.world import write_jsonl
from core.evaluation.problems import Problem
from core.evaluation.rollouts import encode_problems, roll_out
from core.evaluation.verifiers import verifier
from core.examples import Columns, DataSource
from core.model import LanguageModel, load_model
from core.recovery import Request, recover
from core.selection.pool import pool_of
from core.steering.generation import Sampling
from core.steering.intervention import Directions
from core.usefulness.controls import MODELS
from core.usefulness.development import Solutions, losses, written_solutions
from core.usefulness.first_order import derivatives, loss_gradients
from core.usefulness.sft import SftRequest, control_selections, selections, trained
from core.usefulness.steering import MODEL_ARMS, make_plan
from core.usefulness.traces import Traces
from core.usefulness.utility import UtilityRequest, estimates, measures_of
from core.usefulness.utility import utility as whole_utility
from core.workspace import Run, Workspace

K, BLOCKS, ROLLOUTS, RANDOM, TOKENS = 10, (1, 2, 3, 4), 4, 8, 300
GROWING = (1, 10, 100)


def main(quick: bool) -> None:
    """Print the figures; quick: a few problems."""
    n, rounds = (4, 2) if quick else (32, 5)
    model = load_model(str(MODEL), dtype="float32", device="cpu")
    examples = world.generate(n, "bench usefulness")
    problems = [Problem(i, example.prompt, str(example.answer)) for i, example in enumerate(examples)]
    written = {i: example.response for i, example in enumerate(examples)}
    solutions = written_solutions(model, problems, written, "bare")
    print(f"usefulness: demo model, {n} problems, {solutions.tokens:,} tokens of solutions; median (min to max)")
    print(f"  {machine()}", flush=True)
    backward = first_order(model, solutions, rounds)
    whole = evaluation(model, problems[: max(2, n // 4)]) * n / max(2, n // 4)
    seconds = {"utility, measures of 1,000 traces alone": utility(), "first-order": backward}
    for title, random in (("steering", RANDOM), ("steering, random models", RANDOM + MODEL_ARMS * len(MODELS))):
        plan = make_plan(2 * K, random, ROLLOUTS, n, n * ROLLOUTS / whole, 1e9)
        seconds[title] = plan.rollouts / (n * ROLLOUTS) * whole
    with tempfile.TemporaryDirectory() as folder:
        run = recovered(Path(folder), 40 if quick else 1_000)
        seconds |= utility_with_controls(run, model)
        seconds |= trainings(run, model, solutions, quick)
    rows = [[name, f"{took:,.2f}", f"{took / whole:,.3f}"] for name, took in seconds.items()]
    show(["ranking 10 directions", "seconds", "evaluations"], [["one evaluation", f"{whole:,.1f}", "1"], *rows])


def recovered(folder: Path, n: int) -> Run:
    """A run of the demo model over n generated solutions, right and wrong."""
    write_jsonl(folder / "problems.jsonl", n, "bench usefulness pool")
    source, columns = DataSource(str(folder / "problems.jsonl")), Columns(prompt="prompt", response="response")
    recipe = Recipe(pooling="mean-response", dtype="float32")
    asked = Request(str(MODEL), source, columns, recipe, k=K, device="cpu", with_map=False)
    return recover(asked, Workspace(folder / "workspace"))


def utility_with_controls(run: Run, model: LanguageModel) -> dict[str, float]:
    """Seconds of `utility` over a run's traces, by what it is held against."""
    found = {}
    for title, models in (("utility", ()), ("utility, random models", MODELS)):
        start = clock()
        whole_utility(run, UtilityRequest("correct", models=models), lambda: model)
        found[f"{title}, {run.manifest['n']:,} traces"] = clock() - start
    return found


def trainings(run: Run, model: LanguageModel, solutions: Solutions, quick: bool) -> dict[str, float]:
    """Seconds of the proxy SFT at its defaults, from one training along each end of two directions, and from
    choosing its controls."""
    pool = pool_of(run)
    request = SftRequest(tuple(range(1, K + 1)), examples=4 if quick else 64)
    start = clock()
    control_selections(run, model, pool, request)
    choosing, seconds = clock() - start, []
    for name, rows in list(selections(pool, request).items())[: 1 if quick else 4]:
        start = clock()
        trained(run, model, solutions, rows, request, None, name, seed=0)
        seconds.append(clock() - start)
    print(f"  sft: one of {request.trainings} trainings and its measurement {spread(seconds)} s", flush=True)
    return {f"sft, {request.trainings} trainings": choosing + request.trainings * float(np.median(seconds))}


def random_directions(model: LanguageModel, k: int) -> Directions:
    d = len(BLOCKS) * model.hidden_size
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((d, k)))[0].T.astype(np.float32, order="C")
    ones = np.ones(len(BLOCKS), np.float32)
    return Directions(Basis(rows, np.zeros(d, np.float32), np.ones(k, np.float32), ones, 1.0, 2, ones), BLOCKS)


def first_order(model: LanguageModel, solutions: Solutions, rounds: int) -> float:
    """Print ratios to one forward pass over the same solutions; seconds for K directions."""
    directions = {k: random_directions(model, k) for k in GROWING}
    seconds: dict[int, list[float]] = {k: [] for k in (0, *GROWING)}
    for round_ in range(rounds + 1):
        for k, times in seconds.items():
            start = clock()
            if k:
                derivatives(directions[k], loss_gradients(model, solutions, BLOCKS).sums)
            else:
                losses(model, solutions)
            if round_:  # the first warms up
                times.append(clock() - start)
    forward = np.array(seconds[0])
    rows = [[f"k = {k}", spread(seconds[k]), spread(np.array(seconds[k]) / forward)] for k in GROWING]
    show(["first-order", "seconds", "forward passes"], rows)
    return float(np.median(seconds[K]))


def evaluation(model: LanguageModel, problems: list[Problem]) -> float:
    """Seconds of ROLLOUTS verified texts for each problem, unsteered."""
    prompts = encode_problems(model, problems, "bare", "plain", TOKENS)
    start = clock()
    for _ in roll_out(model, problems, prompts, verifier("world"), ROLLOUTS, Sampling(TOKENS, temperature=1.0)):
        pass
    return clock() - start


def utility(traces: int = 1_000) -> float:
    """Seconds of all measures, the controls aside."""
    rng = np.random.default_rng(0)
    problem, right = np.arange(traces) // 4, rng.random(traces) < 0.5
    made = Traces(np.arange(traces), right, problem, rng.standard_normal((traces, 2)), ("length",), {})
    scores = rng.standard_normal((traces, K))
    start = clock()
    for name in measures_of(made):
        estimates(name, scores, made)
    return clock() - start
