import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import MORE, configure
from scipy.stats import t
from tiny import save_tiny

from core.activations import Recipe
from core.checkpoint.agreement import observe
from core.errors import BasiscopeError
from core.evaluation import mean_interval, share_interval, verifier
from core.examples import Columns, DataSource, ReadReport
from core.model import load_model
from core.reading import score_tokens
from core.recovery import Request, load_run_model, recover
from core.steering.assessment import assess, repetition
from core.steering.comparison import Comparison, compare, make_variants
from core.steering.generation import Generation, Row, Sampling, encode_prompt, row_batches
from core.steering.intervention import Directions, Steering, steered
from core.steering.prompts import Prompt, how_encoded, read_prompts, run_prompts, usable_prompts
from core.steering.sweep import (
    SuggestedRange,
    Sweep,
    SweepRequest,
    parse_strengths,
    summarise,
    sweep,
    undamaged_range,
)
from core.tables import table_of_sweep
from core.workspace import Workspace


@pytest.fixture(scope="module")
def model(stories):
    return load_model(stories, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def directions(gsm8k_run):
    return Directions.of(gsm8k_run)


PROMPTS = ["Once upon a time there was a dog", "Lily had 3 red balls.", "The sun"]


# --- answers and intervals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("72", "She sold 48 and 24, so 72.", True),
        ("72", "72 are sold, then 3 more", False),
        ("She does it.\n#### 1,200", "so it is $1200.00", True),
        ("5", "Answer: 5", True),
        ("5", "The answer is 15", False),
        ("\\boxed{12}", "we get \\boxed{12}.", True),
        ("\\frac{1}{2}", "so \\boxed{\\frac{1}{2}}", True),
        ("1/2", "that is 0.5", True),
        ("Paris", "The answer is paris.", True),
        ("Paris", "London", False),
        ("7", "", False),
        ("-3", "x = -3", True),
        ("\\sqrt{2}", "\\boxed{2}", False),
        ("\\sqrt{2}", "\\boxed{\\sqrt{2}}", True),
        ("√2", "Answer: 2", False),
        ("3\\pi", "\\boxed{3}", False),
        ("3", "\\boxed{3\\pi}", False),
        ("2", "\\boxed{2x}", False),
        ("2x", "Answer: 2y", False),
        ("x^2+x", "Answer: x^2-x", False),
        ("x^2 + x", "Answer: $x^2+x$.", True),
        ("x-y", "Answer: x+y", False),
        ("-x", "Answer: x", False),
        ("5!", "Answer: 5", False),
        ("World War 2", "Answer: Apollo 2", False),
        ("World War 2", "World War 2", True),
        ("12", "The answer is 12 because 3*4 = 12.", True),
        ("3", "The answer is 12 because 3*4 = 12.", False),
        ("12", "The answer is 12 * 3", False),
        ("12", "The answer is 12 apples.", True),
        ("12", "The answer is: she has $12 left.", True),
        ("12", "\\boxed{12\\text{ cm}}", True),
        ("90", "\\boxed{90^\\circ}", True),
        ("50%", "Answer: 0.5", True),
        ("50", "Answer: 50%", True),
        ("0.5", "\\boxed{\\frac{1}{2}}", True),
        ("10.5", "Answer: 10.5", True),
        ("0.5", "Answer: 5", False),
        ("-4", "Answer: 4", False),
        ("$18", "The answer is $18.00", True),
    ],
)
def test_answers_are_verified(answer, text, right):
    assert verifier("math")(answer, text) is right


def test_the_verifier_agrees_with_the_model_solutions_of_gsm8k(data_folder):
    """OpenAI's own solutions, each with its own verdict."""
    lines = (data_folder / "gsm8k" / "model_solutions.jsonl").read_text().splitlines()[:400]
    own, ours = [], []
    for row in map(json.loads, lines):
        answer = row["ground_truth"].rsplit("A: ", 1)[1]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            own.append(solution["is_correct"])
            ours.append(verifier("numeric")(answer, solution["solution"]))
    assert 0.1 < np.mean(own) < 0.9 and len(own) > 1_000
    assert np.mean(np.array(own) == np.array(ours)) > 0.99


