"""Servers that answer what none should: nothing breaks, nothing good is lost, and each answer has its reason."""

import gzip
import json
import socket
import threading
import time
import tracemalloc
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, repeat
from urllib.parse import quote

import pytest

from core.errors import BasiscopeError
from core.evaluation import endpoint, verifier
from core.evaluation.endpoint import KEY_VARIABLE, Server
from core.evaluation.problems import Problem
from core.reading import Endpoint, label_by_model, parse_contrast
from core.server import CUT, CUT_UNSAID, ENDED, HALVES, NO_LOGPROBS, NO_TOKENS, REFUSED, UNSAID, Connection
from core.steering.generation import Sampling
from core.workspace import Workspace

KEY = 'sk-"quoted" +/key'
"""One that JSON and addresses write in other ways."""
SAMPLING = Sampling(20, temperature=1.0, seed=3)
PROBLEMS = [Problem(i, f"What is {i} + {i}?", str(2 * i)) for i in range(4)]
PROMPTS = {problem.problem_id: problem.prompt for problem in PROBLEMS}
ODD = 2
"""The problem whose answer is the odd one."""


def completion(message=None, usage=None, logprobs=None, finish="stop", **choice):
    message = {"role": "assistant", "content": "so \\boxed{4}"} | (message or {})
    logprobs = {"content": [{"token": "a", "logprob": -0.5}] if logprobs is None else logprobs}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs} | choice
    usage = {"completion_tokens": 7} if usage is None else usage
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


def good(body):
    number = int(body["messages"][0]["content"].split()[2])
    return completion({"content": f"so \\boxed{{{2 * number}}}"}), number == ODD


