"""Rollouts by a server, the step `evaluate` and its command."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.errors import BasiscopeError
from core.evaluation import verifier
from core.evaluation.endpoint import HOPELESS, KEY_VARIABLE, Server
from core.evaluation.problems import Problem, read_problems
from core.evaluation.rollouts import UNSTEERED
from core.evaluation.step import Request, evaluate, evaluate_server
from core.model import load_model
from core.steering.generation import Sampling
from core.steering.intervention import Steering
from core.tables import evaluation_sentences
from core.workspace import Workspace, content_hash

KEY = "sk-very-secret-key"
SAMPLING = Sampling(20, temperature=1.0, seed=3)
PROBLEMS = [Problem(i, f"What is {i} + {i}?", str(2 * i)) for i in range(10)]
PROMPTS = {problem.problem_id: problem.prompt for problem in PROBLEMS}


def completion(text, finish="stop", logprobs=(-0.5, -1.5)):
    content = [{"token": "a", "logprob": value, "bytes": None, "top_logprobs": []} for value in logprobs]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    usage = {"prompt_tokens": 3, "completion_tokens": len(logprobs), "total_tokens": 5}
    return 200, json.dumps(body | {"choices": [choice | {"logprobs": {"content": content}}], "usage": usage})


@pytest.fixture
def server(monkeypatch):
    """A server that answers what `reply(body)` returns, (status, text); `asked` holds what came."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        models = ("m",)
        asked: list = []  # noqa: RUF012

        def do_GET(self):
            self._send(
                200, json.dumps({"object": "list", "data": [{"id": m, "object": "model"} for m in self.models]})
            )

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked.append((self.path, self.headers["Authorization"], body))
            self._send(*type(self).reply(body))

        def _send(self, status, text):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(text.encode())

        def log_message(self, *_args):
            pass

    Handler.asked = []
    Handler.reply = staticmethod(lambda body: completion(f"so \\boxed{{{2 * number_in(body)}}}"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    Handler.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield Handler
    http.shutdown()


def number_in(body):
    return int(body["messages"][0]["content"].split()[2])


@pytest.fixture
def sums(write_rows):
    return write_rows([{"problem": problem.prompt, "answer": problem.answer} for problem in PROBLEMS])


def rolled(server, r=2, done=frozenset(), **choices):
    found = Server.at(server.url, **({"retries": 0, "timeout": 20.0} | choices))
    batches = found.roll_out(PROBLEMS, PROMPTS, verifier("math"), r, SAMPLING, done)
    return [one for batch in batches for one in batch]


def test_every_problem_is_asked_r_times_with_its_own_seed(server):
    found = rolled(server)
    assert {one.key for one in found} == {(UNSTEERED, p, i) for p in range(10) for i in range(2)}
    assert all(one.right and not one.cut and one.logprob == -1.0 and one.n_tokens == 2 for one in found)
    seeds = {body["seed"] for _, _, body in server.asked}
    assert len(seeds) == len(server.asked) == 20
    path, authorization, body = server.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (body["temperature"], body["max_tokens"], body["model"]) == (1.0, 20, "m")
    assert len(rolled(server, done=frozenset(one.key for one in found[:15]))) == 5


def test_busy_servers_are_asked_again(server):
    failures = Counter()

    def reply(body):
        failures[body["seed"]] += 1
        return (503, "{}") if failures[body["seed"]] == 1 else completion("\\boxed{0}")

    server.reply = staticmethod(reply)
    assert len(rolled(server, retries=2, concurrency=20)) == 20
    assert len(server.asked) == 40


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((500, "it is broken"), "did not answer"),
        ((401, "{}"), f"wants a key: set {KEY_VARIABLE}"),
        (
            (404, '{"error": "no such model, sk-very-secret-key"}'),
            r"refused what it was asked .*no such model, \*\*\*",
        ),
        ((200, "<html>welcome</html>"), "no answer that can be read; its address usually ends in /v1"),
        ((200, "{}"), "no answer that can be read"),
    ],
)
def test_servers_that_cannot_be_used(server, reply, sentence):
    server.reply = staticmethod(lambda _body: reply)
    with pytest.raises(BasiscopeError, match=sentence) as error:
        rolled(server)
    assert KEY not in str(error.value)
    assert len(server.asked) <= 3 * (HOPELESS + 8)


