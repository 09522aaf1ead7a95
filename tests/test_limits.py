"""What a shared app may do: paths within roots, a number of jobs and bytes, nothing where it is only looked at."""

import hashlib
import json
from pathlib import Path

import click
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash
from synthetic import synthetic_run

from core import store
from core.cli import cli
from core.cli.selecting import parse_selection
from core.errors import BasiscopeError
from core.jobs import list_jobs, start_job
from core.limits import PLACES, READ_ONLY, VARIABLE, Limits
from core.model import locate_model
from core.reading import Label
from core.workspace import NamedSet, Workspace

ROOT = Path(__file__).resolve().parent.parent
NO_PLACE = {"workspace", "roots"}
"""Options that no page writes."""


@pytest.fixture
def limit(monkeypatch):
    """limit(...) sets the limits of this process and of what it starts."""

    def set_limits(**limits):
        monkeypatch.setenv(VARIABLE, json.dumps(limits))

    return set_limits


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder that may be read, with links out of it, beside one that may not."""
    for name in ("inside/data", "outside/data", "inside/linked"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("inside/a.jsonl", "inside/data/b.jsonl", "outside/secret.jsonl", "outside/data/c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    (tmp_path / "inside/link.jsonl").symlink_to(tmp_path / "outside/secret.jsonl")
    (tmp_path / "inside/linked/data").symlink_to(tmp_path / "outside/data")
    (tmp_path / "inside/own.jsonl").symlink_to("a.jsonl")
    (tmp_path / "inside/circle").symlink_to("circle")
    (tmp_path / "inside-but-not").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setenv("HOME", str(tmp_path / "outside"))
    return tmp_path / "inside"


GOOD = [
    "a.jsonl",
    "data",
    "{inside}/data",
    "{inside}/data/b.jsonl",
    "data/../a.jsonl",
    "own.jsonl",
    "none.jsonl",
    "owner/name",
]
BAD = [
    *(
        "/etc/passwd",
        "/",
        "..",
        "../outside/secret.jsonl",
        "data/../../outside",
        "~",
        "~/secret.jsonl",
        "~root/.ssh",
    ),
    *(
        "link.jsonl",
        "linked",
        "linked/data/c.jsonl",
        "./circle",
        "{inside}-but-not",
        "{inside}/../outside",
        "./link.jsonl",
    ),
    *("file:///etc/passwd", "http://localhost:1/x", "/no/such/file", "a.jsonl\0", "/" + "x" * 5_000, "."),
]


@pytest.mark.parametrize("written", GOOD)
def test_what_lies_in_the_roots_may_be_read(inside, written):
    Limits(roots=(str(inside),)).check_place(written.format(inside=inside))


@pytest.mark.parametrize("written", BAD)
def test_what_leads_out_of_the_roots_may_not(inside, written):
    with pytest.raises(BasiscopeError, match="lies outside the folders that this app may use"):
        Limits(roots=(str(inside),)).check_place(written.format(inside=inside))


def test_without_roots_all_may_be_read(inside):
    Limits().check_arguments(["recover", "--data", "/etc/passwd"])


@pytest.mark.parametrize("name", PLACES)
def test_a_path_joined_to_its_option_is_checked(inside, name):
    limits = Limits(roots=(str(inside),))
    limits.check_arguments(["recover", f"{name}=data", "--limit=1"])
    with pytest.raises(BasiscopeError, match="/etc/x lies outside"):
        limits.check_arguments(["recover", f"{name}=/etc/x"])


@pytest.mark.parametrize("name", ["--out", "--traces"])
def test_what_is_written_has_a_path_even_where_nothing_is_yet(inside, name):
    inside_is_current, elsewhere = Limits(roots=(str(inside),)), Limits(roots=(str(inside / "data"),))
    for arguments in (["select", name, "new/export"], ["select", f"{name}=new"]):
        inside_is_current.check_arguments(arguments)
        with pytest.raises(BasiscopeError, match="lies outside"):
            elsewhere.check_arguments(arguments)


def test_an_adapter_leads_to_no_model_outside(inside, limit):
    (inside / "adapter").mkdir()
    (inside / "adapter" / "adapter_model.safetensors").touch()
    config = {"base_model_name_or_path": str(inside.parent / "outside")}
    (inside / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    limit(roots=[str(inside)])
    with pytest.raises(BasiscopeError, match="outside lies outside the folders"):
        locate_model(str(inside / "adapter"))


def test_every_option_that_names_a_place_is_checked():
    places = set()
    for command in cli.commands.values():
        for option in command.params:
            names = {"data", "model", "problems", "folder", "file", "hub"}
            words = set((getattr(option, "help", None) or "").lower().replace(",", " ").replace(":", " ").split())
            typed = isinstance(option.type, click.Path)
            if isinstance(option, click.Option) and (typed or (words & {"folder", "file", "hub"} and names)):
                places.add(option.opts[0])
    assert {"--data", "--model", "--problems", "--against", "--out"} <= places
    assert (
        places - set(PLACES) - {f"--{name}" for name in NO_PLACE} - {"--revision", "--config", "--split"} == set()
    )


@pytest.mark.parametrize("name", PLACES)
def test_no_job_is_started_on_what_lies_outside(inside, limit, name):
    limit(roots=[str(inside)])
    space = Workspace(inside / "w")
    with pytest.raises(BasiscopeError, match="lies outside"):
        start_job(space, ["recover", name, "../outside/secret.jsonl"])
    assert not space.root.exists()


def test_a_command_of_a_job_looks_again(inside, limit, run_cli):
    limit(roots=[str(inside)])
    arguments = ("recover", "--model", "x/y", "--data", inside / "link.jsonl", "--text", "text")
    status, _, err = run_cli(*arguments, "--workspace", inside / "w")
    assert status == 1 and "link.jsonl lies outside" in err


def test_a_selection_reads_no_held_out_file_from_outside(inside, limit):
    space = Workspace(inside / "w")
    run = synthetic_run(space)
    arguments = ["select", run.id, "--coverage", "--budget", "5", "--against"]
    limit(roots=[str(inside)])
    assert parse_selection(space, [*arguments, "a.jsonl"]).constraints.against[0].endswith("a.jsonl")
    with pytest.raises(BasiscopeError, match="lies outside"):
        parse_selection(space, [*arguments, "../outside/secret.jsonl"])


def test_only_so_many_jobs_at_once(tmp_path, limit):
    limit(jobs=1)
    space = Workspace(tmp_path)
    job = start_job(space, ["doctor"])
    try:
        with pytest.raises(BasiscopeError, match="1 jobs are running, and at most 1"):
            start_job(space, ["doctor"])
        assert len(list_jobs(space)) == 1
    finally:
        job.cancel()


def test_only_so_many_bytes_of_uploads(tmp_path, limit):
    limit(uploads=100)
    space = Workspace(tmp_path)
    first = space.save_upload("../../a.jsonl", b"x" * 60)
    assert first.is_relative_to(tmp_path / "uploads") and space.save_upload("a.jsonl", b"x" * 60) == first
    with pytest.raises(BasiscopeError, match="uploads kept here"):
        space.save_upload("b.jsonl", b"y" * 60)
    assert len(list(tmp_path.glob("uploads/*/*"))) == 1


# --- for looking only -----------------------------------------------------------------------------------


@pytest.fixture
def only_looked_at(tmp_path, monkeypatch, limit):
    """A workspace with a run, a set and a label, which the app may not change."""
    space = Workspace(tmp_path / "w")
    run = synthetic_run(space)
    run.save_label(1, Label("mine", "person"))
    space.save_set(NamedSet("kept", run.id, (1, 2)))
    monkeypatch.setenv("BASISCOPE_WORKSPACE", str(space.root))
    limit(read_only=True)
    return space


def files(folder):
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


WRITES = [
    lambda space, run: run.save_label(1, Label("other", "person")),
    lambda space, run: space.save_set(NamedSet("new", run.id, (1,))),
    lambda space, run: space.delete(run.id),
    lambda space, run: space.delete_selection("x"),
    lambda space, run: space.copy_selection("x", "y"),
    lambda space, run: space.delete_comparison(run.id, "abc"),
    lambda space, run: space.delete_evaluation("abc"),
    lambda space, run: space.save_upload("a.jsonl", b"x"),
    lambda space, run: start_job(space, ["demo"]),
]


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written(only_looked_at, write):
    before = files(only_looked_at.root)
    with pytest.raises(BasiscopeError, match="--read-only"):
        write(only_looked_at, only_looked_at.runs()[0])
    assert files(only_looked_at.root) == before


def test_a_large_file_is_checked_without_a_note(tmp_path, limit, monkeypatch):
    monkeypatch.setattr("core.store.LARGE", 1)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 10)
    limit(read_only=True)
    assert store.digest(path) == hashlib.sha256(b"x" * 10).hexdigest()
    assert [one.name for one in tmp_path.iterdir()] == ["large"]


@pytest.mark.parametrize("page", ["", "directions", "recover", "select", "steer", "usefulness"])
def test_pages_show_and_change_nothing(only_looked_at, page):
    before = files(only_looked_at.root)
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at._page_hash = calc_hash(page)
    at.query_params["direction"] = "1"
    at.run()
    assert not at.exception
    assert "For looking only" in "\n".join(caption.value for caption in at.sidebar.caption)
    writing = ("start", "estimate", "measure", "start_sweep", "export", "save_selection", "screen", "score_tokens")
    shut = [button for button in at.button if button.key in writing or "delete" in str(button.key)]
    assert all(button.disabled for button in shut)
    assert shut or page in ("", "directions", "recover")
    assert files(only_looked_at.root) == before


def test_what_a_page_would_write_is_refused_in_a_sentence(only_looked_at):
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at._page_hash = calc_hash("directions")
    at.query_params["direction"] = "1"
    at.run()
    label = next(field for field in at.text_input if str(field.key).startswith("label_"))
    at.session_state[label.key] = "changed all the same"  # as a browser may that ignores what is disabled
    at.run()
    assert not at.exception and any(READ_ONLY in text.value for text in at.text)
    assert only_looked_at.runs()[0].labels()[1].text == "mine"
