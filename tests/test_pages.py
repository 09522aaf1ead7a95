import errno
import json
import os
import re
import shutil
from pathlib import Path

import psutil
import pytest
from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash
from synthetic import synthetic_run

from core.evaluation import Interval
from core.jobs import JobProgress, JobReporter, command_line, list_jobs
from core.reading import Label
from core.steering.comparison import Comparison, Response
from core.steering.generation import Sampling
from core.steering.intervention import Directions, Steering
from core.steering.sweep import Point, SuggestedRange, Sweep
from core.store import read_json, write_json
from core.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
BASIS, DIRECTIONS, RECOVER, STEER = "", "directions", "recover", "steer"
"""The paths of the pages in the address bar."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A workspace with two runs, the second the newer, to be copied."""
    folder = tmp_path_factory.mktemp("pages")
    for seed in (1, 2):
        synthetic_run(Workspace(folder), seed=seed)
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("BASISCOPE_WORKSPACE", str(tmp_path / "empty"))
    return Workspace(tmp_path / "empty")


@pytest.fixture
def started(monkeypatch):
    """The arguments of the jobs that a page starts, which are recorded and not run."""
    jobs = []

    def record(_workspace, arguments):
        jobs.append(arguments)

    monkeypatch.setattr("core.jobs.start_job", record)
    for name in ("recover.page", "recover.jobs", "common.demo", "steer.sweeps", "steer.exports"):
        monkeypatch.setattr(f"pages.{name}.start_job", record, raising=False)
    return jobs


def show(page, **address):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at._page_hash = calc_hash(page)  # as a deep link does; switch_page would need a run of the default page first
    for name, value in address.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception, at.exception[0].message
    return at


def texts(at):
    kinds = (at.title, at.subheader, at.text, at.caption, at.info, at.warning, at.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


# --- every page -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [BASIS, DIRECTIONS, STEER])
def test_an_empty_workspace_says_what_to_do(empty, page):
    at = show(page)
    assert "no run in this workspace yet" in texts(at)
    assert at.button(key="demo").label == "Recover the embedded demo"
    assert not empty.root.exists()


def test_recover_opens_on_an_empty_workspace(empty):
    at = show(RECOVER)
    assert "Choose a model" in texts(at)
    assert not empty.root.exists()


def test_recover_shows_a_recovery_that_a_terminal_started(workspace):
    asked = {"model": "/models/some-model", "data": "/data/![x](evil.test).jsonl"}
    with workspace.start({"store_dtype": "float32", "k": 3}, "shared", asked) as under_way:
        JobReporter(under_way.folder).progress("activations", 0, 1_000)
        at = show(RECOVER)
        assert f"some-model on ![x](evil.test).jsonl, run {under_way.folder.name[:6]}" in texts(at)
        assert "Started outside the app" in texts(at)
        (bar,) = at.get("progress")
        assert "Running the model over the examples: 0 of 1,000 tokens" in str(bar.proto)
    assert "Started outside the app" not in texts(show(RECOVER))


@pytest.mark.parametrize("page", [BASIS, DIRECTIONS, STEER])
def test_the_newest_run_is_shown_and_its_id_is_in_the_address(workspace, page):
    at = show(page)
    assert at.query_params["run"] == workspace.runs()[0].id


def test_the_address_chooses_the_run(workspace):
    older = workspace.runs()[1].id
    assert show(BASIS, run=older).query_params["run"] == older


@pytest.mark.parametrize("page", [BASIS, DIRECTIONS, STEER])
def test_an_unknown_run_in_the_address_is_said(workspace, page):
    at = show(page, run="feedfeedfeed")
    assert "not in this workspace" in texts(at)
    assert at.query_params["run"] == workspace.runs()[0].id


@pytest.mark.parametrize("page", [BASIS, DIRECTIONS])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("scores.parquet", b"half", "scores.parquet is damaged"),
        ("examples.parquet", b"", "examples.parquet is damaged"),
        ("directions.json", b"[{", "directions.json is damaged"),
        ("manifest.json", b"{", "manifest.json is damaged"),
        ("manifest.json", b'{"format_version": 1, "n": 3}', "manifest.json is damaged: it lacks model"),
        ("manifest.json", b'{"format_version": 99}', "format version 99, this Basiscope reads version 1"),
        ("labels.json", b"{", "labels.json is damaged"),
    ],
)
def test_a_damaged_run_ends_in_a_sentence(workspace, page, name, content, sentence):
    run = workspace.runs()[0]
    (run.folder / name).write_bytes(content)
    assert sentence in texts(show(page, run=run.id, direction="1"))


