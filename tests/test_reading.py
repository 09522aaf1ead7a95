import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from core.errors import BasiscopeError
from core.reading import (
    END_EXAMPLES,
    ENDS,
    LLM_CHARACTERS,
    LLM_EXAMPLES,
    PRIOR_EXAMPLES,
    Endpoint,
    Label,
    contrastive_label,
    count_words,
    label_by_model,
    log_odds_scores,
    matched_ends,
    parse_contrast,
    rank_examples,
    token_texts,
)
from core.recovery import label_by_endpoint, label_run, load_run_model, shade_examples

COMMON = ["the", "a", "tree", "house", "water", "stone", "light", "dark", "river", "field"]


def random_texts(rng, n, words=20):
    return [" ".join(rng.choice(COMMON + [f"word{chr(97 + i)}" for i in range(26)], words)) for _ in range(n)]


# --- ranking --------------------------------------------------------------------------------------------


def test_ranking_keeps_the_order_of_ties_at_both_ends():
    values = np.array([1.0, 3.0, -2.0, 3.0, -2.0, 0.0])
    assert rank_examples(values, 1).tolist() == [1, 3, 0, 5, 2, 4]
    assert rank_examples(values, -1).tolist() == [2, 4, 5, 0, 1, 3]
    assert rank_examples(values, 1, 2).tolist() == [1, 3]


# --- labels from words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 400, 5_000])
def test_both_ends_have_the_same_lengths(n):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 500, n)
    scores = lengths / 100 + rng.normal(size=n)  # length drives the score strongly
    top, bottom = matched_ends(scores, lengths)
    assert len(top) == len(bottom) >= min(n // 4, END_EXAMPLES - 10, ENDS * n)
    assert not set(top) & set(bottom)
    assert scores[top].mean() - scores[bottom].mean() > 1
    apart = (
        lengths[rank_examples(scores, 1, len(top))].mean() - lengths[rank_examples(scores, -1, len(top))].mean()
    )
    # within a tenth of the lengths the score can still follow length: a fifth of the unmatched gap is allowed
    assert abs(lengths[top].mean() - lengths[bottom].mean()) < (0.2 if n > 100 else 0.6) * apart


def test_the_score_of_the_log_odds_is_that_of_a_logistic_regression_on_the_end():
    """Rao's score statistic where the coefficient is 0, from its definition: gradient over root information."""
    rng = np.random.default_rng(1)
    sizes = np.array([60, 80])
    counts = np.stack([rng.integers(0, size + 1, 30) for size in sizes])
    share = rng.uniform(0.01, 0.99, 30)
    found = log_odds_scores(counts, sizes, share)
    for w in range(30):
        has, size = counts[:, w] + PRIOR_EXAMPLES * share[w], sizes + PRIOR_EXAMPLES
        at_zero, first = has.sum() / size.sum(), size[0] / size.sum()
        gradient = has[0] - size[0] * at_zero
        information = at_zero * (1 - at_zero) * size.sum() * first * (1 - first)
        assert found[w] == pytest.approx(gradient / np.sqrt(information), rel=1e-12)


@given(st.integers(0, 399), st.integers(0, 400), st.floats(0.005, 0.995))
def test_a_word_tells_less_where_the_other_end_gains_it(more, other, share):
    counts = np.array([[other, other], [more, more + 1]])
    before, after = log_odds_scores(counts, np.array([400, 400]), np.array([share, share]))
    assert after < before and log_odds_scores(counts[::-1], np.array([400, 400]), np.array([share]))[0] == -before


def test_a_word_that_every_text_has_is_no_label_though_one_end_has_more_words():
    rng = np.random.default_rng(5)
    scores = np.linspace(1, -1, 600)
    rich = [["amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven"]] * 300 + [[]] * 300
    texts = [" ".join(["answer", *rng.permutation(words)]) for words in rich]
    label = contrastive_label(count_words(texts), scores, np.full(600, 9))
    assert "amber" in dict(label.positive) and not label.negative and "answer" not in dict(label.positive)


def test_a_planted_word_is_found_at_its_end():
    rng = np.random.default_rng(2)
    texts, scores = random_texts(rng, 400), rng.normal(size=400)
    for i in range(400):
        texts[i] += " indigo sky." * int(scores[i] > 0.5) + " Costs $7!" * int(scores[i] < -0.5)
    label = contrastive_label(count_words(texts), scores, np.full(400, 20))
    left, right = label.text.split(" : ")
    assert left.split(", ")[0] in ("indigo", "sky", "indigo sky") and right.split(", ")[0] == "costs"
    assert "$" not in label.text and "!" not in label.text  # symbols only where there is no word
    assert "[number]" in dict(label.negative) and label.source == "words"


def test_symbols_are_the_label_where_there_is_nothing_else():
    scores = np.linspace(1, -1, 300)
    texts = ["tree river" + " ;" * int(score > 0.3) for score in scores]
    assert contrastive_label(count_words(texts), scores, np.full(300, 9)).text == "; : none"


def test_scores_that_mean_nothing_get_no_label():
    rng = np.random.default_rng(3)
    texts = random_texts(rng, 300)
    counts, lengths = count_words(texts), rng.integers(10, 30, 300)
    found = [contrastive_label(counts, rng.normal(size=300), lengths) for _ in range(100)]
    false = sum(bool(label.positive or label.negative) for label in found)
    assert false <= 9  # at a true rate of 5%, more than 9 of 100 come once in 35 seeds; this seed is fixed
    assert {label.text for label in found if not (label.positive or label.negative)} == {
        "no word sets the ends apart"
    }


def test_a_word_that_only_comes_with_length_is_no_label():
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 11, 1_000)
    texts = [
        f"{text}{' furthermore' * int(length > 5)}"
        for text, length in zip(random_texts(rng, 1_000, 8), lengths, strict=True)
    ]
    scores = lengths + 0.1 * rng.normal(size=1_000)
    label = contrastive_label(count_words(texts), scores, lengths)
    assert "furthermore" not in label.text
    assert "furthermore" in contrastive_label(count_words(texts), scores, np.ones(1_000)).text


