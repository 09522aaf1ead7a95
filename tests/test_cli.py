import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from places import DATA
from test_recovery import Reference, gsm8k_texts

from core.cli import cli
from core.cli.group import Reporter
from core.model import load_tokenizer
from core.workspace import DEFAULT_ROOT, Workspace, read_json, write_json


@pytest.fixture
def read(run_cli, gsm8k_copy):
    """read(*arguments) -> the JSON that the command prints, nothing else, about the copied run."""

    def parsed(*arguments):
        status, out, err = run_cli(*arguments, "--json", "--workspace", gsm8k_copy.root)
        assert status == 0, err
        return json.loads(out)

    return parsed


RECOVER = (
    "--prompt",
    "question",
    "--response",
    "answer",
    "--limit",
    60,
    "--k",
    3,
    "--max-tokens",
    200,
    "--no-map",
)


def test_recover_prints_the_run_as_its_last_line(run_cli, gsm8k_copy, stories, gsm8k):
    options = ("recover", "--model", stories, "--data", gsm8k, *RECOVER, "--dtype", "float32")
    options += ("--device", "cpu", "--workspace", gsm8k_copy.root)
    run_id = gsm8k_copy.run().id
    status, out, err = run_cli(*options)
    assert status == 0 and out.splitlines()[-1] == run_id
    # A line for each step, where there is no terminal; the rest is there.
    assert err == "Loading the model, usually some seconds, a large model minutes\n"
    assert any(line.startswith("warning: ") and "cut at 200 tokens" in line for line in out.splitlines())
    status, out, _ = run_cli(*options, "--json")
    assert status == 0 and json.loads(out) == {"run": run_id}


def test_the_presets_are_the_published_recipes():
    from core.cli.recover import build_request

    command = cli.commands["recover"]
    options = command.make_context("", ["--model", "m", "--data", "d", "--text", "t"]).params
    first, second = (build_request(options | {"preset": preset}) for preset in ("reasoning", "safety"))
    assert (first.k, second.k) == (10, 25) and build_request(options | {"k": 3, "preset": "safety"}).k == 3
    reasoning, safety = first.recipe, second.recipe
    assert (reasoning.pooling, reasoning.blocks, reasoning.template) == ("mean", "1:-1", "auto")
    assert (reasoning.block_scale, reasoning.max_tokens) == ("raw", 8_000)
    assert (safety.pooling, safety.blocks, safety.template) == ("last", "middle", "chat-prompt")
    mixed = build_request(options | {"preset": "safety", "blocks": "3"}).recipe
    assert (mixed.pooling, mixed.blocks) == ("last", "3")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("recover", "--model", "m"),
        ("recover", "--model", "m", "--data", "d"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--prompt", "p"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--k", "0"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--limit", "0"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--pooling", "max"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--blocks", "abc"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--seed", "-1"),
        ("recover", "--model", "m", "--data", "d", "--text", "t", "--seed", str(2**32)),
        ("app", "--headless", "--port", "99999"),
        ("app", "--headless", "--port", "0"),
        ("show",),
        ("show", "latest", "--top", "0"),
        ("label", "latest", "--words", "--llm"),
        ("label", "latest", "--set", "x"),
        ("label", "latest", "--set", " ", "--direction", "1"),
    ],
)
def test_wrong_usage_is_2(run_cli, arguments):
    status, out, err = run_cli(*arguments)
    assert status == 2 and out == "" and "Usage: " in err


NO_MODEL = ("recover", "--model", "/no/model", "--data", str(DATA / "gsm8k" / "train.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "nope"), "Run 'nope' is not in"),
        (("show", "latest", "--direction", "4"), "has directions 1 to 3"),
        (("show", "latest", "--direction", "0"), "has directions 1 to 3"),
        (("label", "latest", "--direction", "9"), "has directions 1 to 3"),
        (("tokens", "latest", "--example", "999"), "has no example 999"),
        (("label", "latest", "--llm"), "set BASISCOPE_LLM_URL"),
        ((*NO_MODEL, "--prompt", "question"), "no folder /no/model"),
    ],
)
def test_what_cannot_be_done_is_1_with_one_sentence(run_cli, gsm8k_copy, arguments, sentence, monkeypatch):
    monkeypatch.delenv("BASISCOPE_LLM_URL", raising=False)
    for flags in ((), ("--json",)):
        status, out, err = run_cli(*arguments, *flags, "--workspace", gsm8k_copy.root)
        said = [line for line in err.splitlines() if not line.startswith("Loading the model, usually ")]
        assert status == 1 and out == "" and len(said) == 1 and sentence in said[0]