def test_a_server_that_is_down_or_slow(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(BasiscopeError, match=r"did not answer after 1 tries .*the same command continues"):
        list(Server(url, "m", retries=0).roll_out(PROBLEMS, PROMPTS, verifier("math"), 1, SAMPLING))
    with pytest.raises(BasiscopeError, match="did not answer"):
        Server.at(url, retries=0)

    def slow(_body):
        time.sleep(60)
        return completion("late")

    server.reply = staticmethod(slow)
    start = time.monotonic()
    with pytest.raises(BasiscopeError, match="did not answer after 1 tries"):
        rolled(server, timeout=0.5)
    assert time.monotonic() - start < 40, "nothing waits for the requests that are under way"


def test_what_cannot_be_read_is_asked_for_again_and_stays_undone(server, sums, run_cli, tmp_path):
    broken = {4, 7}

    def reply(body):
        number = number_in(body)
        return (200, '{"choices": []}') if number in broken else completion(f"\\boxed{{{2 * number}}}")

    server.reply = staticmethod(reply)
    asked = ("evaluate", "--problems", sums, "--rollouts", 1, "--wording", "bare", "--endpoint", server.url)
    asked = (*asked, "--workspace", tmp_path / "w")
    status, out, err = run_cli(*asked)
    assert status == 0, err
    assert "2 of the server's texts could not be read and are not counted (rows 4, 7); the same command" in out
    assert sum(number_in(body) == 4 for _, _, body in server.asked) == 3
    (kept,) = Workspace(tmp_path / "w").evaluations()
    (found,) = kept.manifest["result"]["variants"]
    assert (found["rollouts"], found["pass_at"]["1"]["value"], kept.is_complete) == (8, 1.0, False)
    assert kept.manifest["unread"] == [[4, 0], [7, 0]] and len(kept.rollouts()) == 8
    broken.clear()
    before = len(server.asked)
    status, out, err = run_cli(*asked)
    assert status == 0 and "could not be read" not in out, err
    assert kept.is_complete and len(kept.rollouts()) == 10 and len(server.asked) - before == 2


def test_a_server_that_turns_to_garbage_is_given_up_and_continued(server, sums, tmp_path):
    calls, times = Counter(), []

    def reply(body):
        calls["all"] += 1
        times.append(time.monotonic())
        number = number_in(body)
        return (200, "<html>sorry</html>") if calls["all"] > 12 else completion(f"\\boxed{{{2 * number}}}")

    server.reply = staticmethod(reply)
    space, request = Workspace(tmp_path), Request(read_problems(sums), "math", 4, SAMPLING, "bare")
    with pytest.raises(BasiscopeError, match=f"gave {HOPELESS} answers in a row that cannot be read.*continues"):
        evaluate_server(request, space, Server.at(server.url, retries=0, concurrency=HOPELESS))
    (begun,) = space.evaluations()
    assert len(begun.rollouts()) == 12 and all(one.right for one in begun.rollouts()) and not begun.is_complete
    assert times[-1] - times[12] > 1, "it is not asked again at once"
    calls["all"] = -1_000
    finished = evaluate_server(request, space, Server.at(server.url, retries=0))
    assert finished.is_complete and finished.manifest["result"]["variants"][0]["pass_at"]["1"]["value"] == 1.0


def test_what_was_refused_and_later_made_is_not_left_out(server, sums, tmp_path):
    calls = Counter()

    def reply(body):
        calls["all"] += 1
        if number_in(body) == 2:
            return 400, '{"error": "too long"}'
        return (500, "down") if calls["all"] > 8 else completion("\\boxed{1}")

    server.reply = staticmethod(reply)
    space, request = Workspace(tmp_path), Request(read_problems(sums), "math", 1, SAMPLING, "bare")
    with pytest.raises(BasiscopeError, match="did not answer"):
        evaluate_server(request, space, Server.at(server.url, retries=0, concurrency=1))
    assert space.evaluations()[0].manifest["left_out"]["refused"] == [2]
    server.reply = staticmethod(lambda _body: completion("\\boxed{1}"))
    kept = evaluate_server(request, space, Server.at(server.url, retries=0))
    assert kept.is_complete and len(kept.rollouts()) == 10
    assert "refused" not in kept.manifest["left_out"] and "refusals" not in kept.manifest


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_problem_that_the_server_refuses_is_left_out_and_named(server, sums, run_cli, tmp_path, status):
    def reply(body):
        number = number_in(body)
        return (status, '{"error": "too long"}') if number in (0, 4) else completion(f"\\boxed{{{2 * number}}}")

    server.reply = staticmethod(reply)
    place = ("--problems", sums, "--rollouts", 2, "--wording", "bare", "--endpoint", server.url)
    status, out, err = run_cli("evaluate", *place, "--concurrency", 2, "--workspace", tmp_path / "w")
    assert status == 0, err
    assert "2 problems left out: the server refused them, as it does what is too long (rows 0, 4)." in out
    assert out.count("100.0% (") >= 2 and "8 problems of rows.jsonl" in out
    (kept,) = Workspace(tmp_path / "w").evaluations()
    assert kept.manifest["left_out"]["refused"] == [0, 4] and "too long" in kept.manifest["refusals"]["4"]
    assert kept.is_complete and {one.problem_id for one in kept.rollouts()} == {1, 2, 3, 5, 6, 7, 8, 9}


def test_where_all_is_refused_it_is_an_error(server):
    server.reply = staticmethod(lambda _body: (400, '{"error": "nothing of that"}'))
    with pytest.raises(BasiscopeError, match=r"refused what it was asked .*nothing of that"):
        rolled(server, r=1)
    assert len(server.asked) <= 2 * (HOPELESS + 8)
    server.reply = staticmethod(lambda body: (400, "{}") if number_in(body) < 5 else (200, "<html>"))
    with pytest.raises(BasiscopeError, match="no answer that can be read"):
        rolled(server, r=1)
    server.reply = staticmethod(lambda body: (400, "{}") if number_in(body) < 7 else completion("\\boxed{1}"))
    assert {one.problem_id for one in rolled(server, r=1)} == {7, 8, 9}


def test_a_server_that_stays_busy_keeps_what_has_come(server, sums, tmp_path):
    calls = Counter()

    def reply(body):
        calls["all"] += 1
        return (429, '{"error": "slow down"}') if calls["all"] > 6 else completion("\\boxed{1}")

    server.reply = staticmethod(reply)
    space, request = Workspace(tmp_path), Request(read_problems(sums), "math", 1, SAMPLING, "bare")
    with pytest.raises(BasiscopeError, match="What has come is kept; the same command continues"):
        evaluate_server(request, space, Server.at(server.url, retries=0, concurrency=1))
    assert len(space.evaluations()[0].rollouts()) == 6


def test_the_model_that_is_named_is_asked_there(server, sums, run_cli, tmp_path, stories):
    server.models = ("a", "b")
    place = ("--problems", sums, "--wording", "bare", "--limit", 1, "--rollouts", 1, "--endpoint", server.url)
    place += ("--workspace", tmp_path / "w")
    status, _, err = run_cli("evaluate", "b", *place)
    assert status == 0 and [body["model"] for *_, body in server.asked] == ["b"], err
    status, _, err = run_cli("evaluate", stories, *place)
    assert status == 2 and f"is neither a run nor a model of {server.url}, which serves a, b" in " ".join(
        err.split()
    )
    assert run_cli("evaluate", "a", *place, "--model-name", "b")[0] == 2
    assert run_cli("evaluate", "b", *place, "--model-name", "b")[0] == 0
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--model-name", "m"), "--model-name is for --endpoint"),
        (("--concurrency", "3"), "--concurrency is for --endpoint"),
        (("--timeout", "3"), "--timeout is for --endpoint"),
        (("--endpoint", "http://localhost:1/v1", "--device", "cpu"), "--device is for a model here"),
        (("--unit", "sd"), "--unit is of --steer"),
    ],
)
def test_what_would_not_be_heeded_is_wrong_usage(run_cli, sums, tmp_path, options, sentence):
    status, out, err = run_cli("evaluate", "m/m", "--problems", sums, *options, "--workspace", tmp_path)
    assert (status, out) == (2, "") and sentence in " ".join(err.split())