def test_where_the_responses_are_labelled_their_lengths_are_matched():
    """Long prompts hide how long a response is; the word comes with long responses alone."""
    rng = np.random.default_rng(6)
    prompts, lengths = rng.integers(100, 1_000, 1_000), rng.integers(20, 80, 1_000)
    short = random_texts(rng, 1_000, 8)
    texts = [f"{text}{' furthermore' * int(n > 50)}" for text, n in zip(short, lengths, strict=True)]
    labels = {}
    run = SimpleNamespace(
        pooled_text="response",
        windows=lambda: SimpleNamespace(lengths=prompts + lengths, first=prompts),
        scores=lambda: pd.DataFrame({"d1": lengths + 0.1 * rng.normal(size=1_000)}),
        texts=lambda rows, column: [texts[row] for row in rows] if column == "response" else None,
        save_label=lambda j, label, over_person: labels.update({j: label}),
    )
    label_run(run, [1])
    assert "furthermore" not in labels[1].text
    run.windows = lambda: SimpleNamespace(lengths=2 * prompts, first=prompts)
    label_run(run, [1])
    assert "furthermore" in labels[1].text


def test_texts_without_a_common_word():
    counts = count_words([f"unique{chr(97 + i)}" for i in range(20)])
    assert contrastive_label(counts, np.arange(20.0), np.ones(20)).text == "no words to compare"


def test_texts_of_one_single_word_get_a_label_where_some_lack_it():
    counts = count_words(["alpha"] * 40)
    assert contrastive_label(counts, np.arange(40.0), np.ones(40)).text == "no word sets the ends apart"
    counts = count_words(["alpha"] * 20 + [""] * 20)
    assert contrastive_label(counts, -np.arange(40.0), np.ones(40)).text == "alpha : none"


def test_a_word_of_content_that_barely_tells_does_not_come_before_one_that_tells_all():
    rng = np.random.default_rng(7)
    scores = np.linspace(1, -1, 600)
    texts = [
        " . ".join(
            ["p"] * int(score > 0)
            + ["cookies"] * int(rng.random() < 0.4 + 0.15 * np.sign(score))
            + ["tree", "tree"]
        )
        for score in scores
    ]
    label = contrastive_label(count_words(texts), scores, np.full(600, 9))
    assert [word for word, _ in label.positive] == ["p", "cookies"]  # they stand in different sentences


def test_a_label_survives_being_stored():
    label = Label("a : b", "words", (("a", 3.0),), (("b", 2.5),))
    assert Label.from_dict(json.loads(json.dumps(label.as_dict()))) == label


# --- labels by a language model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "pair"),
    [
        ("Axes...\nLABEL: long story : short sum", "long story : short sum"),
        ("**LABEL:** *telling* : *counting*.", "telling : counting"),
        ("LABEL: <words> vs. <numbers>", "words : numbers"),
        ("label: a:b\nthen\nLabel: c : d\n", "c : d"),
    ],
)
def test_the_contrast_pair_is_parsed(answer, pair):
    assert parse_contrast(answer) == pair


@pytest.mark.parametrize("answer", ["", "I cannot say.", "LABEL: only one side", "LABEL: ** : **"])
def test_an_answer_without_a_pair_is_refused(answer):
    with pytest.raises(BasiscopeError, match="gave no contrast pair"):
        parse_contrast(answer)


KEY = "sk-very-secret-key"


@pytest.fixture
def server(monkeypatch):
    """An OpenAI-compatible server; `reply` is (status, type, body) for the next requests, `asked` what came."""

    class Handler(BaseHTTPRequestHandler):
        reply = (200, "application/json", "")
        asked: list = []  # noqa: RUF012

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked.append((self.path, self.headers["Authorization"], body))
            status, kind, answer = self.reply
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("x-should-retry", "false")
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_args):
            pass

    Handler.asked = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("BASISCOPE_LLM_URL", f"http://127.0.0.1:{http.server_port}/v1")
    monkeypatch.setenv("BASISCOPE_LLM_MODEL", "test-model")
    monkeypatch.setenv("BASISCOPE_LLM_KEY", KEY)
    yield Handler
    http.shutdown()


