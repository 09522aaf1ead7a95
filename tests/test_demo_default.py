import pytest

from core.demo import default
from core.demo.default import (
    COMPARISONS,
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
from core.workspace import Workspace


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "EXAMPLES", 120)
        patch.setattr(default, "BUDGET", 20)
        patch.setattr(default, "NEW_TOKENS", 30)
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


def test_the_saved_comparisons_change_the_style_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(default, "EXAMPLES", 600)
    monkeypatch.setattr(default, "NEW_TOKENS", 300)
    workspace = Workspace(tmp_path)
    run = recover_demo(workspace)
    changed = []
    for kept in workspace.comparisons(run.id).values():
        styles = [read_response(response.text).style for response in kept.responses]
        assert None not in styles, "no text is damaged"
        changed += [(styles[0], style) for style in styles[1:] if style != styles[0]]
    assert set(changed) == {("verbal", "symbolic"), ("symbolic", "verbal")}


def test_the_banner_is_for_the_demo_s_own_problems(workspace):
    (run,) = workspace.runs()
    assert shows_demo(run)
    run.manifest["data"]["path"] = "demo/problems.jsonl"
    assert shows_demo(run), "also where the workspace is the folder one is in"
    run.manifest["data"]["path"] = "/home/someone/problems.jsonl"
    assert is_demo(run) and not shows_demo(run)


def test_the_demo_again_changes_nothing(workspace, small):
    def files():
        return {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if "demo" not in path.parts}

    before = files()
    recover_demo(workspace)
    after = files()
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}
    kept = workspace.selections()[0].folder / "manifest.json"
    assert before[kept] == after[kept]