@pytest.fixture
def serve(monkeypatch):
    """serve(answer) -> address of a server that says `answer` of the odd problem, and what is right of others.
    An answer is a JSON value, bytes, an iterator of bytes sent one by one, or (status, headers, bytes). With
    `everywhere` every request gets it. `serve.asked` holds (path, headers) of what came."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("BASISCOPE_LLM_KEY", KEY)
    monkeypatch.setattr(endpoint, "PAUSES", (0.0,))
    started = []

    def start(answer, everywhere=False):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                start.asked.append((self.path, self.headers))
                right, is_odd = (None, True) if everywhere else good(asked)
                self.say(answer if is_odd else right)

            def do_GET(self):
                start.asked.append((self.path, self.headers))
                self.say(answer)

            def say(self, said):
                said = said() if callable(said) else said
                status, headers, body = said if isinstance(said, tuple) else (200, {}, said)
                if isinstance(body, dict | list):
                    body = json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    for part in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(part)
                        self.wfile.flush()

            def log_message(self, *_args):
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        started.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1"

    start.asked = []
    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def rolled(url, **choices):
    """(the rollouts by problem, why those of others were not read)."""
    server, unread = Server(url, "m", **({"retries": 0, "timeout": 20.0} | choices)), {}
    batches = server.roll_out(PROBLEMS, PROMPTS, verifier("math"), 1, SAMPLING, unread=unread)
    return {one.problem_id: one for batch in batches for one in batch}, {
        p: why for (_, p, _), why in unread.items()
    }


# --- answers that count, with what is odd in them -------------------------------------------------------

REFUSAL = {"content": None, "refusal": "I can't"}
REASONED = {"content": None, "reasoning_content": "let me think"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (completion(REASONED, finish="length"), {"text": "", "cut": True, "note": CUT, "right": False}),
        (completion(REASONED | {"content": ""}, finish="length"), {"cut": True, "note": CUT}),
        (completion({"content": None, "reasoning": "hm"}, finish="length"), {"note": CUT, "reasoning": "hm"}),
        (completion({"content": None}, finish="length"), {"text": "", "cut": True, "note": CUT_UNSAID}),
        (completion(REASONED), {"text": "", "cut": False, "note": UNSAID, "right": False}),
        (completion(REFUSAL), {"text": "I can't", "note": REFUSED, "right": False, "cut": False}),
        (completion(REFUSAL | {"content": "", "refusal": "no: \\boxed{4}"}), {"note": REFUSED, "right": True}),
        (completion({"refusal": None, "tool_calls": None}), {"note": None, "right": True}),
        *(
            (
                completion({"content": said}, finish=why),
                {"text": said or "", "note": ENDED[why], "right": bool(said)},
            )
            for why in ("content_filter", "tool_calls", "function_call")
            for said in (None, "it is 4")
        ),
        (completion({"content": None, "tool_calls": [{"id": "1"}]}), {"text": "", "note": ENDED["tool_calls"]}),
        (completion(REASONED | {"content": "4"}), {"text": "4", "reasoning": "let me think", "note": None}),
        (completion({"content": [{"type": "text", "text": "it is 4"}]}), {"text": "it is 4", "note": None}),
        (completion({"content": "\ud83d\ude00 \ud83d is 4"}), {"text": "\U0001f600 � is 4", "note": HALVES}),
        (completion(usage={}), {"n_tokens": 1, "note": None}),
        (completion(usage={"completion_tokens": 0}), {"n_tokens": 0, "note": None}),
        *(
            (completion(usage={"completion_tokens": told}), {"n_tokens": 1, "note": NO_TOKENS, "right": True})
            for told in (-5, 10**30, "7", float("nan"), True, [7], 7.5)
        ),
        (completion(usage=[1]), {"n_tokens": 1, "right": True}),
        (completion(usage={"completion_tokens": -1}, logprobs=[]), {"n_tokens": None, "logprob": None}),
        *(
            (completion(logprobs=[{"logprob": -0.5}, {"logprob": told}]), {"logprob": None, "note": NO_LOGPROBS})
            for told in (float("nan"), float("inf"), float("-inf"), 0.5, -1e300, "-0.5", True, [1])
        ),
        (completion(logprobs=["no"]), {"logprob": None, "note": NO_LOGPROBS}),
        (completion(logprobs=[{"logprob": -1}, {"logprob": None}, {"logprob": 0.0}]), {"logprob": -0.5}),
        (completion(logprobs=0), {"note": NO_LOGPROBS, "right": True}),
    ],
)
def test_what_is_odd_in_an_answer_is_noted(serve, answer, expected):
    found, unread = rolled(serve(answer))
    assert not unread and sorted(found) == [0, 1, 2, 3]
    odd = found.pop(ODD).as_dict()
    assert {name: odd[name] for name in expected} == expected
    assert all(one.right and one.note is None and one.n_tokens == 7 for one in found.values())


@pytest.mark.parametrize("answer", [completion(REFUSAL), completion({"content": None}, finish="content_filter")])
def test_where_no_answer_has_a_text_each_is_an_outcome_asked_for_once(serve, answer):
    found, unread = rolled(serve(answer, everywhere=True))
    assert len(found) == len(serve.asked) == 4 and not unread


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"error": {"message": "model overloaded."}}, "error instead of an answer: model overloaded."),
        (completion({"content": None}), "without a text, ended by stop."),
    ],
)
def test_what_the_server_says_is_told_and_no_address_called_wrong(serve, answer, sentence):
    url = serve(answer, everywhere=True)
    with pytest.raises(BasiscopeError, match="gave no answer that can be read") as error:
        rolled(url)
    assert str(error.value).endswith(sentence)
    assert "usually ends" not in str(error.value)


# --- answers that do not count --------------------------------------------------------------------------


def page(body=b"<html>welcome</html>", status=200, **headers):
    return status, headers, body


LONG = page(json.dumps(completion({"content": "x" * 3_000_000})).encode())
BOMB = page(gzip.compress(b" " * 60_000_000), **{"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"choices": [{"message": None}]}, "a message that is no object"),
        (completion({"content": None}), "without a text, ended by stop"),
        (completion({"content": 5}), "without a text"),
        (completion({"content": None}, finish="\x1b[31m"), "without a text"),
        ({"choices": []}, "0 choices where one was asked for"),
        (completion() | {"choices": completion()["choices"] * 3}, "3 choices"),
        ({"choices": ["text"]}, "a choice that is no object"),
        ({"choices": [None]}, "a choice that is no object"),
        ({"choices": {"0": 1}}, "without choices"),
        ({"error": {"message": f"overloaded, {KEY}"}}, "an error instead of an answer: overloaded, ***"),
        ({"error": "no such model", "choices": []}, "an error instead of an answer: no such model"),
        ({"error": {"code": 5}, "choices": None}, 'an error instead of an answer: {"code": 5}'),
        ([1], "not a JSON object"),
        (page(), "not JSON"),
        (page(b""), "not JSON"),
        (page(b'{"choices": [' + b"9" * 10_000), "not JSON"),
        (page(b"\xff\xfe\x00"), "not JSON"),
        (page(b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
        (page(b'{"choices":' * 50_000 + b"1" + b"}" * 50_000), "nested too deeply"),
        (LONG, "longer than 1.0 MiB"),
        (lambda: page(islice(repeat(b" " * 1_000_000), 10**9)), "longer than 1.0 MiB"),
        (BOMB, "longer than 1.0 MiB unpacked"),
        (page(b"not packed", **{"Content-Encoding": "gzip"}), "packed, and damaged"),
        (page(b"x", **{"Content-Encoding": "br"}), "packed in a way that was not asked for"),
        (completion({"content": f"your key is {KEY}"}), "holds the key that was sent"),
    ],
)
def test_what_cannot_be_used_is_counted_with_its_reason_and_the_rest_kept(serve, answer, why):
    found, unread = rolled(serve(answer))
    assert list(unread) == [ODD] and why in unread[ODD] and KEY not in unread[ODD]
    assert sorted(found) == [0, 1, 3] and all(one.right for one in found.values())


def test_packed_answers_are_read(serve):
    packed = gzip.compress(json.dumps(completion()).encode())
    found, _ = rolled(serve(page(packed, **{"Content-Encoding": "gzip"})))
    assert found[ODD].right


def test_no_more_is_read_than_an_answer_can_have(serve):
    sent = []

    def endless():
        def parts():
            for _ in range(60):
                sent.append(1_000_000)
                yield b" " * 1_000_000

        return page(parts())

    tracemalloc.start()
    found, unread = rolled(serve(endless), concurrency=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 3 and "longer than" in unread[ODD]
    assert peak < 30_000_000 and sum(sent) < 2 * 30_000_000, "two tries, each cut off early"


def dripping(seconds=30):
    def parts():
        for _ in range(int(seconds / 0.05)):
            time.sleep(0.05)
            yield b" "

    return page(parts())


def test_an_answer_that_drips_is_given_up(serve):
    start = time.monotonic()
    found, unread = rolled(serve(dripping), timeout=0.5)
    assert unread == {ODD: "still coming after 0.5 seconds"} and len(found) == 3
    assert time.monotonic() - start < 15


def test_a_head_that_drips_is_asked_for_again_and_given_up(monkeypatch):
    """One letter of a header at a time, so that no single read takes long."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    tries = []

    def drip(listener):
        while True:
            with suppress(OSError):
                connection, _ = listener.accept()
                tries.append(connection)
                threading.Thread(target=letters, args=(connection,), daemon=True).start()

    def letters(connection):
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            for _ in range(600):
                time.sleep(0.05)
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(BasiscopeError, match=r"did not answer after 2 tries .*no answer in time"):
            Connection(url, KEY_VARIABLE, timeout=0.5, retries=1).models()
    assert len(tries) == 2