def test_intervals_are_the_textbook_s():
    values = [1.0, 2.0, 4.0, np.nan]
    found = mean_interval(values)
    half = t.ppf(0.975, 2) * np.std(values[:3], ddof=1) / np.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))
    assert np.isnan(mean_interval([3.0]).low) and np.isnan(mean_interval([]).value)
    share = share_interval([True] * 4 + [False] * 196)
    assert (share.value, round(share.low, 3), round(share.high, 3)) == (0.02, 0.008, 0.05)


# --- assessment -----------------------------------------------------------------------------------------


def test_an_assessment_equals_plain_passes_over_one_row(model, directions):
    rows = [Row(encode_prompt(model, text, {}, "plain", 20), Steering(((1, 3.0),))) for text in PROMPTS]
    rows[1] = replace(rows[1], steering=Steering(((2, 2.0),), scope="response"))
    generation = Generation(model, directions, rows, Sampling(20)).run()
    for row, ids, found in zip(
        rows, generation.tokens, assess(model, directions, rows, generation.tokens), strict=True
    ):
        text = np.array([*row.prompt, *ids])
        start = len(row.prompt)
        scores = score_tokens(model, directions.basis, directions.blocks, text, 0, 0).scores[start:]
        np.testing.assert_allclose(found.scores, scores, rtol=1e-3, atol=2e-3)
        with torch.no_grad():
            whole = torch.from_numpy(text)[None]
            plain = model.module(whole).logits[0, start - 1 : -1].log_softmax(-1)
            with steered(model, directions, row.steering, [start]):
                moved = model.module(whole).logits[0, start - 1 : -1].log_softmax(-1)
        chosen = plain[range(len(ids)), ids]
        assert found.perplexity == pytest.approx(float(torch.exp(-chosen.mean())), rel=1e-4)
        divergence = torch.nn.functional.kl_div(plain, moved, log_target=True, reduction="batchmean")
        assert found.divergence == pytest.approx(float(divergence), rel=1e-3)
        assert found.divergence > 0.01
        assert (moved.argmax(-1).tolist()) == ids  # what was generated is what the steered model prefers


def test_the_baseline_does_not_diverge(model, directions):
    rows = [Row(encode_prompt(model, PROMPTS[0], {}, "plain", 9), Steering())]
    (found,) = assess(model, directions, rows, [[5, 6, 7]])
    assert found.divergence == 0.0 and found.repetition == 0.0
    (empty,) = assess(model, directions, rows, [[]])
    assert np.isnan(empty.perplexity) and empty.scores.shape == (0, 3)


def test_repetition_counts_repeated_ngrams():
    assert repetition([1, 2, 3, 1, 2, 3, 1, 2, 3]) == pytest.approx(4 / 7)
    assert repetition([1, 2]) == 0.0


# --- comparisons ----------------------------------------------------------------------------------------


def test_a_comparison_is_the_generation_of_its_rows_and_survives_the_disk(model, gsm8k_copy, directions):
    run = gsm8k_copy.run()
    variants = make_variants(directions, 1, (0.0, 2.0, -2.0), "sd", scope="response")
    assert [variant.name for variant in variants] == ["baseline", "+2 sd", "-2 sd"]
    assert variants[1].steering.strengths == ((1, pytest.approx(2 * directions.deviations[0])),)
    found = compare(run, model, PROMPTS, variants, Sampling(12, 0.7, seed=3), 1, "sd")
    columns = run.manifest["data"]["columns"]
    for i, comparison in enumerate(found):
        prompt = encode_prompt(model, PROMPTS[i], columns, "plain", 12)
        for variant, response in zip(variants, comparison.responses, strict=True):
            alone = Generation(model, directions, [Row(prompt, variant.steering, 3 + i)], Sampling(12, 0.7)).run()
            assert list(response.token_ids) == alone.tokens[0] and response.text == alone.text(0)
            assert len(response.tokens) == len(response.scores) == len(response.token_ids)
    kept = gsm8k_copy.save_comparison(replace(found[0], name="mine"))
    assert gsm8k_copy.comparisons(run.id) == {kept: replace(found[0], name="mine")}
    (gsm8k_copy.root / "comparisons" / run.id / "00.json").write_text("{}")
    assert list(gsm8k_copy.comparisons(run.id)) == [kept]
    gsm8k_copy.delete_comparison(run.id, kept)
    assert not gsm8k_copy.comparisons(run.id)


