import json
import shlex
import time
from dataclasses import replace

import pytest
from synthetic import synthetic_run
from test_pages import show, texts

from core.cli.selecting import parse_selection
from core.jobs import find_job
from core.provenance import Origins
from core.selection.pool import Constraints, Rule, parse_quotas
from core.selection.step import Request, screen_run, select
from core.workspace import NamedSet, Workspace

SELECT = "select"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    synthetic_run(Workspace(folder), n=120)
    return folder


@pytest.fixture
def run(workspace):
    return workspace.run()


@pytest.fixture
def uneven(workspace):
    """A run of texts of 1 to 60 different words."""
    return synthetic_run(workspace, texts=[" ".join(f"w{i}x{j}" for j in range(i + 1)) for i in range(60)])


def look(at, view):
    """Open a view of the page."""
    at.session_state["select_view"] = view
    at.run()
    assert not at.exception
    return at


def listed(at):
    look(at, "Examples")
    return next(frame.value for frame in at.dataframe if "kept because" in frame.value)


def command(at):
    look(at, "Kept")
    return next(code.value for code in at.code if "basiscope select" in code.value)


def test_the_page_shows_what_the_command_would_choose(workspace, run):
    at = show(SELECT)
    at.slider(key=f"budget_examples_{run.id}_120").set_value(15).run()
    assert "--coverage --budget 15" in command(at)
    kept = select(Request(run.id, Rule("coverage"), Constraints(budget=15)), workspace, "same")
    assert listed(at)["example"].tolist() == kept.example_ids


def test_a_rule_and_a_quota_are_in_the_command_and_hold(run):
    at = show(SELECT)
    at.selectbox(key="rule").select("along").run()
    at.slider(key=f"budget_examples_{run.id}_120").set_value(20)
    at.text_input(key="quota").set_value("kind=addition:0.5").run()
    assert not at.exception
    assert "--along 1+ --budget 20 --quota kind=addition:0.5" in command(at)
    assert (listed(at)["kind"] == "addition").sum() == 10


@pytest.mark.parametrize(
    "rule", ["both", "facility", "medoids", "random", "longest", "shortest", "text", "label", "quality", "order"]
)
def test_every_rule_can_be_shown(run, rule):
    at = show(SELECT)
    at.selectbox(key="rule").select(rule)
    at.slider(key=f"budget_examples_{run.id}_120").set_value(10)
    at.run()
    assert not at.exception
    if rule == "quality":
        assert "not a number in 120 examples" in texts(at)
    else:
        assert len(listed(at)) == 10


@pytest.mark.parametrize(
    ("quota", "sentence"),
    [
        ("nonsense", "column=value:share"),
        ("kind=magic:0.5", "no value 'magic'"),
        ("nope=1:0.5", "no column 'nope'"),
    ],
)
def test_a_bad_quota_ends_in_a_sentence(workspace, quota, sentence):
    at = show(SELECT)
    at.text_input(key="quota").set_value(quota).run()
    assert not at.exception and sentence in texts(at)


def test_weights_by_utility_hold_on_the_page_as_in_the_command(workspace, run):
    at = show(SELECT)
    at.selectbox(key="rule").select("along").run()
    at.multiselect(key=f"ends_{run.id}").set_value(["1+", "2+", "3-"]).run()
    at.slider(key=f"budget_examples_{run.id}_120").set_value(30)
    at.selectbox(key="split").select("by the run's utility").run()
    assert not at.exception and "start `basiscope utility`" in texts(at)
    at.selectbox(key="split").select("by a column of verdicts").run()
    at.selectbox(key=f"utility_{run.id}").select("is_hard").run()
    assert "goes with is_hard at r = " in texts(at)
    request = parse_selection(workspace, shlex.split(command(at))[1:])
    kept = select(request, workspace, "same")
    assert kept.manifest["rule"]["weights"] != [] and request.weights_by == "is_hard"
    equally = select(replace(request, weights_by=None), workspace, "equally")
    assert listed(at)["example"].tolist() == kept.example_ids != equally.example_ids