def test_an_unreadable_run_does_not_hide_the_others(workspace):
    newest, older = workspace.runs()
    manifest = newest.folder / "manifest.json"
    manifest.write_text(json.dumps({"format_version": 99}))
    at = show(BASIS)
    assert at.query_params["run"] == older.id and "directions" in texts(at)
    at = show(RECOVER)
    assert f"Run {newest.id} cannot be read." in texts(at)
    at.button(key=f"really_delete_run_{newest.id}").click().run()
    assert [run.id for run in workspace.runs()] == [older.id] and "cannot be read" not in texts(at)


# --- Basis ----------------------------------------------------------------------------------------------


def test_basis_shows_the_run(workspace):
    at = show(BASIS)
    assert "no-model on synthetic.jsonl: 60 examples" in texts(at)
    assert [element.value for element in at.subheader] == [
        "Spectrum",
        "Block energies",
        "Stability",
        "What else they carry",
        "Map",
    ]
    assert "Directions 1 and 2 are stable only as a span." in texts(at)
    assert at.dataframe[0].value["direction"].tolist() == [1, 2, 3, 4]


def test_basis_colours_by_columns_and_directions(workspace):
    at = show(BASIS)
    colour = next(box for box in at.selectbox if box.label == "Colour")
    assert colour.options[:4] == ["length in tokens", "kind", "grade", "is_hard"]
    for option in (("kind", "examples"), ("grade", "examples"), ("is_hard", "examples"), ("d3", "scores")):
        at = colour.select(option).run()
        assert not at.exception
        colour = next(box for box in at.selectbox if box.label == "Colour")


def test_basis_without_a_map_says_so(workspace):
    folder = workspace.runs()[0].folder
    (folder / "map.parquet").unlink()
    manifest = read_json(folder / "manifest.json")
    del manifest["files"]["map.parquet"]
    write_json(folder / "manifest.json", manifest)
    assert "This run has no map" in texts(show(BASIS))


# --- Directions -----------------------------------------------------------------------------------------


def test_the_cards_show_every_direction(workspace):
    at = show(DIRECTIONS)
    labels = workspace.runs()[0].labels()
    assert [button.key for button in at.button] == [f"open_{j}" for j in (1, 2, 3, 4)]
    assert all(label.text in texts(at) for label in labels.values())
    at.button(key="open_3").click().run()
    assert at.title[0].value == "Direction 3" and at.query_params["direction"] == "3"


@pytest.mark.parametrize(("asked", "title"), [("2", "Direction 2"), ("99", "Directions"), ("x", "Directions")])
def test_the_address_chooses_the_direction(workspace, asked, title):
    assert show(DIRECTIONS, direction=asked).title[0].value == title


def test_the_address_takes_the_beginning_of_a_runs_id(workspace):
    older = workspace.runs()[1]
    at = show(DIRECTIONS, run=older.id[:6])
    assert at.query_params["run"] == older.id and not at.warning


def test_next_and_previous_go_round(workspace):
    at = show(DIRECTIONS, direction="4")
    at.button(key="next").click().run()
    assert at.title[0].value == "Direction 1"
    at.button(key="previous").click().run()
    assert at.title[0].value == "Direction 4" and at.query_params["direction"] == "4"
    at.button(key="all_directions").click().run()
    assert at.title[0].value == "Directions"