def test_markdown_shows_hostile_texts_as_they_are(model, gsm8k_run, directions):
    (found,) = compare(
        gsm8k_run, model, [PROMPTS[0]], make_variants(directions, 1, (2.0,), "unit"), Sampling(3), 1
    )
    hostile = replace(found.responses[1], text="![](http://evil.test)\n# heading")
    markdown = replace(found, responses=(found.responses[0], hostile)).as_markdown()
    assert "    ![](http://evil.test)\n    # heading" in markdown
    assert all(not line.startswith(("!", "# h")) for line in markdown.splitlines())
    assert markdown.startswith("# Steering: direction 1\n")
    both = replace(hostile, steering=Steering(((1, 2.0), (3, -1.0))))
    assert "# Steering: directions 1, 3\n" in replace(found, responses=(found.responses[0], both)).as_markdown()
    in_sd = 2 / directions.deviations[0]
    assert f"add direction 1 +2 ({in_sd:+.3g} sd) on all" in found.describe(found.responses[1])
    older = {key: value for key, value in found.as_dict().items() if key != "deviations"}
    assert "add direction 1 +2 on all" in (kept := Comparison.from_dict(older)).describe(kept.responses[1])
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))) == found


# --- sweeps ---------------------------------------------------------------------------------------------


def test_strengths_are_read_as_written():
    assert parse_strengths("-4:4:9") == tuple(range(-4, 5))
    assert parse_strengths("0,+2,-2,2") == (0.0, 2.0, -2.0)
    for wrong in ("", "a", "1:2", "1:2:1", "0,nan", "1:2:x"):
        with pytest.raises(BasiscopeError, match="Strengths"):
            parse_strengths(wrong)


def fact(prompt, strength, **changes):
    base = {"score": 1.0, "perplexity": 2.0, "divergence": 0.0, "repetition": 0.1, "tokens": 9, "note": None}
    return base | {"prompt": prompt, "strength": strength, "correct": None, "unverified": False} | changes


def test_the_guard_and_the_range():
    damage = {
        -2.0: {"perplexity": 5.0},
        -1.0: {"perplexity": 3.9},
        1.0: {"score": 4.0, "correct": True},
        2.0: {"repetition": 0.31},
        3.0: {},
        4.0: {"note": "broken"},
        5.0: {"perplexity": np.nan},
    }
    facts = [fact(p, 0.0) for p in range(4)]
    facts += [fact(p, strength, **changes) for strength, changes in damage.items() for p in range(4)]
    points = {point.strength: point for point in summarise(facts, 1.5)}
    assert {strength for strength, point in points.items() if point.is_damaged} == {-2.0, 2.0, 4.0, 5.0}
    assert points[1.0].effect.value == pytest.approx(2.0) and points[1.0].correct.value == 1.0
    assert points[0.0].correct is None
    assert points[-1.0].surprise.value == pytest.approx(np.log(3.9 / 2))
    assert undamaged_range(list(points.values())) == (-1.0, 1.0)


def test_a_clamp_to_0_that_does_damage_leaves_no_range():
    points = summarise([fact(0, None)] + [fact(0, s, perplexity=p) for s, p in ((0.0, 9.0), (1.0, 2.0))], 1.0)
    assert [point.is_damaged for point in points] == [True, False] and undamaged_range(points) == (0.0, 0.0)