def test_a_budget_in_tokens_holds_on_the_page_as_in_the_command(workspace, run):
    at = show(SELECT)
    at.segmented_control(key="budget_in").set_value("tokens").run()
    (slider,) = (one for one in at.slider if one.label == "Budget in tokens")
    slider.set_value(500).run()
    assert not at.exception and "--budget-tokens 500" in command(at)
    kept = select(parse_selection(workspace, shlex.split(command(at))[1:]), workspace, "same")
    assert 480 < kept.manifest["tokens"] <= 500
    assert listed(at)["example"].tolist() == kept.example_ids
    slider = next(one for one in at.slider if one.label == "Budget in tokens")
    slider.set_value(1).run()
    assert not at.exception and "the first example alone has" in texts(at)


@pytest.mark.parametrize("quota", ["", "kind=addition:0.5"])
def test_a_baseline_that_the_budget_does_not_allow_hides_nothing(uneven, quota):
    run = uneven
    at = show(SELECT, run=run.id)
    at.segmented_control(key="budget_in").set_value("tokens").run()
    at.selectbox(key="rule").select("shortest")
    at.text_input(key="quota").set_value(quota)
    (slider,) = (one for one in at.slider if one.label == "Budget in tokens")
    slider.set_value(int(run.examples(["n_tokens"])["n_tokens"].max()) - 1).run()
    assert not at.exception and "Baseline longest is left out. Token budget" in texts(at)
    table = next(frame.value for frame in at.dataframe if "covering radius" in frame.value)
    assert "selection" in table.index and "shortest" in table.index and "longest" not in table.index
    assert "nan" not in table.to_string() and len(listed(at)) > 0