def test_an_edited_label_is_saved(workspace):
    run = workspace.runs()[0]
    at = show(DIRECTIONS, direction="2")
    at.text_input(key=f"label_{run.id}_2").input("mine : yours ").run()
    assert not at.exception
    saved = run.labels()[2]
    assert (saved.text, saved.source, saved.positive) == ("mine : yours", "person", (("apple", 4.0),))
    assert "This label is yours." in "".join(html.proto.body for html in at.get("html"))
    assert "mine : yours" in texts(show(DIRECTIONS))
    assert run.labels()[1].source == "words"


def test_a_label_changed_elsewhere_is_shown_and_not_overwritten(workspace):
    run = workspace.runs()[0]
    at = show(DIRECTIONS, direction="2")
    run.save_label(2, Label("newer : label", "model", author="judge"))
    at = at.run()
    assert not at.exception
    assert run.labels()[2].text == "newer : label"
    assert at.text_input(key=f"label_{run.id}_2").value == "newer : label"


def shown_ids(at):
    cards = "".join(html.proto.body for html in at.get("html"))
    return [int(example) for example in re.findall(r"· example (\d+) ·", cards)]


def test_both_ends_are_in_the_order_of_the_scores(workspace):
    run = workspace.runs()[0]
    scores = run.scores()["d2"]
    at = show(DIRECTIONS, direction="2")
    order = scores.sort_values(ascending=False).index.tolist()
    assert shown_ids(at) == order[:5] + order[::-1][:5]
    at.number_input(key="top").set_value(2).run()
    assert shown_ids(at) == order[:2] + order[::-1][:2]


def test_search_and_filter_narrow_the_examples(workspace):
    run = workspace.runs()[0]
    examples = run.examples()
    at = show(DIRECTIONS, direction="1")
    at.text_input(key="search").input("APPLE").run()
    found = set(examples.index[examples["text"].str.contains("apple")])
    assert set(shown_ids(at)) <= found and shown_ids(at)
    at.selectbox(key=f"by_{run.id}").select("kind").run()
    at.multiselect(key=f"values_{run.id}_kind").select("division").run()
    found &= set(examples.index[examples["kind"] == "division"])
    assert set(shown_ids(at)) <= found
    at.text_input(key="search").input("no such text").run()
    assert "No example matches" in texts(at) and not shown_ids(at) and not at.exception


def test_a_column_of_many_numbers_is_filtered_by_a_range(empty):
    run = synthetic_run(empty, n=60, columns={"grade": [i / 2 for i in range(60)]})
    at = show(DIRECTIONS, direction="1")
    at.selectbox(key=f"by_{run.id}").select("grade").run()
    at.slider(key=f"values_{run.id}_grade").set_range(20.0, 22.5).run()
    assert not at.exception
    assert set(shown_ids(at)) == {40, 41, 42, 43, 44, 45}


def test_a_column_of_small_numbers_is_filtered_in_small_steps(empty):
    run = synthetic_run(empty, n=60, columns={"rate": [i / 100_000 for i in range(60)]})
    at = show(DIRECTIONS, direction="1")
    at.selectbox(key=f"by_{run.id}").select("rate").run()
    slider = at.slider(key=f"values_{run.id}_rate")
    assert slider.step == pytest.approx(1e-6) and slider.proto.format == "%.6f"
    slider.set_range(0.0001, 0.000125).run()
    assert set(shown_ids(at)) == {10, 11, 12}


def test_ranking_by_cosine_and_without_shading(workspace):
    at = show(DIRECTIONS, direction="1")
    at.selectbox(key="rank").select("cosine").run()
    at.toggle(key="shade").set_value(False).run()
    assert not at.exception and len(shown_ids(at)) == 10