def test_what_could_not_be_verified_is_not_wrong(model, gsm8k_copy):
    prompts = [Prompt(text, answer) for text, answer in zip(PROMPTS, ("1", "2", None), strict=False)]
    request = SweepRequest(1, (1.0,), sampling=Sampling(2))
    found = sweep(gsm8k_copy.run(), model, request, prompts, lambda answer, _: True if answer == "1" else None)
    assert [(one.correct.n, one.correct.value, one.unverified) for one in found.points] == [(1, 1.0, 1)] * 2
    assert list(table_of_sweep(found)["not verified"]) == ["1", "1"]
    assert Sweep.from_dict(json.loads(json.dumps(found.as_dict()))).points == found.points
    old = found.as_dict()
    old["points"] = [{name: value for name, value in one.items() if name != "unverified"} for one in old["points"]]
    assert Sweep.from_dict(old).points[0].unverified == 0


def test_a_sweep_is_what_its_texts_say_and_survives_the_disk(model, gsm8k_copy):
    run = gsm8k_copy.run()
    request = SweepRequest(1, (-2.0, 2.0, 60.0), "sd", sampling=Sampling(24))
    prompts = [Prompt(text, "3") for text in PROMPTS]
    found = sweep(run, model, request, prompts, lambda answer, text: answer in text)
    assert [point.strength for point in found.points] == [-2.0, 0.0, 2.0, 60.0]
    assert len(found.rows) == 12
    last = found.points[-1]
    texts = [row for row in found.rows if row["strength"] == 60.0]
    zero = [row for row in found.rows if row["strength"] == 0.0]
    assert last.correct.value == np.mean(["3" in row["text"] for row in texts])
    pairs = [np.log(a["perplexity"] / b["perplexity"]) for a, b in zip(texts, zero, strict=True)]
    assert last.surprise.value == pytest.approx(np.mean(pairs))
    assert last.is_damaged and found.high < 60.0
    sweep_id = gsm8k_copy.save_sweep(found)
    without = sweep(run, model, request, [Prompt(text) for text in PROMPTS])
    assert gsm8k_copy.save_sweep(without) != sweep_id  # the answers are part of what was asked
    loaded = gsm8k_copy.sweeps(run.id)[sweep_id]
    assert (loaded.points, loaded.low, loaded.high) == (found.points, found.low, found.high)
    suggested = SuggestedRange.of(found)
    assert suggested.high == pytest.approx(found.high * found.deviation) and suggested.reaches[1]
    run.save_suggested_range(1, suggested)
    assert run.suggested_range(1) == suggested and run.suggested_range(2) is None
    assert not run.damaged_files()


def test_a_clamp_has_the_unsteered_texts_beside_a_clamp_to_0(model, gsm8k_copy, directions):
    run = gsm8k_copy.run()
    request = SweepRequest(1, (-2.0, 2.0), "sd", "clamp", sampling=Sampling(16))
    found = sweep(run, model, request, [Prompt(text) for text in PROMPTS])
    assert [point.strength for point in found.points] == [-2.0, 0.0, 2.0]
    (at_zero,) = (point for point in found.points if point.strength == 0)
    assert at_zero.divergence.value > 0 and at_zero.effect.value != 0
    assert (found.baseline.effect.value, found.baseline.divergence.value) == (0, 0)
    plain = [row["text"] for row in found.rows if row["strength"] is None]
    variants = make_variants(directions, 1, (0.0,), "unit", operation="clamp")
    assert [variant.name for variant in variants] == ["baseline", "+0"]
    for prompt, text, row in zip(PROMPTS, plain, (row for row in found.rows if row["strength"] == 0), strict=True):
        (one,) = compare(run, model, [prompt], variants, Sampling(16), 1)
        assert [response.text for response in one.responses] == [text, row["text"]]
    sweep_id = gsm8k_copy.save_sweep(found)
    loaded = gsm8k_copy.sweeps(run.id)[sweep_id]
    assert loaded.baseline == found.baseline
    two = 2 * directions.deviations[0]
    shown = ["not steered", f"{-two:+.3g} (-2 sd)", "+0 (+0 sd)", f"{two:+.3g} (+2 sd)"]
    assert list(table_of_sweep(loaded)["strength"]) == shown


