"""`utility`, `proxies` and `recommend` as commands, on the real small model and real traces."""

import json

import pytest
from places import DATA

from core.activations import Recipe
from core.examples import Columns, DataSource
from core.recovery import Request, load_run_model, recover
from core.usefulness.controls import random_model_scores
from core.usefulness.traces import read_traces
from core.usefulness.utility import estimates
from core.workspace import Workspace

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PROBLEMS = 60


@pytest.fixture(scope="module")
def traces(data_folder, stories, tmp_path_factory):
    """A workspace with a run over four model solutions with verdicts for each of PROBLEMS GSM8K problems."""
    folder = tmp_path_factory.mktemp("traces")
    with (
        (data_folder / "gsm8k" / "model_solutions.jsonl").open() as source,
        (folder / "traces.jsonl").open("w") as out,
    ):
        for line, _ in zip(source, range(PROBLEMS), strict=False):
            row = json.loads(line)
            for solver in SOLVERS:
                made = {"question": row["question"], **row[solver], "verdict": row[solver], "solver": solver}
                out.write(json.dumps(made) + "\n")
    request = Request(
        stories,
        DataSource(str(folder / "traces.jsonl")),
        Columns(prompt="question", response="solution"),
        Recipe(pooling="mean-response", dtype="float32"),
        k=4,
        device="cpu",
        with_map=False,
    )
    workspace = Workspace(folder / "workspace")
    recover(request, workspace)
    return workspace


@pytest.fixture
def command(run_cli, traces):
    def run(*arguments):
        status, out, err = run_cli(*arguments, "--json", "--workspace", traces.root)
        assert status == 0, err
        return json.loads(out)

    return run


def check_random_model(run, control):
    """Its level is the furthest of three models with weights drawn anew, each looked at by itself."""
    sample = read_traces(run, "verdict.is_correct", ("length", "solver")).of_problems(80, 0)
    model, best = load_run_model(run, "cpu"), []
    for seed in range(3):
        scores = random_model_scores(run, model, sample.rows, "random-model", seed).astype(float)
        found = [one.interval for one in estimates("auc-within-controlled", scores, sample)]
        best.append(max(found, key=lambda area: abs(area.value - 0.5)))
    away = [abs(area.value - 0.5) for area in best]
    assert len(set(away)) > 1 and control["level"]["value"] == pytest.approx(0.5 + max(away), abs=1e-6)
    widest = max(area.high - area.low for area in best)
    assert control["level"]["high"] - control["level"]["low"] >= widest - 1e-6
    assert "each of 3 models" in control["detail"]