def test_missing_token_scores_can_be_asked_for(workspace, started):
    run = workspace.runs()[0]
    ids = shown_ids(show(DIRECTIONS, direction="1"))
    (run.folder / "tokens" / f"{ids[0]}.parquet").unlink()
    at = show(DIRECTIONS, direction="1")
    assert at.button(key="score_tokens").label == "Score the tokens of 1 more example"


# --- Recover --------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "some data.jsonl"
    rows = [{"question": f"What is {i}?", "answer": str(i), "meta": {"level": i}} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "not there"), (b"\x00\x01 not json", None), (b"", None)],
)
def test_data_that_cannot_be_read_is_said(empty, tmp_path, content, sentence):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    at = show(RECOVER)
    before = texts(at)
    at.text_input(key="data_path").input(str(path)).run()
    assert not at.exception
    said = texts(at).replace(before, "")
    assert len(texts(at)) > len(before), said
    assert not any(button.key == "start" for button in at.button)


def test_of_a_folder_with_splits_one_is_chosen(empty, data, tmp_path):
    for split in ("test", "train"):
        (tmp_path / "both" / split).mkdir(parents=True)
        shutil.copyfile(data, tmp_path / "both" / split / "a.jsonl")
    at = show(RECOVER)
    at.selectbox(key="model").select("Qwen/Qwen3-0.6B").run()
    at.text_input(key="data_path").input(str(tmp_path / "both")).run()
    choice = at.selectbox(key=f"split_of_{tmp_path / 'both'}")
    assert choice.options == ["train", "test", "all"] and choice.value == "train"
    assert f"--data {tmp_path / 'both'} --split train " in at.code[0].value
    choice.select("all").run()
    assert "--split all " in at.code[0].value and not at.exception


def test_columns_are_guessed_and_the_command_equals_the_choices(empty, data, started):
    at = show(RECOVER)
    at.selectbox(key="model").select("Qwen/Qwen3-0.6B").run()
    at.text_input(key="data_path").input(str(data)).run()
    assert not at.exception
    assert at.selectbox(key="prompt_column").value == "question"
    assert at.selectbox(key="response_column").value == "answer"
    assert "meta.level" in at.selectbox(key="prompt_column").options
    assert list(at.dataframe[0].value) == ["question", "answer", "meta"]
    columns = "--prompt question --response answer"
    expected = f"basiscope recover --model Qwen/Qwen3-0.6B --data '{data}' {columns} --k 10"
    assert [code.value for code in at.code] == [expected]
    at.number_input(key="limit").set_value(3).run()
    at.segmented_control(key="preset").select("safety").run()
    at.number_input(key="k_safety").set_value(7).run()
    at.selectbox(key="block_scale").select("rms").run()
    at.text_input(key="blocks").input("2:5").run()
    at.button(key="start").click().run()
    assert not at.exception
    chosen = ["recover", "--model", "Qwen/Qwen3-0.6B", "--data", str(data), "--prompt", "question"]
    chosen += ["--response", "answer", "--limit", "3", "--recipe", "safety", "--k", "7", "--blocks", "2:5"]
    assert started == [[*chosen, "--block-scale", "rms"]]