def completion(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, "application/json", json.dumps(body)


def test_a_language_model_is_asked_for_the_ten_extremes(server):
    server.reply = completion("One axis.\nLABEL: telling tales : doing sums")
    texts = [f"text number {i} {'x' * 5_000}" for i in range(15)]
    label = label_by_model(Endpoint.from_environment(), texts, ['say "hi" {braces}'])
    assert label.text == "telling tales : doing sums" and label.source == "model" and label.author == "test-model"
    assert label.raw == "One axis.\nLABEL: telling tales : doing sums"
    ((path, authorization, body),) = server.asked
    assert path == "/v1/chat/completions" and authorization == f"Bearer {KEY}"
    prompt = body["messages"][0]["content"]
    assert body["model"] == "test-model" and KEY not in json.dumps(body)
    assert "text number 9" in prompt and "text number 10" not in prompt and "{braces}" in prompt
    assert len(prompt) < LLM_EXAMPLES * (LLM_CHARACTERS + 10) + 1_000


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((401, "application/json", json.dumps({"error": {"message": f"bad key {KEY}"}})), "could not answer"),
        ((500, "text/plain", "broken"), "could not answer"),
        ((200, "text/html", "<html>a web page</html>"), "gave no chat completion"),
        ((200, "application/json", "{not json"), "could not answer|gave no chat completion"),
        ((200, "application/json", '{"choices": []}'), "gave no chat completion"),
        (completion(None), "gave no contrast pair"),
        (completion("no idea"), "gave no contrast pair"),
    ],
)
def test_answers_that_cannot_be_used(server, reply, sentence):
    server.reply = reply
    with pytest.raises(BasiscopeError, match=sentence) as error:
        label_by_model(Endpoint.from_environment(), ["a"], ["b"])
    assert KEY not in str(error.value)


def test_without_a_server(monkeypatch):
    for name in ("URL", "MODEL"):
        monkeypatch.delenv(f"BASISCOPE_LLM_{name}", raising=False)
    assert Endpoint.from_environment() is None
    with pytest.raises(BasiscopeError, match="could not answer"):
        label_by_model(Endpoint("http://127.0.0.1:9/v1", "m"), ["a"], ["b"])


def test_a_run_keeps_the_answer_and_never_the_key(server, gsm8k_copy):
    run = gsm8k_copy.run()
    server.reply = completion("LABEL: left : right")
    label_by_endpoint(run, [2])
    assert run.labels()[2].text == "left : right" and run.labels()[2].raw == "LABEL: left : right"
    assert run.labels()[1].source == "words"
    asked = server.asked[0][2]["messages"][0]["content"]
    best = run.scores()["d2"].argmax()
    assert json.dumps(run.examples()["text"][best][:LLM_CHARACTERS], ensure_ascii=False) in asked
    assert not any(KEY.encode() in path.read_bytes() for path in gsm8k_copy.root.rglob("*") if path.is_file())


def test_the_labels_that_came_are_kept(server, gsm8k_copy, monkeypatch):
    run, texts = gsm8k_copy.run(), iter(["LABEL: a : b", "no idea", "LABEL: c : d"])
    monkeypatch.setattr(server, "reply", property(lambda _self: completion(next(texts))))
    before = run.labels()[2].text
    with pytest.raises(
        BasiscopeError, match=r"1 of 3 directions got no label; the others are kept. Direction 2: "
    ):
        label_by_endpoint(run, [1, 2, 3])
    assert [run.labels()[j].text for j in (1, 2, 3)] == ["a : b", before, "c : d"]


# --- tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was.",
        "naïve café 🙂🙂🙂 end",
        "你好世界" * 12,
        "a\ufffd\ufffdb",
        "🙂" * 20,
        " two  spaces ",
    ],
)
def test_token_texts_join_to_the_decoded_text(stories, text):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = tokenizer(text).input_ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids) and "\ufffd" * text.count("\ufffd") in "".join(texts)


def test_the_tokens_of_an_example_average_to_its_score(gsm8k_run):
    scores, windows = gsm8k_run.scores().set_index("example_id"), gsm8k_run.windows()
    shaded = [i for i in range(len(windows)) if gsm8k_run.has_token_scores(int(windows.example_id[i]))]
    assert len(shaded) > 20
    spread = scores.to_numpy().std()
    for i in shaded:
        tokens = gsm8k_run.token_scores(int(windows.example_id[i]))
        assert len(tokens.tokens) == len(tokens.scores) == windows.lengths[i]
        assert np.isnan(tokens.scores[: windows.first[i]]).all()
        window = tokens.scores[windows.first[i] :].mean(axis=0)
        # float32 sums in another order
        np.testing.assert_allclose(window, scores.loc[tokens.example_id], atol=1e-4 * spread)


def test_shading_an_unknown_example_is_refused(gsm8k_copy):
    run = gsm8k_copy.run()
    with pytest.raises(BasiscopeError, match="has no example 9999"):
        shade_examples(run, load_run_model(run, "cpu"), [9_999])
