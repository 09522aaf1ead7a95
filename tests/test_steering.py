import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from scipy.stats import chisquare
from test_model import FAMILIES
from tiny import HIDDEN, VOCABULARY, save_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from core.basis import Basis
from core.demo import world
from core.demo.default import MODEL
from core.errors import BasiscopeError
from core.model import block_output, cache_argument, find_blocks, load_model
from core.reading import score_tokens
from core.steering.check import abilities
from core.steering.generation import (
    REPEATS,
    Generation,
    Row,
    Sampling,
    choose_tokens,
    encode_prompt,
    is_repetition,
)
from core.steering.intervention import Directions, Steering, steered

COVERED = (0, 2)
TOLERANCE = 3e-5
"""Of the largest logit: float32 rounds at 6e-8, over some hundred additions in each of three blocks."""
BIASES = {
    "llama": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
    "mistral": "mlp.down_proj",
    "phi3": "mlp.down_proj",
    "granite": "mlp.down_proj",
    "smollm3": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt-neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
}
"""The layers whose bias is added to the residual stream as it is."""
RESIDUAL = {"granite": 0.5}
LENGTHS = (11, 3, 7)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    folder = save_tiny(FAMILIES[family](), tmp_path_factory.mktemp(family))
    return load_model(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llama(llama_folder):
    return load_model(llama_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def directions():
    """Four random directions over the first and the last block, with a mean and a block scale."""
    rng = np.random.default_rng(0)
    d = len(COVERED) * HIDDEN
    rows = np.linalg.qr(rng.standard_normal((d, 4)))[0].T.astype(np.float32)
    mean = rng.standard_normal(d).astype(np.float32)
    values = np.array([9, 7, 5, 3], np.float32)
    return Directions(Basis(rows, mean, values, np.array([2, 0.5], np.float32), 99.0, 50, np.zeros(4)), COVERED)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(3, 90, length).tolist()) for length in LENGTHS]


def logits_of(model, ids, **inputs):
    with torch.no_grad():
        return model.module(torch.tensor(ids), **inputs).logits


def assert_close(found, expected):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


class Added(torch.nn.Module):
    """The plain reference: a block whose output gets a vector at some positions."""

    def __init__(self, block, vector, mask):
        super().__init__()
        self.block, self.vector, self.mask = block, vector, mask

    def __getattr__(self, name):
        try:
            return torch.nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, *args, **kwargs):
        output = self.block(*args, **kwargs)
        changed = block_output(output) + self.mask[:, None] * self.vector
        return type(output)([changed, *output[1:]]) if isinstance(output, tuple | list) else changed


def reference_logits(model, directions, strengths, ids, positions):
    """Logits (tokens, vocabulary) of one row on a copy whose blocks add the vectors at `positions`."""
    module = copy.deepcopy(model.module)
    blocks = find_blocks(module)
    mask = torch.zeros(len(ids))
    mask[list(positions)] = 1
    for block in directions.blocks:
        vector = sum(torch.from_numpy(directions.vector(j, s, block)) for j, s in strengths)
        blocks[block] = Added(blocks[block], vector, mask)
    with torch.no_grad():
        return module(torch.tensor([ids])).logits[0]


# --- the intervention -----------------------------------------------------------------------------------


def test_adding_equals_wrapped_blocks_and_moves_the_logits(model, directions, prompts):
    ids, strengths = prompts[0], ((1, 2.0), (3, -1.5))
    expected = reference_logits(model, directions, strengths, ids, range(len(ids)))
    with steered(model, directions, Steering(strengths)):
        found = logits_of(model, [ids])[0]
    assert_close(found, expected)
    plain = logits_of(model, [ids])[0]
    assert (found - plain).abs().max() > 1_000 * TOLERANCE * expected.abs().max()