@pytest.fixture
def no_room(monkeypatch):
    """A disk on which nothing can be written, whatever the reason."""
    reasons = iter([errno.ENOSPC, errno.EROFS, errno.EACCES] * 9)

    def refuse(path, *_arguments, **_options):
        if Path(path).name not in (".", "..") and not str(path).startswith("/dev"):
            number = next(reasons)
            raise OSError(number, os.strerror(number), str(path))

    for name in ("mkdir", "write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, refuse)


@pytest.mark.parametrize("button", ["start", "estimate"])
def test_a_disk_that_takes_no_job_is_said_and_the_runs_stay(workspace, data, no_room, button):
    at = show(RECOVER)
    at.selectbox(key="model").select("Qwen/Qwen3-0.6B").run()
    at.text_input(key="data_path").input(str(data)).run()
    at.button(key=button).click().run()
    assert not at.exception and "The disk is full" in texts(at) and f"{workspace.root}/jobs" in texts(at)
    assert at.button(key=f"really_delete_{workspace.runs()[0].id}")  # what would help
    at.button(key=button).click().run()
    assert not at.exception and "Read-only file system" in texts(at) and "--workspace" in texts(at)


def test_a_disk_that_takes_no_upload_is_said(workspace, no_room):
    at = show(RECOVER)
    at.segmented_control(key="data_kind").select("Upload").run()
    at.file_uploader(key="upload").set_value(("rows.jsonl", b'{"t": "x"}', "application/json")).run()
    assert not at.exception and "The disk is full" in texts(at) and "rows.jsonl" in texts(at)


def test_a_disk_that_takes_no_label_is_said(workspace, no_room):
    run = workspace.runs()[0]
    at = show(DIRECTIONS, direction="1")
    at.text_input(key=f"label_{run.id}_1").input("up : down").run()
    assert not at.exception and "The disk is full" in texts(at) and str(run.folder) in texts(at)


@pytest.mark.parametrize("typed", ["~nosuchuser/x", "Once upon a time " * 300, "/" + "x" * 300])
def test_what_cannot_be_a_path_ends_in_a_sentence(empty, typed):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at._page_hash = calc_hash(RECOVER)
    at.session_state["model"] = at.session_state["data_path"] = typed
    at.run()
    assert not at.exception and at.selectbox(key="model").value == typed and "that can be read" in texts(at)


def test_one_text_column_and_chat_messages(empty, tmp_path, started):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}], "note": "n"}))
    at = show(RECOVER)
    at.selectbox(key="model").select("Qwen/Qwen3-0.6B").run()
    at.text_input(key="data_path").input(str(path)).run()
    assert at.code[0].value.endswith("--messages messages --k 10")
    at.segmented_control(key="way_messages").select("text").run()
    at.selectbox(key="text_column").select("note").run()
    assert at.code[0].value.endswith("--text note --k 10")


def job(workspace, name, arguments, **files):
    folder = workspace.root / "jobs" / name
    folder.mkdir(parents=True)
    facts = {"arguments": arguments, "created": "2026-01-01T00:00:00Z", "pid": 2**22 + 1, "pid_created": 0.0}
    for file, content in {"job": facts, **files}.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    (folder / "log.txt").write_text("![](http://evil.test/log) the log")
    return name


def test_ended_jobs_say_how_they_ended_and_can_go_on(workspace, started):
    run = workspace.runs()[1].id
    recover = ["recover", "--model", "m", "--data", "d"]
    done = job(workspace, "1", [*recover, "--k", "2"], result={"state": "done", "run": run})
    before = job(workspace, "2", recover, cancel={})
    failed = job(workspace, "3", recover, result={"state": "failed", "message": "Model m is not there."})
    job(workspace, "4", [*recover, "--k", "3"])
    job(workspace, "5", [*recover, "--k", "4"], cancel={})
    assert [j.state for j in list_jobs(workspace)] == ["cancelled", "killed", "failed", "cancelled", "done"]
    at = show(RECOVER)
    buttons = {button.key for button in at.button}
    assert f"resume_{failed}" in buttons and f"resume_{before}" not in buttons, "the last try of a command counts"
    assert "Failed. Model m is not there." in texts(at) and "Killed. The process was ended" in texts(at)
    assert "Stopped. What was finished is kept" in texts(at) and "Done." in texts(at)
    at.button(key=f"resume_{failed}").click().run()
    assert started == [recover]
    at.button(key=f"open_{done}").click().run()
    assert not at.exception and at.title[0].value == "Basis" and at.query_params["run"] == run


