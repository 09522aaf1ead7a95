"""What ranking k = 10 directions costs by each proxy on the demo model, in units of one evaluation (every
development problem, ROLLOUTS texts each), and what the first-order proxy costs in forward passes as k grows. The
directions are random: cost does not depend on what they mean. Steering is counted by its plan when time is no
limit; SFT is not measured here."""

from __future__ import annotations

import numpy as np

from bench.measure import clock, machine, show, spread
from core.basis import Basis
from core.demo import world
from core.demo.default import MODEL
from core.evaluation.problems import Problem
from core.evaluation.rollouts import encode_problems, roll_out
from core.evaluation.verifiers import verifier
from core.model import LanguageModel, load_model
from core.steering.generation import Sampling
from core.steering.intervention import Directions
from core.usefulness.development import Solutions, losses, written_solutions
from core.usefulness.first_order import derivatives, loss_gradients
from core.usefulness.steering import make_plan
from core.usefulness.traces import Traces
from core.usefulness.utility import estimates, measures_of

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
    plan = make_plan(2 * K, RANDOM, ROLLOUTS, n, n * ROLLOUTS / whole, 1e9)
    steered = plan.rollouts / (n * ROLLOUTS)
    seconds = {"utility, 1,000 traces": utility(), "first-order": backward, "steering": steered * whole}
    rows = [[name, f"{took:,.2f}", f"{took / whole:,.3f}"] for name, took in seconds.items()]
    show(["ranking 10 directions", "seconds", "evaluations"], [["one evaluation", f"{whole:,.1f}", "1"], *rows])


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
