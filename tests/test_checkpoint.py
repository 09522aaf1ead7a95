import json
import shutil
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.numpy import load_file
from test_model import FAMILIES
from tiny import SHAPE, save_tiny

from core import model as model_module
from core.activations import Recipe
from core.checkpoint import export, formats
from core.errors import BasiscopeError
from core.examples import Columns, DataSource
from core.model import load_model
from core.recovery import Request, load_run_model, recover
from core.steering.intervention import Directions
from core.workspace import Workspace

MORE = {
    "llama-biased": lambda: tf.LlamaConfig(**SHAPE, mlp_bias=True),
    "mistral-full": lambda: tf.MistralConfig(**SHAPE, sliding_window=None),
    "granite-tied": lambda: tf.GraniteConfig(**SHAPE, residual_multiplier=0.25, tie_word_embeddings=True),
    "opt-after": lambda: tf.OPTConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        do_layer_norm_before=False,
    ),
}
CHECKPOINT = {"llama", "llama-biased", "granite", "granite-tied", "smollm3", "gpt2", "opt", "gpt-neox", "qwen2"}
CHECKPOINT |= {"mistral-full"}
PEFT = CHECKPOINT | {"mistral", "qwen3", "phi3", "falcon", "falcon-alibi"}
BIASED = {"llama-biased", "gpt2", "opt", "gpt-neox"}
"""Whose layer has a bias to merge one into."""
STRENGTH = 6.0