def test_runs_are_listed_and_opened(workspace):
    older = workspace.runs()[1].id
    at = show(RECOVER)
    at.button(key=f"run_{older}").click().run()
    assert at.title[0].value == "Basis" and at.query_params["run"] == older


# --- Steer ----------------------------------------------------------------------------------------------


def test_steer_offers_prompts_directions_and_columns(workspace):
    run = workspace.runs()[0]
    at = show(STEER, direction="2")
    assert at.multiselect(key=f"steer_directions_{run.id}").value == [2]
    assert at.text_area(key=f"steer_prompt_{run.id}").value
    assert len(at.slider) == 2 and "No range is suggested yet" in texts(at)
    at.multiselect(key=f"steer_directions_{run.id}").select(4).run()
    at.number_input(key="steer_columns").set_value(4).run()
    assert [slider.label.partition(",")[0] for slider in at.slider] == ["Direction 2", "Direction 4"] * 3
    assert all(slider.label.endswith(", in sd") for slider in at.slider)
    in_sd = Directions.of(run).deviations[1]
    assert f"{at.slider[0].value * in_sd:+.3g} × the unit direction = {at.slider[0].value:+.3g} sd" in texts(at)
    for choice in ("remove", "clamp"):
        at.segmented_control(key="steer_operation").select(choice).run()
        assert not at.exception and len(at.slider) == 6
    at.selectbox(key=f"steer_prompt_{run.id}_example").select(3).run()
    example = at.selectbox(key=f"steer_prompt_{run.id}_example").options[3]
    assert at.text_area(key=f"steer_prompt_{run.id}").value.startswith(example[:40])


def test_steer_shows_the_suggested_range_and_its_sliders_begin_there(workspace):
    run = workspace.runs()[0]
    sd = float(run.scores()["d1"].std())
    run.save_suggested_range(1, SuggestedRange(-1.0 * sd, 2.0 * sd, sd, 12, (True, False)))
    at = show(STEER, direction="1")
    assert "(+2 sd)" in texts(at) and "Nothing beyond" in texts(at)
    assert [slider.value for slider in at.slider] == [2.0, -1.0]
    at.text_input(key="steer_blocks").input("0").run()
    assert "no part there" in texts(at) and not at.exception


def test_a_suggested_range_is_only_for_what_was_swept(workspace):
    run = workspace.runs()[0]
    sd = float(run.scores()["d1"].std())
    run.save_suggested_range(1, SuggestedRange(-0.25 * sd, 0.5 * sd, sd, 12, (True, True)))
    at = show(STEER, direction="1")
    assert "Suggested: " in texts(at) and at.slider[0].value == 0.5
    at.segmented_control(key="steer_scope").select("response").run()
    assert "Suggested: " not in texts(at) and "No range is suggested" in texts(at) and at.slider[0].value == 1.6
    at.segmented_control(key="steer_scope").select("all").run()
    at.segmented_control(key="steer_operation").select("clamp").run()
    assert "Suggested: " not in texts(at) and at.slider[0].value == 1.6


def test_choices_that_would_do_nothing_are_disabled(workspace):
    at = show(STEER, direction="1")
    assert at.text_input(key="sweep_answer").disabled and at.selectbox(key="sweep_unit").disabled
    at.text_input(key="sweep_strengths").input("0,1").run()
    at.text_input(key="sweep_prompts").input("p.jsonl").run()
    assert not at.text_input(key="sweep_answer").disabled and not at.selectbox(key="sweep_unit").disabled


def test_what_was_stopped_has_no_tokens_to_shade_and_that_is_said(workspace):
    run = workspace.runs()[0]
    stopped = tuple(Response(name, 0.0, Steering(), "one", (1,), ended="stopped") for name in ("baseline", "+2"))
    before = (("system", "![x](http://evil.test)"),)
    kept = Comparison(run.id, "m", "prompt", 1, "", Sampling(2), stopped, before=before)
    kept_id = workspace.save_comparison(kept)
    at = show(STEER)
    at.button(key=f"open_comparison_{kept_id}").click().run()
    assert not any(toggle.key == "steer_shade" for toggle in at.toggle) and "Tokens cannot be shaded" in texts(at)
    assert "system: ![x](http://evil.test)" in [text.value for text in at.text]