REQUESTS = {
    "along": (Rule("along", (1, -3), (2.0, 1.0), floor=0.0), Constraints(budget=11)),
    "utility": (Rule("along", (2, -1)), Constraints(budget_tokens=700, dedup="near")),
    "both": (Rule("both", (4,), useful_end=0.35, trim=0.3), Constraints(budget=9, within_length_strata=True)),
    "label": (
        Rule("label", column="kind", seed=7),
        Constraints(budget=20, caps=(("kind", 0.4), ("is_hard", 0.8))),
    ),
    "quality": (Rule("quality", column="is_hard"), Constraints(budget=4, required=("grade",), min_tokens=2)),
    "medoids": (Rule("medoids", seed=3), Constraints(budget=6, only=(1, 2, 3, 5, 8, 13, 21), max_tokens=99)),
    "random": (
        Rule("random"),
        Constraints(
            budget=10, quotas=parse_quotas("kind=addition:0.5"), must=((4, "good; 'x'"),), never=((5, "no"),)
        ),
    ),
    "order": (Rule("order"), Constraints(budget=120)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_kept_selection_is_reopened_with_all_its_choices(workspace, run, name):
    rule, constraints = REQUESTS[name]
    workspace.save_set(NamedSet("odd", run.id, (1, 3, 5, 13, 21)))
    workspace.save_set(NamedSet("even", run.id, (2, 8)))
    origins = Origins("kind", "is_hard", total=12.5, use="commercial")
    request = Request(run.id, rule, constraints, origins, "is_hard" if name == "utility" else None)
    select(request, workspace, "mine")
    at = look(show(SELECT), "Kept")
    at.button(key="open_selection").click().run()
    assert not at.exception
    assert parse_selection(workspace, shlex.split(command(at))[1:]) == request


def test_what_no_control_can_say_is_not_reopened_as_something_else(workspace, run):
    odd = Request(run.id, Rule("order"), Constraints(budget=9, caps=(("kind", 0.6),)), Origins("n_tokens"))
    select(odd, workspace, "mine")
    at = look(show(SELECT), "Kept")
    at.button(key="open_selection").click().run()
    assert not at.exception and "no controls for all of this selection" in texts(at)


def test_columns_that_are_named_as_those_of_the_table(workspace):
    synthetic_run(workspace, n=60, columns={"place": list("ab") * 30, "kept because": ["it is"] * 60})
    chosen = listed(show(SELECT))
    assert set(chosen["data_place"]) == {"a", "b"} and set(chosen["data_kept because"]) == {"it is"}


def test_what_cannot_be_made_cannot_be_saved(run):
    at = show(SELECT)
    at.text_input(key="quota").set_value("kind=addition:0.7,kind=division:0.6").run()
    look(at, "Kept")
    assert "at most 1" in texts(at) and at.button(key="save_selection").disabled
    at.text_input(key="quota").set_value("kind=addition:0.2").run()
    assert not at.button(key="save_selection").disabled and "--quota" in command(at)
    at.text_input(key="quota").set_value("kind=nowhere:0.7").run()
    assert at.button(key="save_selection").disabled and not at.exception
    at.text_input(key="quota").set_value("")
    at.selectbox(key="dedup").select("near").run()
    assert not at.button(key="save_selection").disabled, "a job looks for duplicates first"


def test_both_without_a_direction_is_not_plain_coverage(run):
    at = show(SELECT)
    at.selectbox(key="rule").select("both").run()
    at.multiselect(key=f"ends_{run.id}").set_value([]).run()
    assert not at.exception and "name at least one direction" in texts(at)


def test_marks_are_forgotten_when_other_examples_are_listed(run):
    at = show(SELECT)
    key = f"chosen_table_{hash(tuple(listed(at)['example']))}"
    at.session_state[key] = {"selection": {"rows": [0, 150], "columns": [], "cells": []}}
    at.run()
    assert not at.exception and not at.button(key="mark_Drop").disabled
    first = int(listed(at)["example"].iloc[0])
    word = listed(at)["text"].iloc[5].split()[0]
    at.text_input(key="search_chosen").set_value(word).run()
    assert not at.exception and at.button(key="mark_Drop").disabled
    at.text_input(key="search_chosen").set_value("").run()
    at.session_state[key] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    at.run()
    at.button(key="mark_Drop").click().run()
    assert not at.exception and list(at.session_state["select_dropped"][run.id]) == [first]


def test_pinned_and_dropped_examples_are_in_the_command(run):
    at = show(SELECT)
    at.slider(key=f"budget_examples_{run.id}_120").set_value(50).run()
    at.session_state["select_pinned"] = {run.id: {7: "good"}}
    at.session_state["select_dropped"] = {run.id: {9: "bad; rm -rf"}}
    assert "--must 7:good --never '9:bad; rm -rf'" in command(at)
    chosen = listed(at)
    assert chosen["example"].iloc[0] == 7 and chosen["kept because"].iloc[0] == "must-have: good"
    assert 9 not in chosen["example"].tolist()


def test_all_the_chosen_are_sorted_before_the_first_are_listed(workspace, run, monkeypatch):
    monkeypatch.setattr("pages.select_data.results.LISTED", 5)
    at = show(SELECT)
    chosen = listed(at)["example"].tolist()
    grades = run.examples(["example_id", "grade"]).set_index("example_id")["grade"]
    kept = select(Request(run.id, Rule("coverage"), Constraints(budget=60)), workspace, "sixty").example_ids
    assert chosen == kept[:5]
    at.selectbox(key=f"order_chosen_{run.id}").select("grade").run()
    assert listed(at)["grade"].tolist() == sorted(grades[kept].dropna())[:5]
    at.toggle(key="highest_chosen").set_value(True).run()
    assert listed(at)["grade"].tolist() == sorted(grades[kept].dropna(), reverse=True)[:5]
    at.selectbox(key=f"order_chosen_{run.id}").select("kind").run()
    at.toggle(key="highest_chosen").set_value(False).run()
    additions = [i for i in kept if run.examples(["kind"])["kind"][i] == "addition"]
    assert listed(at)["example"].tolist() == additions[:5]


def test_a_run_that_is_deleted_while_the_page_is_open_ends_in_what_to_do(workspace, run):
    select(Request(run.id, Rule("coverage"), Constraints(budget=15)), workspace, "mine")
    at = look(show(SELECT), "Kept")
    workspace.delete(run.id)
    at.button(key="open_selection").click().run()
    assert not at.exception and not at.slider
    other = synthetic_run(workspace, n=50, seed=1)
    at.run()
    assert not at.exception and any(other.id in slider.key for slider in at.slider)
    assert workspace.selection("mine").run == run.id


def test_a_mark_is_taken_back_alone(run):
    at = show(SELECT)
    at.session_state["select_pinned"] = {run.id: {7: "good"}}
    at.session_state["select_dropped"] = {run.id: {9: "bad", 11: "worse"}}
    look(at, "Examples")
    assert at.button(key="take_back").disabled
    marks = next(frame.value for frame in at.dataframe if "mark" in frame.value)
    assert marks["example"].tolist() == [7, 9, 11]
    key = f"marks_table_{hash((7, 9, 11))}"
    at.session_state[key] = {"selection": {"rows": [1], "columns": [], "cells": []}}
    at.run()
    at.button(key="take_back").click().run()
    assert not at.exception and "--must 7:good --never 11:worse" in command(at)
    look(at, "Examples").button(key="forget_marks").click().run()
    assert "--must" not in command(at) and "--never" not in command(at)


def test_a_ledger_of_many_sources_is_made_when_it_is_asked_for(run, monkeypatch):
    monkeypatch.setattr("pages.select_data.results.QUICK_SECONDS", 0.0)
    at = show(SELECT)
    at.selectbox(key=f"origin_source_{run.id}").select("kind").run()
    look(at, "Provenance")
    assert not at.dataframe and "sources: what each is worth takes about" in texts(at)
    at.button(key="find_ledger").click().run()
    assert any("shapley" in frame.value for frame in at.dataframe)
    at.run()
    assert any("shapley" in frame.value for frame in at.dataframe)
    at.slider(key=f"budget_examples_{run.id}_120").set_value(15).run()
    assert not at.dataframe and at.button(key="find_ledger")
    monkeypatch.setattr("pages.select_data.results.MOST_SECONDS", 0.0)
    at.run()
    assert not at.exception and "too many for a page" in texts(at)


def test_a_ledger_is_not_made_again_on_each_rerun(run, monkeypatch):
    from core.provenance import ledger

    made = []
    monkeypatch.setattr("pages.select_data.results.ledger", lambda *of: made.append(of) or ledger(*of))
    at = show(SELECT)
    at.selectbox(key=f"origin_source_{run.id}").select("is_hard").run()
    at.slider(key=f"budget_examples_{run.id}_120").set_value(37).run()
    look(look(at, "Provenance"), "Provenance")
    assert len(made) == 1


def test_a_sum_without_sources_is_not_asked_for(run):
    at = show(SELECT)
    assert at.number_input(key="pay").disabled
    at.selectbox(key=f"origin_source_{run.id}").select("kind").run()
    at.number_input(key="pay").set_value(90.0).run()
    assert "--source kind --pay 90.0" in command(at)
    at.selectbox(key=f"origin_source_{run.id}").set_value(None).run()
    assert not at.exception and "--pay" not in command(at)


def test_duplicates_are_counted_where_they_have_been_looked_for(workspace, run):
    at = show(SELECT)
    assert "Duplicates have not been looked for yet" in texts(at) and not at.button(key="screen").disabled
    screen_run(run, workspace, ())
    at.run()
    assert not at.exception and "0 near or exact duplicates in the run, 0 of them chosen." in texts(at)
    assert "not been looked for" not in texts(at) and "held-out" not in " ".join(c.value for c in at.caption)


def test_a_held_out_file_that_changes_is_not_taken_for_the_old_one(workspace, uneven, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("{}")
    at = show(SELECT, run=uneven.id)
    at.slider(key=f"budget_examples_{uneven.id}_60").set_value(20)
    at.text_area(key="against").set_value(str(held)).run()
    at.toggle(key="drop_contaminated").set_value(True).run()
    for example in (40, 50):
        held.write_text(json.dumps({"text": uneven.texts([example])[0]}) + "\n")
        screen_run(uneven, workspace, (str(held),))
        at.run()
        (dropped,) = (frame.value for frame in at.dataframe if "reason" in frame.value)
        assert not at.exception and dropped["example_id"].tolist() == [example]


def test_the_ledger_is_shown(run):
    at = show(SELECT)
    at.selectbox(key=f"origin_source_{run.id}").select("kind").run()
    at.number_input(key="pay").set_value(90.0).run()
    look(at, "Provenance")
    owners = next(frame.value for frame in at.dataframe if "shapley" in frame.value)
    assert owners["payment"].sum() == pytest.approx(90)
    assert "No column of licences is named" in texts(at) and "not training value" in texts(at)
    at.selectbox(key=f"origin_licence_{run.id}").select("kind").run()
    assert "licence problem" in texts(at)


def test_without_a_source_column_the_ledger_says_so(run):
    at = look(show(SELECT), "Provenance")
    assert not at.dataframe and "No source column was named" in at.info[-1].value
    at.selectbox(key=f"origin_licence_{run.id}").select("kind").run()
    (owners,) = [frame.value for frame in at.dataframe]
    assert owners["source"].tolist() == ["all together"] and "licence problem" in texts(at)


def test_duplicates_are_looked_for_in_a_job(workspace, run):
    at = show(SELECT)
    at.selectbox(key="dedup").select("near").run()
    at.button(key="screen").click().run()
    job = find_job(workspace, at.session_state["select_job"])
    assert job.facts["arguments"] == ["screen", run.id]
    for _ in range(300):
        if job.state != "running":
            break
        time.sleep(0.2)
    assert job.state == "done", job.log()
    at.run()
    assert not at.exception and "0 near or exact duplicates in the run" in texts(at)
    assert len(listed(at)) > 0


def test_kept_selections_are_compared_copied_and_deleted(workspace, run):
    for name in ("longest", "random"):
        select(Request(run.id, Rule(name), Constraints(budget=20)), workspace, name)
    at = look(show(SELECT), "Kept")
    overlap = next(frame.value for frame in at.dataframe if list(frame.value.index) == ["longest", "random"])
    assert overlap.loc["longest", "longest"] == 1
    own = next(frame.value for frame in at.dataframe if "kept because" in frame.value)
    assert own["place"].tolist() == list(range(1, 21)) and own["text"].str.len().min() > 0
    assert own["example"].tolist() == workspace.selection(at.selectbox(key=f"kept_{run.id}").value).example_ids
    assert "Nothing was dropped." in texts(at)
    assert len(at.get("echarts_chart")) == 4
    assert "only longest" in "".join(html.proto.body for html in at.get("html"))
    at.text_input(key="copy_name").set_value("again").run()
    at.button(key="copy_selection").click().run()
    assert [one.name for one in workspace.selections()] == ["again", "longest", "random"]
    at.selectbox(key=f"kept_{run.id}").select("random").run()
    at.button(key="really_delete_random").click().run()
    assert [one.name for one in workspace.selections()] == ["again", "longest"]
    assert not at.exception


@pytest.mark.parametrize("damaged", [{"half": 1}, {"example_ids": [1]}, {"example_ids": [1], "request": {}}, []])
def test_a_damaged_selection_does_not_hide_the_others(workspace, run, damaged):
    for name in ("a", "b"):
        select(Request(run.id, Rule("order"), Constraints(budget=5)), workspace, name)
    (workspace.selection("a").folder / "manifest.json").write_text(json.dumps(damaged))
    look(show(SELECT), "Kept")
    assert [one.name for one in workspace.selections()] == ["b"]


@pytest.mark.parametrize("view", ["What it means", "Map", "Examples", "Provenance", "Kept"])
def test_every_view_opens(workspace, view):
    look(show(SELECT), view)
