import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash
from synthetic import with_examples
from test_pages import ROOT, show, texts

from core import figures
from core.cli.usefulness import proxies
from core.evaluation import Interval
from core.evaluation.changes import changes
from core.evaluation.rollouts import UNSTEERED, Rollout
from core.jobs import Job, JobReporter, find_job
from core.steering.sweep import SuggestedRange
from core.usefulness.cost import cost_sentence
from core.usefulness.evidence import Control, Cost, Effect, Evidence, Measure
from core.usefulness.first_order import CONTRAST, GAIN
from core.usefulness.steering import Arm, strength_of, variant_of
from core.usefulness.table import agreement, agreement_sentence, block_parts, conclusion, evidence_table, towards
from core.usefulness.utility import MODEL_DRAWS, UtilityRequest, utility
from core.workspace import Workspace, write_json

PAGE = "usefulness"


@pytest.fixture(scope="module")
def template(gsm8k_run, tmp_path_factory):
    """A real run whose verdicts are made to follow direction 2."""
    folder = tmp_path_factory.mktemp("usefulness") / "workspace"
    shutil.copytree(gsm8k_run.folder.parent.parent, folder)
    run = Workspace(folder).run()
    path = run.folder / "examples.parquet"
    examples, scores = pd.read_parquet(path), run.scores()["d2"]
    examples["correct"] = (scores > scores.median()).to_numpy()
    with_examples(run.folder, examples)
    return folder


@pytest.fixture
def run(workspace):
    return workspace.run()


@pytest.fixture
def evidence(run, workspace):
    """What utility finds, kept."""
    found = utility(run, UtilityRequest("correct"), lambda: pytest.fail("no model is needed"))
    workspace.save_evidence(found)
    return found


def interval(value, half=0.1):
    return Interval(value, value - half, value + half, 50)