def test_adding_equals_the_bias_of_the_last_layer_of_the_mlp(model, family, directions, prompts):
    if family not in BIASES:
        pytest.skip("its MLP's output is normalised or mixed before it is added")
    module = copy.deepcopy(model.module)
    blocks = find_blocks(module)
    for block in directions.blocks:
        layer = blocks[block].get_submodule(BIASES[family])
        vector = torch.from_numpy(directions.vector(2, 3.0, block)) / RESIDUAL.get(family, 1.0)
        layer.bias = torch.nn.Parameter(vector if layer.bias is None else layer.bias + vector)
    with torch.no_grad():
        expected = module(torch.tensor([prompts[0]])).logits
    with steered(model, directions, Steering(((2, 3.0),))):
        assert_close(logits_of(model, [prompts[0]]), expected)


WITHOUT_DEPS = "not installed: `pip install --no-deps steering-vectors repeng`, which ask for older libraries"


def test_adding_equals_steering_vectors(model, family, directions, prompts):
    library = pytest.importorskip("steering_vectors", reason=WITHOUT_DEPS)
    if family in ("gemma3-vision",):
        pytest.skip("steering-vectors finds the layers of the picture's encoder, too")
    paths = {id(part): name for name, part in model.module.named_modules()}
    pattern = paths[id(model.blocks[0])].removesuffix("0") + "{num}"
    vectors = {b: torch.from_numpy(directions.vector(2, 1.0, b)) for b in directions.blocks}
    vector = library.SteeringVector(vectors)
    with torch.no_grad(), vector.apply(model.module, {"decoder_block": pattern}, multiplier=-2.5):
        expected = model.module(torch.tensor([prompts[0]])).logits
    with steered(model, directions, Steering(((2, -2.5),))):
        assert_close(logits_of(model, [prompts[0]]), expected)


REPENG = {"llama", "mistral", "gpt2"}
"""Families whose layers repeng must find, so that the comparison is never skipped for all."""


def test_adding_equals_repeng(model, family, directions, prompts, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4.0 asks for numpy 1
    library = pytest.importorskip("repeng", reason=WITHOUT_DEPS)
    control = library.control
    module = copy.deepcopy(model.module)
    try:
        control.model_layer_list(module)
        wrapped = library.ControlModel(module, directions.blocks)
    except (ValueError, AttributeError):
        assert family not in REPENG
        pytest.skip("repeng does not find this model's layers")
    # newer models look at their layers' attributes
    monkeypatch.setattr(control.ControlModule, "__getattr__", Added.__getattr__)
    vectors = {b: directions.vector(1, 1.0, b) for b in directions.blocks}
    wrapped.set_control(library.ControlVector("any", vectors), 4.0)
    with torch.no_grad():
        expected = wrapped(torch.tensor([prompts[0]])).logits
    with steered(model, directions, Steering(((1, 4.0),))):
        assert_close(logits_of(model, [prompts[0]]), expected)


def test_removing_leaves_nothing_of_the_directions_in_any_block(llama, directions, prompts):
    seen = {}
    with steered(llama, directions, Steering(((1, 1.0), (2, 1.0)), "remove")):
        handles = [
            llama.blocks[b].register_forward_hook(lambda _m, _a, out, b=b: seen.update({b: block_output(out)}))
            for b in COVERED
        ]
        logits_of(llama, [prompts[0]])
    for handle in handles:
        handle.remove()
    for block in COVERED:
        parts = torch.from_numpy(directions.parts([1, 2], block)).float()
        assert (seen[block][0] @ parts.T).abs().max() < 1e-5 * seen[block].abs().max()


def test_clamping_gives_every_token_the_score(llama, directions, prompts):
    steering = Steering(((1, 2.5), (3, -4.0)), "clamp")
    with steered(llama, directions, steering):
        scores = score_tokens(llama, directions.basis, COVERED, np.array(prompts[0]), 0, 0).scores
    np.testing.assert_allclose(scores[:, [0, 2]], np.tile([2.5, -4.0], (len(prompts[0]), 1)), atol=1e-4)
    assert np.ptp(scores[:, 1]) > 0.1  # the others stay free


def test_a_half_removed_direction_is_half_there(llama, directions):
    hidden = torch.randn(2, 5, HIDDEN)
    block = COVERED[-1]
    with steered(llama, directions, Steering(((2, 0.5),), "remove")):
        (hook,) = list(llama.blocks[block]._forward_hooks.values())
        half = hook(None, (), hidden)
    part = torch.from_numpy(directions.parts([2], block)).float()
    torch.testing.assert_close(half @ part.T, 0.5 * hidden @ part.T, rtol=1e-4, atol=1e-5)
    along = part.T @ (part @ part.T).inverse() @ part
    torch.testing.assert_close(half - half @ along, hidden - hidden @ along, rtol=1e-4, atol=1e-5)


def test_strength_0_is_bit_identical(model, directions, prompts):
    ids = [prompts[0]] * 2
    plain = logits_of(model, ids)
    for operation in ("add", "remove"):
        with steered(model, directions, Steering(((1, 0.0),), operation)):
            assert not any(block._forward_hooks for block in model.blocks)
            assert torch.equal(logits_of(model, ids), plain)
        with steered(model, directions, [Steering(), Steering(((1, 3.0),), operation)]):
            found = logits_of(model, ids)
        assert torch.equal(found[0], plain[0]) and not torch.allclose(found[1], plain[1])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_the_hooks_are_gone_however_the_block_ends(llama, directions, error):
    before = {name: weight.clone() for name, weight in llama.module.state_dict().items()}
    steering = Steering(((1, 3.0),), scope="response")
    with pytest.raises(error), steered(llama, directions, steering, [2]):
        assert llama.blocks[COVERED[0]]._forward_hooks
        raise error
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llama.module.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in llama.module.state_dict().items())


