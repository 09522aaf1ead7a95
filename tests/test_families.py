"""What works for which family: recover, steer in unequal batches with cache and scopes, exports. The last test
holds docs/families.md against what was found; BASISCOPE_WRITE=1 writes it anew."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from families import MORE, REFUSED, configure
from test_model import FAMILIES
from tiny import save_tiny

from core.activations import TokenWindows, extract_all
from core.architectures import pads_right
from core.basis import Basis
from core.checkpoint.formats import writer_for
from core.errors import BasiscopeError
from core.model import block_output, load_model, named_options, with_block_output
from core.steering.check import abilities
from core.steering.generation import Generation, Row, Sampling
from core.steering.intervention import Directions, Steering

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
LENGTHS = (11, 3, 7)
NEW_TOKENS = 4
TOLERANCE = 2e-4
"""Of the spread of what is compared: float32 rounds at 6e-8, in other orders in a batch, a cache and a scan."""
WAYS = (
    Steering(),
    Steering(((1, 3.0),)),
    Steering(((1, -3.0), (2, 2.0)), scope="response"),
    Steering(((3, 1.0),), "remove", "prompt"),
    Steering(((2, 5.0),), "clamp", "first:2"),
    Steering(((1, 4.0),), blocks=(1,)),
)
INTRODUCTION = """\
# Families of models

Written by `tests/test_families.py`. It makes a tiny random model of each, loads it as any other and holds it
against plain references: pooled vectors against a run of its own for every text; texts that are steered with all
operations and scopes, in a batch of unequal prompts, against a loop without cache, one row at a time, with hooks
of its own. What a model cannot do is found out by trying when it is first used, said, and done the slow way.

| family | recover | steer and evaluate | unequal prompts share a batch | exports, beside GGUF |
|---|---|---|---|---|
"""
found_of: dict[str, tuple[str, ...]] = {}


def config_of(name):
    if name in FAMILIES:
        return FAMILIES[name]()
    kind, arguments = MORE[name]
    if not hasattr(tf, kind):
        pytest.skip(f"transformers {tf.__version__} has no {kind}")
    return configure(kind, arguments)


@pytest.fixture(scope="module", params=[*FAMILIES, *MORE])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    config = config_of(family)
    auto = tf.AutoModelForCausalLM
    if type(config) not in tf.MODEL_FOR_CAUSAL_LM_MAPPING:
        auto = tf.AutoModelForImageTextToText
    return load_model(save_tiny(config, tmp_path_factory.mktemp("family"), auto), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts(model):
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(3, 90, length).tolist()) for length in LENGTHS]


@pytest.fixture(scope="module")
def directions(model):
    covered, width = (0, 1), model.hidden_size
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.standard_normal((2 * width, 4)))[0].T.astype(np.float32)
    mean, values = rng.standard_normal(2 * width).astype(np.float32), np.array([9, 7, 5, 3], np.float32)
    return Directions(Basis(rows, mean, values, np.array([2, 0.5], np.float32), 99.0, 50, np.zeros(4)), covered)


def close(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return found.shape == expected.shape and np.abs(found - expected).max() <= TOLERANCE * np.ptp(expected)


def edited(hidden, directions, steering, block, start, stop):
    """The formulas of the intervention, token by token in float64."""
    place = directions.blocks.index(block)
    scale = float(directions.basis.block_scale[place])
    mean = directions.basis.mean.reshape(len(directions.blocks), -1)[place].astype(np.float64)
    parts = directions.parts([j for j, _ in steering.strengths], block)
    strengths = np.array([strength for _, strength in steering.strengths])
    out = hidden.clone()
    for token in range(start, min(stop, hidden.shape[1])):
        x = hidden[0, token].double().numpy() / scale
        if steering.operation == "add":
            x = x + strengths @ parts
        elif steering.operation == "remove":
            x = x - (strengths * np.linalg.lstsq(parts.T, x, rcond=None)[0]) @ parts
        else:
            target = strengths * (parts**2).sum(axis=1)
            x = x + np.linalg.lstsq(parts, target - parts @ (x - mean / scale), rcond=None)[0]
        out[0, token] = torch.from_numpy(x * scale)
    return out


def plain_loop(model, directions, row, n):
    """(tokens, log-probabilities) written greedily by one row without a cache, the outputs of its blocks edited by
    hooks of its own."""
    ids, logprobs = list(row.prompt), []
    start, stop = (int(min(edge, 10**6)) for edge in row.steering.positions(len(ids)))

    def hook_for(block):
        def hook(_module, _args, output):
            hidden = block_output(output)
            return with_block_output(output, edited(hidden, directions, row.steering, block, start, stop))

        return hook

    steers = [] if row.steering.is_baseline else row.steering.blocks or directions.blocks
    handles = [model.blocks[block].register_forward_hook(hook_for(block)) for block in steers]
    try:
        for _ in range(n):
            with torch.no_grad():
                output = model.module(torch.tensor([ids]), **named_options(model.module, use_cache=False))
            logits = output.logits[0, -1].log_softmax(dim=0)
            ids.append(int(logits.argmax()))
            logprobs.append(float(logits.max()))
    finally:
        for handle in handles:
            handle.remove()
    return ids[len(row.prompt) :], logprobs


def test_pooled_in_batches_as_alone(family, model, texts):
    """Against the blocks' outputs of a run of its own for each text."""
    blocks, expected = tuple(range(len(model.blocks))), []
    for text in texts:
        outputs = []
        handles = [
            block.register_forward_hook(lambda _m, _a, out, seen=outputs: seen.append(block_output(out)))
            for block in model.blocks
        ]
        with torch.no_grad():
            model.module(torch.tensor([text]), **named_options(model.module, use_cache=False))
        for handle in handles:
            handle.remove()
        expected.append(torch.cat([hidden[0, 1:].mean(dim=0) for hidden in outputs]).numpy())
    offsets = np.cumsum([0, *LENGTHS])
    windows = TokenWindows(np.concatenate(texts), offsets, np.ones(len(texts), int), np.arange(len(texts)))
    pooled = extract_all(model, windows, np.arange(len(texts)), blocks).shards[0].numpy()
    assert close(pooled, np.stack(expected))
    found_of[family] = ("batches" if pads_right(model) else "equal lengths",)


