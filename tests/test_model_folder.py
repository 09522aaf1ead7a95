import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import POINTER, damage
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import BLOCKS, HIDDEN, SHAPE, VOCABULARY, save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from core.activations import Pooler, Recipe
from core.chat_template import render_template
from core.checkpoint.formats import writer_for
from core.errors import BasiscopeError
from core.evaluation.problems import Problem
from core.evaluation.rollouts import encode_problems
from core.examples import Columns, DataSource, ReadReport, read_examples, resolve_template, tokenize
from core.model import check_tokens, load_model, load_tokenizer, model_fingerprint, stored_bytes
from core.recovery import Request, recover
from core.steering.generation import encode_prompts
from core.workspace import Workspace

IDS = np.arange(3, 40)
MUTATIONS = int(os.environ.get("BASISCOPE_MUTATIONS", "60"))
"""So many damaged folders are tried: some seconds here, thousands now and then."""
TEMPLATE = (
    "{% for m in messages %}w3 {{ m['content'] }} w4 {% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
)


@pytest.fixture
def folder(llama_folder, tmp_path):
    """A copy of the Llama folder that a test may break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def pooled(model):
    return Pooler(model, tuple(range(BLOCKS)))([IDS], np.array([1]))


def refused(folder, sentence):
    start = time.monotonic()
    with pytest.raises(BasiscopeError, match=sentence) as found:
        load_model(str(folder), dtype="float32", device="cpu")
    assert time.monotonic() - start < 60
    return str(found.value)


# --- tokens beyond the embedding ------------------------------------------------------------------------


@pytest.fixture
def larger(folder):
    """A model whose tokenizer has two tokens more than its embedding has rows."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|start|>", "<|end|>"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def request(model, path):
    recipe = Recipe(dtype="float32", blocks="1")
    return Request(model, DataSource(path), Columns(text="t"), recipe, k=1, device="cpu", with_map=False)


def test_a_token_beyond_the_embedding_is_named_with_its_row_and_both_sizes(larger, write_rows, tmp_path):
    plain = [{"t": f"w{i} w{i + 1} w{2 * i} w9"} for i in range(3, 9)]
    run = recover(request(larger, write_rows(plain)), Workspace(tmp_path / "fine"))
    assert run.manifest["n"] == 6
    odd = [*plain, {"t": "w3 w4 <|end|> w5"}]
    sentence = r"row 6 has the token '<\|end\|>', number 97, but the embedding of .* has 96 rows\. .* of 98 tokens"
    with pytest.raises(BasiscopeError, match=sentence):
        recover(request(larger, write_rows(odd, "odd.jsonl")), Workspace(tmp_path / "odd"))


def test_prompts_and_problems_with_such_a_token_are_named(larger):
    model = load_model(larger, dtype="float32", device="cpu")
    with pytest.raises(BasiscopeError, match=r"Prompt 2: The prompt has the token '<\|start\|>', number 96"):
        encode_prompts(model, ["w3 w4", "w3 <|start|>"], {"text": "t"}, "plain", 4)
    problems = [Problem(0, "w3 w4", "w5"), Problem(1, "w3 <|end|>", "w5")]
    with pytest.raises(BasiscopeError, match=r"Problem 1 has the token '<\|end\|>', number 97"):
        encode_problems(model, problems, "bare", "plain", 4)


# --- config and weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_hidden_layers", 1, r"num_hidden_layers 1, the files have weights of 3 blocks: the last 2 would be"),
        ("num_hidden_layers", 4, r"lack 9 of its weights \(first: model\.layers\.3.*\) by num_hidden_layers 4"),
        ("num_hidden_layers", 10**9, r"num_hidden_layers is 1,000,000,000; no model has so many"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, expected a positive number"),
        ("vocab_size", 90, r"is 96 x 32, by config\.json \(vocab_size 90\) it would be 90 x 32"),
        ("vocab_size", 10**9, "asks for far more than its files hold, such as a weight of 1000000000 x 32"),
        ("hidden_size", 10**12, r"config\.json"),
        ("intermediate_size", 40, r"model\.safetensors: .* by config\.json \(intermediate_size 40\)"),
        ("max_position_embeddings", -5, "max_position_embeddings is -5, expected a positive"),
        ("head_dim", -8, "head_dim is -8, expected a positive"),
        ("num_attention_heads", "x", r"config\.json: .*'num_attention_heads' expected int, got str"),
        ("rms_norm_eps", float("nan"), r"config\.json: rms_norm_eps is NaN"),
        ("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}, r"config\.json: .*rope_type: spiral"),
        ("hidden_act", "gelou", r"config\.json: .*(gelou)"),
        ("model_type", None, r"config\.json has no model_type"),
        ("model_type", "lama", r"config\.json: .*lama"),
    ],
)
def test_a_field_of_the_config_that_cannot_be_is_named(folder, field, value, sentence):
    change(folder / "config.json", **{field: value})
    assert folder.name in refused(folder, sentence)


