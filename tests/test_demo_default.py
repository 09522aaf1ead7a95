import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from core import recovery
from core.demo import default
from core.demo.default import (
    COMPARISONS,
    MODEL,
    SELECTION,
    is_demo,
    recover_demo,
    shows_demo,
    style_direction,
    usual_problems,
)
from core.demo.world import read_response
from core.evaluation.problems import read_problems
from core.examples import DataSource
from core.model import load_model
from core.reading import terms
from core.workspace import Workspace

SMALL = {"EXAMPLES": 120, "BUDGET": 20, "NEW_TOKENS": 30}
FULL = {name: getattr(default, name) for name in SMALL}


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(default, name, value)
        yield


@pytest.fixture(scope="module")
def workspace(small, tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("demo"))
    recover_demo(workspace)
    return workspace


def test_every_page_of_a_new_workspace_has_something_to_show(workspace):
    (run,) = workspace.runs()
    assert is_demo(run) and len(run.map()) == 120 and set(run.labels()) == set(range(1, run.k + 1))
    (kept,) = workspace.selections(run.id)
    assert kept.name == SELECTION and len(set(kept.example_ids)) == 20
    assert {row["source"] for row in kept.manifest["ledger"]} <= set(run.examples(["source"])["source"])
    comparisons = {kept.name: kept for kept in workspace.comparisons(run.id).values()}
    assert (
        set(comparisons) == set(COMPARISONS.values()) and len({kept.prompt for kept in comparisons.values()}) == 2
    )
    for kept in comparisons.values():
        assert kept.direction == style_direction(run) and all(response.text for response in kept.responses)
        assert [response.strength for response in kept.responses] == [0, -default.STRENGTH, default.STRENGTH]
    (evidence,) = workspace.evidence(run.id).values()
    assert evidence.proxy == "utility" and len(evidence.effects) >= run.k


def test_usefulness_has_problems_that_the_demo_does_not_hold(workspace):
    (run,) = workspace.runs()
    problems = read_problems(DataSource(usual_problems(run, workspace)), "prompt", "answer").problems
    assert len(problems) == default.PROBLEMS
    assert not {one.prompt for one in problems} & set(run.examples(["prompt"])["prompt"])
    run.manifest["data"]["path"] = "/home/someone/problems.jsonl"
    assert not usual_problems(run, workspace)


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """The workspace as a user gets it, of which nothing may run the model over the examples."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FULL.items():
            patch.setattr(default, name, value)
        patch.setattr(recovery, "extract", None)
        return recover_demo(Workspace(tmp_path_factory.mktemp("first")))


def test_the_activations_that_come_with_it_are_the_model_s(first_start):
    """One example at a time in float32, after other batches in float32; stored as float16, 2^-11 relative."""
    model = load_model(str(MODEL), dtype="float32", device="cpu")
    windows, shipped = first_start.windows(), first_start.activations()
    (rows,) = shipped.shards
    assert shipped.n == len(windows) == len(rows) == 4_000 and rows.dtype == torch.float16
    stored = dict(zip(shipped.example_id.tolist(), rows.float(), strict=True))
    for i in np.random.default_rng(0).choice(4_000, 24, replace=False):
        ids = torch.from_numpy(windows.tokens(i)).long()[None]
        states = model.module(ids, output_hidden_states=True).hidden_states
        pooled = [states[block + 1][0, windows.first[i] :].mean(dim=0) for block in shipped.blocks]
        torch.testing.assert_close(stored[windows.example_id[i]], torch.cat(pooled), rtol=2**-10, atol=1e-4)


def test_the_saved_comparisons_are_what_their_names_say(first_start):
    kept = Workspace(first_start.folder.parent.parent).comparisons(first_start.id).values()
    styles = {one.name: {said.strength: read_response(said.text).style for said in one.responses} for one in kept}
    by_itself, strength = 0.0, default.STRENGTH
    symbolic, verbal = styles[COMPARISONS[True]], styles[COMPARISONS[False]]
    assert (symbolic[by_itself], symbolic[-strength]) == ("symbolic", "verbal")
    assert (verbal[by_itself], verbal[strength]) == ("verbal", "symbolic")
    assert None not in {*symbolic.values(), *verbal.values()}, "no text is damaged"
    assert all(f"{strength:g} sd" in name for name in styles)


def test_the_labels_are_of_the_responses_which_alone_are_pooled(first_start):
    examples = first_start.examples(["prompt", "response"])
    asked, answered = (set().union(*map(terms, examples[part])) for part in ("prompt", "response"))
    said = {word for label in first_start.labels().values() for word, _ in (*label.positive, *label.negative)}
    assert said <= answered and asked - answered


def test_other_evidence_does_not_stand_for_the_utility(small, workspace):
    (run,) = workspace.runs()
    (kept,) = workspace.evidence(run.id).values()
    workspace.save_evidence(replace(kept, proxy="first-order"))
    shutil.rmtree(workspace.root / "usefulness" / run.id / "evidence")
    workspace.save_evidence(replace(kept, proxy="first-order"))
    recover_demo(workspace)
    assert {one.proxy for one in workspace.evidence(run.id).values()} == {"first-order", "utility"}


def test_the_banner_is_for_the_demo_s_own_problems(workspace):
    (run,) = workspace.runs()
    assert shows_demo(run)
    run.manifest["data"]["path"] = "demo/problems.jsonl"
    assert shows_demo(run), "also where the workspace is the folder one is in"
    run.manifest["data"]["path"] = "/home/someone/problems.jsonl"
    assert is_demo(run) and not shows_demo(run)


def test_the_demo_again_changes_nothing(workspace, small, run_cli):
    def files():
        return {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if "demo" not in path.parts}

    before = files()
    status, out, err = run_cli("demo", "--workspace", workspace.root)
    assert status == 0 and out.strip() == workspace.run().id, err
    after = files()
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}
    kept = workspace.selections()[0].folder / "manifest.json"
    assert before[kept] == after[kept]
