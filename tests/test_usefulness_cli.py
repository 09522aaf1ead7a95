"""`utility`, `proxies` and `recommend` as commands, on the real small model and real traces."""

import json

import pytest
from conftest import DATA

from core.activations import Recipe
from core.examples import Columns, DataSource
from core.recovery import Request, recover
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
    contrast = command("proxies", "latest", "--kind", "first-order", "--correct", "is_correct")
    assert contrast["primary"] == "contrast" and contrast["cost"]["tokens"] > 0
    problems = ("--problems", DATA / "gsm8k" / "test.jsonl", "--limit", 8, "--device", "cpu")
    gain = command("proxies", "latest", "--kind", "first-order", *problems)
    assert gain["primary"] == "gain" and "8 of the 8 development problems are also" in " ".join(gain["notes"])
    said = command("recommend", "latest")
    assert set(said["evidence"]) == {"utility", "first-order"} and said["sentences"]
    kept = traces.evidence(traces.run().id)
    assert len(kept) == 3 and found["evidence"] in kept


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("utility", "latest", "--correct", "nothing"), 1, "has no column 'nothing'"),
        (("utility", "latest", "--controls", "nonsense"), 2, "'nonsense' is not one of random-model"),
        (("proxies", "latest", "--kind", "first-order"), 2, "Give --problems FILE or --preset NAME"),
        (("proxies", "latest", "--kind", "magic"), 2, "'magic' is not one of"),
        (("proxies", "latest", "--kind", "steering", "--directions", "9"), 2, "Give --problems"),
    ],
)
def test_what_cannot_be_done_is_said(run_cli, traces, arguments, status, sentence):
    got, out, err = run_cli(*arguments, "--workspace", traces.root)
    assert (got, out) == (status, "") and sentence in err and "Traceback" not in err


def test_a_recommendation_needs_evidence(run_cli, gsm8k_copy):
    status, _, err = run_cli("recommend", "latest", "--workspace", gsm8k_copy.root)
    assert status == 1 and "has no evidence yet" in err