def rewrite(folder, **tensors):
    """The weights with others put in, or taken out where None."""
    weights = load_file(folder / "model.safetensors") | tensors
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tensor_without_a_place_is_named(folder):
    rewrite(folder, **{"model.layers.1.mlp.down_proj.bias": torch.ones(HIDDEN)})
    refused(
        folder, r"model\.safetensors: 1 of its tensors have no place .*dropped \(first: model\.layers\.1\.mlp\.do"
    )


def test_buffers_that_old_checkpoints_keep_are_passed_over(folder, llama_folder):
    inverse, mask = torch.rand(4), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    name = "model.layers.0.self_attn."
    rewrite(
        folder,
        **{f"{name}rotary_emb.inv_freq": inverse, f"{name}bias": mask, f"{name}masked_bias": inverse.clone()},
    )
    model = load_model(str(folder), dtype="float32", device="cpu")
    expected = pooled(load_model(llama_folder, dtype="float32", device="cpu"))
    np.testing.assert_array_equal(pooled(model), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_that_is_no_number_is_named(folder, value, dtype):
    name = "model.layers.2.mlp.up_proj.weight"
    weight = load_file(folder / "model.safetensors")[name]
    weight[5, 7] = value
    rewrite(folder, **{name: weight})
    with pytest.raises(BasiscopeError, match=rf"1 of its weights .* no numbers or infinite \(first: {name}\)"):
        load_model(str(folder), dtype=dtype, device="cpu")


@pytest.mark.parametrize(
    "quantised", [{"quant_method": "fp8", "weight_block_size": [8, 8]}, {"quant_method": "of-my-own"}]
)
def test_plain_weights_beside_a_quantisation_that_does_not_apply_are_the_plain_model(
    folder, llama_folder, quantised
):
    change(folder / "config.json", quantization_config=quantised)
    model = load_model(str(folder), dtype="float32", device="cpu")
    expected = pooled(load_model(llama_folder, dtype="float32", device="cpu"))
    np.testing.assert_allclose(pooled(model), expected, atol=1e-5)


# --- damaged files --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(llama_folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(tmp_path / "m", max_shard_size="20KB")
    for path in Path(llama_folder).glob("tokenizer*"):
        shutil.copyfile(path, tmp_path / "m" / path.name)
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({}, r"index\.json: weight_map names no files"),
        ({"weight_map": 3}, r"weight_map names no files"),
        ({"weight_map": {"a": 3}}, r"weight_map names 3, which is no file"),
        ({"weight_map": {"a": "../model.safetensors"}}, r"weight_map names .*which is no file"),
        ({"weight_map": {"a": "other.safetensors"}}, r"it has no file other\.safetensors"),
        ({"weight_map": {"a": "model-00001-of-00004.safetensors"}}, r"lists 1 tensors that their files lack"),
    ],
)
def test_an_index_that_does_not_fit_is_named(sharded, index, sentence):
    assert load_model(str(sharded), dtype="float32", device="cpu").blocks
    (first,) = sharded.glob("model-00001-of*")
    written = json.dumps(index).replace("model-00001-of-00004.safetensors", first.name)
    (sharded / "model.safetensors.index.json").write_text(written)
    refused(sharded, sentence)


FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_is_told(folder, name):
    (folder / name).write_bytes(POINTER)
    refused(folder, rf"{name} is a Git LFS pointer, not the file itself; run `git lfs pull` in")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"a": \xff}', b"[" * 100_000])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name.replace(".", r"\."))


def test_an_empty_chat_template_is_told(folder):
    (folder / "chat_template.jinja").write_text(" ")
    refused(folder, r"chat_template\.jinja is empty")


def test_a_folder_whose_tokenizer_files_are_gone_says_so(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "its tokenizer cannot be loaded")


@pytest.mark.parametrize("value", ["two", [1, "x"], True, 1.5, {}])
def test_an_end_that_is_no_token_is_told(folder, value):
    change(folder / "generation_config.json", eos_token_id=value)
    refused(folder, r"generation_config\.json: eos_token_id is .*, expected a token's number")


