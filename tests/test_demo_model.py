import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from scipy.stats import binom
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.demo import card, train, world

FOLDER = Path(train.__file__).parent / "model"
TINY = train.Settings(
    steps=20, rows=2, length=96, hidden=32, blocks=2, heads=2, inner=48, warmup=5, horizon=20, cooldown=10
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def front():
    return ModelCard.load(FOLDER / "README.md").data.to_dict()


@pytest.fixture(scope="module")
def settings():
    block = re.search(r"```json\n(.*?)\n```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    told = json.loads(block.group(1))
    return train.Settings(**told | {"mix": tuple(tuple(pair) for pair in told["mix"])})


def test_every_example_survives_the_tokenizer(tokenizer):
    examples = world.generate(2_000, seed="round trip")
    tokens = tokenizer([example.text for example in examples]).input_ids
    seen = set().union(*tokens)
    never = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id}
    assert set(range(len(tokenizer))) - seen == never, "every word of the world"
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == [example.text for example in examples]
    assert all(row[0] == tokenizer.bos_token_id and len(row) <= train.CONTEXT for row in tokens)
    assert [len(tokenizer.tokenize(e.response)) for e in examples] == [e.length for e in examples]


def test_the_shipped_tokenizer_is_the_one_that_the_world_gives(tokenizer):
    assert tokenizer.get_vocab() == train.build_tokenizer().get_vocab()
    names = ("pad", "unk", "bos", "eos")
    assert [getattr(tokenizer, f"{name}_token") for name in names] == [f"<{name}>" for name in names]


def test_the_chat_template_gives_the_plain_layout(tokenizer):
    example = world.generate(1, seed=0)[0]
    asked = [{"role": "user", "content": example.prompt}]
    answered = [*asked, {"role": "assistant", "content": example.response}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == f"<bos>{example.prompt}\n"
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"<bos>{example.text}<eos>"


def test_the_checkpoint_is_small_and_of_an_ordinary_architecture(model):
    assert model.config.model_type == "llama"
    assert 2e6 < model.num_parameters() < 3e6
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert not (FOLDER / train.STATE).exists()


def test_the_card_tells_the_recipe_that_the_source_now_has(front, settings):
    assert front["recipe"] == train.recipe_hash(settings)


def test_a_card_is_read_back():
    text = card.render({}, "r", 1, 60.0, 2, {"all": card.Share(7, 9)})
    assert card.read_share(text) == card.Share(7, 9) and "`python -m core.demo.train`" in text
    assert "`torchrun --nproc-per-node 2 -m" in card.render({}, "r", 1, 60.0, 2, {"all": card.Share(7, 9)}, 2)
    with pytest.raises(ValueError, match="no pass_at_1"):
        card.read_share("# A card")


def test_pass_at_1_is_what_the_card_says(model, tokenizer, front):
    n = 100
    hits = train.pass_at_1(model, tokenizer, train.held_out(n, seed="test"), seed=1)["all"].hits
    low, high = card.Share(front["pass_at_1"]["hits"], front["pass_at_1"]["problems"]).wilson()
    # Both are samples: by chance, a true value at an end of the card's interval fails once in 1,000 seeds.
    assert binom.ppf(0.001, n, low) <= hits <= binom.ppf(0.999, n, high)


def test_training_stops_and_resumes_to_the_same_state(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train.train(straight, TINY)
    train.train(stopped, TINY, until=8)
    train.train(stopped, TINY, resume=True)
    states = [torch.load(folder / train.STATE, weights_only=True) for folder in (straight, stopped)]
    assert [state["step"] for state in states] == [20, 20]
    for name, weight in states[0]["model"].items():
        torch.testing.assert_close(weight, states[1]["model"][name], rtol=0, atol=0)
    assert AutoModelForCausalLM.from_pretrained(stopped).config.num_hidden_layers == TINY.blocks


def test_resuming_without_a_state_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        train.train(tmp_path, TINY, resume=True)


def test_resuming_another_recipe_is_refused(tmp_path):
    train.train(tmp_path, TINY, until=1)
    with pytest.raises(ValueError, match="recipe"):
        train.train(tmp_path, replace(TINY, rate=1e-3), resume=True)


def test_a_step_s_batch_depends_on_its_number_only(tokenizer):
    tokens, positions = train.batch(tokenizer, TINY, 3)
    assert tokens.shape == positions.shape == (TINY.rows, TINY.length)
    assert torch.equal(tokens, train.batch(tokenizer, TINY, 3)[0])
    assert not torch.equal(tokens, train.batch(tokenizer, TINY, 4)[0])
    assert torch.equal(tokens == tokenizer.bos_token_id, positions == 0)


def test_packed_examples_do_not_see_each_other(tokenizer, model):
    tokens, positions = train.batch(tokenizer, replace(TINY, length=300), 3)
    start = int((positions[0] == 0).nonzero()[1])
    with torch.no_grad():
        packed = model(input_ids=tokens[:1], position_ids=positions[:1], use_cache=False).logits[0, start:]
        alone = model(input_ids=tokens[:1, start:], position_ids=positions[:1, start:], use_cache=False).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-3, rtol=0)  # float32 logits of size 10 through 6 blocks


def test_attention_within_examples_equals_that_under_the_mask(tokenizer, model):
    tokens, positions = train.batch(tokenizer, replace(TINY, length=700), 3)
    tokens, positions = tokens[:, 40:], positions[:, 40:]  # the first example of a row may have begun before it
    outputs = []
    for kind in ("sdpa", train.PACKED):
        model.set_attn_implementation(kind)
        with torch.no_grad():
            outputs.append(model(input_ids=tokens, position_ids=positions, use_cache=False).logits)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=0)  # float32 logits of size 10 through 6 blocks


def test_the_learning_rate_warms_up_and_falls():
    rates = [train.learning_rate(TINY, step) for step in range(TINY.steps)]
    assert max(rates) == pytest.approx(TINY.rate) == rates[TINY.warmup]
    assert rates[: TINY.warmup] == sorted(rates[: TINY.warmup])
    assert rates[TINY.warmup :] == sorted(rates[TINY.warmup :], reverse=True)


def test_every_setting_changes_the_recipe():
    base = train.recipe_hash(TINY)
    for field in fields(TINY):
        value = getattr(TINY, field.name)
        other = (*value, ("addition", 2.0)) if field.name == "mix" else value + 1
        assert train.recipe_hash(replace(TINY, **{field.name: other})) != base


@pytest.mark.parametrize(
    ("hits", "n", "interval"), [(50, 100, (0.4038, 0.5962)), (0, 10, (0.0, 0.2775)), (0, 0, (0.0, 1.0))]
)
def test_wilson_intervals(hits, n, interval):
    assert card.Share(hits, n).wilson() == pytest.approx(interval, abs=1e-4)


def test_two_processes_train_the_same_model_as_one(tmp_path):
    alone = tmp_path / "alone"
    train.train(alone, TINY, until=6)
    torch.multiprocessing.spawn(_train_together, (tmp_path,), nprocs=2)
    states = [torch.load(tmp_path / name / train.STATE, weights_only=True) for name in ("alone", "together")]
    for name, weight in states[0]["model"].items():
        # the same gradients, added up in another order; AdamW's first steps divide by them
        torch.testing.assert_close(weight, states[1]["model"][name], rtol=0, atol=1e-4)


def _train_together(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    train.train(folder / "together", TINY, until=6)
    torch.distributed.destroy_process_group()