def test_the_model_is_the_only_one_or_named(server):
    assert Server.at(server.url).model == "m"
    server.models = ("a", "b")
    with pytest.raises(BasiscopeError, match="lists a, b; name one with --model-name"):
        Server.at(server.url)
    assert Server.at(server.url, "c").model == "c"
    server.models = ()
    with pytest.raises(BasiscopeError, match="lists no model"):
        Server.at(server.url)
    with pytest.raises(BasiscopeError, match="give its address"):
        Server.at("localhost:8000")


def test_servers_without_log_probabilities(server):
    def reply(body):
        if "logprobs" in body:
            return 422, '{"detail": "Unsupported fields: logprobs"}'
        return 200, completion("\\boxed{0}")[1].replace("-0.5", "null").replace("-1.5", "null")

    server.reply = staticmethod(reply)
    found = rolled(server, r=1)
    assert len(found) == 10 and all(one.logprob is None for one in found)


def test_an_evaluation_by_a_server_continues_where_it_failed(server, sums, tmp_path):
    calls = Counter()

    def reply(body):
        calls["all"] += 1
        number = number_in(body)
        return (500, "down") if calls["all"] > 24 else completion(f"\\boxed{{{2 * number}}}")

    server.reply = staticmethod(reply)
    space = Workspace(tmp_path)
    request = Request(read_problems(sums), "math", 4, SAMPLING, "bare")
    with pytest.raises(BasiscopeError, match="the same command continues"):
        evaluate_server(request, space, Server.at(server.url, retries=0, concurrency=2))
    (begun,) = space.evaluations()
    kept = len(begun.rollouts())
    assert 20 <= kept < 40 and begun.manifest["status"] == "under way"
    calls["all"] = -1_000
    before = len(server.asked)
    finished = evaluate_server(request, space, Server.at(server.url, retries=0))
    assert finished.id == begun.id and finished.is_complete and len(server.asked) - before == 40 - kept
    assert len(finished.rollouts()) == 40 and list(finished.problems().values()) == PROBLEMS
    assert finished.manifest["result"]["variants"][0]["pass_at"]["4"]["value"] == 1.0
    assert evaluate_server(request, space, Server.at(server.url)).id == begun.id, "a finished one is only read"
    assert len(server.asked) - before == 40 - kept
    everything = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in everything
    with pytest.raises(BasiscopeError, match="A server cannot steer"):
        evaluate_server(
            Request(read_problems(sums), "math", 4, SAMPLING, variants={"1:+2": Steering(((1, 2.0),))}),
            space,
            Server.at(server.url),
        )


