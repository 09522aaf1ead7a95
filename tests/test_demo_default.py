import pytest

from core.demo import default
from core.demo.default import COMPARISON, SELECTION, is_demo, recover_demo, style_direction
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
    (comparison,) = workspace.comparisons(run.id).values()
    assert comparison.name == COMPARISON and comparison.direction == style_direction(run)
    assert [response.strength for response in comparison.responses] == [0, -default.STRENGTH, default.STRENGTH]
    assert all(response.text for response in comparison.responses)


def test_the_demo_again_changes_nothing(workspace, small):
    def files():
        return {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if "demo" not in path.parts}

    before = files()
    recover_demo(workspace)
    after = files()
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}
    kept = workspace.selections()[0].folder / "manifest.json"
    assert before[kept] == after[kept]