def test_utility_proxies_and_recommend_in_a_row(command, traces):
    chosen = ("--correct", "verdict.is_correct", "--control", "length,solver", "--controls", "random-model")
    found = command("utility", "latest", *chosen, "--control-traces", 80)
    assert found["proxy"] == "utility" and found["facts"]["traces"] == 4 * PROBLEMS
    assert found["primary"] == "auc-within-controlled"
    assert {control["name"] for control in found["controls"]} >= {
        "random directions",
        "random model",
        "bag of words",
    }
    assert command("utility", "latest", *chosen, "--control-traces", 80)["effects"] == found["effects"]
    check_random_model(traces.run(), next(one for one in found["controls"] if one["name"] == "random model"))
    contrast = command("proxies", "latest", "--kind", "first-order", "--correct", "is_correct")
    assert contrast["primary"] == "contrast" and contrast["cost"]["tokens"] > 0
    levels = {one["name"]: one["level"]["value"] for one in contrast["controls"] if one["measure"] == "contrast"}
    assert set(levels) == {"random directions", "shuffled verdicts"}
    for effect in contrast["effects"]:
        if effect["measure"] == "contrast":
            assert effect["gap"] == pytest.approx(abs(effect["effect"]["value"]) - max(levels.values()))
    assert "random model's loss cannot be compared" in " ".join(contrast["notes"])
    problems = ("--problems", DATA / "gsm8k" / "test.jsonl", "--limit", 8, "--device", "cpu")
    gain = command("proxies", "latest", "--kind", "first-order", *problems)
    assert gain["primary"] == "gain" and "8 of the 8 development problems are also" in " ".join(gain["notes"])
    said = command("recommend", "latest")
    assert set(said["evidence"]) == {"utility", "first-order"} and said["sentences"]
    kept = traces.evidence(traces.run().id)
    assert len(kept) == 3 and found["evidence"] in kept


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("sft --cost 60", "--cost is for --kind steering; --kind sft does not use it"),
        ("first-order --cost 600", "--cost is for --kind steering; --kind first-order does not use it"),
        ("steering --examples 64", "--examples is for --kind sft; --kind steering does not"),
        ("steering --passes", "--passes is for --kind sft; --kind steering does not"),
        ("steering --solution s", "--solution is for --kind first-order or --kind sft; --kind steering does not"),
        ("steering --correct c", "--correct is for --kind first-order with --correct; --kind steering does not"),
        ("first-order --directions 1", "--directions is for --kind steering or --kind sft; --kind first-order"),
        (
            "first-order --verifier math --solution s",
            "--verifier decides which solutions are right; --kind first-order with --solution takes them all",
        ),
        ("sft --verifier magic", "'magic'"),
        ("steering --cost inf", "Invalid value for '--cost': inf is no number above 0."),
        ("steering --cost nan", "Invalid value for '--cost': nan is no number above 0."),
        ("sft --epochs 0", "Invalid value for '--epochs': 0 is no number above 0."),
        ("sft --learning-rate nan", "Invalid value for '--learning-rate': nan is no number above 0."),
        ("sft --rollouts 2", "--rollouts is for --kind steering or --kind sft with --passes; --kind sft does not"),
        ("sft --passes --strengths 1", "--strengths is for --kind steering; --kind sft with --passes does not"),
    ],
)
def test_an_option_that_the_proxy_does_not_heed_is_wrong_usage(run_cli, traces, arguments, sentence):
    problems = () if "--correct" in arguments else ("--problems", DATA / "gsm8k" / "test.jsonl")
    asked = ("proxies", "latest", *problems, "--workspace", traces.root, "--kind", *arguments.split())
    status, out, err = run_cli(*asked)
    assert (status, out) == (2, "") and sentence in " ".join(err.split()) and "Traceback" not in err


def test_what_needs_no_model_is_checked_before_it_is_loaded(run_cli, traces, monkeypatch):
    monkeypatch.setattr("core.recovery.load_run_model", lambda *_: pytest.fail("the model was loaded"))
    asked = ("proxies", "latest", "--workspace", traces.root, "--kind")
    assert "Give --problems FILE" in run_cli(*asked, "first-order")[2]
    problems = ("--problems", DATA / "gsm8k" / "test.jsonl", "--directions", 99)
    assert "has directions 1 to" in run_cli(*asked, "steering", *problems)[2]


def test_of_the_runs_own_traces_no_solutions_are_named(run_cli, traces):
    asked = ("proxies", "latest", "--kind", "first-order", "--correct", "is_correct", "--workspace", traces.root)
    status, _, err = run_cli(*asked, "--limit", 8)
    assert status == 2 and "--kind first-order with --correct does not use it" in " ".join(err.split())
    assert run_cli(*asked, "--problems", "p.jsonl")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("utility", "latest", "--correct", "nothing"), 1, "has no column 'nothing'"),
        (("utility", "latest", "--controls", "nonsense"), 2, "'nonsense' is not one of random-model"),
        (
            ("utility", "latest", "--control-traces", "50"),
            2,
            "--control-traces is for --controls",
        ),
        (("utility", "latest", "--device", "cpu"), 2, "--device is for --controls, and there is none"),
        (("proxies", "latest", "--kind", "first-order"), 2, "Give --problems FILE or --preset NAME"),
        (("proxies", "latest", "--kind", "magic"), 2, "'magic' is not one of"),
        (
            ("proxies", "latest", "--kind", "first-order", "--controls", "random-model"),
            2,
            "--controls is for --kind s",
        ),
        (("proxies", "latest", "--kind", "steering", "--directions", "9"), 2, "Give --problems"),
    ],
)
def test_what_cannot_be_done_is_said(run_cli, traces, arguments, status, sentence):
    got, out, err = run_cli(*arguments, "--workspace", traces.root)
    assert (got, out) == (status, "") and sentence in err and "Traceback" not in err