def steering(run, values, strength=math.nan, **parts):
    """Evidence of steering with these differences of Pass@1 for the ends `1+`, `1-`, `2+`, ..., all at one
    strength, the sign aside."""
    ends = [(j, polarity) for j in range(1, len(values) // 2 + 1) for polarity in "+-"]
    effects = tuple(
        Effect(
            j,
            polarity,
            "pass@1",
            interval(value),
            0.001,
            0.001 if abs(value) > 0.3 else 0.5,
            abs(value) - 0.2,
            strength=strength if polarity == "+" else -strength,
        )
        for (j, polarity), value in zip(ends, values, strict=True)
    )
    controls = (Control("random directions", "pass@1", interval(0.2), "8 of the same norm"),)
    measure = Measure("pass@1", "change of Pass@1", "Pass@1")
    asked = {"problems": {"path": "p.jsonl"}}
    return Evidence("steering", run.id, "pass@1", (measure,), effects, controls, asked, Cost(1, 1), parts=parts)


def test_a_run_without_evidence_says_where_to_begin(run):
    at = show(PAGE)
    assert "Nothing is measured on this run yet" in texts(at)
    assert f"basiscope utility {run.id}" in texts(at)
    assert "no model is loaded" in texts(at)


def test_evidence_is_shown_with_the_recommendation_and_leads_to_a_selection(run, evidence):
    at = show(PAGE)
    assert "2+ goes with right answers" in texts(at)
    assert at.button(key="select_useful").label == "Select along 2+"
    shown = at.dataframe[1].value
    assert shown.loc[shown["beats controls"] == "yes", "direction"].tolist() == ["2"]
    at.button(key="select_useful").click().run()
    assert at.session_state[f"ends_{run.id}"] == ["2+"] and at.session_state["rule"] == "along"


def steered_columns(at):
    at.button(key="steer_useful").click().run()
    assert at.title[0].value == "Steer" and not at.exception
    at._page_hash = calc_hash("steer")  # where the next run would be in a browser
    return [slider.value for slider in at.slider]


def test_steer_opens_with_what_helps_at_the_strength_that_was_tried(run, workspace, evidence):
    sd = float(run.scores()["d2"].std())
    at = show(PAGE)
    assert at.button(key="steer_useful").label == "Steer with 2+"
    assert steered_columns(at) == pytest.approx([1.0, -1.0], rel=1e-3)
    assert at.multiselect(key=f"steer_directions_{run.id}").value == [2]
    at.slider[0].set_value(0.5).run()
    assert at.slider[0].value == 0.5, "it can be moved"
    run.save_suggested_range(2, SuggestedRange(-1.0 * sd, 6.0 * sd, sd, 12, (True, True)))
    assert steered_columns(show(PAGE)) == pytest.approx([3.0, -3.0], rel=1e-3)
    workspace.save_evidence(steering(run, [0.1, -0.1, 0.1, -0.6, -0.1, 0.1], strength=2.5 * sd))
    other_end = steered_columns(show(PAGE))
    assert other_end == pytest.approx([3.0, -3.0], rel=1e-3), "steering says nothing of 2+"
    workspace.save_evidence(steering(run, [0.1, -0.1, 0.6, -0.1, -0.1, 0.1], strength=2.5 * sd))
    at = show(PAGE)
    assert steered_columns(at) == pytest.approx([2.5, -2.5], rel=1e-3)
    at.segmented_control(key="steer_unit").select("unit").run()
    assert [slider.value for slider in at.slider] == pytest.approx([2.5 * sd, -2.5 * sd], rel=1e-3)


def test_an_effect_is_seen_at_its_strength_towards_the_end_that_helps(run, evidence):
    deviations = [float(run.scores()[f"d{j}"].std()) for j in range(1, 4)]
    for effect in evidence.by(evidence.primary):
        sign = 1 if effect.effect.value > 0.5 else -1
        found = strength_of(run, evidence, effect)
        assert found == pytest.approx(sign * deviations[effect.direction - 1], rel=1e-3)
    tried = steering(run, [0.1, -0.1, 0.4, -0.4], strength=7.0)
    assert [strength_of(run, tried, effect) for effect in tried.effects] == [7.0, -7.0, 7.0, -7.0]
    stored = Evidence.from_dict(json.loads(json.dumps(tried.as_dict())))
    assert [effect.strength for effect in stored.effects] == [7.0, -7.0, 7.0, -7.0]


def test_of_several_strengths_the_texts_are_those_of_the_effect(run):
    arms = [Arm("1+ 1 sd", 1, 2.0), Arm("1+ 2 sd", 1, 4.0), Arm("1- 1 sd", 1, -2.0), Arm("1- 2 sd", 1, -4.0)]
    found = steering(run, [0.1, -0.1], strength=4.0, evaluation="e", variants={arm.name: arm.name for arm in arms})
    found = replace(found, facts={"arms": [asdict(arm) for arm in arms]})
    assert [variant_of(found, effect) for effect in found.effects] == ["1+ 2 sd", "1- 2 sd"]


def test_a_measurement_is_started_as_a_job_and_then_shown(run, workspace):
    at = show(PAGE)
    assert at.selectbox(key=f"verdict_{run.id}").value == "correct"
    at.button(key="measure").click().run()
    job = find_job(workspace, at.session_state["usefulness_job"])
    assert job.facts["arguments"] == ["utility", run.id, "--correct", "correct", "--control", "length"]
    job.cancel()


def finished_job(workspace, **result):
    job = Job(workspace.root / "jobs" / "20260101-000000-abcdef")
    write_json(job.folder / "job.json", {"arguments": ["utility"], "pid": 0, "pid_created": 0.0})
    JobReporter(job.folder).finish("done", result)
    return job.id


def test_what_a_job_has_left_meanwhile_is_shown(run, workspace, evidence):
    """It ended while another page was open, and the choice of evidence is drawn before the job is looked at."""
    first = workspace.save_evidence(steering(run, [0.1, -0.1, 0.4, -0.4]))
    (other,) = set(workspace.evidence(run.id)) - {first}
    assert next(iter(workspace.evidence(run.id))) == first, "what is shown unless another is asked for"
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    at._page_hash = calc_hash(PAGE)
    at.session_state["usefulness_job"] = finished_job(workspace, evidence=other)
    at.run()
    assert not at.exception, at.exception[0].message
    assert at.selectbox(key="evidence").value == other and "usefulness_job" not in at.session_state
    at.selectbox(key="evidence").set_value(first).run()
    assert at.selectbox(key="evidence").value == first, "it can be changed"


def test_all_proxies_stand_in_one_table(run, workspace, evidence):
    workspace.save_evidence(steering(run, [0.1, -0.1, 0.4, -0.4]))
    at = show(PAGE)
    assert "All proxies in one table" in [expander.label for expander in at.expander]
    shown = at.dataframe[0].value
    assert list(shown.columns) == ["direction", "utility", "steering"]
    assert shown["direction"].tolist()[-2:] == ["controls reach", "cost"]
    assert shown["steering"].tolist()[-2:] == ["+20.0 by random directions", "1.0 s, 1 tokens"]


def changed(right, wrong):
    """Shows so many texts that became right, and so many that became wrong."""
    from core.evaluation.changes import Change
    from core.evaluation.rollouts import UNSTEERED, Rollout
    from pages.usefulness.results import show_change

    def made(i, is_right):
        before = Rollout(UNSTEERED, i, 0, "before", not is_right, False, 1)
        return Change(before, Rollout("2+", i, 0, "after", is_right, False, 1))

    show_change([made(i, i < right) for i in range(right + wrong)], {}, ("Not steered", "Steered"))


def test_problems_that_became_wrong_are_shown_however_many_became_right():
    at = AppTest.from_function(changed, kwargs={"right": 150, "wrong": 3}, default_timeout=60).run()
    assert "150 texts became right, 3 wrong." in texts(at) and "The first 100 of 150 are listed." in texts(at)
    assert len(at.selectbox(key="changed_problem").options) == 100
    at.segmented_control(key="became").set_value("wrong").run()
    assert [name.split(":")[0] for name in at.selectbox(key="changed_problem").options] == ["became wrong"] * 3
    at = AppTest.from_function(changed, kwargs={"right": 0, "wrong": 2}, default_timeout=60).run()
    assert len(at.selectbox(key="changed_problem").options) == 2 and not at.exception


def test_problems_are_needed_for_a_proxy(run):
    at = show(PAGE)
    at.segmented_control(key="proxy_kind").set_value("steering").run()
    assert at.button(key="measure").disabled and "About 600 seconds at most" in texts(at)
    at.text_input(key="problems").input("dev.jsonl").run()
    assert not at.button(key="measure").disabled
    assert f"basiscope proxies {run.id} --kind steering --problems dev.jsonl --cost 600" in texts(at)


def test_what_is_missing_is_named(run):
    path = run.folder / "examples.parquet"
    with_examples(run.folder, pd.read_parquet(path).drop(columns="correct"))
    at = show(PAGE)
    at.segmented_control(key="proxy_kind").set_value("first-order").run()
    assert "Name a file of problems with answers first." in texts(at)
    at.toggle(key="own_traces").set_value(True).run()
    assert at.button(key="measure").disabled and "Choose a column of verdicts first" in texts(at)
    assert "Name a file of problems" not in texts(at)


def test_a_training_is_asked_what_it_heeds(run):
    at = show(PAGE)
    at.segmented_control(key="proxy_kind").set_value("sft").run()
    at.text_input(key="problems").input("dev.jsonl")
    at.text_input(key="solution_column").input("worked")
    at.number_input(key="sft_seeds").set_value(3).run()
    asked = f"basiscope proxies {run.id} --kind sft --problems dev.jsonl --solution worked --examples 64 --seeds 3"
    assert f"{asked} --random 8\n" in texts(at) + "\n"
    at.multiselect(key="control_models").set_value(["random-blocks"]).run()
    assert "--kind sft --problems dev.jsonl --solution worked --controls random-blocks --examples 64" in texts(at)
    assert f"{3 * (2 * (run.k + 3) + 8 + 4)} trainings" in texts(at) and "Random models: About" in texts(at)
    at.multiselect(key="control_models").set_value([]).run()
    keys = {widget.key for kind in (at.text_input, at.number_input) for widget in kind}
    assert not keys & {"verifier", "proxy_cost", "proxy_rollouts", "proxy_tokens"}
    assert f"{3 * (2 * (run.k + 2) + 8 + 4)} trainings, the controls' among them" in texts(at)
    at.toggle(key="sft_passes").set_value(True).run()
    at.text_input(key="verifier").input("numeric").run()
    passes = "--random 8 --passes --verifier numeric --rollouts 4 --max-new-tokens 512"
    assert passes in texts(at) and "--cost" not in texts(at)
    command = next(code.value for code in at.code if "--kind sft" in code.value)
    known = {name for option in proxies.params for name in option.opts}
    assert {part for part in command.split() if part.startswith("--")} <= known


def test_first_order_is_asked_for_solutions_and_no_verifier(run):
    at = show(PAGE)
    at.segmented_control(key="proxy_kind").set_value("first-order").run()
    at.text_input(key="problems").input("dev.jsonl")
    at.text_input(key="solution_column").input("worked").run()
    assert "--kind first-order --problems dev.jsonl --solution worked" in texts(at)
    assert "verifier" not in {widget.key for widget in at.text_input}
    response = run.manifest["data"]["columns"]["response"]
    assert at.text_input(key="solution_column").placeholder == f"{response}, where right"


def test_the_verifier_of_the_demo_is_its_worlds(run, monkeypatch):
    for is_demo, usual in ((True, "world"), (False, "math, or the problem set's own")):
        monkeypatch.setattr("pages.usefulness.start.is_demo", lambda _run, found=is_demo: found)
        at = show(PAGE)
        at.segmented_control(key="proxy_kind").set_value("steering").run()
        assert at.text_input(key="verifier").placeholder == usual


def test_what_each_block_adds_is_told(run, workspace):
    parts = ((0.1, 0.3, -0.1), (-0.1, -0.4, 0.2))
    effects = tuple(Effect(j, "±", "gain", interval(sum(one)), blocks=one) for j, one in enumerate(parts, 1))
    asked, facts = {"path": "p.jsonl"}, {"blocks": [1, 2, 3]}
    found = Evidence("first-order", run.id, "gain", (GAIN,), effects, (), asked, Cost(1, 1), facts=facts)
    assert evidence_table(found)["leading block"].tolist() == ["2 (0.3)", "2 (-0.4)"]
    heat = figures.block_effect_map(block_parts(found, "gain"), [1, 2, 3], GAIN.unit).to_dict()["data"][0]
    assert [list(row) for row in heat["z"]] == [list(row) for row in parts] and list(heat["x"]) == ["1", "2", "3"]
    assert "leading block" not in evidence_table(replace(found, facts={})), "older evidence does not say which"
    workspace.save_evidence(found)
    at = show(PAGE)
    assert "By block" in [expander.label for expander in at.expander] and not at.exception


def test_two_proxies_are_held_against_each_other(run, workspace, evidence):
    values = [0.1, -0.1, 0.4, -0.4, -0.3, 0.2]
    other = steering(run, values)
    workspace.save_evidence(other)
    at = show(PAGE)
    found = agreement(evidence, other)
    ends = towards(evidence)
    expected = spearmanr([ends[f"{j}+"].value for j in range(1, 4)], [0.1, 0.4, -0.3]).statistic
    assert found.value == pytest.approx(expected) and found.n == 3
    assert agreement_sentence(evidence, other) in texts(at)


def test_what_speaks_of_both_ends_is_mirrored(evidence):
    ends = towards(evidence)
    for j in range(1, 4):
        assert ends[f"{j}-"].value == -ends[f"{j}+"].value
        assert ends[f"{j}-"].low == -ends[f"{j}+"].high <= ends[f"{j}-"].value


def test_the_forest_fills_what_beats_the_controls(run):
    figure = figures.forest(steering(run, [0.1, -0.1, 0.4, -0.4]), "pass@1").to_dict()
    beyond, others, control = figure["data"]
    assert beyond["y"] == ["2-", "2+"] and beyond["x"] == [-0.4, 0.4]
    assert others["y"] == ["1-", "1+"]
    np.testing.assert_allclose(beyond["error_x"]["array"], 0.1)
    assert control["name"] == "random directions" and control["x"] == [0.2, 0.2, None, -0.2, -0.2]
    assert control["y"][:2] == control["y"][3:] == ["2-", "2+"]


def shown_groups(evidence, measure="pass@1"):
    return {trace["name"]: list(trace["y"]) for trace in figures.forest(evidence, measure).to_dict()["data"]}


def test_the_forest_says_why_an_effect_was_not_judged(run):
    found = steering(run, [0.1, -0.1, 0.4, -0.4])
    first, second, *others = found.effects
    gone = replace(first, adjusted=math.nan, note="strength +1, dropped after round 1")
    without = replace(second, p=math.nan, adjusted=math.nan)
    groups = shown_groups(replace(found, effects=(gone, without, *others)))
    assert groups["dropped early"] == ["1+"] and groups["without a p-value"] == ["1-"]
    assert groups["beyond every control"] == ["2-", "2+"] and "not judged by this measure" not in groups
    plain = replace(found, effects=tuple(replace(effect, adjusted=math.nan) for effect in found.effects))
    assert len(shown_groups(plain)["not judged by this measure"]) == 4


def test_the_ends_that_only_turn_their_sign_are_drawn_once():
    def both(values):
        found = {f"{j}+": Interval(v, v - 0.1, v + 0.2, 9) for j, v in enumerate(values, 1)}
        return found | {f"{j}-": Interval(-v, -v - 0.2, -v + 0.1, 9) for j, v in enumerate(values, 1)}

    mirrored, apart = both([0.1, -0.3]), {"1+": Interval(1, 0, 2, 9), "1-": Interval(1, 0, 2, 9)}
    assert figures.proxy_scatter("a", mirrored, "b", both([1, 2])).data[0]["text"] == ("1+", "2+")
    assert figures.proxy_scatter("a", mirrored, "b", apart).data[0]["text"] == ("1+", "1-")


def test_one_proxy_says_what_it_measured(run, evidence):
    assert conclusion(evidence) == "By utility, beyond all controls: right answers go with 2+."
    steered = steering(run, [0.1, -0.1, 0.4, -0.4])
    assert conclusion(steered) == "By steering, beyond all controls: 2+ helps, 2- harms."
    contrast = Effect(1, "±", "contrast", interval(-0.4), 0.001, 0.001, 0.2)
    measured = replace(steered, proxy="first-order", primary="contrast", measures=(CONTRAST,), effects=(contrast,))
    said = "By first-order, beyond all controls: right solutions would gain on wrong ones along 1-."
    assert conclusion(measured) == said


def rollout(variant, problem, number, right, text):
    return Rollout(variant, problem, number, text, right, False, 3)


@pytest.fixture
def kept(workspace):
    rollouts = [
        rollout(UNSTEERED, 1, 0, True, "was right"),
        rollout("2+", 1, 0, False, "is wrong"),
        rollout(UNSTEERED, 2, 0, None, "could not be told"),
        rollout("2+", 2, 0, True, "is right"),
        rollout(UNSTEERED, 3, 0, True, "right"),
        rollout("2+", 3, 0, True, "still right"),
        rollout(UNSTEERED, 4, 0, None, "no"),
        rollout("2+", 4, 0, False, "no"),
        rollout("2+", 5, 0, True, "no baseline"),
    ]
    with workspace.start_evaluation({"run": "x", "r": 1}) as kept:
        kept.save_manifest({"request": {"run": "x"}, "status": "complete", "problems": {}})
        kept.append(rollouts)
    return kept


def test_changes_are_those_whose_verdict_turned_the_right_ones_first(kept):
    found = changes(kept, "2+")
    assert [(change.before.problem_id, change.became_right) for change in found] == [(2, True), (1, False)]
    assert changes(kept, "3-") == []
    assert [change.before.problem_id for change in changes(kept, "2+", [1, 3])] == [1], "those in the figure"


def test_cost_is_said_by_the_rate_of_the_run(gsm8k_run):
    per_example = gsm8k_run.manifest["data"]["tokens"] / gsm8k_run.manifest["n"]
    rate = gsm8k_run.manifest["steps"]["activations"]["tokens_per_second"]
    said = cost_sentence(gsm8k_run, ["proxies", gsm8k_run.id, "--kind", "first-order", "--limit", "100"])
    assert said.startswith(f"About {3 * 100 * per_example / rate:,.0f} seconds for 100 texts")
    steer = ["proxies", "x", "--kind", "steering", "--cost", "90"]
    assert "About 90 seconds at most" in cost_sentence(gsm8k_run, steer)
    assert "random models" not in cost_sentence(gsm8k_run, steer)
    assert "up to 25%" in cost_sentence(gsm8k_run, [*steer, "--controls", "random-model"])
    sft = ["proxies", "x", "--kind", "sft", "--directions", "1", "--seeds", "1", "--limit", "50"]
    trainings = 2 * 3 + 8 + 4
    said = cost_sentence(gsm8k_run, sft)
    assert f"loss on 50 problems after each adds about {19 * 50 * per_example / rate:,.2g} seconds" in said
    assert f"{trainings} trainings" in said and "Pass@1" not in said and said.count("loading the model") == 1
    passed = cost_sentence(gsm8k_run, [*sft, "--passes", "--rollouts", "2", "--max-new-tokens", "100"])
    least = 19 * 50 * 2 * 100 / rate
    assert f"Pass@1 adds 1,900 texts of at most 100 tokens, {least:,.0f} seconds if all" in passed
    models = cost_sentence(gsm8k_run, ["utility", "x", "--controls", "random-model,random-blocks"])
    assert f"{2 * MODEL_DRAWS * gsm8k_run.manifest['n']} texts" in models