def test_an_export_shows_its_steps_and_can_be_cancelled(workspace):
    facts = {"pid": os.getpid(), "pid_created": psutil.Process().create_time(), "created": ""}
    facts |= {"arguments": ["export"]}
    at_work = job(workspace, "1", ["export"], job=facts, progress=vars(JobProgress("compare", 1, 4)))
    at = show(STEER)
    at.session_state["export_job"] = at_work
    at.run()
    (bar,) = at.get("progress")
    assert "Comparing it with live steering: 1 of 4 prompts" in str(bar.proto)
    assert at.button(key="cancel_export").label == "Cancel"
    at.session_state["export_job"] = job(workspace, "2", ["export"], cancel={})
    assert "Cancelled. Nothing of it is kept." in texts(at.run())


def test_a_sweep_is_started_with_what_was_chosen(workspace, started):
    run = workspace.runs()[0]
    at = show(STEER, direction="3")
    at.text_input(key="sweep_strengths").input("-2:2:5").run()
    at.text_input(key="sweep_prompts").input("p.jsonl").run()
    at.text_input(key="sweep_answer").input("answer").run()
    arguments = ["sweep", run.id, "--direction", "3", "--strengths", "-2:2:5", "--unit", "unit"]
    arguments += ["--prompts", "p.jsonl", "--answer", "answer"]
    assert at.code[1].value == command_line(arguments)
    at.button(key="start_sweep").click().run()
    assert started == [arguments]


def test_a_sweep_is_shown_for_its_own_direction(workspace):
    run = workspace.runs()[0]
    interval = Interval(0.5, 0.25, 0.75, 9)
    points = tuple(Point(strength, *[interval] * 6, None, False) for strength in (0.0, 1.0))
    request = {"direction": 2, "operation": "add", "unit": "unit", "scope": "all", "prompts": ["a"]}
    workspace.save_sweep(Sweep(run.id, request, 2.0, points, (), 0.0, 1.0))
    at = show(STEER, direction="2")
    assert len(at.get("plotly_chart")) == 2 and "No damage seen from" in texts(at)
    at = show(STEER, direction="3")
    assert not at.get("plotly_chart") and "No sweep of direction 3 yet." in texts(at)


def test_kept_comparisons_are_opened_and_deleted(workspace):
    run = workspace.runs()[0]
    responses = (
        Response("baseline", 0.0, Steering(), "one two", (1, 2), ("one", " two"), (0.5, -0.5)),
        Response("+2", 2.0, Steering(((1, 2.0),)), "one <b>three", (1, 3), ("one", " <b>three"), (0.5, 3.0)),
    )
    kept = Comparison(run.id, "m", "![](http://evil.test/p)", 1, "a : b", Sampling(2), responses, name="mine")
    kept_id = workspace.save_comparison(kept)
    at = show(STEER)
    at.button(key=f"open_comparison_{kept_id}").click().run()
    assert "mine" in [text.value for text in at.text] and "![](http://evil.test/p)" in texts(at)
    html = "".join(element.proto.body for element in at.get("html"))
    assert "<mark> &lt;b&gt;three</mark>" in html and "<b>" not in html
    assert "Marked: the words that differ" in texts(at) and "Not what is set above" in texts(at)
    at.toggle(key="steer_shade").set_value(True).run()
    html = "".join(element.proto.body for element in at.get("html"))
    assert "title" in html and "&lt;b&gt;three" in html and "Marked: the words" not in texts(at)
    at.button(key=f"delete_comparison_{kept_id}").click().run()
    assert not at.exception and "no longer kept" in texts(at) and not workspace.comparisons(run.id)