def test_steered_in_one_batch_as_a_plain_loop_does(family, model, directions, texts):
    rows = [Row(text, way) for text in texts for way in WAYS]
    written = Generation(model, directions, rows, Sampling(NEW_TOKENS), with_logprobs=True).run()
    for i, row in enumerate(rows):
        tokens, logprobs = plain_loop(model, directions, row, NEW_TOKENS)
        ended = [*written.tokens[i], 2][:NEW_TOKENS]
        assert ended == tokens[: len(ended)], (row.steering, len(row.prompt))
        np.testing.assert_allclose(written.logprobs[i], logprobs[: len(written.logprobs[i])], atol=2e-3)
    assert len({tuple(np.round(one, 3)) for one in written.logprobs}) > len(texts), "steering shows"
    able = abilities(model)
    words = ("with a cache" if able.cache else "without a cache, slower", "yes" if able.padding else "by length")
    found_of[family] = (*found_of.get(family, ("",)), *words)


def test_its_exports_are_known(family, model, directions):
    vectors = {block: directions.vector(1, 1.0, block) for block in directions.blocks}
    can = []
    for kind in ("checkpoint", "peft"):
        try:
            writer_for(model, vectors, kind)
            can.append(kind)
        except BasiscopeError:
            pass
    found_of[family] = (*found_of.get(family, ("",) * 3), ", ".join([*can, "vector"]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_decoder_is_refused(name, tmp_path):
    kind, arguments, sentence = REFUSED[name]
    if not hasattr(tf, kind):
        pytest.skip(f"transformers {tf.__version__} has no {kind}")
    config = configure(kind, arguments)
    is_wrapper = type(config) not in tf.MODEL_FOR_CAUSAL_LM_MAPPING
    auto = tf.AutoModelForImageTextToText if is_wrapper else tf.AutoModelForCausalLM
    folder = save_tiny(config, tmp_path, auto)
    with pytest.raises(BasiscopeError, match=sentence):
        pads_right(load_model(folder, dtype="float32", device="cpu"))


def page():
    rows = [f"| {name} | {' | '.join(found)} |" for name, found in found_of.items()]
    return (
        INTRODUCTION
        + "\n".join(rows)
        + f"""

Refused in a sentence: {"; ".join(REFUSED)} (tokens that attend to later ones, or blocks that pass on several
streams without a main one); encoder-decoders; architectures that need code from the hub.
"""
    )


def test_the_table_in_the_docs_is_what_was_found():
    if set(found_of) != {*FAMILIES, *MORE} or any(len(found) != 4 for found in found_of.values()):
        pytest.skip("not all families were tried here")
    if os.environ.get("BASISCOPE_WRITE"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page()
