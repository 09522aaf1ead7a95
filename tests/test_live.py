import json
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch

from core.errors import BasiscopeError
from core.model import load_model
from core.steering import comparison
from core.steering.assessment import assess
from core.steering.comparison import Comparison, compare, make_variants
from core.steering.generation import Sampling
from core.steering.intervention import Directions
from core.steering.live import LiveModel, Question, load_live_model
from core.tables import stream_sentence


@pytest.fixture(scope="module")
def loaded(stories):
    return load_model(stories, dtype="float32", device="cpu")


@pytest.fixture
def loads():
    return []


@pytest.fixture
def live(loaded, loads):
    def load(run):
        loads.append(run.id)
        return loaded

    return LiveModel(load)


def question(run, prompt="Once upon a time", tokens=10, strength=2.0):
    variants = make_variants(Directions.of(run), 1, (strength, -strength), "sd")
    return Question(run, prompt, tuple(variants), Sampling(tokens), 1, "sd")


def test_an_answer_is_the_comparison(live, loads, loaded, gsm8k_run):
    asked = question(gsm8k_run)
    stream = live.ask(asked).wait(60)
    (expected,) = compare(gsm8k_run, loaded, [asked.prompt], asked.variants, asked.sampling, 1, "sd")
    assert stream.state == "done" and stream.comparison.responses == expected.responses
    assert 0 < stream.comparison.first_token <= stream.comparison.seconds
    status = live.status()
    assert (status.loaded, status.loading, status.waiting) == (gsm8k_run.id, None, 0)
    live.ask(asked).wait(60)
    assert loads == [gsm8k_run.id]  # once


def gated(model):
    """A live model, and the gate that its loading waits for."""
    gate = threading.Event()

    def load(_run):
        gate.wait(60)
        return model

    return LiveModel(load), gate


def wait_for_loading(stream):
    end = time.monotonic() + 30
    while stream.state == "waiting" and time.monotonic() < end:
        time.sleep(0.01)


def test_questions_are_answered_in_turn_and_others_see_that_they_wait(loaded, gsm8k_run):
    live, gate = gated(loaded)
    first, second, third = (live.ask(question(gsm8k_run, tokens=4)) for _ in range(3))
    wait_for_loading(first)
    assert (first.state, second.state) == ("loading", "waiting")
    assert [live.before(stream) for stream in (second, third)] == [1, 2]
    status = live.status()
    assert status.loading == gsm8k_run.id and status.waiting == 2 and status.busy
    third.stop()
    fourth = live.ask(question(gsm8k_run, tokens=4))
    assert third.state == "stopped" and third.is_over  # at once, though the model is still being loaded
    assert live.before(fourth) == 2 and live.status().waiting == 2
    fourth.stop()
    gate.set()
    assert [stream.wait(60).state for stream in (first, second, third)] == ["done", "done", "stopped"]
    assert third.comparison is None
    assert first.comparison.responses == second.comparison.responses


def test_a_stop_while_the_model_is_loaded_is_said_and_nothing_is_generated(loaded, gsm8k_run):
    live, gate = gated(loaded)
    stream = live.ask(question(gsm8k_run))
    wait_for_loading(stream)
    stream.stop()
    assert stream.state == "loading"
    assert stream_sentence(stream, 0, live.status()).startswith("Stopping, once the model is loaded")
    gate.set()
    assert stream.wait(60).state == "stopped" and not stream.comparison.n_tokens


def test_what_was_said_before_a_prompt_is_part_of_the_question(live, loaded, gsm8k_run):
    before = (("system", "Be brief."),)
    plain = live.ask(question(gsm8k_run)).wait(60).comparison
    asked = replace(question(gsm8k_run), before=before)
    found = live.ask(asked).wait(60).comparison
    assert (found.before, plain.before) == (before, ()) and found.prompt == plain.prompt
    assert found.responses[0].token_ids != plain.responses[0].token_ids
    assert (
        "Be brief" in found.as_markdown()
        and Comparison.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    )


def test_a_stop_in_mid_stream_keeps_the_text_and_frees_the_model(live, loaded, gsm8k_run):
    stream = live.ask(question(gsm8k_run, tokens=400))
    end = time.monotonic() + 60
    while not (stream.comparison and stream.comparison.n_tokens) and time.monotonic() < end:
        time.sleep(0.01)
    stream.stop()
    assert stream.wait(60).state == "stopped"
    responses = stream.comparison.responses
    assert 0 < len(responses[0].token_ids) < 400 and not responses[0].scores  # what is stopped is not assessed
    assert {response.ended for response in responses} <= {"stopped", "end"}
    assert not any(block._forward_hooks for block in loaded.blocks)
    assert live.ask(question(gsm8k_run)).wait(60).state == "done"