def test_where_the_unsteered_texts_are_empty_nothing_is_called_damage_for_it():
    empty = {"score": np.nan, "perplexity": np.nan, "divergence": np.nan, "repetition": 0.0, "tokens": 0}
    facts = [fact(p, 0.0, **empty) for p in range(4)]
    facts += [fact(p, 1.0, **empty) for p in range(4)]
    facts += [fact(p, 2.0, repetition=0.5) for p in range(4)]
    assert [point.is_damaged for point in summarise(facts, 1.0)] == [False, False, True]


DAMAGED = ["{", "{}", "[]", "null", '{"points": [], "rows": [], "request": {}}', '{"points": 1, "reaches": 2}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_sweeps_and_ranges_are_passed_over(gsm8k_copy, content):
    run = gsm8k_copy.run()
    for path in (gsm8k_copy.root / "sweeps" / run.id / "00.json", run.folder / "steering" / "d1.json"):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert gsm8k_copy.sweeps(run.id) == {} and run.suggested_range(1) is None


def test_prompts_of_several_lengths_share_a_batch_but_where_padding_counts(model, tmp_path):
    rwkv = load_model(save_tiny(configure(*MORE["rwkv"]), tmp_path), dtype="float32", device="cpu")
    lengths = [3, 3, 3, 5, 5, 3]
    assert list(row_batches(rwkv, lengths, 2)) == [range(2), range(2, 3), range(3, 5), range(5, 6)]
    assert list(row_batches(model, lengths, 4)) == [range(4), range(4, 6)]
    assert not list(row_batches(rwkv, [], 2))


def test_a_prompt_without_a_token_is_said(model):
    tokenizer = type("Empty", (), {"__call__": lambda *_args, **_options: {"input_ids": []}, "eos_token_id": 2})()
    with pytest.raises(BasiscopeError, match="no token that the model knows"):
        encode_prompt(replace(model, tokenizer=tokenizer), "a", {}, "plain", 4)


# --- prompts --------------------------------------------------------------------------------------------


def test_prompts_come_from_files_of_several_kinds(gsm8k_run, gsm8k, tmp_path):
    found = read_prompts(gsm8k, gsm8k_run, "answer", 3)
    assert len(found) == 3 and all("####" in prompt.answer for prompt in found)
    assert found[0].text == json.loads(Path(gsm8k).read_text().splitlines()[0])["question"]
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert read_prompts(str(tmp_path / "p.txt"), gsm8k_run) == [Prompt("one", number=0), Prompt("two", number=2)]
    for name, content, answer, sentence in (
        ("e.txt", "\n", None, "no prompt in it"),
        ("e2.txt", "a", "x", "has no column"),
        ("e3.csv", "a,b\n1,2\n", None, "no column of prompts"),
        ("e4.csv", "question,b\n1,2\n", "c", "no column 'c'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(BasiscopeError, match=sentence):
            read_prompts(str(tmp_path / name), gsm8k_run, answer)
    with pytest.raises(BasiscopeError, match="cannot be read"):
        read_prompts(str(tmp_path / "none.txt"), gsm8k_run)


def test_rows_without_a_prompt_or_an_answer_are_said_and_the_others_keep_their_numbers(
    model, gsm8k_copy, tmp_path
):
    rows = ['{"question": "One and 3?", "answer": 3.0}', "{broken", '{"question": " ", "answer": "1"}']
    rows += ['{"question": "Two?", "answer": " "}', '{"question": "Three?", "answer": null}', '{"question": null}']
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    run, report = gsm8k_copy.run(), ReadReport()
    found = read_prompts(str(tmp_path / "p.jsonl"), run, "answer", report=report)
    assert found == [Prompt("One and 3?", "3", 0), Prompt("Two?", None, 3), Prompt("Three?", None, 4)]
    assert report.sentences() == [
        "2 rows: left out, empty prompt (rows 2, 5)",
        "2 rows: no answer, not verified (rows 3, 4)",
        "1 row: left out, not valid JSON (row 1)",
    ]
    request = SweepRequest(1, (1.0,), "sd", sampling=Sampling(4))
    swept = sweep(run, model, request, found, lambda *_: False, notes=report.sentences())
    assert all(point.correct.n == 1 for point in swept.points)
    assert Sweep.from_dict(json.loads(json.dumps(swept.as_dict()))).notes == tuple(report.sentences())
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    with pytest.raises(BasiscopeError, match=r"no prompt in it \(1 row: left out, not valid JSON"):
        read_prompts(str(tmp_path / "bad.jsonl"), run)


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_what_was_said_before_the_response_is_kept_everywhere(chat_stories, write_rows, tmp_path, template):
    """The ids of a prompt are those that the run itself read, up to the response."""
    spoken = [
        [
            {"role": "system", "content": f"You are {name}."},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "content": name},
            {"role": "user", "content": "And where?"},
            {"role": "assistant", "content": "Home."},
        ]
        for name in ("Ann", "Tom", "Lily", "Ben", "Sam")
    ]
    path = write_rows([{"m": messages} for messages in spoken])
    recipe = Recipe(dtype="float32", template=template)
    columns = Columns(messages="m")
    request = Request(chat_stories, DataSource(path), columns, recipe, k=2, device="cpu", with_map=False)
    run = recover(request, Workspace(tmp_path / template))
    model, windows = load_run_model(run, "cpu"), run.windows()
    for i, prompt in enumerate(read_prompts(path, run)):
        assert [role for role, _ in prompt.before] == ["system", "user", "assistant"]
        ids = encode_prompt(model, prompt, *how_encoded(run), 10)
        read = list(windows.ids[windows.offsets[i] : windows.offsets[i + 1]])
        assert list(ids)[:-1] == read[: len(ids) - 1] and "And where?" in model.tokenizer.decode(ids)
    assert {(p.text, p.before) for p in run_prompts(run, 5)} == {
        (p.text, p.before) for p in read_prompts(path, run)
    }
    used = usable_prompts(run, model, 2, 4)
    assert all(len(prompt.before) == 3 for prompt in used)
    swept = sweep(run, model, SweepRequest(1, (1.0,), sampling=Sampling(4)), used)
    variants = make_variants(Directions.of(run), 1, (1.0,), "unit")
    compared = compare(run, model, used, variants, Sampling(4), 1)
    for i, one in enumerate(compared):
        ids = encode_prompt(model, used[i], *how_encoded(run), 4)
        alone = Generation(model, Directions.of(run), [Row(ids, Steering())], Sampling(4)).run()
        assert one.responses[0].text == alone.text(0) == swept.rows[2 * i]["text"] and one.before
    folder = tmp_path / f"seen-{template}"
    folder.mkdir()
    seen = observe(model, run, Directions.of(run), Steering(((1, 1.0),)), folder)
    texts = [model.tokenizer.decode(ids[:start]) for ids, start in zip(seen.texts, seen.starts, strict=True)]
    assert len(texts) == 4 and all("You are" in text and "Who are you?" in text for text in texts)


def test_progress_over_several_prompts_counts_prompts(model, gsm8k_run, directions):
    variants = make_variants(directions, 1, tuple(range(1, 16)), "unit")  # two prompts a batch
    told = []
    compare(gsm8k_run, model, PROMPTS, variants, Sampling(3), 1, progress=lambda *at: told.append(at))
    assert {(step, total) for step, _, total in told} == {("prompts", 3)}
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 3
    told.clear()
    compare(gsm8k_run, model, PROMPTS[:1], variants, Sampling(3), 1, progress=lambda *at: told.append(at))
    assert told[0] == ("generate", 0, 3) and told[-1] == ("generate", 3, 3)


CHAT_CHOICES = {
    "messages": ({"messages": "m"}, "auto", "chat"),
    "nested messages": ({"messages": "text.m"}, "auto", "chat"),
    "plain messages": ({"messages": "m"}, "plain", "plain"),
    "chat text": ({"text": "text"}, "chat", "chat"),
}


@pytest.mark.parametrize("choice", CHAT_CHOICES)
def test_a_template_is_applied_once_to_the_prompts_of_a_chat_run(chat_stories, write_rows, tmp_path, choice):
    """The ids that the run itself read, up to the response."""
    columns, template, resolved = CHAT_CHOICES[choice]
    asked = [f"Where did {name} go?" for name in ("Ann", "Tom", "Lily", "Ben", "Sam")]
    spoken = [[{"role": "user", "content": q}, {"role": "assistant", "content": "Home."}] for q in asked]
    rows = [{"m": m, "text": {"m": m}} for m in spoken]
    if choice == "chat text":
        rows = [{"text": q} for q in asked]
    path = write_rows(rows)
    request = Request(
        chat_stories,
        DataSource(path),
        Columns(**columns),
        Recipe(dtype="float32", template=template),
        k=2,
        device="cpu",
        with_map=False,
    )
    run = recover(request, Workspace(tmp_path / "w"))
    assert run.manifest["recipe"]["template"] == resolved
    assert {prompt.text for prompt in run_prompts(run, 5)} == set(asked)
    if choice != "nested messages":
        assert [prompt.text for prompt in read_prompts(path, run)] == asked
    model = load_run_model(run, "cpu")
    windows = run.windows()
    for i, question in enumerate(asked):
        ids = encode_prompt(model, question, *how_encoded(run), 10)
        read = list(windows.ids[windows.offsets[i] : windows.offsets[i + 1]])
        assert len(ids) > 8 and list(ids)[:-1] == read[: len(ids) - 1]
        text = model.tokenizer.decode(ids)
        assert text.count(question) == text.count("user" if resolved == "chat" else "User:") == 1


def test_prompts_that_do_not_fit_are_passed_over_or_named(model, gsm8k_run, write_rows, tmp_path):
    path = write_rows([{"q": "word " * 900, "a": "x"}] * 30 + [{"q": "The sun", "a": "y"}] * 2)
    request = Request(
        gsm8k_run.manifest["model"]["name"],
        DataSource(path),
        Columns(prompt="q", response="a"),
        Recipe(dtype="float32"),
        k=1,
        device="cpu",
        with_map=False,
    )
    run = recover(request, Workspace(tmp_path / "w"))
    assert run_prompts(run, 3)[:2] == [Prompt("The sun")] * 2 and len(run_prompts(run, 3)) == 3
    assert usable_prompts(run, model, 12, 10) == [Prompt("The sun")] * 2
    with pytest.raises(BasiscopeError, match="no prompt of its examples leaves room"):
        usable_prompts(run, model, 12, 600)
    variants = make_variants(Directions.of(run), 1, (1.0,), "unit")
    with pytest.raises(BasiscopeError, match="Prompt 2: The prompt has"):
        compare(run, model, ["a", "word " * 900], variants, Sampling(4), 1)
    with pytest.raises(BasiscopeError, match="no prompt to sweep over"):
        sweep(run, model, SweepRequest(1, (1.0,)), [])
    seen = observe(model, run, Directions.of(run), Steering(((1, 1.0),)), tmp_path)
    assert max(seen.starts) == 256 and len(seen.texts) == 4


def test_another_model_than_the_run_s_is_refused(model, gsm8k_run):
    other = replace(model, fingerprint="0")
    with pytest.raises(BasiscopeError, match="has changed since run"):
        compare(
            gsm8k_run, other, ["a"], make_variants(Directions.of(gsm8k_run), 1, (1.0,), "unit"), Sampling(4), 1
        )
    with pytest.raises(BasiscopeError, match="has changed since run"):
        sweep(gsm8k_run, other, SweepRequest(1, (1.0,)), [Prompt("a")])


def test_a_run_gives_prompts_of_its_own(gsm8k_run):
    questions = set(gsm8k_run.examples(["prompt"])["prompt"])
    found = [prompt.text for prompt in run_prompts(gsm8k_run, 5)]
    assert len(set(found)) == 5 and set(found) <= questions
    assert found == [prompt.text for prompt in run_prompts(gsm8k_run, 5)]