# --- refusals, redirects and keys -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_neither_key_nor_texts_go_elsewhere(serve, status):
    thief = serve(completion(), everywhere=True)
    server = serve((status, {"Location": f"{thief}/chat/completions?{KEY}"}, b""), everywhere=True)
    with pytest.raises(
        BasiscopeError, match=r"sends elsewhere \(http://127.*where neither key nor texts"
    ) as error:
        rolled(server, concurrency=1)
    assert KEY not in str(error.value) and "***" in str(error.value)
    ports = {headers["Host"] for _, headers in serve.asked}
    assert ports == {server.split("/")[2]}, "the other server was never asked"
    with pytest.raises(BasiscopeError, match="sends elsewhere"):
        Server.at(server, retries=0)


def test_another_path_of_the_same_address_is_followed(serve):
    answers = iter([(307, {"Location": "/v1/other"}, b""), completion(), completion(), completion(), completion()])
    found, unread = rolled(serve(lambda: next(answers), everywhere=True), concurrency=1)
    assert len(found) == 4 and not unread
    assert [path for path, _ in serve.asked][:2] == ["/v1/chat/completions", "/v1/other"]
    assert {headers["Authorization"] for _, headers in serve.asked} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("location", ["http://[", "//", "ftp://x", "\x00", "/v1/chat/completions"])
def test_redirects_to_nowhere_and_in_circles(serve, location):
    with pytest.raises(BasiscopeError, match=r"sends elsewhere|did not answer"):
        rolled(serve((307, {"Location": location}, b""), everywhere=True), concurrency=1)
    assert len(serve.asked) <= 3


