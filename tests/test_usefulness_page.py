import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from streamlit.util import calc_hash
from test_pages import show, texts

from core import figures
from core.cli.usefulness import proxies
from core.evaluation import Interval
from core.evaluation.changes import changes
from core.evaluation.rollouts import UNSTEERED, Rollout
from core.jobs import find_job
from core.steering.sweep import SuggestedRange
from core.usefulness.cost import cost_sentence
from core.usefulness.evidence import Control, Cost, Effect, Evidence, Measure
from core.usefulness.first_order import CONTRAST
from core.usefulness.steering import Arm, strength_of, variant_of
from core.usefulness.table import agreement, agreement_sentence, conclusion, towards
from core.usefulness.utility import MODEL_DRAWS, UtilityRequest, utility
from core.workspace import Workspace

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
    examples.to_parquet(path)
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
    shown = at.dataframe[0].value
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


def test_problems_are_needed_for_a_proxy(run):
    at = show(PAGE)
    at.segmented_control(key="proxy_kind").set_value("steering").run()
    assert at.button(key="measure").disabled and "At most 600 seconds" in texts(at)
    at.text_input(key="problems").input("dev.jsonl").run()
    assert not at.button(key="measure").disabled
    assert f"basiscope proxies {run.id} --kind steering --problems dev.jsonl --cost 600" in texts(at)


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


def test_cost_is_said_by_the_rate_of_the_run(gsm8k_run):
    per_example = gsm8k_run.manifest["data"]["tokens"] / gsm8k_run.manifest["n"]
    rate = gsm8k_run.manifest["steps"]["activations"]["tokens_per_second"]
    said = cost_sentence(gsm8k_run, ["proxies", gsm8k_run.id, "--kind", "first-order", "--limit", "100"])
    assert said.startswith(f"About {3 * 100 * per_example / rate:,.0f} seconds for 100 texts")
    assert "At most 90 seconds" in cost_sentence(gsm8k_run, ["proxies", "x", "--kind", "steering", "--cost", "90"])
    models = cost_sentence(gsm8k_run, ["utility", "x", "--controls", "random-model,random-blocks"])
    assert f"{2 * MODEL_DRAWS * gsm8k_run.manifest['n']} texts" in models
