"""The run that a new workspace opens on: the demo model over the demo world, recovered on this machine."""

from __future__ import annotations

from pathlib import Path

from core.activations import Progress, Recipe, silent
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.workspace import Run, Workspace, write_atomic

MODEL = Path(__file__).parent / "model"
EXAMPLES = 1_500
SEED = 2_026
ABOUT = (
    "This is the embedded demo: a model of 2.7 million parameters over generated word problems that it has not "
    "seen. It was trained for half an hour on a laptop-sized machine: it writes solutions of the right form, and "
    "2 in 100 are right. So this shows how the tool works, and nothing about models that people use. To see one "
    "of your own, open Recover."
)


def recover_demo(workspace: Workspace, progress: Progress = silent) -> Run:
    """Generate the problems, seeded, and recover the basis of their solutions; no network is needed."""
    from core.demo.world import write_jsonl

    data = workspace.root / "demo" / "problems.jsonl"
    write_atomic(data, lambda path: write_jsonl(path, EXAMPLES, SEED))
    request = Request(
        model=str(MODEL),
        source=DataSource(str(data)),
        columns=Columns(prompt="prompt", response="response"),
        recipe=Recipe(pooling="mean-response"),
    )
    return recover(request, workspace, progress)


def is_demo(run: Run) -> bool:
    """Whether a run was recovered from the demo model."""
    return Path(run.manifest["model"]["name"]) == MODEL
