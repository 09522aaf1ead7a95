import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from core import architectures
from core.architectures import pads_right, remembered, tolerance
from core.errors import BasiscopeError
from core.limits import Limits
from core.model import block_output, load_model, with_block_output
from core.steering.check import Abilities, abilities, notes_of


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder in which outcomes are kept."""
    monkeypatch.setattr(architectures, "_folder", lambda: tmp_path / "checks")
    return tmp_path / "checks"


@pytest.fixture
def model(llama_folder, kept):
    return load_model(llama_folder, dtype="float32", device="cpu")


@contextmanager
def leaking(model, share):
    """The first block adds to every token a share of what all of the text have in common, later ones too."""

    def hook(_block, _args, output):
        hidden = block_output(output)
        common = torch.nn.functional.normalize(hidden.mean(dim=1, keepdim=True), dim=-1)
        size = hidden.norm(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
        return with_block_output(output, hidden + share * size * common)

    handle = model.blocks[0].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_an_outcome_is_asked_for_once_and_kept_for_the_same_files_and_versions(model, kept):
    asked = []

    def ask(one):
        asked.append(one.name)
        return {"a": 1}

    assert remembered(model, "question", ask) == remembered(model, "question", ask) == {"a": 1}
    architectures._KNOWN.clear()
    assert remembered(model, "question", ask) == {"a": 1} and len(asked) == 1
    (path,) = kept.glob("*.json")
    facts = json.loads(path.read_text())
    assert facts["torch"] == torch.__version__ and facts["mamba-ssm"] is None and facts["attention"]
    architectures._KNOWN.clear()
    remembered(replace(model, fingerprint="another"), "question", ask)
    assert len(asked) == 2


def test_where_nothing_may_be_written_a_model_is_asked_again(model, kept, monkeypatch):
    monkeypatch.setenv("BASISCOPE_LIMITS", json.dumps({"read_only": True}))
    assert Limits.now().read_only
    assert abilities(model) == Abilities() and not kept.exists()


def test_too_little_memory_is_no_property_of_a_model(model, kept, monkeypatch):
    def none_left(*_arguments):
        raise torch.OutOfMemoryError("the device has no more")

    with monkeypatch.context() as patched:
        patched.setattr("core.steering.check._steps", none_left)
        with pytest.raises(torch.OutOfMemoryError):
            abilities(model)
    assert abilities(model) == Abilities()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_see_a_little_of_later_ones_are_found_in_either_precision(llama_folder, kept, dtype):
    model = load_model(llama_folder, dtype=dtype, device="cpu")
    assert pads_right(model)
    assert tolerance(model) <= 0.05
    architectures._KNOWN.clear()
    leaky = replace(model, fingerprint="")
    with leaking(model, 0.3), pytest.raises(BasiscopeError, match="depends on later ones"):
        pads_right(leaky)


def test_what_is_done_the_slow_way_is_said_with_how_the_model_was_loaded(model):
    assert notes_of(model, "m") == ()
    noted = replace(model, notes=("an adapter is not applied",))
    assert notes_of(noted, "m") == ("an adapter is not applied",)
    slow = Abilities(cache=False, padding=False).notes("m")
    assert len(slow) == 2 and all(note.startswith("Model m: ") for note in slow)