# --- in process -----------------------------------------------------------------------------------------


def test_a_stopped_evaluation_continues_to_the_same_rollouts(gsm8k_copy, stories, data_folder, tmp_path):
    run, model = gsm8k_copy.run(), load_model(stories, dtype="float32", device="cpu")
    problems = read_problems(str(data_folder / "gsm8k" / "test.jsonl"), limit=6)
    variants = {"1:+2": Steering(((1, 2.0),)), "2:-1": Steering(((2, -1.0),))}
    request = Request(problems, "numeric", 4, SAMPLING, "bare", variants=variants)

    def stop(_step, done, _total):
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(request, gsm8k_copy, model, run, stop)
    (begun,) = gsm8k_copy.evaluations(run.id)
    assert begun.manifest["status"] == "under way" and len(begun.rollouts()) == 32
    finished = evaluate(request, gsm8k_copy, model, run)
    whole = evaluate(request, Workspace(tmp_path / "other"), model, run)
    assert finished.id == begun.id == whole.id and len(whole.rollouts()) == 72
    assert [one.text for one in finished.rollouts()] == [one.text for one in whole.rollouts()]
    manifest = finished.manifest
    assert manifest["request"]["model"]["fingerprint"] == model.fingerprint
    assert manifest["request"]["problems"]["fingerprint"] == problems.fingerprint
    assert {one["variant"] for one in manifest["result"]["variants"]} == {UNSTEERED, "1:+2", "2:-1"}
    assert [(one["variant"], one["k"]) for one in manifest["result"]["differences"]] == [
        (name, k) for name in variants for k in (1, 2, 4)
    ]
    (finished.folder / "rollouts" / "00000.jsonl").write_text("{")
    with pytest.raises(BasiscopeError, match="is damaged"):
        finished.rollouts()
    gsm8k_copy.delete_evaluation(finished.id[:8])
    assert gsm8k_copy.evaluations() == []
    with pytest.raises(BasiscopeError, match="no single one"):
        gsm8k_copy.evaluation("nothing")