def test_a_tokenizer_that_fails_at_a_text_is_told(folder):
    change(folder / "tokenizer_config.json", model_max_length={"a": 1})
    model = load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(BasiscopeError, match=r"its tokenizer fails \(TypeError: .*tokenizer_config\.json"):
        encode_prompts(model, ["w3 w4"], {"text": "t"}, "plain", 4)


def test_a_config_that_is_loaded_but_cannot_run_is_told(tmp_path):
    from transformers import GPTJConfig

    sizes = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    folder = save_tiny(GPTJConfig(**sizes), tmp_path)
    change(tmp_path / "config.json", rotary_dim=3)
    refused(folder, r"config\.json: The size of tensor a \(3\) must match .*rotary_dim: 3")


# --- adapters -------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(llama_folder, tmp_path):
    """(folder, logits of base and adapter by PEFT)."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    both = get_peft_model(base, config).eval()
    both.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        return tmp_path / "adapter", both(torch.tensor(IDS)[None]).logits


def logits(model):
    with torch.inference_mode():
        return model.module(torch.tensor(IDS)[None]).logits


@pytest.mark.parametrize("beside", [(), ("config.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_an_adapter_is_merged_into_the_model_that_it_was_made_for(adapter, llama_folder, beside):
    folder, expected = adapter
    for name in beside:
        shutil.copyfile(f"{llama_folder}/{name}", folder / name)
    model = load_model(str(folder), dtype="float32", device="cpu")
    base = load_model(llama_folder, dtype="float32", device="cpu")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert (logits(base) - expected).abs().max() > 0.1
    assert (len(model.blocks), model.name) == (BLOCKS, str(folder))
    assert model.notes == (f"the model is {llama_folder} with the PEFT adapter {folder} merged into it",)
    assert stored_bytes(str(folder)) == stored_bytes(llama_folder)
    assert load_tokenizer(str(folder))("w5 w7").input_ids == [5, 7]
    prints = {model.fingerprint, base.fingerprint, model_fingerprint(folder)}
    assert len(prints) == 3
    rewrite_adapter(folder, lambda tensor: tensor * 2)
    assert load_model(str(folder), dtype="float32", device="cpu").fingerprint not in prints


def rewrite_adapter(folder, new):
    path = folder / "adapter_model.safetensors"
    save_file({key: new(tensor) for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def test_an_adapter_in_the_folder_of_a_whole_model_is_not_applied_and_said(adapter, folder, write_rows, tmp_path):
    for path in adapter[0].glob("adapter_*"):
        shutil.copyfile(path, folder / path.name)
    rows = write_rows([{"t": f"w{i} w{i + 1} w{2 * i} w9"} for i in range(3, 9)])
    run = recover(request(str(folder), rows), Workspace(tmp_path / "runs"))
    note = "the PEFT adapter beside the model's own weights (adapter_config.json) is not applied"
    assert run.manifest["warnings"] == [note]
    assert run.manifest["model"]["fingerprint"] == model_fingerprint(folder)
    model = load_model(str(folder), dtype="float32", device="cpu")
    for path in folder.glob("adapter_*"):
        path.unlink()
    alone = load_model(str(folder), dtype="float32", device="cpu")
    assert (alone.fingerprint, alone.notes) == (model.fingerprint, ())
    torch.testing.assert_close(logits(model), logits(alone), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"base_model_name_or_path": None}, "names no model in base_model_name_or_path; write it there"),
        ({"base_model_name_or_path": "/not/here"}, r"adapter of /not/here, which is not here: .*merge_and_unload"),
        ({"target_modules": ["q_proj"]}, r"adapter_model\.safetensors and adapter_config\.json differ in 6 tens"),
        ({"r": 4}, r"adapter_model\.safetensors does not fit adapter_config\.json: .*size mismatch"),
        ({"r": "x"}, r"adapter_config\.json: "),
        ({"peft_type": "NONE"}, r"adapter_config\.json: "),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(adapter, fields, sentence):
    change(adapter[0] / "adapter_config.json", **fields)
    refused(adapter[0], sentence)


def test_a_steered_checkpoint_of_an_adapter_is_refused(adapter):
    model = load_model(str(adapter[0]), dtype="float32", device="cpu")
    for kind in ("checkpoint", "peft"):
        with pytest.raises(BasiscopeError, match=f"Format {kind}: .* is a PEFT adapter of .*merged"):
            writer_for(model, {1: np.ones(HIDDEN, np.float32)}, kind)


def test_an_adapter_that_cannot_be_merged_is_told(llama_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(base, prompts).save_pretrained(tmp_path / "prompts")
    refused(tmp_path / "prompts", "adapter of kind PROMPT_TUNING, which cannot be merged")


def test_pickled_adapters_are_never_loaded(adapter):
    path = adapter[0] / "adapter_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    refused(adapter[0], r"without adapter_model\.safetensors\. Pickled weights \(\.bin\) are never loaded")


# --- chat templates -------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "w5"}]
SLOW = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("core.chat_template.SECONDS", 0.2)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ system.content }}", "'system' is undefined"),
        ("{{ messages[4].content }}", "no element 4"),
        ("{{ raise_exception('Only system messages') }}", "Only system messages"),
        ("{% for i in range(10**9) %}w3{% endfor %}", "Range too big"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself without end"),
        ("{% if %}", "is not one, line 1: Expected an expression"),
        (SLOW, r"did not end within 0\.2 seconds; --template plain"),
    ],
)
def test_a_template_that_fails_is_told_with_its_own_reason(folder, template, sentence, hasty):
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(folder))
    for _ in range(2):
        with pytest.raises(BasiscopeError, match=sentence):
            render_template(tokenizer, CHAT)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert render_template(load_tokenizer(str(folder)), CHAT, add_generation_prompt=True) == "w3 w5 w4 w5 "


def test_a_broken_template_is_told_before_a_row_is_read_and_not_where_it_is_not_used(folder):
    (folder / "chat_template.jinja").write_text("{% if %}")
    tokenizer = load_tokenizer(str(folder))
    with pytest.raises(BasiscopeError, match=r"model, chat_template\.jinja: the chat template is not one, line 1"):
        resolve_template("auto", Columns(messages="m"), tokenizer)
    assert resolve_template("auto", Columns(prompt="p"), tokenizer) == "plain"


def test_a_template_that_only_some_messages_stop_in_is_left_after_three(folder, write_rows, hasty):
    template = "{% if messages[0].content == 'w9' %}" + SLOW + "{% endif %}" + TEMPLATE
    (folder / "chat_template.jinja").write_text(template)
    tokenizer, report = load_tokenizer(str(folder)), ReadReport()
    contents = ["w3", *["w9"] * 9, "w3"]
    rows = write_rows([{"m": [{"role": "user", "content": content}]} for content in contents])
    columns = Columns(messages="m")
    kept = list(read_examples(DataSource(rows), columns, "chat", tokenizer, report))
    assert [example.example_id for example in kept] == [0]
    assert any("10 rows: left out, the chat template did not end" in line for line in report.sentences())


# --- damage of every kind -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_tiny(LlamaConfig(**SHAPE), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def used(folder, rows):
    """Token ids and activations of a few rows."""
    model = load_model(str(folder), dtype="float32", device="cpu")
    columns = Columns(messages="m")
    template = resolve_template("auto", columns, model.tokenizer)
    examples = list(read_examples(DataSource(rows), columns, template, model.tokenizer, ReadReport()))
    texts = tokenize(examples, model.tokenizer, min(50, model.context), spans=False)
    for text in texts:
        check_tokens(model, text.ids, "A row")
    ids = [np.array(text.ids) for text in texts]
    return ids, Pooler(model, tuple(range(len(model.blocks))))(ids, np.zeros(len(ids), dtype=int))


def test_a_damaged_folder_is_loaded_or_told(whole, tmp_path, write_rows):
    """Right, said, or other by what a file now says: never anything but a sentence."""
    rows = write_rows([{"m": [{"role": "user", "content": f"w5 w{i} w7"}]} for i in range(3)])
    expected = used(whole, rows)
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        folder = Path(shutil.copytree(whole, tmp_path / "damaged", dirs_exist_ok=True))
        done = damage(folder, seed)
        try:
            found = used(folder, rows)
            is_same = all(map(np.array_equal, found[0], expected[0])) and np.allclose(found[1], expected[1])
            outcomes["same" if is_same else "other"] += 1
        except BasiscopeError as error:
            outcomes["said"] += 1
            assert "\n" not in str(error), done
        except Exception as error:
            pytest.fail(f"Seed {seed}, {done}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    print(f"{MUTATIONS} damaged folders: {dict(outcomes)}")
    assert outcomes["said"] > MUTATIONS / 3 and outcomes["same"] > MUTATIONS / 20