def test_vectors_follow_the_data_type(llama_folder, directions, prompts):
    model = load_model(llama_folder, dtype="bfloat16", device="cpu")
    ids = [prompts[0]]
    for operation in ("add", "remove", "clamp"):
        with steered(model, directions, Steering(((1, 1.0),), operation)):
            assert logits_of(model, ids).dtype == torch.bfloat16


class SinglePrecision(TorchDispatchMode):
    """As Apple's GPUs, which have no float64."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        assert getattr(found, "dtype", None) is not torch.float64, function
        return found


def test_no_double_precision_is_needed_while_the_model_runs(llama, directions, prompts):
    with SinglePrecision():
        Generation(llama, directions, mixed_rows(prompts), Sampling(4, 0.8, 0.9)).run()


def test_only_the_blocks_asked_for_are_steered(llama, directions, prompts):
    with steered(llama, directions, Steering(((1, 3.0),), blocks=(2,))):
        assert [bool(block._forward_hooks) for block in llama.blocks] == [False, False, True]
    assert directions.covered((1, 2)) == (2,)
    with pytest.raises(BasiscopeError, match="no part there"):
        directions.covered((1,))


def test_units(directions):
    sd = directions.deviations
    np.testing.assert_allclose(sd, np.array([9, 7, 5, 3]) / 7)
    assert directions.in_unit(2, -3.0, "sd") == pytest.approx(-3.0)
    assert directions.in_unit(2, -3.0, "unit") == -3.0
    scaled = directions.vector(1, 2.0, COVERED[1])
    np.testing.assert_allclose(scaled, 2 * 0.5 * directions.basis.directions[0, HIDDEN:], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Steering(((1, 1.0),), "push"), "Operation 'push' is not one of"),
        (lambda: Steering(((1, 1.0),), scope="first:0"), "Scope 'first:0' is not one of"),
        (lambda: Steering(((1, float("nan")),)), "must be a number"),
        (lambda: Sampling(max_new_tokens=0), "at least 1"),
        (lambda: Sampling(temperature=-1), "0 or more"),
        (lambda: Sampling(top_p=0), "above 0"),
    ],
)
def test_wrong_choices_are_said(make, sentence):
    with pytest.raises(BasiscopeError, match=sentence):
        make()


def test_a_model_of_another_shape_and_a_direction_that_is_not_there_are_refused(llama, directions):
    deep = Directions(directions.basis, (0, 7))
    wide = Directions(directions.basis, (0, 1, 2))
    for wrong in (deep, wide):
        with pytest.raises(BasiscopeError, match="not the model of the run"), steered(llama, wrong, Steering()):
            pass
    with (
        pytest.raises(BasiscopeError, match="directions 1 to 4"),
        steered(llama, directions, Steering(((5, 1.0),))),
    ):
        pass
    with (
        pytest.raises(BasiscopeError, match="2 rows met a batch of 1"),
        steered(llama, directions, [Steering(((1, 1.0),))] * 2),
    ):
        logits_of(llama, [[3, 4]])


# --- scopes ---------------------------------------------------------------------------------------------

SCOPES = {"all": (0, 99), "prompt": (0, 4), "response": (4, 99), "first:2": (4, 6)}


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_hold_with_cache_without_and_with_padding_on_either_side(model, family, directions, prompts, scope):
    ids, start_stop = prompts[0], SCOPES[scope]
    positions = [p for p in range(len(ids)) if start_stop[0] <= p < start_stop[1]]
    expected = reference_logits(model, directions, ((1, 3.0),), ids, positions)
    steering = Steering(((1, 3.0),), scope=scope)
    with steered(model, directions, steering, [4]):
        assert_close(logits_of(model, [ids])[0], expected)
    with steered(model, directions, steering, [4]), torch.no_grad():
        cache, found = None, []
        for chunk in (ids[:4], ids[4:5], ids[5:]):
            output = model.module(torch.tensor([chunk]), use_cache=True, **{cache_argument(model.module): cache})
            cache = output[cache_argument(model.module)]
            found.append(output.logits[0])
    assert_close(torch.cat(found), expected)
    if family == "falcon-alibi":
        return  # transformers' own ALiBi shifts with padding on the left
    for side in ("left", "right"):
        pad = [0] * 3
        row, mask = (
            (pad + list(ids), pad + [1] * len(ids)) if side == "left" else ([*ids, *pad], [1] * len(ids) + pad)
        )
        mask = torch.tensor([mask])
        inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        with steered(model, directions, steering, [4]):
            logits = logits_of(model, [row], **inputs)[0]
        assert_close(logits[mask[0].bool()], expected)


def test_the_library_s_own_generate_is_steered_with_its_cache_on_and_off(model, directions, prompts):
    for scope in ("all", "response"):
        steering = Steering(((1, 4.0),), scope=scope)
        row = Row(prompts[0], steering)
        ours = Generation(model, directions, [row], Sampling(8)).run().tokens[0]
        ids = torch.tensor([prompts[0]])
        for use_cache in (True, False):
            with steered(model, directions, steering, [len(prompts[0])]), torch.no_grad():
                found = model.module.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=8,
                    do_sample=False,
                    use_cache=use_cache,
                    pad_token_id=0,
                    eos_token_id=95 + 1,
                )
            theirs = found[0, len(prompts[0]) :].tolist()
            assert theirs[: len(ours)] == ours and len(ours) > 0


# --- generation -----------------------------------------------------------------------------------------


def mixed_rows(prompts):
    steerings = [
        Steering(),
        Steering(((1, 3.0),)),
        Steering(((1, -3.0), (2, 2.0)), scope="response"),
        Steering(((3, 1.0),), "remove", "prompt"),
        Steering(((2, 5.0),), "clamp", "first:3", (2,)),
    ]
    return [Row(prompt, steering, seed) for seed, prompt in enumerate(prompts) for steering in steerings]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_s_tokens_do_not_depend_on_its_neighbours_or_the_cache(
    model, family, directions, prompts, temperature
):
    if family == "falcon-alibi":
        prompts = [prompt[:3] for prompt in prompts]  # transformers' own ALiBi shifts with padding on the left
    rows, sampling = mixed_rows(prompts), Sampling(6, temperature, 0.9)
    together = Generation(model, directions, rows, sampling).run()
    uncached = Generation(model, directions, rows, sampling, use_cache=False).run()
    assert together.tokens == uncached.tokens
    assert len(set(map(tuple, together.tokens))) > len(prompts)  # steering shows
    for i in range(0, len(rows), 2):
        alone = Generation(model, directions, [rows[i]], sampling).run()
        assert (alone.tokens[0], alone.ended[0]) == (together.tokens[i], together.ended[i])


def test_rows_of_one_seed_meet_the_same_noise(llama, directions, prompts):
    rows = [Row(prompts[0], Steering(), seed) for seed in (1, 1, 2)]
    first = Generation(llama, directions, rows, Sampling(12, 2.0)).run().tokens
    assert first[0] == first[1] != first[2]
    assert Generation(llama, directions, rows, Sampling(12, 2.0)).run().tokens == first


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_samples_follow_the_distribution(temperature, top_p):
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0, 1.0])
    noise = -torch.empty(40_000, 5).exponential_(generator=torch.Generator().manual_seed(0)).log()
    chosen = choose_tokens(logits.repeat(len(noise), 1), Sampling(1, temperature, top_p), noise)
    expected = (logits / temperature).softmax(0).double()
    if top_p < 1:
        expected[[2, 3, 4]] = 0  # 0.46 and 0.28 hold 0.7
        expected /= expected.sum()
    counts = torch.bincount(chosen, minlength=5).numpy()
    kept = expected.numpy() > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], len(noise) * expected.numpy()[kept]).pvalue > 1e-3


def test_a_row_ends_at_its_end_token_and_the_others_go_on(llama, directions, prompts):
    rows = [Row(prompts[0], Steering()), Row(prompts[0], Steering(((1, 3.0),)))]
    free = Generation(llama, directions, rows, Sampling(10)).run()
    assert free.ended == ["length", "length"] and [len(ids) for ids in free.tokens] == [10, 10]
    only = next(token for token in free.tokens[0] if token not in free.tokens[1])
    where = free.tokens[0].index(only)
    llama.module.generation_config.eos_token_id, before = [only], llama.module.generation_config.eos_token_id
    try:
        ended = Generation(llama, directions, rows, Sampling(10)).run()
    finally:
        llama.module.generation_config.eos_token_id = before
    assert ended.ended == ["end", "length"]
    assert ended.tokens == [free.tokens[0][:where], free.tokens[1]]


def test_a_stop_keeps_what_is_there_and_removes_the_hooks(llama, directions, prompts):
    generation = Generation(llama, directions, [Row(prompts[0], Steering(((1, 2.0),)))], Sampling(20))
    steps = generation.steps()
    assert [next(steps) for _ in range(3)] == [1, 2, 3]
    steps.close()
    assert len(generation.tokens[0]) == 3 and generation.ended == ["stopped"]
    assert not any(block._forward_hooks for block in llama.blocks)


def test_a_strength_that_breaks_the_numbers_is_said_and_leaves_the_others_alone(llama, directions, prompts):
    rows = [Row(prompts[0], Steering()), Row(prompts[0], Steering(((1, 1e39),)))]
    generation = Generation(llama, directions, rows, Sampling(5)).run()
    assert generation.ended == ["length", "not a number"] and generation.tokens[1] == []
    assert "too large" in generation.note(1) and generation.note(0) is None
    alone = Generation(llama, directions, rows[:1], Sampling(5)).run()
    assert generation.tokens[0] == alone.tokens[0]


def test_repetition():
    assert is_repetition([1, 2, 3] * 10) and is_repetition([9, 8, *[4] * 24])
    assert is_repetition([4] * 20) and is_repetition([4, 5, 6] * 4) and not is_repetition([4] * 11)
    assert is_repetition([1, *[*range(7)] * 4, 0, 1]) and is_repetition([*range(99), *[*range(30)] * 3])
    assert not is_repetition([*range(24)]) and not is_repetition([]) and not is_repetition([*range(13)] * 2)
    assert not is_repetition([*[4] * 24, 5]) and not is_repetition([9, *[4] * 20])


def test_loops_of_the_real_model_are_said_and_ordinary_texts_are_not(gsm8k, stories):
    """People's texts and the model's samples are none, even where a sentence comes twice."""
    model = load_model(stories, dtype="float32", device="cpu")
    written = [json.loads(line) for line in Path(gsm8k).read_text().splitlines()[:50]]
    texts = [row[name] for row in written for name in ("question", "answer")]
    assert not any(is_repetition(model.tokenizer(text)["input_ids"]) for text in texts)

    def generated(prompts, sampling):
        rows = [Row(tuple(model.tokenizer(text)["input_ids"]), Steering(), i) for i, text in enumerate(prompts)]
        return Generation(model, None, rows, sampling).run()

    ordinary = ("Once upon a time", "The dog said", "Lily had 3 red balls.", "The sun")
    for sampling in (Sampling(60, 1.0), Sampling(60)):
        found = generated(ordinary, sampling)
        assert [found.note(i) for i in range(4)] == [None] * 4
    loop = generated([" ".join(["I am happy."] * 5)], Sampling(160))
    assert re.search(r"( [^.]{8,}\.)\1\1[^.]*$", loop.text(0)) and loop.note(0) == REPEATS


OLDER = {
    "mamba": lambda: tf.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        state_size=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "openai-gpt": lambda: tf.OpenAIGPTConfig(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=3, n_head=4, n_positions=64
    ),
}
"""One whose cache is of another kind, and one that has none and whose blocks return lists."""


@pytest.mark.parametrize("name", OLDER)
def test_models_without_the_usual_cache_are_steered_and_generate_as_the_library_does(
    name, directions, prompts, tmp_path
):
    model = load_model(save_tiny(OLDER[name](), tmp_path), dtype="float32", device="cpu")
    rows = [row for row in mixed_rows(prompts) if row.steering.operation == "add"]
    together = Generation(model, directions, rows, Sampling(6)).run()
    ids = torch.tensor([prompts[0]])
    for i in (0, 1, len(rows) - 1):
        alone = Generation(model, directions, [rows[i]], Sampling(6)).run()
        assert alone.tokens[0] == together.tokens[i] and len(alone.tokens[0]) == 6
    assert together.tokens[0] != together.tokens[1]
    for row, found in zip(rows[:2], together.tokens, strict=False):
        with steered(model, directions, row.steering), torch.no_grad():
            whole = model.module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
        assert whole[0, ids.shape[1] :].tolist() == found
    expected = reference_logits(model, directions, ((1, 3.0),), prompts[0], range(len(prompts[0])))
    with steered(model, directions, Steering(((1, 3.0),))):
        assert_close(logits_of(model, [prompts[0]])[0], expected)


# --- the real small model -------------------------------------------------------------------------------


def test_prompts_are_written_as_in_the_run(gsm8k_run, stories):
    model = load_model(stories, dtype="float32", device="cpu")
    columns = gsm8k_run.manifest["data"]["columns"]
    examples, windows = gsm8k_run.examples(), gsm8k_run.windows()
    ids = encode_prompt(model, examples["prompt"][0], columns, "plain", 10)
    stored = windows.tokens(int(np.flatnonzero(windows.example_id == examples["example_id"][0])[0]))
    assert list(ids) == stored[: len(ids)].tolist()
    assert model.tokenizer.decode(ids).endswith("\n")
    for prompt, sentence in ((" ", "The prompt is empty"), ("many words " * 400, "exceed the model's context")):
        with pytest.raises(BasiscopeError, match=sentence):
            encode_prompt(model, prompt, columns, "plain", 10)


def test_steering_the_real_model_moves_its_scores_by_the_strength(gsm8k_run, stories):
    """In the last block nothing follows that could answer: the score moves by the last block's energy alone."""
    model = load_model(stories, dtype="float32", device="cpu")
    directions = Directions.of(gsm8k_run)
    last = directions.blocks[-1]
    ids = np.array(encode_prompt(model, "Tom had three apples", {}, "plain", 10))
    before = score_tokens(model, directions.basis, directions.blocks, ids, 0, 0).scores[:, 0]
    with steered(model, directions, Steering(((1, 5.0),), blocks=(last,))):
        after = score_tokens(model, directions.basis, directions.blocks, ids, 0, 0).scores[:, 0]
    energy = directions.basis.block_energies[0, -1]
    np.testing.assert_allclose(after - before, 5.0 * energy, rtol=1e-3, atol=1e-4)
    clamped = Steering(((1, 7.0),), "clamp")
    with steered(model, directions, clamped):
        scores = score_tokens(model, directions.basis, directions.blocks, ids, 0, 0).scores[:, 0]
    np.testing.assert_allclose(scores, 7.0, rtol=1e-3)


