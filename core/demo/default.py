"""The run that a new workspace opens on: the demo model over the demo world, recovered on this machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from core.activations import Progress, Recipe, silent
from core.demo.card import read_share
from core.examples import Columns, DataSource
from core.model import model_fingerprint
from core.recovery import Request, recover
from core.workspace import Run, Workspace, write_atomic

MODEL = Path(__file__).parent / "model"
EXAMPLES = 1_500
SEED = 2_026


@cache
def about() -> str:
    """What a visitor of the demo looks at, with the model's own figure from its card."""
    share = read_share((MODEL / "README.md").read_text(encoding="utf-8"))
    low, high = share.wilson()
    return (
        "This is the embedded demo: a language model of 2.8 million parameters, trained on two processor cores, "
        f"over generated word problems that it has not seen. It solves {share.value:.0%} of such problems (95% "
        f"interval {low:.0%} to {high:.0%}). It shows how the tool works, and nothing about models that people "
        "use. To see one of your own, open Recover."
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
    """Whether a run was recovered from the demo model, wherever that lay."""
    return bool(run.manifest["model"]["fingerprint"] == _fingerprint())


@cache
def _fingerprint() -> str:
    return model_fingerprint(MODEL)