def test_hostile_names_are_shown_and_exported_as_texts(workspace):
    run = workspace.runs()[0]
    hostile = "![x](http://evil.test) [y](http://evil.test) <b> www.evil.test"
    responses = (
        Response("baseline", 0.0, Steering(), "one"),
        Response(hostile, 2.0, Steering(((1, 2.0),)), "two", note=hostile),
    )
    kept = Comparison(run.id, hostile, "prompt", 1, hostile, Sampling(2), responses, name=hostile)
    kept_id = workspace.save_comparison(kept)
    at = show(STEER)
    at.button(key=f"open_comparison_{kept_id}").click().run()
    assert sum(hostile in text.value for text in at.text) >= 4  # the list, the name, the variant, the note
    for kind in (at.title, at.subheader, at.caption, at.info, at.warning, at.markdown):
        assert not any("evil.test" in str(element.value) for element in kind)
    rendered = MarkdownIt("gfm-like").render(kept.as_markdown())
    assert "evil.test" in rendered
    assert not any(tag in rendered for tag in ("<a ", "<img", "<b>"))


def test_what_is_typed_is_asked_without_leaving_the_box_and_again_means_another_sample(gsm8k_copy, monkeypatch):
    monkeypatch.setenv("BASISCOPE_WORKSPACE", str(gsm8k_copy.root))
    run = gsm8k_copy.run()
    at = show(STEER, run=run.id)
    at.number_input(key="steer_tokens").set_value(3).run()
    at.number_input(key="steer_temperature").set_value(0.7).run()
    at.text_area(key=f"steer_prompt_{run.id}").set_value("The red fox")  # and no run before the click
    at.button(key="generate").click().run()
    first = at.session_state["steer_stream"].wait(60)
    assert first.question.prompt == "The red fox" and first.state == "done"
    at.text_area(key=f"steer_prompt_{run.id}").set_value("The blue fox")
    at.button(key="generate").click().run()
    second = at.session_state["steer_stream"].wait(60)
    assert (second.question.prompt, second.question.sampling.seed) == ("The blue fox", 0)
    at.run()
    for seed in (1, 2):
        at.button(key="generate").click().run()
        again = at.session_state["steer_stream"].wait(60)
        assert (again.question.prompt, again.question.sampling.seed) == ("The blue fox", seed)
        assert at.run().number_input(key="steer_seed").value == seed and not at.exception


def test_what_is_exported_is_the_column_chosen(workspace, started):
    run = workspace.runs()[0]
    at = show(STEER, direction="3")
    at.selectbox(key="export_format").select("gguf").run()
    strength = 1.6 * float(run.scores()["d3"].std())
    at.button(key="export").click().run()
    ((*arguments, out),) = started
    expected = ["export", run.id, "--direction", "3", "--strength", f"{strength:.6g}", "--format", "gguf", "--out"]
    assert arguments == expected and out.startswith(str(workspace.root / "exports"))
    at.segmented_control(key="steer_scope").select("response").run()
    assert "Only one direction, added at all positions" in texts(at)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("basis.safetensors", b"half", "basis.safetensors is damaged"),
        ("examples.parquet", b"", "examples.parquet is damaged"),
        ("steering/d1.json", b"{", "No range is suggested yet"),
    ],
)
def test_steer_on_a_damaged_run_ends_in_a_sentence(workspace, name, content, sentence):
    run = workspace.runs()[0]
    (run.folder / "steering").mkdir()
    (run.folder / name).write_bytes(content)
    assert sentence in texts(show(STEER, run=run.id, direction="1"))


def test_two_runs_keep_their_own_prompts(workspace):
    first, second = (run.id for run in workspace.runs())
    prompts = [show(STEER, run=run).text_area(key=f"steer_prompt_{run}").value for run in (first, second)]
    assert prompts[0] != prompts[1]