def test_nothing_is_left_where_nothing_can_be_verified(stories, write_rows, tmp_path):
    model = load_model(stories, dtype="float32", device="cpu")
    space = Workspace(tmp_path / "space")
    path = write_rows([{"problem": "Say hello", "answer": "hello"}, {"problem": "Say bye", "answer": "bye"}])
    request = Request(read_problems(path), "numeric", 1, SAMPLING)
    with pytest.raises(BasiscopeError, match="'numeric' can verify none of the answers, such as 'hello'"):
        evaluate(request, space, model)
    mixed = write_rows(
        [{"problem": "Say hello", "answer": "hello"}, {"problem": "1+1", "answer": "2"}], "mixed.jsonl"
    )
    kept = evaluate(Request(read_problems(mixed), "numeric", 1, SAMPLING), space, model)
    assert kept.manifest["left_out"] == {"unverifiable": [0], "too_long": []}
    assert {one.problem_id for one in kept.rollouts()} == {1}
    assert len(space.evaluations()) == 1
    with pytest.raises(BasiscopeError, match="at temperature 0 would all be the same"):
        Request(read_problems(mixed), "numeric", 2, Sampling(20, temperature=0.0))


def test_what_the_chat_template_refuses_is_counted_apart(chat_stories, write_rows, tmp_path):
    model = load_model(chat_stories, dtype="float32", device="cpu")
    refuses = "{% if '2+2' in messages[0].content %}{{ raise_exception('no sums of 2') }}{% endif %}"
    model.tokenizer.chat_template = refuses + model.tokenizer.chat_template
    asked = [{"problem": text, "answer": "4"} for text in ("1+3", "2+2", "1 + 3 " * 300)]
    request = Request(read_problems(write_rows(asked)), "numeric", 1, SAMPLING, template="chat")
    kept = evaluate(request, Workspace(tmp_path / "space"), model)
    assert kept.manifest["left_out"] == {"unverifiable": [], "too_long": [2], "not_asked": [1]}
    said = evaluation_sentences(kept.manifest)
    assert (
        "1 problems left out: the chat template refuses them, or nothing is left of them to ask (rows 1)." in said
    )
    assert any("problem 1 cannot be asked: " in line and "no sums of 2" in line for line in said)


def test_what_an_earlier_verifier_said_is_left_and_named(stories, write_rows, tmp_path):
    model, space = load_model(stories, dtype="float32", device="cpu"), Workspace(tmp_path / "space")
    request = Request(read_problems(write_rows([{"problem": "1+1", "answer": "2"}])), "numeric", 1, SAMPLING)
    earlier = evaluate(request, space, model)
    stored = {name: value for name, value in earlier.manifest["request"].items() if name != "verifier_version"}
    old = earlier.folder.rename(earlier.folder.with_name(content_hash(stored)))
    before = (old / "manifest.json").read_bytes()
    kept = evaluate(request, space, model)
    (note,) = kept.manifest["notes"]
    assert kept.id == earlier.id and note.startswith(f"evaluation {old.name} asked the same")
    assert (old / "manifest.json").read_bytes() == before and len(space.evaluations()) == 2


# --- the command ----------------------------------------------------------------------------------------


def test_evaluate_steers_beside_the_unsteered_model(run_cli, gsm8k_copy, data_folder):
    options = ("--problems", data_folder / "gsm8k" / "test.jsonl", "--limit", 4, "--rollouts", 2)
    options += ("--max-new-tokens", 10, "--wording", "bare", "--device", "cpu", "--workspace", gsm8k_copy.root)
    status, out, err = run_cli("evaluate", "latest", *options, "--steer", "1:+2,3:-1", "--unit", "sd")
    assert status == 0, err
    assert "1:+2 sd,3:-1 sd" in out and "Pass@2" in out and "problems better" in out
    assert "8 of 8 texts cut at the token limit" in out
    status, out, err = run_cli("evaluate", "latest", *options, "--steer", "1:+2,3:-1", "--unit", "sd", "--json")
    found = json.loads(out)
    assert found["status"] == "complete" and found["request"]["run"] == gsm8k_copy.run().id
    assert found["problems"]["preset"] == "gsm8k" and found["request"]["verifier"] == "numeric"
    assert found["notes"] == []