def test_the_real_model_steers_as_bias_surgery_and_steering_vectors_do(gsm8k_run, stories):
    model = load_model(stories, dtype="float32", device="cpu")
    directions = Directions.of(gsm8k_run)
    ids = encode_prompt(model, "Once upon a time, there was a little girl named Lily.", {}, "plain", 10)
    module = copy.deepcopy(model.module)
    for block in directions.blocks:
        layer = find_blocks(module)[block].mlp.down_proj
        layer.bias = torch.nn.Parameter(torch.from_numpy(directions.vector(2, 4.0, block)))
    with torch.no_grad():
        expected = module(torch.tensor([ids])).logits
    with steered(model, directions, Steering(((2, 4.0),))):
        assert_close(logits_of(model, [ids]), expected)
    assert (logits_of(model, [ids]) - expected).abs().max() > 0.1
    library = pytest.importorskip("steering_vectors", reason=WITHOUT_DEPS)
    vector = library.SteeringVector({b: torch.from_numpy(directions.vector(2, 1.0, b)) for b in directions.blocks})
    with torch.no_grad(), vector.apply(model.module, multiplier=4.0):
        assert_close(model.module(torch.tensor([ids])).logits, expected)


def test_rows_that_ended_are_taken_out_and_the_others_do_not_notice(monkeypatch):
    """Of prompts of several lengths, steered in several ways; the texts end at different times."""
    model, blocks = load_model(str(MODEL), dtype="float32", device="cpu"), (1, 3)
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((2 * model.hidden_size, 2)))[0].T.astype(np.float32)
    mean, scale = np.zeros(2 * model.hidden_size, np.float32), np.ones(2, np.float32)
    directions = Directions(Basis(vectors, mean, np.ones(2, np.float32), scale, 2.0, 50, np.zeros(2)), blocks)
    ways = (Steering(), Steering(((1, 0.3),)), Steering(((2, 0.5),), "remove", "response"), Steering(((1, -0.2),)))
    rows = [
        Row(tuple(model.tokenizer(f"{problem.prompt}\n")["input_ids"]), way, seed)
        for seed, (problem, way) in enumerate(zip(world.generate(12, "taken out"), ways * 3, strict=True))
    ]
    abilities(model)
    sizes = []
    handle = model.module.register_forward_pre_hook(
        lambda _module, _args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )

    def run(share):
        sizes.clear()
        monkeypatch.setattr("core.steering.generation.KEPT_ROWS", share)
        return Generation(model, directions, rows, Sampling(260, temperature=1.0), with_logprobs=True).run()

    whole = run(-1.0)
    assert set(sizes) == {len(rows)}, "none is taken out"
    dropped = run(0.75)
    handle.remove()
    assert sizes[0] == len(rows) and len(set(sizes)) > 2 and sizes == sorted(sizes, reverse=True)
    assert len({len(tokens) for tokens in whole.tokens}) > 4
    assert dropped.tokens == whole.tokens and dropped.ended == whole.ended
    for some, all_ in zip(dropped.logprobs, whole.logprobs, strict=True):
        np.testing.assert_allclose(some, all_, atol=1e-3)  # another batch, in float32


RECURRENT = {
    "mamba": lambda: tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=3, state_size=4),
    "mamba2": lambda: tf.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        state_size=8,
        num_heads=8,
        head_dim=8,
        expand=2,
        n_groups=2,
        chunk_size=8,
    ),
    "falcon-mamba": lambda: tf.FalconMambaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=3, state_size=4
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_generate_as_the_library_does_and_keep_their_scopes(name, directions, prompts, tmp_path):
    """Their cache is a state that tells no length."""
    model = load_model(save_tiny(RECURRENT[name](), tmp_path), dtype="float32", device="cpu")
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        theirs = model.module.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=96)
    ours = Generation(model, None, [Row(prompts[0], Steering())], Sampling(6)).run().tokens[0]
    assert ours == theirs[0, len(prompts[0]) :].tolist()[: len(ours)] and len(ours) > 0
    rows = mixed_rows(prompts)
    cached = Generation(model, directions, rows, Sampling(6)).run()
    assert cached.tokens == Generation(model, directions, rows, Sampling(6), use_cache=False).run().tokens
    assert len(set(map(tuple, cached.tokens))) > len(prompts)