LOOK = """
import sys
from core.cli import main
status = main(sys.argv[1:])
print(status, *{"torch", "transformers", "sklearn", "sentence_transformers"}.intersection(sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((*NO_MODEL, "--prompt", "question"), "/no/model"),
        ((*NO_MODEL, "--prompt", "question", "--estimate"), "/no/model"),
        (("recover", "--model", "MODEL", "--data", "/no.jsonl", "--text", "t"), "/no.jsonl"),
        (("recover", "--model", "MODEL", "--data", "/no.jsonl", "--text", "t", "--estimate"), "/no.jsonl"),
        (("proxies", "latest", "--kind", "first-order", "--problems", "/no.jsonl"), "/no.jsonl"),
        (("vectors", "latest", "--text-model", "/no/model"), "/no/model"),
        (("evaluate", "/no/model", "--problems", str(DATA / "gsm8k" / "train.jsonl")), "/no/model"),
    ],
)
def test_a_path_that_is_not_there_is_said_before_seconds_of_imports(gsm8k_run, stories, arguments, path):
    arguments = [stories if argument == "MODEL" else argument for argument in arguments]
    root = gsm8k_run.folder.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments, "--workspace", str(root)], capture_output=True, text=True
    )
    assert done.stdout == "1\n" and re.search(f"there is no (file or )?folder {path}", done.stderr)


def test_data_that_cannot_be_used_is_1(run_cli, stories, gsm8k, tmp_path):
    options = (
        "recover",
        "--model",
        stories,
        "--data",
        gsm8k,
        "--text",
        "body",
        "--limit",
        5,
        "--workspace",
        tmp_path,
    )
    status, _, err = run_cli(*options)
    assert status == 1 and "no row has the column 'body'. Its columns: question, answer." in err


@pytest.mark.parametrize("command", [None, *cli.commands])
def test_help_is_enough(run_cli, command):
    status, out, _ = run_cli(*([command] if command else []), "--help")
    assert status == 0
    for parameter in cli.commands[command].params if command else ():
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in out and parameter.help
    if command:
        assert len(cli.commands[command].help) > 20 and "--workspace" in out
    else:
        assert all(name in out for name in cli.commands) and "Exit status" in out


def test_the_default_workspace_is_the_project_s(run_cli):
    assert str(DEFAULT_ROOT.name) == "cache" and "cache" in run_cli("runs", "--help")[1]


# --- reading --------------------------------------------------------------------------------------------


def test_runs_lists_finished_unreadable_and_interrupted(read, run_cli, gsm8k_copy, stories):
    run = gsm8k_copy.run()
    shutil.copytree(run.folder, gsm8k_copy.root / "runs" / ("e" * 12))
    (gsm8k_copy.root / "runs" / ("e" * 12) / "manifest.json").write_text("{")
    with gsm8k_copy.start(run.manifest["request"] | {"k": 2}, "x", {"model": "m", "data": "d"}) as partial:
        found = {row["run"]: row for row in read("runs")["runs"]}
        assert found[partial.folder.name] == {
            "run": partial.folder.name,
            "status": "running",
            "k": 2,
            "model": "m",
            "data": "d",
        }
    assert found[run.id]["status"] == "finished" and found["e" * 12]["status"] == "unreadable"
    assert [found[run.id][key] for key in ("n", "d", "k", "model")] == [60, 192, 3, stories]
    _, out, _ = run_cli("runs", "--workspace", gsm8k_copy.root)
    assert re.search(rf"{run.id} +finished +60 +192 +3 +{stories}", out) and "interrupted" in out


def test_delete_asks_first_and_takes_finished_and_interrupted_runs(run_cli, gsm8k_copy, monkeypatch):
    run = gsm8k_copy.run()
    with gsm8k_copy.start({"store_dtype": "float32", "k": 3}, "x") as partial:
        pass
    for run_id in (run.id, partial.folder.name):
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        status, _, err = run_cli("delete", run_id, "--workspace", gsm8k_copy.root)
        assert status == 1 and "Nothing was done" in err and gsm8k_copy.any_run_id(run_id) == run_id
        status, out, _ = run_cli("delete", run_id[:8], "--yes", "--json", "--workspace", gsm8k_copy.root)
        assert status == 0 and json.loads(out) == {"deleted": run_id}
    assert not run.folder.exists() and gsm8k_copy.partial_manifests() == {}
    assert run_cli("delete", run.id, "--yes", "--workspace", gsm8k_copy.root)[0] == 1


def test_show_tells_all_directions_from_1(read, run_cli, gsm8k_copy):
    shown = read("show", "latest")
    assert [row["direction"] for row in shown["directions"]] == [1, 2, 3]
    assert shown["manifest"]["k"] == 3 and all(row["label"] for row in shown["directions"])
    _, out, _ = run_cli("show", gsm8k_copy.run().id[:6], "--workspace", gsm8k_copy.root)
    assert "60 examples, 192 dimensions, blocks 1:-1, pooling mean, block scale raw" in out


def test_show_ranks_by_score_at_both_ends(read, gsm8k_copy):
    scores = gsm8k_copy.run().scores()["d2"].to_numpy()
    ends = read("show", "latest", "--direction", 2, "--top", 4)["ends"]
    order = np.argsort(-scores, kind="stable")
    assert [row["example_id"] for row in ends["+"]] == order[:4].tolist()
    assert [row["example_id"] for row in ends["-"]] == order[::-1][:4].tolist()
    assert ends["+"][0]["score"] == pytest.approx(float(scores.max()), rel=1e-6)
    assert {"text", "question", "answer", "n_tokens"} <= set(ends["+"][0])
    assert set(read("show", "latest", "--direction", 2, "--polarity", "-")["ends"]) == {"-"}


def test_the_cosine_is_the_plain_uncentred_one(read, gsm8k, stories):
    reference = Reference(stories, gsm8k_texts(gsm8k, 60), (1, 2, 3), max_tokens=200)
    shown = read("show", "latest", "--direction", 1, "--rank", "cosine", "--top", 60, "--polarity", "+")["ends"][
        "+"
    ]
    plain = reference.cosines[:, 0]
    # the cosine of two float32 directions that agree to 1e-3
    np.testing.assert_allclose(
        [row["cosine"] for row in shown], plain[[row["example_id"] for row in shown]], atol=2e-3
    )
    assert shown[0]["example_id"] == plain.argmax() and shown[-1]["example_id"] == plain.argmin()


def test_labels_are_set_shown_and_kept(read, run_cli, gsm8k_copy):
    assert (
        read("label", "latest", "--direction", 2, "--set", " tales : sums ")["labels"]["2"]["text"]
        == "tales : sums"
    )
    labels = read("label", "latest")["labels"]
    assert list(labels) == ["1", "2", "3"] and labels["2"]["source"] == "person"
    assert read("label", "latest", "--words")["labels"]["2"]["source"] == "person"  # left alone
    assert read("label", "latest", "--words", "--direction", 2)["labels"]["2"]["source"] == "words"
    _, out, _ = run_cli("label", "latest", "--direction", 1, "--workspace", gsm8k_copy.root)
    assert out.startswith("1  ") and out.rstrip().endswith("(words)")


def test_tokens_are_scored_once(read, gsm8k_copy):
    run = gsm8k_copy.run()
    missing = next(i for i in range(60) if not run.has_token_scores(i))
    assert read("tokens", "latest", "--example", missing, "--device", "cpu") == {"examples": [missing]}
    assert run.token_scores(missing).scores.shape[1] == 3
    made = (run.folder / "tokens" / f"{missing}.parquet").stat().st_mtime_ns
    read("tokens", "latest", "--example", missing)
    assert (run.folder / "tokens" / f"{missing}.parquet").stat().st_mtime_ns == made
    assert len(read("tokens", "latest")["examples"]) > 20


def test_the_doctor_looks_at_this_machine(read, run_cli):
    facts = read("doctor")
    assert facts["device"] and facts["torch"] and facts["missing"] and "GB free" in facts["disk"]
    assert "torch: " in run_cli("doctor")[1]


def test_a_stop_that_a_library_swallows_is_heard_at_the_next_progress():
    """numba's compiler calls back from C, where Python ignores what is raised; the process is a fresh one."""
    code = """
import ctypes, os, signal, sys
import core.demo.default
from core.cli import main

def recover_demo(_workspace, progress):
    progress("map", 0, 1)
    ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGTERM))()
    progress("map", 1, 1)
    print("it went on")

core.demo.default.recover_demo = recover_demo
sys.exit(main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=DEFAULT_ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "it went on" not in done.stdout
    assert "Stopped." in done.stderr


@pytest.mark.parametrize(
    ("states", "has_run", "starts"),
    [
        ([], False, True),
        ([], True, False),
        (["done"], True, False),
        (["killed"], True, True),  # what comes after the run is not there yet
        (["done", "killed"], True, False),
        (["killed", "cancelled"], True, False),
        (["cancelled"], False, False),
        (["running"], False, False),
    ],
)
def test_the_app_begins_the_demo_and_goes_on_with_one_that_was_killed(
    states, has_run, starts, run_cli, tmp_path, monkeypatch
):
    started = []
    jobs = [SimpleNamespace(step="demo", state=state) for state in states]
    monkeypatch.setattr("core.cli.app.list_jobs", lambda _space: jobs)
    monkeypatch.setattr("core.cli.app.start_job", lambda _space, arguments: started.append(arguments))
    monkeypatch.setattr("core.cli.app.runpy.run_module", lambda *_arguments, **_options: None)
    monkeypatch.setattr("core.cli.app._check_port", lambda _port: None)
    monkeypatch.setattr("core.cli.app._say_what_goes_on", lambda _space: None)
    monkeypatch.setattr("core.cli.app.os.chdir", lambda _folder: None)
    monkeypatch.setattr(Workspace, "runs", lambda _self: [SimpleNamespace(id="0")] if has_run else [])
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    for name in ("BASISCOPE_WORKSPACE", "BASISCOPE_STARTED_IN"):
        monkeypatch.setenv(name, "")
    assert run_cli("app", "--headless", "--workspace", tmp_path)[0] == 0
    assert started == ([["demo"]] if starts else [])


# --- the estimate ---------------------------------------------------------------------------------------


def test_the_estimate_is_near_what_happens(run_cli, stories, gsm8k, tmp_path):
    options = ("recover", "--model", stories, "--data", gsm8k, "--text", "question", "--limit", 500, "--no-map")
    options += ("--workspace", tmp_path, "--device", "cpu", "--json")
    status, out, _ = run_cli(*options, "--estimate")
    facts = json.loads(out)
    assert status == 0 and Workspace(tmp_path).runs() == []
    start = time.monotonic()
    assert run_cli(*options)[0] == 0
    seconds = time.monotonic() - start
    run = Workspace(tmp_path).run()
    assert (facts["rows"], facts["examples"], facts["d"]) == (500, run.manifest["n"], run.manifest["d"])
    # 400 of the 500 texts stand for all: their mean length has a standard error of about 1%
    assert facts["tokens"] == pytest.approx(run.manifest["data"]["tokens"], rel=0.05)
    disk = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    assert facts["disk_bytes"] == pytest.approx(disk, rel=0.2)
    assert seconds / 4 < facts["seconds"] < 4 * seconds + 5  # a loaded machine is not steady
    status, out, _ = run_cli(*options, "--k", 4, "--estimate")
    assert json.loads(out)["rate_from"] == f"measured in run {run.id}"
    path = run.folder / "manifest.json"
    manifest = read_json(path)
    manifest["steps"]["activations"] = {"from": "shipped", "tokens": manifest["data"]["tokens"]}
    write_json(path, manifest)
    status, out, _ = run_cli(*options, "--k", 4, "--estimate")
    assert json.loads(out)["rate_from"] == "from the speed of a matrix product"


def test_the_estimate_counts_what_many_directions_cost(run_cli, stories, gsm8k, tmp_path):
    options = ("recover", "--model", stories, "--data", gsm8k, "--text", "question", "--limit", 500, "--no-map")
    options += ("--workspace", tmp_path, "--device", "cpu", "--json", "--estimate", "--k")
    few, many = (json.loads(run_cli(*options, k)[1]) for k in (10, 120))
    assert many["seconds"] > few["seconds"] + 5  # 166 resamples of 0.05 s
    assert many["memory_bytes"] > few["memory_bytes"] + 4 * 166 * many["d"] ** 2  # their moments


def test_an_estimate_says_what_is_cut_and_refuses_too_many_directions(run_cli, stories, gsm8k, tmp_path):
    asked = ("recover", "--model", stories, "--data", gsm8k, "--prompt", "question", "--limit", 30, "--estimate")
    asked += ("--workspace", tmp_path, "--device", "cpu", "--max-tokens", 20)
    status, out, _ = run_cli(*asked)
    assert status == 0 and "about 30 of them longer than the limit of tokens" in out
    status, _, err = run_cli(*asked, "--k", 30)
    assert status == 1 and "at most 29 directions" in err


@pytest.mark.parametrize("config", ['{"model_type": "no-such-model"}', "{", '{"model_type": "t5"}'])
def test_an_estimate_refuses_a_model_as_the_recovery_does(run_cli, llama_folder, gsm8k, tmp_path, config):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    asked = ("recover", "--model", folder, "--data", gsm8k, "--text", "question", "--workspace", tmp_path / "w")
    (status, out, err), (also, _, recovered) = run_cli(*asked, "--estimate", "--json"), run_cli(*asked, "--json")
    assert status == also == 1 and out == "" and err == recovered
    assert len(err.splitlines()) == 1 and "model: it cannot be loaded (" in err


# --- steer, sweep, export -------------------------------------------------------------------------------

STEER = ("steer", "latest", "--direction", 1, "--max-new-tokens", 8, "--device", "cpu")


def lines_of(run_cli, workspace, *arguments):
    status, out, err = run_cli(*arguments, "--json", "--workspace", workspace.root)
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_steer_gives_one_object_a_line_for_each_prompt_and_variant(run_cli, gsm8k_copy, tmp_path):
    (tmp_path / "prompts.txt").write_text("The cat sat\nOne day\n")
    options = ("--prompts", tmp_path / "prompts.txt", "--variants", "0,+2,-2", "--unit", "sd")
    found = lines_of(run_cli, gsm8k_copy, *STEER, *options)
    assert [(row["prompt"], row["variant"]) for row in found] == [
        (prompt, variant) for prompt in ("The cat sat", "One day") for variant in ("baseline", "+2 sd", "-2 sd")
    ]
    asked = {"prompt", "variant", "direction", "strength", "text", "token_ids", "n_tokens", "seconds"}
    assert all(asked <= set(row) and row["n_tokens"] == len(row["token_ids"]) <= 8 for row in found)
    unit = gsm8k_copy.run().basis().singular_values[0] / np.sqrt(59)
    same = lines_of(run_cli, gsm8k_copy, *STEER, "--prompt", "The cat sat", "--strength", 2 * unit)
    assert [row["token_ids"] for row in same] == [found[0]["token_ids"], found[1]["token_ids"]]
    status, out, _ = run_cli(*STEER, "--prompt", "The cat sat", "--strength", 2, "--workspace", gsm8k_copy.root)
    assert (
        status == 0
        and "[baseline] not steered; " in out
        and f"add direction 1 +2 ({2 / unit:+.3g} sd) on all" in out
    )
    both = ("--prompt", "The cat sat", "--strength", 2, "--variants", "0,-2,2", "--unit", "sd")
    assert [row["variant"] for row in lines_of(run_cli, gsm8k_copy, *STEER, *both)] == [
        "baseline",
        "+2 sd",
        "-2 sd",
    ]
    (both,) = same[1]["strengths"]
    assert both == {"direction": 1, "unit": pytest.approx(2 * unit), "sd": pytest.approx(2)}


def test_steer_says_which_rows_it_leaves_out_and_numbers_the_others_as_the_file(run_cli, gsm8k_copy, tmp_path):
    (tmp_path / "p.jsonl").write_text('{broken\n{"question": ""}\n{"question": "The cat sat"}\n')
    options = ("--prompts", tmp_path / "p.jsonl", "--strength", 1, "--json", "--workspace", gsm8k_copy.root)
    status, out, err = run_cli(*STEER, *options)
    assert status == 0 and [json.loads(line)["prompt_number"] for line in out.splitlines()] == [2, 2]
    assert "1 row: left out, not valid JSON (row 0)" in err and "1 row: left out, empty prompt (row 1)" in err
    (tmp_path / "p.jsonl").write_text('{"question": "One", "answer": "1"}\n{"question": "Two", "answer": null}\n')
    sweep = ("sweep", "latest", "--direction", 1, "--strengths", "0", "--max-new-tokens", 4, "--device", "cpu")
    sweep += ("--prompts", tmp_path / "p.jsonl", "--answer", "answer", "--workspace", gsm8k_copy.root)
    status, out, _ = run_cli(*sweep)
    assert status == 0 and out.splitlines()[-1] == "1 row: no answer, not verified (row 1)"


def test_sweep_prints_points_and_keeps_the_suggested_range(run_cli, gsm8k_copy, gsm8k):
    options = ("--direction", 2, "--max-new-tokens", 8, "--limit", 3, "--device", "cpu")
    (found,) = lines_of(run_cli, gsm8k_copy, "sweep", "latest", *options)
    assert found["request"]["unit"] == "sd" and len(found["points"]) == 11
    assert gsm8k_copy.run().suggested_range(2).prompts == 3
    assert found["request"]["sampling"]["max_new_tokens"] == 8
    (free,) = lines_of(run_cli, gsm8k_copy, "sweep", "latest", *options[:2], "--limit", 1, "--device", "cpu")
    assert free["request"]["sampling"]["max_new_tokens"] == 40
    wide = ("--strengths", "-4:4:3", "--prompts", gsm8k, "--answer", "answer")
    status, out, err = run_cli("sweep", "latest", *options, *wide, "--workspace", gsm8k_copy.root)
    assert status == 0, err
    header, *rows = out.splitlines()
    assert header.startswith("strength  ") and "correct" in header and "0.0% (0.0% to 56.1%)" in rows[0]
    assert re.match(r"-4 \(-[\d.]+ sd\) ", rows[0])
    assert len(gsm8k_copy.sweeps(gsm8k_copy.run().id)) == 3


def test_export_writes_a_folder_and_says_how_it_agrees(run_cli, gsm8k_copy, stories, tmp_path):
    options = ("export", "latest", "--direction", 1, "--strength", 3, "--unit", "sd", "--device", "cpu")
    (found,) = lines_of(run_cli, gsm8k_copy, *options, "--format", "checkpoint", "--out", tmp_path / "model")
    assert found["agreement"]["same_text"] == found["agreement"]["prompts"] > 0
    unit = gsm8k_copy.run().basis().singular_values[0] / np.sqrt(59)
    assert (found["strength"], found["strength_in_sd"]) == (pytest.approx(3 * unit), pytest.approx(3))
    assert found["sentence"].startswith(f"Direction 1 at {3 * unit:+.3g} (+3 sd): largest logit difference")
    tokenizers = [load_tokenizer(str(folder)) for folder in (stories, tmp_path / "model")]
    ids, again = (tokenizer("Once upon a time, Tom's 3 dogs")["input_ids"] for tokenizer in tokenizers)
    assert ids == again and len(ids) > 8
    again = (*options, "--format", "vector", "--out", tmp_path / "model", "--workspace", gsm8k_copy.root)
    status, out, err = run_cli(*again)
    assert status == 1 and out == "" and "not empty" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((*STEER, "--prompt", "x"), 2, "one of --strength and --variants"),
        ((*STEER, "--strength", "1"), 2, "one of --prompt and --prompts"),
        ((*STEER, "--strength", "1", "--prompt", "x", "--temperature", "-1"), 2, "Temperature"),
        ((*STEER, "--strength", "1", "--prompt", "x", "--temperature", "1", "--seed", "9" * 20), 2, "Seed 999"),
        ((*STEER, "--variants", "", "--prompt", "x"), 1, "Strengths ''"),
        (("sweep", "latest", "--direction", "1", "--answer", "a"), 2, "--answer needs --prompts"),
        (("sweep", "latest", "--direction", "1", "--scope", "response"), 2, "The calibrating sweep is for"),
        (("sweep", "latest", "--direction", "1", "--unit", "unit"), 2, "in standard deviations"),
        (("sweep", "latest", "--direction", "1", "--blocks", "1:2"), 2, "The calibrating sweep is for"),
        (("sweep", "latest", "--direction", "1", "--temperature", "1"), 2, "The calibrating sweep is for"),
        (("sweep", "latest", "--direction", "1", "--op", "remove", "--unit", "sd"), 2, "a share of the direction"),
        ((*STEER, "--strength", "1", "--prompt", "x", "--op", "remove", "--unit", "sd"), 2, "a share of the"),
        (("export", "latest", "--direction", "1", "--strength", "1", "--format", "onnx"), 2, "onnx"),
        ((*STEER, "--strength", "1", "--prompt", " "), 1, "The prompt is empty"),
        ((*STEER, "--strength", "1", "--prompt", "long " * 600), 1, "exceed the model's context"),
        ((*STEER, "--strength", "1", "--prompt", "x", "--scope", "first"), 1, "Scope 'first' is not one of"),
        ((*STEER, "--strength", "1", "--prompt", "x", "--blocks", "0"), 1, "no part there"),
        ((*STEER, "--variants", "a", "--prompt", "x"), 1, "Strengths 'a'"),
        (("steer", "latest", "--direction", "9", "--strength", "1", "--prompt", "x"), 1, "directions 1 to 3"),
    ],
)
def test_steering_that_cannot_be_done_is_one_sentence(run_cli, gsm8k_copy, arguments, status, sentence):
    found, out, err = run_cli(*arguments, "--workspace", gsm8k_copy.root)
    assert found == status and out == "" and sentence in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("command", ["steer", "sweep", "export"])
def test_where_memory_runs_out_it_is_one_sentence(run_cli, gsm8k_copy, monkeypatch, tmp_path, command):
    def fail(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("core.steering.generation.choose_tokens", fail)
    options = {
        "steer": ("--strength", 1, "--prompt", "x"),
        "sweep": ("--limit", 2),
        "export": ("--strength", 1, "--format", "vector", "--out", tmp_path / "out"),
    }
    arguments = (command, "latest", "--direction", 1, "--device", "cpu", *options[command])
    status, out, err = run_cli(*arguments, "--workspace", gsm8k_copy.root)
    assert status == 1 and out == "" and "Traceback" not in err
    said = "There is not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB.). Ask for less at once"
    assert err.splitlines()[-1].startswith(said)


def test_steering_with_another_model_than_the_run_s_is_refused(run_cli, gsm8k_copy, stories, tmp_path):
    shutil.copytree(stories, tmp_path / "model", copy_function=shutil.copyfile)
    (tmp_path / "model").chmod(0o755)
    config = tmp_path / "model" / "generation_config.json"
    config.write_text('{"temperature": 0.5}')
    path = gsm8k_copy.run().folder / "manifest.json"
    manifest = read_json(path)
    manifest["model"]["name"] = str(tmp_path / "model")
    write_json(path, manifest)
    status, out, err = run_cli(*STEER, "--strength", 1, "--prompt", "x", "--workspace", gsm8k_copy.root)
    assert status == 1 and out == "" and "has changed since run" in err


def test_a_port_in_use_is_said_and_starts_nothing(run_cli, tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = run_cli("app", "--headless", "--port", str(port), "--workspace", tmp_path / "w")
    assert status == 1
    assert f"Port {port} cannot be used" in err and f"--port {port + 1}" in err
    assert not (tmp_path / "w").exists()


def test_a_long_step_ticks_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    with Reporter(as_json=False) as progress:
        progress("model", 0, 1)
        end = time.monotonic() + 30
        while "00:02" not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.1)
        progress("model", 1, 1)
        progress("read", 5, 10)
    drawn = terminal.getvalue()
    assert "Loading the model, usually some seconds" in drawn and "00:02" in drawn
    assert "Reading the examples: 50%" in drawn.replace(":  ", ": ") and " rows" in drawn
