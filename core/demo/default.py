"""The run that a new workspace opens on: the demo model over the demo world, recovered on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from core.activations import Progress, Recipe, silent
from core.demo.card import read_share
from core.examples import Columns, DataSource
from core.model import model_fingerprint
from core.recovery import Request, recover
from core.workspace import Run, Workspace, lend, write_atomic

MODEL = Path(__file__).parent / "model"
SHIPPED = Path(__file__).parent / "shipped"
"""The activations of the examples, so that a first start takes them instead of computing them; `python -m
core.demo.default` writes them."""
EXAMPLES = 4_000
SEED = 2_026
DATA, DEVELOPMENT = "demo/problems.jsonl", "demo/development.jsonl"
PROBLEMS = 200
"""So many other problems with right solutions are written to DEVELOPMENT, to measure usefulness on."""
SELECTION, BUDGET = "demo-coverage", 400
COMPARISONS = {
    True: "a symbolic solution, made verbal at -1.5 sd",
    False: "a verbal solution, made symbolic at +1.5 sd",
}
STEPS, TRIED, STRENGTH, NEW_TOKENS = 2, 12, 1.5, 300
"""The saved comparisons: of the first TRIED problems of so many steps the first that the model by itself solves in
symbols and the first that it does not, each with so many standard deviations along the direction that best tells
style, and against it."""


@cache
def about() -> str:
    """What a visitor of the demo looks at, with the model's own figure from its card."""
    share = read_share((MODEL / "README.md").read_text(encoding="utf-8"))
    low, high = share.wilson()
    return (
        "This is the embedded demo: a language model of 2.8 million parameters, trained on two processor cores, "
        f"over generated word problems that it has not seen. By itself it solves {share.value:.0%} of such "
        f"problems (95% interval {low:.0%} to {high:.0%}). The solutions in the data, some wrong on purpose, and "
        "their contributors are made up. It shows how the tool works, and nothing about models that people use. "
        "To see one of your own, open Recover."
    )


def recover_demo(workspace: Workspace, progress: Progress = silent) -> Run:
    """Generate the problems, seeded, and recover the basis of their solutions, the activations being those that
    come with Basiscope; no network is needed. What is there already stays."""
    from core.usefulness.utility import UtilityRequest, utility

    write_development(workspace, PROBLEMS)
    run = recover(demo_request(workspace), workspace, progress, SHIPPED)
    if SELECTION not in {kept.name for kept in workspace.selections(run.id)}:
        progress("selection", 0, 1)
        select_demo(run, workspace)
    if not set(COMPARISONS.values()) <= {kept.name for kept in workspace.comparisons(run.id).values()}:
        steer_demo(run, workspace, progress)
    if "utility" not in {one.proxy for one in workspace.evidence(run.id).values()}:
        workspace.save_evidence(utility(run, UtilityRequest(correct="correct"), progress=progress))
    return run


def demo_request(workspace: Workspace) -> Request:
    """The problems, written to the workspace, and the recipe: in float32, so that every machine sees the same
    directions."""
    from core.demo.world import write_jsonl

    data = workspace.root / DATA
    write_atomic(data, lambda path: write_jsonl(path, EXAMPLES, SEED))
    return Request(
        model=str(MODEL),
        source=DataSource(str(data)),
        columns=Columns(prompt="prompt", response="response"),
        recipe=Recipe(pooling="mean-response", dtype="float32"),
        store_dtype="float16",
    )


def write_development(workspace: Workspace, n: int) -> Path:
    """n problems with right solutions, which no training of the model and none of its tests has."""
    from core.demo.train import right_solutions

    rows = [json.dumps(asdict(one)) + "\n" for one in right_solutions(n, "development")]
    path = workspace.root / DEVELOPMENT
    write_atomic(path, lambda part: part.write_text("".join(rows)))
    return path


def usual_problems(run: Run, workspace: Workspace) -> str:
    """The file of problems to measure the demo's usefulness on; empty for other runs."""
    path = workspace.root / DEVELOPMENT
    return str(path) if shows_demo(run) and path.exists() else ""


def select_demo(run: Run, workspace: Workspace) -> None:
    """Keep one selection: BUDGET examples that cover the basis, with its ledger by contributor."""
    from core.provenance import Origins
    from core.selection.pool import Constraints, Rule
    from core.selection.step import Request as Asked
    from core.selection.step import select

    asked = Asked(
        run.id, Rule("coverage"), Constraints(budget=BUDGET), Origins(source="source", licence="license")
    )
    select(asked, workspace, SELECTION, replace_old=True)


def steer_demo(run: Run, workspace: Workspace, progress: Progress) -> None:
    """Keep a comparison for each of COMPARISONS: problems that the model has not seen, steered to either style."""
    from core.demo.world import generate, read_response
    from core.recovery import load_run_model
    from core.steering.comparison import compare, make_variants
    from core.steering.generation import Sampling
    from core.steering.intervention import Directions

    direction = style_direction(run)
    variants = make_variants(Directions.of(run), direction, (-STRENGTH, STRENGTH), "sd")
    model = load_run_model(run, "auto")
    prompts = [problem.prompt for problem in generate(100, "comparison") if problem.steps == STEPS][:TRIED]

    def watch(done: int | None, _snapshot: object) -> bool:
        progress("comparison", NEW_TOKENS if done is None else done, NEW_TOKENS)
        return True

    found = compare(run, model, prompts, variants, Sampling(NEW_TOKENS), direction, "sd", watch)
    symbolic = [read_response(comparison.responses[0].text).style == "symbolic" for comparison in found]
    for by_itself, name in COMPARISONS.items():
        if by_itself in symbolic:
            workspace.save_comparison(replace(found[symbolic.index(by_itself)], name=name))


def style_direction(run: Run) -> int:
    """The direction (from 1) whose scores best tell symbolic from verbal solutions."""
    from sklearn.metrics import roc_auc_score

    symbolic = run.examples(["style"])["style"] == "symbolic"
    scores = run.scores()
    areas = {j: roc_auc_score(symbolic, scores[f"d{j}"]) for j in range(1, run.k + 1)}
    return max(areas, key=lambda j: abs(areas[j] - 0.5))


def is_demo(run: Run) -> bool:
    """Whether a run was recovered from the demo model, wherever that lay."""
    return bool(run.manifest["model"]["fingerprint"] == _fingerprint())


def shows_demo(run: Run) -> bool:
    """Whether a run is of the demo model over the demo's own problems."""
    return is_demo(run) and Path(str(run.manifest["data"]["path"])).match(DATA)


@cache
def _fingerprint() -> str:
    return model_fingerprint(MODEL)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        at = Workspace(Path(folder))
        lend(recover(demo_request(at), at), SHIPPED)