def test_problems_that_are_among_the_runs_examples_are_flagged(run_cli, gsm8k_copy, gsm8k, stories):
    options = ("--problems", gsm8k, "--limit", 3, "--rollouts", 1, "--max-new-tokens", 5, "--wording", "bare")
    options += ("--device", "cpu", "--workspace", gsm8k_copy.root)
    status, out, err = run_cli("evaluate", "latest", *options)
    said = "3 of the 3 problems are also among the run's examples: what is found on them need not hold on others"
    assert status == 0 and f"Note: {said}." in out, err
    assert "log-prob. a token, all texts" in out and "nearer to 0, the surer" in out
    assert run_cli("evaluate", "latest", *options)[1] == out
    assert "also among" not in run_cli("evaluate", stories, *options)[1], "no run, no examples"


def test_evaluations_are_listed_and_deleted(run_cli, gsm8k_copy, data_folder, server, write_rows):
    problems = data_folder / "gsm8k" / "test.jsonl"
    place = ("--device", "cpu", "--workspace", gsm8k_copy.root)
    asked = ("--problems", problems, "--limit", 2, "--max-new-tokens", 5, "--rollouts", 1, *place)
    assert run_cli("evaluations", *place[2:])[1].startswith("No evaluations in")
    made = json.loads(run_cli("evaluate", "latest", *asked, "--steer", "1:+2", "--json")[1])
    sums = write_rows([{"problem": one.prompt, "answer": one.answer} for one in PROBLEMS])
    served = ("--problems", sums, "--wording", "bare", "--rollouts", 2, "--endpoint", server.url, *place[2:])
    assert run_cli("evaluate", *served)[0] == 0
    second, first = json.loads(run_cli("evaluations", "--json", *place[2:])[1])["evaluations"]
    assert (first["evaluation"], first["run"]) == (made["evaluation"], gsm8k_copy.run().id)
    assert (first["status"], first["n"], first["rollouts"], first["variants"]) == ("complete", 2, 1, 2)
    assert first["pass_at_1"] == made["result"]["variants"][0]["pass_at"]["1"]
    assert (second["model"], second["run"], second["pass_at_1"]["value"]) == ("m", None, 1.0)
    kept = gsm8k_copy.evaluation(first["evaluation"])
    kept.save_manifest({key: value for key, value in kept.manifest.items() if key != "result"} | {"status": "x"})
    status, out, _ = run_cli("evaluations", *place[2:])
    assert status == 0 and "100.0% (" in out and "interrupted" in out and "test.jsonl" in out
    with gsm8k_copy.start_evaluation(kept.manifest["request"]) as same:
        assert same.id == kept.id and "running" in run_cli("evaluations", *place[2:])[1]
        status, _, err = run_cli("delete", kept.id, "--yes", *place[2:])
        assert status == 1 and "is being made" in err and kept.folder.exists()
    kept.save_manifest({"request": {}})
    assert "unreadable" in run_cli("evaluations", *place[2:])[1]
    assert run_cli("delete", kept.id[:8], "--yes", *place[2:])[1] == f"Evaluation {kept.id} is deleted.\n"
    assert [one.id for one in gsm8k_copy.evaluations()] == [second["evaluation"]] and gsm8k_copy.runs()
    assert run_cli("delete", "", "--yes", *place[2:])[0] == 1 and gsm8k_copy.runs()


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ((), 2, "Give --problems, or a --preset"),
        (("--problems", "none.jsonl"), 1, "there is no file"),
        (("--problems", "SUMS", "--verifier", "magic"), 2, "is not one of math"),
        (("--problems", "SUMS", "--answer", "solution"), 1, "no row has the column 'solution'"),
        (("--problems", "SUMS", "--steer", "1:+2:3"), 2, "write directions and strengths"),
        (("--problems", "SUMS", "--steer", "9:+2"), 1, "has directions 1 to 3"),
        (("--problems", "SUMS", "--steer", "1:0"), 2, "a strength of 0 is the unsteered model"),
        (("--problems", "SUMS", "--wording", "hello"), 1, "{problem} in it"),
        (("--problems", "SUMS", "--temperature", "-1"), 2, "Temperature -1"),
        (("--problems", "SUMS", "--max-new-tokens", "512"), 1, "exceed the model's context"),
        (("--problems", "SUMS", "--template", "chat"), 1, "no chat template"),
        (("--problems", "SUMS", "--endpoint", "nowhere"), 1, "give its address"),
    ],
)
def test_evaluate_refuses_in_a_sentence(run_cli, gsm8k_copy, sums, options, status, sentence):
    given = [sums if option == "SUMS" else option for option in options]
    given += [] if "--endpoint" in given else ["--device", "cpu"]
    found, out, err = run_cli("evaluate", "latest", *given, "--workspace", gsm8k_copy.root)
    assert found == status and sentence in err and "Traceback" not in err and out == ""
    assert not list(gsm8k_copy.root.glob("evaluations/*/"))