def test_rows_without_an_answer_are_counted(command, traces, write_rows):
    rows = [json.loads(line) for line in (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()[:5]]
    path = write_rows([*rows, {"question": "And this?", "answer": None}])
    asked = ("--problems", path, "--problem", "question", "--answer", "answer", "--device", "cpu")
    notes = command("proxies", "latest", "--kind", "first-order", *asked)["notes"]
    assert any("no answer" in note and "1" in note for note in notes), notes


def test_solutions_are_the_runs_kind_of_response_where_it_gives_the_answer(command, run_cli, traces, write_rows):
    rows = [
        {"question": f"What is {i} plus 1?", "answer": str(i + 1), "solution": f"It is {i + 1}."} for i in range(6)
    ]
    rows[2]["solution"] = "It is 77."
    asked = ("proxies", "latest", "--kind", "first-order", "--problem", "question", "--answer", "answer")
    made = command(*asked, "--problems", write_rows(rows))
    assert made["facts"]["problems"] == 5 and "the problem has no worked solution" in " ".join(made["notes"])
    assert "the solutions are the column 'solution', where it gives the answer" in made["notes"]
    strict = command(*asked, "--problems", write_rows(rows), "--verifier", "regex:is (1|2)\\.")
    assert strict["facts"]["problems"] == 2, "the verifier decides what is right"
    given = command(*asked, "--problems", write_rows(rows), "--solution", "answer")
    assert given["facts"]["problems"] == 6 and "the solutions are the column 'answer'" in given["notes"]
    wrong = write_rows([row | {"solution": "It is 99."} for row in rows])
    status, _, err = run_cli(*asked, "--problems", wrong, "--workspace", traces.root)
    assert status == 1 and "none of the texts in the column 'solution' gives its problem's answer" in " ".join(
        err.split()
    )


def test_trainings_that_ask_otherwise_are_kept_apart(traces, monkeypatch):
    """The request says all that decides the figures, so none replaces another's."""
    from core.cli import usefulness
    from core.usefulness import development, sft

    monkeypatch.setattr(development, "written_solutions", lambda *_: None)
    monkeypatch.setattr(sft, "train_proxy", lambda run, model, solutions, request, *_: request.asked)
    monkeypatch.setattr(usefulness, "_answers", lambda *_: None)
    given = ["latest", "--kind", "sft", "--problems", str(DATA / "gsm8k" / "test.jsonl"), "--limit", "3"]
    asked = usefulness.proxies.make_context("proxies", given).params

    def request(**chosen):
        return json.dumps(usefulness._sft(traces, traces.run(), None, asked | chosen, None))

    ways = [{}, {"wording": "boxed"}, {"template": "plain"}, {"passes": True}]
    passed = [{"verifier_name": "exact"}, {"r": 9}, {"temperature": 0.5}, {"max_new_tokens": 7}]
    ways += [{"passes": True} | one for one in passed]
    assert len({request(**way) for way in ways}) == len(ways)
    assert request(r=9) == request(), "without --passes nothing is generated"


def test_a_recommendation_needs_evidence(run_cli, gsm8k_copy):
    status, _, err = run_cli("recommend", "latest", "--workspace", gsm8k_copy.root)
    assert status == 1 and "has no evidence yet" in err
