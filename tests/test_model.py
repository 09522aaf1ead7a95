import hashlib
import json
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny import BLOCKS, HIDDEN, SHAPE, VOCABULARY, save_tiny

from core.activations import Pooler
from core.basis import Basis
from core.errors import BasiscopeError
from core.model import (
    block_output,
    choose_device,
    choose_dtype,
    find_blocks,
    find_local_models,
    is_folder,
    load_model,
    load_tokenizer,
    locate_model,
    model_fingerprint,
    resolve_blocks,
    run_blocks,
)
from core.reading import score_tokens

GEMMA = SHAPE | {"sliding_window": 6, "query_pre_attn_scalar": 8}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}
SMALL = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**SHAPE),
    "qwen2": lambda: tf.Qwen2Config(**SHAPE),
    "qwen3": lambda: tf.Qwen3Config(**SHAPE),
    "mistral": lambda: tf.MistralConfig(**SHAPE, sliding_window=6),
    "gemma2": lambda: tf.Gemma2Config(**GEMMA),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "gemma3-vision": lambda: tf.Gemma3Config(
        text_config=GEMMA,
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=95,
        boi_token_index=94,
        eoi_token_index=93,
    ),
    "phi3": lambda: tf.Phi3Config(**SHAPE),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SMALL, intermediate_size=48, bos_token_id=1, eos_token_id=2),
    "opt": lambda: tf.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=HIDDEN, max_position_embeddings=64),
    "olmo2": lambda: tf.Olmo2Config(**SHAPE),
    "falcon": lambda: tf.FalconConfig(
        **SMALL, new_decoder_architecture=True, num_kv_heads=2, bos_token_id=1, eos_token_id=2
    ),
    "falcon-alibi": lambda: tf.FalconConfig(**SMALL, alibi=True, bos_token_id=1, eos_token_id=2),
    "smollm3": lambda: tf.SmolLM3Config(**SHAPE),
    "granite": lambda: tf.GraniteConfig(**SHAPE, residual_multiplier=0.5),
    "mixtral": lambda: tf.MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2),
}
LENGTHS, FIRST = (17, 2, 9, 5), np.array([1, 1, 3, 4])
TOLERANCE = 2e-5
"""Of the largest activation: float32 rounds at 6e-8, over some hundred additions in each of three blocks."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = save_tiny(FAMILIES[request.param](), tmp_path_factory.mktemp(request.param))
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 90, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def reference(model, texts):
    """(examples, d) pooled one example at a time from `output_hidden_states`, the last block by a hook; and
    the same for the last block from hidden_states[-1]."""
    last = []
    handle = model.blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(block_output(output)))
    pooled, normed = [], []
    with torch.no_grad():
        for text, first in zip(texts, FIRST, strict=True):
            states = model.module(torch.tensor(text)[None], output_hidden_states=True).hidden_states
            blocks = [*states[1:-1], last[-1]]
            assert len(states) == len(blocks) + 1
            pooled.append(torch.cat([hidden[0, first:].mean(dim=0) for hidden in blocks]))
            normed.append(states[-1][0, first:].mean(dim=0))
    handle.remove()
    return torch.stack(pooled).numpy(), torch.stack(normed).numpy()


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# --- the families ---------------------------------------------------------------------------------------


def test_the_blocks_are_found(model):
    assert len(model.blocks) == BLOCKS == model.module.config.get_text_config().num_hidden_layers
    assert model.hidden_size == HIDDEN
    assert (model.dtype, model.device.type, model.revision) == ("float32", "cpu", None)
    assert len(model.fingerprint) == 64


def test_a_ragged_batch_equals_each_example_alone_from_output_hidden_states(model, texts, reference):
    expected, _ = reference
    spread = np.abs(expected - expected.mean(axis=0)).max() / np.abs(expected).max()
    assert spread > 1_000 * TOLERANCE  # so that a wrong row or window cannot pass
    assert_close(Pooler(model, tuple(range(BLOCKS)))(texts, FIRST), expected)


def test_the_last_block_is_taken_before_the_final_norm(model, reference):
    last, normed = reference[0][:, -HIDDEN:], reference[1]
    assert np.abs(last - normed).max() > 0.1 * np.abs(last).max()


def test_padding_on_either_side_and_none_agree(model, texts, reference):
    pooler = Pooler(model, tuple(range(BLOCKS)))
    assert_close(pooler(texts, FIRST, "left"), reference[0])
    alone = [pooler([text], first[None]) for text, first in zip(texts, FIRST, strict=True)]
    assert_close(np.concatenate(alone), reference[0])


def test_nothing_runs_after_the_last_block_needed(model, texts):
    started = []
    handles = [
        part.register_forward_pre_hook(lambda _m, _a, name=name: started.append(name))
        for name, part in model.module.named_modules()
    ]
    Pooler(model, (0, 1))(texts, FIRST)
    for handle in handles:
        handle.remove()
    names = {part: name for name, part in model.module.named_modules()}
    assert [started.count(names[block]) for block in model.blocks] == [1, 1, 0]
    assert names[model.module.get_output_embeddings()] not in started
    assert started[-1].startswith(names[model.blocks[1]] + ".")


def test_the_hooks_are_gone_also_after_an_exception(model, texts):
    before = [list(part._forward_hooks) for part in model.blocks]  # transformers may have some of its own
    Pooler(model, (0, 2))(texts, FIRST)
    assert [list(part._forward_hooks) for part in model.blocks] == before

    def fail(_block, _hidden):
        counts = [len(part._forward_hooks) - len(own) for part, own in zip(model.blocks, before, strict=True)]
        assert counts == [1, 0, 1]
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run_blocks(model, {"input_ids": torch.tensor(texts[0])[None]}, (0, 2), fail)
    assert [list(part._forward_hooks) for part in model.blocks] == before


@pytest.mark.parametrize("tokens_that_fit", [9, 1])
def test_the_tokens_of_a_text_too_large_for_memory_are_scored_in_pieces(model, tokens_that_fit):
    ids = np.random.default_rng(0).integers(3, 90, 40)
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(2 * HIDDEN, 2)))[0].T.astype(np.float32)
    one, none = np.ones(2, np.float32), np.zeros(2 * HIDDEN, np.float32)
    basis = Basis(np.ascontiguousarray(directions), none, one, one, 1.0, 40, one)
    whole = score_tokens(model, basis, (0, 1), ids, 1, 7)
    seen = []

    def out_of_memory(_module, args):
        seen.append(args[0].shape[1])
        if seen[-1] > tokens_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.blocks[1].register_forward_pre_hook(out_of_memory)
    try:
        pieces = score_tokens(model, basis, (0, 1), ids, 1, 7)
        assert seen[0] == 40 and seen.count(seen[-1]) >= 40 // tokens_that_fit
        assert pieces.tokens == whole.tokens
        np.testing.assert_array_equal(np.isnan(pieces.scores), np.isnan(whole.scores))
        assert_close(pieces.scores[1:], whole.scores[1:])
        tokens_that_fit = 0
        with pytest.raises(BasiscopeError, match=r"Example 7 \(40 tokens\): .*not even one at a time"):
            score_tokens(model, basis, (0, 1), ids, 1, 7)
    finally:
        handle.remove()


# --- blocks ---------------------------------------------------------------------------------------------


def test_a_block_may_return_a_tensor_or_a_tuple():
    hidden = torch.randn(4, 5, 6)
    assert block_output(hidden) is hidden
    assert block_output((hidden, None)) is hidden


def test_a_block_that_returns_a_tuple_is_pooled_the_same(llama_folder, texts):
    model = load_model(llama_folder, dtype="float32", device="cpu")
    plain = Pooler(model, (0, 1, 2))(texts, FIRST)
    in_tuple = [block.register_forward_hook(lambda _m, _a, output: (output, "weights")) for block in model.blocks]
    unpack = [
        block.register_forward_pre_hook(lambda _m, args: (block_output(args[0]), *args[1:]))
        for block in model.blocks
    ]
    np.testing.assert_array_equal(Pooler(model, (0, 1, 2))(texts, FIRST), plain)
    assert len(in_tuple) == len(unpack) == BLOCKS


@pytest.mark.parametrize(
    ("blocks", "n", "expected"),
    [
        ("1:-1", 5, (1, 2, 3)),
        ("1:-1", 32, tuple(range(1, 31))),
        (":", 3, (0, 1, 2)),
        ("2:", 4, (2, 3)),
        (":2", 4, (0, 1)),
        ("-2:", 4, (2, 3)),
        ("1:99", 4, (1, 2, 3)),
        ("15", 32, (15,)),
        (" 0 ", 3, (0,)),
        ("-1", 3, (2,)),
        ("middle", 32, (15,)),
        ("middle", 5, (1,)),
        ("middle", 1, (0,)),
    ],
)
def test_blocks_are_written_as_a_python_slice_or_one_number(blocks, n, expected):
    assert resolve_blocks(blocks, n) == expected


@pytest.mark.parametrize("blocks", ["", "a", "1:2:3", "-", "-:", "1:-", "1.5", "1,2", "--1", "1;2"])
def test_blocks_that_cannot_be_read_are_refused(blocks):
    with pytest.raises(BasiscopeError, match="write a range such as 1:-1"):
        resolve_blocks(blocks, 5)


@pytest.mark.parametrize(("blocks", "n"), [("5", 5), ("-6", 5), ("3:2", 5), ("7:", 5), ("1:-1", 2)])
def test_blocks_that_choose_nothing_are_refused(blocks, n):
    with pytest.raises(BasiscopeError, match=f"blocks 0 to {n - 1}, none is chosen"):
        resolve_blocks(blocks, n)


# --- models that cannot be used -------------------------------------------------------------------------


def test_an_encoder_decoder_is_refused(tmp_path):
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": BLOCKS, "num_heads": 4}
    folder = save_tiny(tf.T5Config(**sizes), tmp_path, tf.AutoModelForSeq2SeqLM)
    with pytest.raises(BasiscopeError, match=r"t5 is an encoder-decoder, Basiscope needs a decoder-only model"):
        load_model(folder)


def test_an_encoder_that_sees_later_tokens_is_refused(tmp_path):
    folder = save_tiny(tf.BertConfig(**SMALL, intermediate_size=48), tmp_path, tf.AutoModelForMaskedLM)
    with pytest.raises(BasiscopeError, match=r"bert.*attend to later ones.*decoder-only"):
        load_model(folder)


def test_a_model_whose_blocks_are_not_a_list_is_refused(llama_folder):
    module = load_model(llama_folder).module
    module.config.num_hidden_layers = BLOCKS + 1
    with pytest.raises(BasiscopeError, match="no list of 4 decoder layers"):
        find_blocks(module)


@pytest.fixture
def copied(llama_folder, tmp_path):
    """A copy of the Llama folder that a test may break."""
    return shutil.copytree(llama_folder, tmp_path / "model")


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(BasiscopeError, match=f"there is no folder {tmp_path}/nothing"):
        load_model(f"{tmp_path}/nothing")
    (tmp_path / "file").touch()
    with pytest.raises(BasiscopeError, match="there is no folder"):
        load_model(f"{tmp_path}/file")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("~nosuchuser/model", "there is no folder ~nosuchuser/model that can be read"),
        ("/" + "x" * 300, "there is no folder /xxx"),
        ("Once upon a time " * 300, "neither a folder here nor a hub id"),
    ],
)
def test_what_cannot_be_a_model_is_said(name, sentence):
    assert is_folder(name) == name.startswith(("~", "/"))
    with pytest.raises(BasiscopeError, match=sentence):
        locate_model(name)


def test_model_folders_that_may_not_be_looked_into_are_passed_over(
    llama_folder, open_folder, as_nobody, monkeypatch
):
    for name in ("open", "listed", "closed"):
        shutil.copytree(llama_folder, open_folder / name)
        (open_folder / name).chmod({"open": 0o755, "listed": 0o444, "closed": 0o000}[name])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(open_folder / "closed" / "hub"))
    with as_nobody():
        found = find_local_models([open_folder, open_folder / "closed", open_folder / "closed" / "deeper"])
        assert found == [str(open_folder / "open")]
        for name in ("listed", "closed", "closed/deeper"):
            with pytest.raises(BasiscopeError, match=r"there is no folder .* that can be read"):
                locate_model(str(open_folder / name))


def test_a_quantised_model_names_the_package_that_it_needs(copied):
    config = json.loads((copied / "config.json").read_text())
    quantised = {"quant_method": "aqlm", "in_group_size": 8}
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(BasiscopeError, match=r"needs a package that is not here.*aqlm"):
        load_model(str(copied))


def test_a_folder_without_a_config_says_so(copied):
    (copied / "config.json").unlink()
    with pytest.raises(BasiscopeError, match=r"has no config\.json"):
        load_model(str(copied))


def test_a_folder_without_weights_says_so(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(BasiscopeError, match=r"has no \*\.safetensors weights"):
        load_model(str(copied))


def test_pickled_weights_are_never_loaded(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(BasiscopeError, match=r"Pickled weights .* are never loaded; convert them"):
        load_model(str(copied))


def test_a_missing_tensor_is_named(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BasiscopeError, match=r"lack 1 of its weights \(first: model\.layers\.1\.mlp\.up_proj"):
        load_model(str(copied))


def test_a_missing_shard_is_named(llama_folder, tmp_path):
    load_model(llama_folder).module.save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copyfile(f"{llama_folder}/tokenizer.json", tmp_path / "tokenizer.json")
    assert load_model(str(tmp_path)).blocks
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(BasiscopeError, match=r"cannot be loaded \(.*model-00002-of"):
        load_model(str(tmp_path))


def test_weights_of_another_shape_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(BasiscopeError, match="cannot be loaded"):
        load_model(str(copied))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_cut_short_is_refused(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BasiscopeError, match="cannot be loaded"):
        load_model(str(copied))


def test_a_folder_without_a_tokenizer_says_so(copied):
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BasiscopeError, match="its tokenizer cannot be loaded"):
        load_model(str(copied))


def test_a_tokenizer_without_pad_or_bos_token_works(llama_folder, texts):
    model = load_model(llama_folder, dtype="float32")
    assert model.tokenizer.pad_token is None and model.tokenizer.bos_token is None
    assert load_tokenizer(llama_folder)("w5 w7").input_ids == [5, 7]
    assert np.isfinite(Pooler(model, (1,))(texts, FIRST)).all()


def test_dtype_and_device(llama_folder):
    assert load_model(llama_folder, dtype="bfloat16", device="cpu").dtype == "bfloat16"
    assert choose_dtype("auto", "cpu") in ("float32", "bfloat16")
    with pytest.raises(BasiscopeError, match="float64"):
        choose_dtype("float64")
    with pytest.raises(BasiscopeError, match=r"'nonsense' cannot be used.*--device auto"):
        choose_device("nonsense")


# --- the hub and its cache ------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach another machine fails, and is counted."""
    attempts = []

    def refuse(*address, **_options):
        attempts.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def cached(cache, llama_folder):
    """The Llama folder as the hub's cache lays it out: blobs, and a snapshot of links to them."""
    root = cache / "models--owner--name"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(Path(llama_folder).iterdir())):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = digest if path.suffix == ".safetensors" else f"{number:040x}"
        shutil.copyfile(path, root / "blobs" / blob)
        (root / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{blob}")
    return root


@pytest.mark.parametrize("name", ["a/b/c", "two words", "owner/", "owner/na me", "--"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name, cache, no_network):
    with pytest.raises(BasiscopeError, match="neither a folder here nor a hub id"):
        locate_model(name)
    assert not no_network


def test_a_hub_model_without_network_gives_a_clear_sentence_at_once(cache, no_network):
    start = time.monotonic()
    with pytest.raises(BasiscopeError, match=r"owner/absent is not in the local cache and the hub cannot be"):
        load_model("owner/absent")
    assert time.monotonic() - start < 20
    assert no_network


def test_a_hub_model_in_offline_mode_gives_the_same_sentence(cache, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BasiscopeError, match=r"absent at revision v2 is not in the local cache"):
        load_model("owner/absent", revision="v2")
    assert not no_network


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_model_loads_without_any_network_access(cached, no_network, llama_folder, revision):
    model = load_model("owner/name", revision=revision)
    assert (model.name, model.revision, len(model.blocks)) == ("owner/name", COMMIT, BLOCKS)
    assert model.fingerprint == load_model(llama_folder).fingerprint
    assert not no_network


def test_a_cached_hub_model_without_its_weights_is_asked_of_the_hub(cached, no_network):
    (cached / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(BasiscopeError, match=r"owner/name"):
        load_model("owner/name")
    assert no_network


@pytest.mark.parametrize("weights", [True, False])
def test_a_cached_hub_model_without_its_tokenizer_is_asked_of_the_hub(cached, no_network, weights):
    snapshot = cached / "snapshots" / COMMIT
    (snapshot / "tokenizer.json").unlink()
    assert locate_model("owner/name", weights=weights) == snapshot and no_network  # but there is no network
    no_network.clear()
    (snapshot / "config.json").unlink()
    with pytest.raises(BasiscopeError, match=r"owner/name"):
        locate_model("owner/name", weights=weights)
    assert no_network


def test_the_fingerprint_names_the_content(copied, llama_folder, cached):
    assert model_fingerprint(copied) == model_fingerprint(cached / "snapshots" / COMMIT)
    (copied / "README.md").write_text("not part of the model")
    same = model_fingerprint(copied)
    assert same == load_model(llama_folder).fingerprint
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(copied) != same
