from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.activations import Pooler, Recipe, TokenWindows, extract, pad_batch, plan_batches, window_start
from core.errors import BasiscopeError
from core.examples import Columns, DataSource, ReadReport, TokenizedText, read_examples, tokenize
from core.model import block_output, load_model

BLOCKS = (1, 2, 3)
TOLERANCE = 2e-5
"""Of the largest activation: float32 against float64 through five blocks and a mean; measured 1e-6."""


def windows_of(texts, first, example_id=None):
    lengths = [len(text) for text in texts]
    return TokenWindows(
        np.concatenate(texts).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.asarray(first),
        np.arange(len(texts)) if example_id is None else np.asarray(example_id),
    )


def collected(batches, n, d):
    """(n, d) in the order of the windows; every position exactly once."""
    found = np.full((n, d), np.nan, dtype=np.float32)
    seen = np.zeros(n, dtype=int)
    for batch in batches:
        found[batch.positions] = batch.activations
        np.add.at(seen, batch.positions, 1)
    assert (seen == 1).all()
    return found


def assert_close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# --- the real model on real texts, against a plain reference --------------------------------------------


@pytest.fixture(scope="module")
def real(stories):
    return load_model(stories, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def double(stories):
    return AutoModelForCausalLM.from_pretrained(stories).double().eval()


@pytest.fixture(scope="module", params=["gsm8k", "tinystories"])
def real_texts(request, data_folder, stories):
    """Token ids of each text, by the tokenizer alone; where there is a response, its first token."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    if request.param == "gsm8k":
        source = DataSource(str(data_folder / "gsm8k" / "train.jsonl"), limit=30)
        examples = read_examples(
            source, Columns(prompt="question", response="answer"), "plain", tokenizer, ReadReport()
        )
        texts = [(example.text, example.text.index(example.columns["answer"])) for example in examples]
    else:
        stories_text = (data_folder / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
        texts = [(text.strip(), None) for text in stories_text.split("<|endoftext|>")[:30]]
    result = []
    for text, start in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = encoded.input_ids[:300]
        ends = [end for _, end in encoded["offset_mapping"]]
        response = None if start is None else next(t for t, end in enumerate(ends) if end > start)
        result.append(TokenizedText(ids, response, len(encoded.input_ids) > 300))
    return result


@pytest.mark.parametrize("pooling", ["mean", "mean-response", "last"])
def test_activations_equal_one_example_at_a_time_in_float64(real, double, real_texts, pooling):
    texts = [text for text in real_texts if window_start(text, pooling) is not None]
    if pooling == "mean-response" and real_texts[0].response_token is None:
        assert texts == []
        return
    assert len(texts) > 20
    expected = []
    with torch.no_grad():
        for text in texts:
            states = double(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
            stacked = torch.cat([states[block + 1][0] for block in BLOCKS], dim=1)
            pooled = {
                "mean": lambda h, _: h[1:].mean(dim=0),
                "mean-response": lambda h, text: h[text.response_token :].mean(dim=0),
                "last": lambda h, _: h[-1],
            }[pooling](stacked, text)
            expected.append(pooled.numpy())
    windows = windows_of([np.array(t.ids) for t in texts], [window_start(t, pooling) for t in texts])
    found = collected(extract(real, windows, np.arange(len(texts)), BLOCKS), len(texts), 3 * real.hidden_size)
    assert_close(found, np.array(expected))


def test_the_response_starts_where_the_tokenizer_says(real, data_folder):
    source = DataSource(str(data_folder / "gsm8k" / "train.jsonl"), limit=20)
    columns = Columns(prompt="question", response="answer")
    examples = list(read_examples(source, columns, "plain", real.tokenizer, ReadReport()))
    for example, text in zip(examples, tokenize(examples, real.tokenizer, 8_000, spans=True), strict=True):
        response = real.tokenizer.decode(text.ids[text.response_token :])
        assert example.columns["answer"] in response and example.columns["question"] not in response


def test_batch_composition_does_not_matter(real, real_texts):
    texts = [np.array(text.ids) for text in real_texts]
    windows = windows_of(texts, [1] * len(texts))
    everything, n = np.arange(len(texts)), len(texts)
    alone = collected(extract(real, windows, everything, BLOCKS, 1), n, 3 * real.hidden_size)
    shuffled = np.random.default_rng(0).permutation(n)
    for todo, budget in [(everything, 700), (shuffled, 700), (shuffled, 10**6), (everything, None)]:
        assert_close(collected(extract(real, windows, todo, BLOCKS, budget), n, 3 * real.hidden_size), alone)


def test_bfloat16_is_pooled_in_float32_and_stays_near(stories, real, real_texts):
    model = load_model(stories, dtype="bfloat16", device="cpu")
    texts = [np.array(text.ids) for text in real_texts]
    windows = windows_of(texts, [1] * len(texts))
    n, d = len(texts), 3 * real.hidden_size
    full = collected(extract(real, windows, np.arange(n), BLOCKS), n, d)
    half = collected(extract(model, windows, np.arange(n), BLOCKS), n, d)
    assert half.dtype == np.float32
    error = np.linalg.norm(half - full, axis=1) / np.linalg.norm(full, axis=1)
    assert 1e-5 < error.max() < 0.02  # 8 bits round at 0.4%, some ten times over on the way to block 3

    hidden = []
    handle = model.blocks[3].register_forward_hook(lambda _m, _a, output: hidden.append(block_output(output)))
    pooled = Pooler(model, (3,))(texts[:1], np.array([1]))
    handle.remove()
    exact = hidden[0][0, 1:].double().mean(dim=0).numpy()
    assert_close(pooled[0], exact, 1e-6)  # a mean taken in bfloat16 would be off by 1e-3


# --- plans and windows ----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 400), max_size=60).map(lambda lengths: np.array(lengths, dtype=int)),
    st.integers(1, 3_000),
)
def test_a_plan_is_a_permutation_longest_first_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    order = np.concatenate([*batches, np.zeros(0, dtype=int)])
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    padded = [lengths[batch].max() * len(batch) for batch in batches]
    assert all(len(batch) == 1 or size <= budget for batch, size in zip(batches, padded, strict=True))
    for batch, size in zip(batches[:-1], padded, strict=False):
        assert size + lengths[batch].max() > budget  # none is cut short, except the last


def test_windows_start_after_the_first_token():
    text = TokenizedText([5, 6, 7, 8], 2, False)
    assert [window_start(text, pooling) for pooling in ("mean", "mean-response", "last")] == [1, 2, 3]
    assert window_start(TokenizedText([5, 6], 0, False), "mean-response") == 1
    for empty in (TokenizedText([5, 6], 2, True), TokenizedText([5, 6], None, False)):
        assert window_start(empty, "mean-response") is None
    assert window_start(TokenizedText([5], None, False), "mean") is None
    assert window_start(TokenizedText([5], None, False), "last") == 0
    assert window_start(TokenizedText([], None, False), "last") is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_weighs_nothing_and_is_the_text_s_own_token(side):
    inputs, weights = pad_batch([np.array([7, 8, 9]), np.array([4])], np.array([1, 0]), side, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [4, 4, 4]]
    assert weights[:, 0].tolist() == [[0, 0.5, 0.5], [1, 0, 0] if side == "right" else [0, 0, 1]]
    assert ("attention_mask" in inputs) == (side == "left")


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"block_scale": "std"}, {"max_tokens": 1}])
def test_a_recipe_that_does_not_exist_is_refused(wrong):
    with pytest.raises(BasiscopeError, match=str(next(iter(wrong.values())))):
        Recipe(**wrong)


# --- what can go wrong ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(llama_folder):
    return load_model(llama_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny_windows():
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, 90, length) for length in rng.integers(2, 40, 25)]
    return windows_of(texts, [1] * 25, np.arange(100, 125))


def out_of_memory_above(model, tokens):
    """Let every batch of more than `tokens` padded tokens run out of memory; the sizes that were tried."""
    tried = []

    def hook(_module, args):
        tried.append(args[0].numel())
        if args[0].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    model.module.get_input_embeddings().register_forward_pre_hook(hook)
    return tried


def test_only_what_is_to_do_is_pooled(tiny, tiny_windows):
    todo = np.array([7, 3, 20])
    batches = list(extract(tiny, tiny_windows, todo, (1,)))
    assert sorted(np.concatenate([batch.positions for batch in batches])) == [3, 7, 20]
    assert sum(batch.n_tokens for batch in batches) == tiny_windows.lengths[todo].sum()
    assert list(extract(tiny, tiny_windows, np.zeros(0, dtype=int), (1,))) == []


def test_out_of_memory_halves_the_budget_and_the_work_goes_on(tiny, tiny_windows):
    everything = np.arange(25)
    expected = collected(extract(tiny, tiny_windows, everything, (0, 1)), 25, 64)
    tried = out_of_memory_above(tiny, 100)
    found = collected(extract(tiny, tiny_windows, everything, (0, 1), token_budget=600), 25, 64)
    assert_close(found, expected)
    failed = [size for size in tried if size > 100]
    assert 2 <= len(failed) <= 4  # 600, 300, 150: halved until it fits, and never raised again
    assert all(later <= earlier / 2 for earlier, later in pairwise(failed))
    assert max(tried[len(failed) :]) <= 100 and all(size > 100 for size in tried[: len(failed)])


def test_a_host_out_of_memory_counts_as_well(tiny, tiny_windows):
    expected = collected(extract(tiny, tiny_windows, np.arange(25), (1,)), 25, 32)
    failures = iter([MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")])

    def hook(_module, _args):
        if error := next(failures, None):
            raise error

    tiny.module.get_input_embeddings().register_forward_pre_hook(hook)
    assert_close(collected(extract(tiny, tiny_windows, np.arange(25), (1,)), 25, 32), expected)


def test_one_example_too_large_for_memory_is_named(tiny, tiny_windows):
    longest = int(tiny_windows.lengths.argmax())
    out_of_memory_above(tiny, int(tiny_windows.lengths.max()) - 1)
    with pytest.raises(BasiscopeError, match=rf"Example {100 + longest} \(\d+ tokens\) .*--max-tokens"):
        list(extract(tiny, tiny_windows, np.arange(25), (1,)))


def test_another_error_is_not_taken_for_a_full_memory(tiny, tiny_windows):
    def hook(_module, _args):
        raise RuntimeError("a bug")

    tiny.module.get_input_embeddings().register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="a bug"):
        list(extract(tiny, tiny_windows, np.arange(25), (1,)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_example_with_activations_that_are_not_finite_is_named(tiny, value):
    tiny.module.get_input_embeddings().weight[90, 3] = value
    texts = [np.array([5, 6, 7, 8]), np.array([5, 90]), np.array([5, 6, 7])]
    with pytest.raises(BasiscopeError, match=r"Example 41: .*not finite \(1 such in its batch\).*--dtype float32"):
        list(extract(tiny, windows_of(texts, [1, 1, 1], [40, 41, 42]), np.arange(3), (0, 1)))


def test_tokens_that_no_example_has_cannot_spoil_any(tiny, tiny_windows):
    expected = collected(extract(tiny, tiny_windows, np.arange(25), (0, 1)), 25, 64)
    unused = np.setdiff1d(np.arange(96), tiny_windows.ids)
    assert 0 in unused
    tiny.module.get_input_embeddings().weight[unused] = float("nan")
    np.testing.assert_array_equal(collected(extract(tiny, tiny_windows, np.arange(25), (0, 1)), 25, 64), expected)
