"""Models from the hub, through its real client, against a hub of our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, serve_hub

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run_cli(tmp_path):
    """run_cli(address, *arguments) -> the finished process, with a cache of its own."""

    def run(address, *arguments):
        surroundings = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-m", "core.cli", *arguments, "--workspace", str(tmp_path / "workspace")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings, timeout=300)

    return run


@pytest.fixture
def rows(write_rows):
    return write_rows([{"text": f"w{i % 90} w{i * 7 % 90} w5 w9"} for i in range(12)])


def test_an_estimate_fetches_no_weights_and_a_recovery_fetches_them_once(run_cli, llama_folder, rows):
    asked = (
        "recover",
        "--model",
        "owner/tiny",
        "--data",
        rows,
        "--text",
        "text",
        "--k",
        "2",
        "--no-map",
        "--json",
    )
    with serve_hub("owner/tiny", Path(llama_folder)) as (address, fetched):
        estimate = run_cli(address, *asked, "--estimate")
        assert estimate.returncode == 0, estimate.stderr
        assert "config.json" in fetched
        assert "model.safetensors" not in fetched
        local = run_cli(address, *asked[:1], "--model", llama_folder, *asked[3:], "--estimate")
        told, here = json.loads(estimate.stdout), json.loads(local.stdout)
        assert told["memory_bytes"] == here["memory_bytes"] > 0
        recovered = run_cli(address, *asked)
        assert recovered.returncode == 0, recovered.stderr
        assert fetched.count("model.safetensors") == 1
    again = run_cli(address, *asked)  # the hub is gone; the cache has it all
    assert again.stdout == recovered.stdout
    run = json.loads(again.stdout)["run"]
    shown = json.loads(run_cli(address, "runs", "--json").stdout)
    assert run in json.dumps(shown)


def test_the_revision_is_the_commit_that_was_loaded(run_cli, llama_folder, rows, tmp_path):
    with serve_hub("owner/tiny", Path(llama_folder)) as (address, _fetched):
        asked = ("recover", "--model", "owner/tiny", "--data", rows, "--text", "text", "--k", "2", "--no-map")
        run = run_cli(address, *asked).stdout.splitlines()[-1]
    manifest = json.loads((tmp_path / "workspace" / "runs" / run / "manifest.json").read_text())
    assert manifest["model"]["name"] == "owner/tiny"
    assert manifest["model"]["revision"] == COMMIT


def test_a_model_that_the_hub_does_not_have_is_one_sentence(run_cli, llama_folder, rows):
    with serve_hub("owner/tiny", Path(llama_folder)) as (address, _fetched):
        result = run_cli(address, "recover", "--model", "owner/other", "--data", rows, "--text", "text")
    assert result.returncode == 1
    assert "owner/other" in result.stderr
    assert "Traceback" not in result.stderr