@pytest.fixture(scope="module", autouse=True)
def plain_tokenizer():
    """The tokenizer that is in the folder, where transformers takes the family's own class and finds no words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "_tokenizer", lambda folder, _name: load_words(folder))
        yield


def load_words(folder):
    return tf.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=FAMILIES | MORE)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def run(family, tmp_path_factory):
    """A run of a tiny random model over random words."""
    folder = tmp_path_factory.mktemp(family)
    model = save_tiny((FAMILIES | MORE)[family](), folder / "model")
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(f"w{i}" for i in rng.integers(3, 90, 12))} for _ in range(30)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    request = Request(
        model,
        DataSource(str(folder / "data.jsonl")),
        Columns(text="text"),
        Recipe(dtype="float32", block_scale="rms"),
        k=3,
        device="cpu",
        with_map=False,
    )
    return recover(request, Workspace(folder))


def loader(run):
    return lambda: load_run_model(run, "cpu")


@pytest.mark.parametrize("kind", ["checkpoint", "peft", "gguf", "vector"])
def test_every_export_steers_when_loaded_again_or_is_refused_with_the_reason(run, family, kind, tmp_path):
    out = tmp_path / "out"
    works = {"checkpoint": CHECKPOINT, "peft": PEFT}.get(kind)
    if works is not None and family not in works:
        with pytest.raises(BasiscopeError, match=r"--format gguf and --format vector"):
            export(run, loader(run), 2, STRENGTH, kind, out)
        assert not out.exists() and not list(tmp_path.iterdir())
        return
    agreement = export(run, loader(run), 2, STRENGTH, kind, out)
    assert agreement.effect > 100 * agreement.difference
    assert agreement.same_text == agreement.prompts == 4
    stored = json.loads((out / "basiscope.json").read_text())
    assert (stored["strength"], stored["difference"]) == (STRENGTH, agreement.difference)
    card = (out / "README.md").read_text()
    in_sd = STRENGTH / Directions.of(run).deviations[1]
    assert str(agreement) in card and stored["strength_in_sd"] == pytest.approx(in_sd)
    assert f"`6 times the unit direction, which is {in_sd:.4g} standard deviations of its scores" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_adapter_can_be_merged_where_its_card_does_not_say_otherwise(run, family, tmp_path):
    if family not in PEFT:
        pytest.skip("there is no adapter for it")
    out = tmp_path / "out"
    export(run, loader(run), 2, STRENGTH, "peft", out)
    limits = json.loads((out / "basiscope.json").read_text())["limits"]
    assert ("cannot be merged" in limits) == (family not in BIASED) and limits in (out / "README.md").read_text()
    assert ("`--format checkpoint`" in limits) == (family in CHECKPOINT - BIASED)
    ids = torch.tensor([[5, 9, 30, 7]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(loader(run)().module, str(out)).eval()
        steered = adapted(ids, use_cache=False).logits
        if family not in BIASED:
            with pytest.raises(RuntimeError, match="the base layer has no bias"):
                adapted.merge_and_unload()
            return
        torch.testing.assert_close(adapted.merge_and_unload()(ids, use_cache=False).logits, steered)


def test_a_control_vector_says_what_was_not_checked(run, family, tmp_path):
    export(run, loader(run), 2, STRENGTH, "gguf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "llama.cpp itself was not run" in card
    assert ("is not known: where it does not, it ignores" in card) == (
        family in ("opt", "opt-after", "gemma3-vision")
    )


def test_a_bias_that_is_dropped_on_reload_is_found_out(run, family, tmp_path, monkeypatch):
    """Qwen3 as an architecture that would drop the bias without an error."""
    if family != "qwen3":
        pytest.skip("one such family is enough")
    monkeypatch.setattr(formats, "_new_config", lambda _config, _layer, stored: stored)
    with pytest.raises(BasiscopeError, match="tensors have no place in a model of type qwen3"):
        export(run, loader(run), 2, STRENGTH, "checkpoint", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A Qwen2 in several shards and bfloat16, as real ones are."""
    folder = tmp_path_factory.mktemp("sharded")
    single = save_tiny(tf.Qwen2Config(**SHAPE), folder / "single")
    model = tf.AutoModelForCausalLM.from_pretrained(single).bfloat16()
    model.save_pretrained(folder / "model", max_shard_size="20KB")
    for path in (folder / "single").glob("token*"):
        shutil.copyfile(path, folder / "model" / path.name)
    assert len(list((folder / "model").glob("*.safetensors"))) > 3
    lines = [{"text": " ".join(f"w{(i * j) % 87 + 3}" for j in range(1, 14))} for i in range(20)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = DataSource(str(folder / "data.jsonl"))
    request = Request(str(folder / "model"), source, Columns(text="text"), Recipe(), k=2, with_map=False)
    return recover(request, Workspace(folder))


BFLOAT16_CASES = [(0.25, 0.0, True), (0.25, 0.6, False), (1.0, 0.2, False), (0.03, 0.0, True), (0.03, 0.2, False)]


@pytest.mark.parametrize(("strength", "lost", "holds"), BFLOAT16_CASES)
def test_in_bfloat16_a_weak_export_holds_and_one_that_lost_a_part_does_not(
    stories, gsm8k, tmp_path, monkeypatch, strength, lost, holds
):
    """Rounding is then a fifth of what a quarter of a standard deviation does to the real model, and nearly as
    much as what 0.03 of one do."""
    recipe = Recipe(dtype="bfloat16", max_tokens=200)
    columns = Columns(prompt="question", response="answer")
    source = DataSource(gsm8k, limit=60)
    request = Request(stories, source, columns, recipe, k=1, device="cpu", with_map=False)
    run = recover(request, Workspace(tmp_path / "workspace"))
    write = formats._write_checkpoint

    def write_less(folder, source, config, layer, names, biases):
        write(folder, source, config, layer, names, {b: (1 - lost) * bias for b, bias in biases.items()})

    monkeypatch.setattr(formats, "_write_checkpoint", write_less)
    times = Directions.of(run).in_unit(1, strength, "sd")
    if holds:
        agreement = export(run, loader(run), 1, times, "checkpoint", tmp_path / "out")
        assert agreement.surgery < 0.01 < agreement.share
        assert (agreement.kept == pytest.approx(1, abs=0.03) and agreement.share < 0.4) or strength == 0.03
        assert export(run, loader(run), 1, times, "vector", tmp_path / "vector").difference == 0
    else:
        with pytest.raises(BasiscopeError, match="does not steer as the live hook does"):
            export(run, loader(run), 1, times, "checkpoint", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_qwen_as_a_llama_keeps_its_positions_for_every_reader_and_nothing_of_this_machine(tmp_path, scaled):
    rope = {"rope_theta": 500_000.0, "rope_type": "default"}
    if scaled:
        rope |= {"rope_type": "linear", "factor": 2.0}
    model = save_tiny(tf.Qwen2Config(**SHAPE, rope_parameters=rope), tmp_path / "model")
    lines = [{"text": " ".join(f"w{(i * j) % 87 + 3}" for j in range(1, 14))} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = DataSource(str(tmp_path / "data.jsonl"))
    recipe = Recipe(dtype="float32")
    request = Request(model, source, Columns(text="text"), recipe, k=2, device="cpu", with_map=False)
    run = recover(request, Workspace(tmp_path))
    export(run, loader(run), 1, 30.0, "checkpoint", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"], config["dtype"]) == (500_000.0, "float32", "float32")
    assert (config["rope_scaling"] or {}).get("factor") == (2.0 if scaled else None)
    assert not {"_name_or_path", "id2label", "label2id"} & set(config)
    assert str(tmp_path) not in json.dumps(config)
    read = tf.AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
    assert (read["rope_theta"], read.get("factor")) == (500_000.0, 2.0 if scaled else None)


def test_the_checkpoint_is_loaded_again_where_the_model_was(sharded, tmp_path, monkeypatch):
    seen = []

    def load(*args, **options):
        seen.append(options["device"])
        return load_model(*args, **options)

    monkeypatch.setattr(formats, "load_model", load)
    monkeypatch.setattr("core.model.choose_device", lambda device="auto": {"auto": "meta"}.get(device, device))
    export(sharded, loader(sharded), 1, 30.0, "checkpoint", tmp_path / "out")
    assert seen == ["cpu"]


@pytest.mark.parametrize("kind", ["checkpoint", "peft", "gguf", "vector"])
def test_the_model_is_gone_from_the_device_before_one_is_loaded_again(sharded, tmp_path, monkeypatch, kind):
    """Else a GPU would hold two, or take the memory that the first has left for used and spread the second."""
    events, modules = [], []

    def load():
        model = load_run_model(sharded, "cpu")
        events.append("load")
        modules.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr("core.checkpoint.free_memory", lambda: events.append([one() for one in modules]))
    export(sharded, load, 1, 30.0, kind, tmp_path / "out")
    assert events == ["load", [None], *(["load"] if kind != "checkpoint" else [])]


def test_the_logits_to_compare_lie_on_disk_and_are_compared_piece_by_piece(sharded, tmp_path, monkeypatch):
    seen, told = [], []

    def look():
        seen.append(sorted(path.name for path in tmp_path.glob("**/.logits.*/*")))

    monkeypatch.setattr("core.checkpoint.free_memory", look)
    found = export(sharded, loader(sharded), 1, 30.0, "checkpoint", tmp_path / "a", lambda *at: told.append(at))
    names = ("plain", "steered", *(["surgery"] if found.dtype != "float32" else []))
    assert seen == [[f"{name}{i}.npy" for name in names for i in range(4)]]
    steps = dict.fromkeys(step for step, *_ in told)
    assert list(steps) == ["model", "observe", "write", "reload", "compare"]
    monkeypatch.setattr("core.checkpoint.agreement.PIECE", 5)
    again = export(sharded, loader(sharded), 1, 30.0, "checkpoint", tmp_path / "b")
    assert (again.difference, again.effect, again.largest, again.same_text) == (
        found.difference,
        found.effect,
        found.largest,
        found.same_text,
    )
    assert (again.share, again.kept) == pytest.approx((found.share, found.kept))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_export_goes_into_the_folder_one_stands_in(sharded, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(sharded, loader(sharded), 1, 30.0, "vector", Path())
    assert (tmp_path / "here" / "vector.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_shards_are_kept_as_they_are_and_a_qwen_becomes_a_llama(sharded, tmp_path):
    out = tmp_path / "out"
    export(sharded, loader(sharded), 1, 30.0, "checkpoint", out)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["mlp_bias"], config["attention_bias"]) == ("llama", True, True)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert not (out / "model.safetensors").exists() and set(index.values()) == {
        p.name for p in out.glob("*.safetensors")
    }
    model = load_model(str(out), dtype="float32", device="cpu")
    assert type(model.module).__name__ == "LlamaForCausalLM"
    added = model.module.model.layers[1].mlp.down_proj.bias.numpy()
    expected = 30.0 * sharded.basis().block_vectors()[0, 0]
    np.testing.assert_allclose(added, expected, rtol=2**-7)
    assert not model.module.model.layers[0].mlp.down_proj.bias.any()
    assert not model.module.model.layers[1].self_attn.o_proj.bias.any()
    assert model.module.model.layers[1].self_attn.q_proj.bias.any()


def test_the_gguf_holds_one_dimensional_float32_directions(sharded, tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader

    export(sharded, loader(sharded), 1, -30.0, "gguf", tmp_path / "out")
    (tensor,) = GGUFReader(tmp_path / "out" / "vector.gguf").tensors
    assert tensor.name == "direction.1" and list(tensor.shape) == [32]
    assert tensor.tensor_type == GGMLQuantizationType.F32
    vectors = load_vectors(sharded, tmp_path)
    np.testing.assert_array_equal(tensor.data, vectors["1"])


def load_vectors(run, folder):
    export(run, loader(run), 1, -30.0, "vector", folder / "vector")
    listed = json.loads((folder / "vector" / "vector.json").read_text())["adds_to_output_of_block"]
    stored = load_file(folder / "vector" / "vector.safetensors")
    assert {name: len(vector) for name, vector in listed.items()} == {"1": 32}
    np.testing.assert_array_equal(np.array(listed["1"], np.float32), stored["1"])
    return stored


def test_bad_exports_are_said_and_leave_nothing(sharded, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for strength, sentence in (
        (0.0, "nothing to export"),
        (float("nan"), "nothing to export"),
        (1e39, "not numbers"),
    ):
        with pytest.raises(BasiscopeError, match=sentence):
            export(sharded, loader(sharded), 1, strength, "vector", out)
    with pytest.raises(BasiscopeError, match=r"does not steer as the live hook does.*larger strength"):
        export(sharded, loader(sharded), 1, 1e-30, "vector", out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(BasiscopeError, match="not empty"):
        export(sharded, loader(sharded), 1, 1.0, "vector", out)
    (out / "mine.txt").unlink()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "_write_vector", full)
    with pytest.raises(BasiscopeError, match=r"disk of .* is full"):
        export(sharded, loader(sharded), 1, 30.0, "vector", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_over_block_0_has_no_control_vector(tmp_path, llama_folder):
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"text": f"w{i} w{i + 1} w{i + 2}"}) for i in range(9))
    )
    source = DataSource(str(tmp_path / "data.jsonl"))
    recipe = Recipe(blocks="0:2", dtype="float32")
    run = recover(
        Request(llama_folder, source, Columns(text="text"), recipe, k=1, with_map=False), Workspace(tmp_path)
    )
    with pytest.raises(BasiscopeError, match="no control vector for block 0"):
        export(run, loader(run), 1, 1.0, "gguf", tmp_path / "out")