ECHOES = [KEY, json.dumps(KEY), json.dumps(json.dumps(KEY)), quote(KEY), "x" * 290 + KEY, f"Bearer {KEY}" * 9]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_server_that_says_the_key_is_not_repeated(serve, status, echo):
    with pytest.raises(BasiscopeError) as error:
        rolled(serve((status, {}, json.dumps({"error": {"message": echo}}).encode()), everywhere=True))
    for secret in (KEY, json.dumps(KEY)[1:-1], KEY[:8], "+/key"):
        assert secret not in str(error.value)


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff" * 5_000_000, b"{" * 100, b"\x1b[31m red"])
def test_refusals_in_any_form_are_a_sentence(serve, body):
    with pytest.raises(BasiscopeError, match="refused what it was asked") as error:
        rolled(serve((404, {}, body), everywhere=True))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://me:secret@host/v1", "without a name, password"),
        ("http://host/v1?api_key=secret", "without a name, password"),
        ("http://host:99999999/v1", "give its address"),
        ("http://[::1", "give its address"),
        ("http:///v1", "give its address"),
        ("file:///etc/passwd", "give its address"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(url, sentence):
    with pytest.raises(BasiscopeError, match=sentence) as error:
        Server.at(url, "m")
    assert "without" not in sentence or "secret" not in str(error.value)
    with pytest.raises(BasiscopeError, match=sentence):
        label_by_model(Endpoint(url, "m"), ["a"], ["b"])


@pytest.mark.parametrize("key", ["sk-geheim\nX-Evil: 1", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_said_and_not_shown(serve, monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(BasiscopeError, match="has characters that cannot be sent") as error:
        rolled(serve(completion()))
    assert key not in str(error.value) and not serve.asked
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    assert len(rolled(serve(completion()))[0]) == 4, "the end of a line is no part of it"


@pytest.mark.parametrize(
    "listed",
    [{"data": [None, 5, {"id": 5}, {"id": f"m\x1b {KEY}"}]}, {"data": [{"id": "n" * 10**6}]}],
)
def test_a_list_of_models_is_read_carefully(serve, listed):
    (name,) = Connection(serve(listed), KEY_VARIABLE, retries=0).models()
    assert KEY not in name and name.isprintable() and len(name) <= 300


@pytest.mark.parametrize("listed", [{"data": 5}, [], page(), page(b"[" * 100_000), page(b" " * 20_000_000)])
def test_a_list_of_models_that_is_none(serve, listed):
    with pytest.raises(BasiscopeError, match="gave no list of models"):
        Server.at(serve(listed), retries=0)


# --- as a person sees it --------------------------------------------------------------------------------


def test_an_evaluation_says_what_was_odd_and_keeps_no_key(serve, run_cli, write_rows, tmp_path):
    sums = write_rows([{"problem": problem.prompt, "answer": problem.answer} for problem in PROBLEMS])
    asked = ("evaluate", "--problems", sums, "--rollouts", 2, "--wording", "bare", "--model-name", "m")
    url = serve(completion(REASONED, finish="length"))
    status, out, err = run_cli(*asked, "--endpoint", url, "--workspace", tmp_path / "a")
    assert status == 0, err
    assert f"unsteered: 2 of 8 texts noted: {CUT}." in out and "2 of 8 texts cut at the token limit" in out
    (kept,) = Workspace(tmp_path / "a").evaluations()
    assert kept.is_complete and kept.manifest["result"]["variants"][0]["pass_at"]["1"]["value"] == 0.75
    assert [one.reasoning for one in kept.rollouts() if one.problem_id == ODD] == ["let me think"] * 2
    url = serve(completion({"content": f"the key is {KEY}"}))
    status, out, err = run_cli(*asked, "--endpoint", url, "--workspace", tmp_path / "b")
    assert status == 0 and "2 of them: holds the key that was sent." in out, err
    (kept,) = Workspace(tmp_path / "b").evaluations()
    assert kept.manifest["unread_reasons"] == {"holds the key that was sent": 2} and not kept.is_complete
    everything = out + err + "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in everything and json.dumps(KEY)[1:-1] not in everything


# --- labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (completion(REASONED, finish="length"), "used up its tokens before it gave a contrast pair"),
        (completion(REASONED), "gave no contrast pair"),
        (completion({"content": f"LABEL: {KEY} : b"}), "holds the key that was sent"),
        (completion({"content": "LABEL: " + "a" * 1_000 + " : b"}), "gave no contrast pair"),
        (completion({"content": "LABEL:" + " " * 500_000}), "gave no contrast pair"),
        (page(b"[" * 100_000), r"gave no chat completion .*\(nested too deeply\)"),
        (page(b" " * 5_000_000), r"\(longer than 1.0 MiB\)"),
        (completion() | {"choices": []}, "0 choices"),
        ((307, {"Location": "http://example.invalid/"}, b""), "could not answer: .*sends elsewhere"),
        ((401, {}, json.dumps(ECHOES).encode()), r"wants a key: set BASISCOPE_LLM_KEY"),
    ],
)
def test_labels_are_asked_for_likewise(serve, answer, sentence):
    start = time.monotonic()
    with pytest.raises(BasiscopeError, match=sentence) as error:
        label_by_model(Endpoint(serve(answer, everywhere=True), "m"), ["a"], ["b"])
    assert KEY not in str(error.value) and time.monotonic() - start < 10


def test_a_label_has_no_halves_and_no_control_characters(serve):
    answer = completion({"content": "LABEL: \ud83dtales\x1b[2J : sums"})
    label = label_by_model(Endpoint(serve(answer, everywhere=True), "m"), ["a"], ["b"])
    assert label.text == "�tales[2J : sums" and label.raw.encode()
    assert parse_contrast("LABEL: a\tb : c") == "a b : c"
