"""Fixtures that several test files share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other are slow on a loaded machine

import json
import logging
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import CHAT, DATA

from core.activations import Recipe
from core.cli import main
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.workspace import Workspace


class NothingDeprecated(logging.Handler):
    """Libraries that log what they are about to take away fail the test that met it."""

    def emit(self, record):
        assert "deprecat" not in record.getMessage().lower(), record.getMessage()


for library in ("transformers", "huggingface_hub", "datasets", "streamlit", "peft"):
    logging.getLogger(library).addHandler(NothingDeprecated(logging.WARNING))


@pytest.fixture(scope="session", autouse=True)
def checks_of_models(tmp_path_factory):
    """What models can do is found out anew, not read from what another version left on this machine."""
    from core import architectures

    folder = tmp_path_factory.mktemp("checks")
    architectures._folder = lambda: folder


@pytest.fixture(scope="session")
def data_folder():
    if not DATA.is_dir():
        pytest.skip(f"the real data is not there: {DATA}")
    return DATA


@pytest.fixture(scope="session")
def stories(data_folder):
    """The folder of the real small model."""
    return str(data_folder / "models" / "stories260K")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """The folder of a tiny random Llama."""
    from tiny import SHAPE, save_tiny
    from transformers import LlamaConfig

    return save_tiny(LlamaConfig(**SHAPE), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def chat_stories(stories, tmp_path_factory):
    """A copy of that model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "stories260K"
    shutil.copytree(stories, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "chat_template.jinja").write_text(CHAT)
    return str(folder)


@pytest.fixture(scope="session")
def gsm8k(data_folder):
    return str(data_folder / "gsm8k" / "train.jsonl")


@pytest.fixture
def write_rows(tmp_path):
    """write_rows(rows, name) -> the path of a JSONL file with them."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def open_folder():
    """A folder that every user may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def as_nobody():
    """A context in which this process may do what any user may: root is kept out of nothing."""

    @contextmanager
    def nobody():
        is_root = os.geteuid() == 0
        if is_root:
            os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            if is_root:
                os.setresuid(0, 0, 0)

    return nobody


@pytest.fixture
def run_cli(capsys):
    """run_cli(*arguments) -> (exit status, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def workspace(template, tmp_path, monkeypatch):
    """A copy of the workspace that the test file's `template` is, which the app then opens."""
    shutil.copytree(template, tmp_path / "workspace")
    monkeypatch.setenv("BASISCOPE_WORKSPACE", str(tmp_path / "workspace"))
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def gsm8k_request(stories, gsm8k):
    """A small real request: 60 examples of GSM8K, no map."""
    return Request(
        stories,
        DataSource(gsm8k, limit=60),
        Columns(prompt="question", response="answer"),
        Recipe(dtype="float32", max_tokens=200),
        k=3,
        device="cpu",
        with_map=False,
    )


@pytest.fixture(scope="session")
def gsm8k_run(gsm8k_request, tmp_path_factory):
    """Its finished run. Tests that change it work on `gsm8k_copy`."""
    return recover(gsm8k_request, Workspace(tmp_path_factory.mktemp("gsm8k")))


@pytest.fixture
def gsm8k_copy(gsm8k_run, tmp_path):
    """A workspace with a copy of the run."""
    root = tmp_path / "copy"
    shutil.copytree(gsm8k_run.folder.parent.parent, root)
    return Workspace(root)
