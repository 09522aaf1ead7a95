"""What each proxy says of the directions of the large pool, beside what full fine-tuning along them then gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.demo.default import MODEL, write_development
from core.demo.report.tuning import DEVELOPMENT, Tell, Tuned, as_solutions, worker_processes
from core.demo.train import right_solutions
from core.evaluation import Interval
from core.evaluation.problems import ProblemSet, read_problems
from core.examples import DataSource
from core.model import load_model
from core.steering.generation import Sampling
from core.usefulness.evidence import Evidence
from core.usefulness.first_order import first_order
from core.usefulness.recommend import recommend
from core.usefulness.sft import SftRequest, train_proxy
from core.usefulness.steering import SteeringRequest, steer_proxy
from core.usefulness.table import agreement_of, towards
from core.usefulness.utility import UtilityRequest, utility
from core.workspace import Run, Workspace

NAMES = ("steering", "sft", "utility", "first-order")
"""The slowest first, so that they run beside each other."""
PROBLEMS, ROLLOUTS, SECONDS, STRENGTH = 200, 2, 900.0, 1.0
NEW_TOKENS = 420
EXAMPLES, RATE = 64, 1e-3


@dataclass(frozen=True)
class Foretold:
    """Rank correlation over the directions, the + end less the - end, of one proxy with the loss after
    fine-tuning, and the proxy's cost in seconds."""

    proxy: str
    agreement: Interval
    seconds: float


def measure_proxies(run: Run, workspace: Workspace, tell: Tell) -> list[Evidence]:
    """All proxies on the same development problems, which no training or test has. What is finished is kept."""
    source = write_development(workspace, PROBLEMS)
    measured = partial(measure, folder=run.folder, root=workspace.root, source=source)
    found = []
    with worker_processes() as workers:
        for one in workers.map(measured, NAMES):
            tell(f"{one.proxy}: {one.cost.seconds:,.0f} s")
            found.append(one)
    return found


def measure(proxy: str, folder: Path, root: Path, source: Path) -> Evidence:
    """What one proxy finds on the problems of `source`, or what it found before."""
    run, workspace = Run(folder), Workspace(root)
    problems = read_problems(DataSource(str(source)), "prompt", "answer")
    asked = {"report": problems.fingerprint}
    kept = workspace.evidence(run.id).values()
    if before := next(
        (one for one in kept if (one.proxy, one.request.get("report")) == (proxy, *asked.values())), None
    ):
        return before
    found = _measured(proxy, run, workspace, problems)
    found = replace(found, request={**found.request, **asked})
    workspace.save_evidence(found)
    return found


def _measured(proxy: str, run: Run, workspace: Workspace, problems: ProblemSet) -> Evidence:
    every = tuple(range(1, run.k + 1))
    if proxy == "utility":
        return utility(run, UtilityRequest(correct="correct"))
    model = load_model(str(MODEL), device="cpu")
    if proxy == "steering":
        sampling = Sampling(NEW_TOKENS, temperature=1.0)
        tried = SteeringRequest(
            problems, "world", every, (STRENGTH,), SECONDS, ROLLOUTS, sampling=sampling, wording="bare"
        )
        return steer_proxy(run, model, tried, workspace)
    solutions = as_solutions(model, right_solutions(PROBLEMS, DEVELOPMENT))
    if proxy == "first-order":
        return first_order(run, model, solutions, {})
    request = SftRequest(every, examples=EXAMPLES, seeds=1, rate=RATE)
    return train_proxy(run, model, solutions, request)


def useful_directions(evidence: Sequence[Evidence], k: int) -> tuple[tuple[int, ...], str]:
    """The directions, signed, that all proxies of a run together recommend, or the one that short LoRA puts
    highest where they recommend none; and which it was, in words."""
    told = recommend(evidence[0].run, k, {one.proxy: one for one in evidence})
    names, said = told.helpful, [f"{one.name} by {one.proxy}" for one in told.findings if one.helps]
    reason = f"what the proxies of item 4 recommend: {', '.join(said)}"
    if not names:
        ends = towards(next(one for one in evidence if one.proxy == "sft"))
        names = (max(ends, key=lambda end: ends[end].value),)
        reason = "the proxies of item 4 recommend none; this is what short LoRA puts highest"
    return tuple(int(name[:-1]) * (1 if name[-1] == "+" else -1) for name in names), reason


def gains(arms: Sequence[Tuned], before: Tuned) -> dict[str, Interval]:
    """End -> how much lower the loss is than before the training."""
    return {one.arm: Interval(before.loss - one.loss, math.nan, math.nan, 1) for one in arms}


def foretold(evidence: Sequence[Evidence], arms: Sequence[Tuned], before: Tuned) -> list[Foretold]:
    """How well each proxy ranks the directions, the cheapest first."""
    loss = gains(arms, before)
    return [
        Foretold(one.proxy, agreement_of(towards(one), loss), one.cost.seconds)
        for one in sorted(evidence, key=lambda one: one.cost.seconds)
    ]