def test_evaluate_needs_a_run_a_model_or_a_server(run_cli, sums, tmp_path):
    for target, status, sentence in (
        ((), 2, "Give a RUN, a MODEL, or --endpoint"),
        (("nothing",), 1, "Run 'nothing' is not in"),
        (("./nothing",), 1, "there is no folder"),
    ):
        found, _, err = run_cli("evaluate", *target, "--problems", sums, "--workspace", tmp_path)
        assert found == status and sentence in err


def test_rollouts_made_here_become_a_run_with_verdicts(run_cli, server, stories, sums, tmp_path):
    """`evaluate --traces`, `recover`, `utility`, as the README has them."""

    def reply(body):
        right = body["seed"] % 2
        return completion(f"so it is \\boxed{{{2 * number_in(body) if right else 7}}}")

    server.reply = staticmethod(reply)
    place, file = ("--workspace", tmp_path / "w"), tmp_path / "traces.jsonl"
    asked = ("--problems", sums, "--wording", "bare", "--rollouts", 6, "--endpoint", server.url, "--traces", file)
    status, out, err = run_cli("evaluate", *asked, *place)
    assert status == 0 and f"60 traces in {file}" in out, err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["problem"] for row in rows} == set(range(10)) and rows[0]["prompt"] == PROBLEMS[0].prompt
    assert {row["correct"] for row in rows} == {True, False}
    columns = ("--prompt", "prompt", "--response", "response", "--k", 2, "--device", "cpu", "--no-map")
    status, _, err = run_cli("recover", "--model", stories, "--data", file, *columns, *place)
    assert status == 0, err
    status, out, err = run_cli(
        "utility", "latest", "--correct", "correct", "--problem", "problem", "--json", *place
    )
    assert status == 0, err
    assert json.loads(out)["facts"]["traces"] == 60 and json.loads(out)["facts"]["problems"] == 10
    status, _, err = run_cli("evaluate", *asked[:-1], "/proc/none/t.jsonl", *place)
    assert status == 1 and "it cannot be written" in err and "Traceback" not in err


# --- a real server --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_server(chat_stories, tmp_path_factory):
    """`transformers serve` with the small real model; its address."""
    pytest.importorskip("fastapi", reason="transformers serve needs the packages of transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", chat_stories, "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=file, env=quiet)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3_000:]
                time.sleep(0.5)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_real_server_is_evaluated(real_server, chat_stories, data_folder, tmp_path, run_cli, template):
    options = ("--problems", data_folder / "gsm8k" / "test.jsonl", "--limit", 3, "--rollouts", 2)
    options += ("--max-new-tokens", 12, "--endpoint", real_server, "--model-name", chat_stories)
    options += ("--template", template, "--concurrency", 2, "--workspace", tmp_path)
    status, out, err = run_cli("evaluate", *options, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["request"]["server"]["model"] == chat_stories and found["status"] == "complete"
    rollouts = Workspace(tmp_path).evaluation(found["evaluation"]).rollouts()
    assert len(rollouts) == 6 and all(one.n_tokens for one in rollouts)
    assert all(one.cut and one.text for one in rollouts)


def test_a_real_server_continues_greedily_as_the_model_does(real_server, chat_stories, data_folder):
    """Temperature 0: the server's text is the one of the engine in process."""
    from core.evaluation.rollouts import encode_problems, roll_out

    problems = read_problems(str(data_folder / "gsm8k" / "test.jsonl"), limit=2).problems
    greedy, check = Sampling(12, temperature=0.0), verifier("numeric")
    model = load_model(chat_stories, dtype="float32", device="cpu")
    prompts = encode_problems(model, problems, "bare", "chat", 12)
    (ours,) = roll_out(model, problems, prompts, check, 1, greedy)
    asked = {problem.problem_id: problem.prompt for problem in problems}
    (theirs,) = Server(real_server, chat_stories).roll_out(problems, asked, check, 1, greedy)
    assert {one.key: one.text.strip() for one in theirs} == {one.key: one.text.strip() for one in ours}