def test_a_column_that_broke_says_so_after_a_stop_too(live, gsm8k_run):
    stream = live.ask(question(gsm8k_run, tokens=400, strength=1e39))
    end = time.monotonic() + 60
    while not (stream.comparison and stream.comparison.n_tokens) and time.monotonic() < end:
        time.sleep(0.01)
    stream.stop()
    comparison = stream.wait(60).comparison
    assert stream.state == "stopped" and comparison.responses[0].ended == "stopped"
    assert "the strength is too large" in comparison.describe(comparison.responses[1])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_where_memory_runs_out_it_is_said_and_freed_and_the_next_question_is_answered(
    live, gsm8k_run, monkeypatch, error
):
    """As on a GPU: the error comes from a block in mid-generation, and its frames hold what was computed."""
    held, freed = [], []

    def hook(_block, _args, _output):
        computed = torch.zeros(3)
        held.append(weakref.ref(computed))
        if len(held) == 4:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("core.steering.live.free_memory", lambda: freed.append([one() for one in held]))
    assert live.ask(question(gsm8k_run)).wait(60).state == "done"
    handle = live._model.blocks[1].register_forward_hook(hook)
    stream = live.ask(question(gsm8k_run)).wait(60)
    handle.remove()
    assert stream.state == "failed" and stream.message.startswith("There is not enough memory for it: take fewer")
    assert live.ask(question(gsm8k_run)).wait(60).state == "done" and freed == [[None] * 4]


def test_an_error_of_another_kind_is_not_taken_for_memory(live, gsm8k_run, monkeypatch):
    def fail(*_args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("core.steering.live.compare", fail)
    stream = live.ask(question(gsm8k_run)).wait(60)
    assert stream.state == "failed" and "illegal memory access" in stream.message


def test_a_text_that_is_written_is_being_assessed_and_a_stop_then_loses_nothing(live, gsm8k_run, monkeypatch):
    gate, entered = threading.Event(), threading.Event()

    def slow(*args):
        entered.set()
        gate.wait(60)
        return assess(*args)

    monkeypatch.setattr(comparison, "assess", slow)
    stream = live.ask(question(gsm8k_run, tokens=4))
    assert entered.wait(60) and stream.state == "assessing"
    assert all(len(response.token_ids) == 4 for response in stream.comparison.responses)
    assert stream_sentence(stream, 0, live.status()).startswith("Written, being measured")
    stream.stop()
    gate.set()
    assert stream.wait(60).state == "done" and all(response.scores for response in stream.comparison.responses)


def test_what_goes_wrong_is_said_and_the_next_question_is_answered(live, loads, gsm8k_run):
    def refuse(_run):
        raise BasiscopeError("Model x has changed since run y was recovered; recover it again.")

    empty = live.ask(question(gsm8k_run, prompt=" ")).wait(60)
    assert empty.state == "failed" and "prompt is empty" in empty.message
    long = live.ask(question(gsm8k_run, prompt="word " * 900)).wait(60)
    assert long.state == "failed" and "exceed the model's context" in long.message
    assert live.ask(question(gsm8k_run)).wait(60).state == "done"
    changed = LiveModel(refuse).ask(question(gsm8k_run)).wait(60)
    assert changed.state == "failed" and "has changed" in changed.message


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "bfloat16"), ("cpu", None)])
def test_the_live_model_is_in_bfloat16_on_a_gpu(gsm8k_run, monkeypatch, device, dtype):
    """Without a GPU: which model is asked for there."""
    asked = []
    monkeypatch.setattr("core.steering.live.choose_device", lambda: device)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("core.steering.live.load_run_model", lambda _run, *options: asked.append(options))
    load_live_model(gsm8k_run)
    assert asked == [(device, dtype)]


def test_unloading_frees_the_model_and_another_run_of_it_does_not_load_it_anew(
    live, loads, gsm8k_run, gsm8k_copy, monkeypatch
):
    live.ask(question(gsm8k_run)).wait(60)
    live.ask(question(gsm8k_copy.run())).wait(60)
    assert len(loads) == 1
    end = time.monotonic() + 10
    while live.status().busy and time.monotonic() < end:
        time.sleep(0.01)
    freed = []
    monkeypatch.setattr("core.steering.live.free_memory", lambda: freed.append(live._model))
    live.unload()
    assert freed == [None]  # after the model is gone
    live.unload()
    assert len(freed) == 1
    assert live.status().loaded is None and live._model is None
    assert live.ask(question(gsm8k_run)).wait(60).state == "done" and len(loads) == 2
