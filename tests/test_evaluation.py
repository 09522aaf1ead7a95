import json
import math
import os
import signal
import time
from dataclasses import replace
from itertools import combinations, pairwise, product
from pathlib import Path
from threading import Thread, Timer

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, permutation_test

from core.errors import BasiscopeError
from core.evaluation import Interval, final_answer, verifier
from core.evaluation.answers import opened_thought
from core.evaluation.child import Child
from core.evaluation.intervals import (
    bootstrap_intervals,
    difference_interval,
    expanded_tail,
    mean_share_interval,
)
from core.evaluation.passk import (
    Result,
    Tally,
    paired_difference,
    pass_at_intervals,
    pass_at_k,
    sign_flip_p,
    usual_k,
)
from core.evaluation.problems import Problem, asked, read_problems
from core.evaluation.rollouts import UNSTEERED, Rollout, encode_problems, noise_seed, roll_out
from core.evaluation.verifiers import can_verify
from core.model import load_model
from core.steering.assessment import assess
from core.steering.generation import Generation, Row, Sampling
from core.steering.intervention import Directions, Steering
from core.workspace import KeptEvaluation

# --- verifiers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer", "text", "right"),
    [
        ("math", "\\frac{\\sqrt{3}}{2}", "The answer is $\\sqrt{3}/2$.", True),
        ("math", "\\frac{1}{2}", "so \\boxed{0.5}", True),
        ("math", "\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", True),
        ("math", "(0,1)", "\\boxed{[0,1]}", False),
        ("math", "(1,2)", "\\boxed{(2,1)}", False),
        ("math", "x^2+2x+1", "\\boxed{(x+1)^2}", True),
        ("math", "x^2+2x+1", "\\boxed{(x+2)^2}", False),
        ("math", "10 \\text{ inches}", "\\boxed{10}", True),
        ("math", "12", "\\boxed{12\\text{ cm}}", True),
        ("math", "\\text{Evelyn}", "\\boxed{Evelyn}", True),
        ("math", "\\text{Evelyn}", "\\boxed{Angela}", False),
        ("math", "11\\sqrt2", "Therefore \\boxed{11\\sqrt{2}}. So the answer is correct.", True),
        ("math", "\\frac{3}{\\sqrt{5}}", "it is \\boxed{\\frac{3\\sqrt{5}}{5}}", True),
        ("math", "7", "", False),
        ("numeric", "3.14", "about 3.1400001", True),
        ("numeric", "3.14", "about 3.15", False),
        ("numeric:0.01", "3.14", "about 3.15", True),
        ("numeric:0.01", "1000", "Answer: 1009", True),
        ("numeric", "1,200", "#### 1200", True),
        ("numeric", "no number", "#### 1200", None),
        ("exact", "Paris", "Answer: Paris", True),
        ("exact", "Paris", "Answer: paris", False),
        ("normalised", "New York!", "The answer is  new york.", True),
        ("normalised", "New York", "The answer is York", False),
        ("choice", "B", "The answer is (B).", True),
        ("choice", "(B)", "Answer: B. twelve", True),
        ("choice", "B", "\\boxed{\\text{B}}", True),
        ("choice", "B", "I think that C holds, so D", False),
        ("choice", "A", "A dog and no letter", False),
        ("choice", "twelve", "Answer: B", None),
        ("choice", "A", "The answer is A because B is wrong", True),
        ("choice", "B", "The answer is A because B is wrong", False),
        ("choice", "C", "The answer is C, not D.", True),
        ("choice", "D", "The answer is C, not D.", False),
        ("choice", "C", "It must be C, not D.", True),
        ("choice", "B", "Answer: B since D fails", True),
        ("choice", "A", "The correct option is A", True),
        ("choice", "A", "The correct answer is option A, as B is too small.", True),
        ("choice", "A", "So the answer is **A** (12)", True),
        ("choice", "A", "**Answer:** A", True),
        ("choice", "A", "Of these I choose A.", True),
        ("choice", "I", "I think that nothing holds", False),
        ("choice", "B", "\\boxed{\\textbf{(B)}\\ 12}, not D", True),
        ("choice", "C", "The answer is 12, which is (C).", True),
        ("numeric", "5", "So \\boxed{5}.\n\n#### Check\n2 + 4 = 6", True),
        ("math", "5", "So \\boxed{5}.\n\n#### 6", True),
        ("math", "5", "So \\boxed{5}.\n\n#### Verification\nok", True),
        ("numeric", "12", "#### Step 2\n4*3=12\nThe answer is 12.", True),
        ("numeric", "2", "#### Step 2\n4*3=12\nThe answer is 12.", False),
        ("math", "12", "#### Step 1\nwe add\n\n4*3 = 12", True),
        ("math", "12", "#### 步骤 1\n4*3 = 12", True),
        ("math", "\\frac{\\sqrt{3}}{2}", "#### Step 1\n2\n#### $\\frac{\\sqrt{3}}{2}$", True),
        ("exact", "Paris", "Where?\n#### Paris", True),
        ("numeric", "5", "The answer is **5**.", True),
        ("numeric", "2000000", "The answer is 2000001", False),
        ("numeric", "2000000", "The answer is 2000000.5", False),
        ("numeric:0.01", "2000000", "The answer is 2000001", True),
        ("numeric", "1000000007", "\\boxed{1000000008}", False),
        ("math", "9007199254740993", "\\boxed{9007199254740992}", False),
        ("math", "9007199254740993", "\\boxed{9007199254740993.0}", True),
        ("math", "5", "the answer is 5/0", False),
        ("numeric", "5", "\\boxed{5/0}", False),
        ("numeric", "5/0", "5", None),
        ("numeric", "7", "\\boxed{" + "9" * 400 + "}", False),
        ("numeric", "9" * 400, "\\boxed{7}", False),
        ("numeric", "9" * 400, "\\boxed{" + "9" * 399 + "8}", False),
        ("math", "9" * 400, "\\boxed{" + "9" * 399 + "8}", False),
        ("numeric:0.5", "9" * 400, "\\boxed{" + "9" * 399 + "8}", True),
        ("math", "0.5", "\\boxed{0.5\\%}", False),
        ("numeric", "0.5", "\\boxed{0.5\\%}", False),
        ("math", "0.5", "\\boxed{50\\%}", True),
        ("math", "50", "\\boxed{50\\%}", True),
        ("math", "50\\%", "\\boxed{0.5}", True),
        ("math", "50\\%", "\\boxed{0.5\\%}", False),
        ("numeric", "5", "\\boxed{500\\%}", False),
        ("math", "1,3", "\\boxed{13}", False),
        ("math", "1,234", "\\boxed{1234}", True),
        ("math", "12", "\\boxed{(1,2)}", False),
        ("math", "36,36,108", "\\boxed{3636108}", False),
        ("numeric", "3636108", "\\boxed{36,36,108}", False),
        ("math", "36,36,108", "\\boxed{36, 36, 108}", True),
        ("math", "0,245", "\\boxed{245}", False),
        ("math", "101102", "\\boxed{(101,102)}", False),
        ("numeric", "101102", "The answer is (101,102).", False),
        ("numeric", "(101,102)", "\\boxed{101102}", None),
        ("numeric", "1234", "The answer is 1,234 (dollars).", True),
        ("numeric", "11,\\! 111,\\! 111,\\! 100", "\\boxed{11{,}111{,}111{,}100}", True),
        ("numeric", "{1,\\! 2}", "\\boxed{12}", None),
        ("regex:result = (\\d+)", "42", "result = 41, no: result = 42", True),
        ("regex:result = (\\d+)", "42", "42", False),
        ("math", "4.5e33", "so it is $4.5 \\times 10^{33}$", True),
        ("math", "10^{4}", "\\boxed{10000}", True),
        ("math", "2 \\times 10^{3}x", "\\boxed{2000x}", True),
        ("math", "10^{2}+1", "\\boxed{101}", True),
        ("math", "2e^3", "\\boxed{2000}", False),
        ("numeric", "6.3 \\times 10^{-5}", "Answer: 0.000063", True),
        ("numeric", "1000", "It is 10 ^ 3", True),
        ("world", "57", "57 is it.\nAnswer: 57", True),
        ("world", "57", "Answer: 57 apples", False),
    ],
)
def test_verifiers(name, answer, text, right):
    assert verifier(name)(answer, text) is right


def test_every_verdict_is_a_careful_persons():
    """Made-up answers and texts of many kinds, right ones beside their wrong neighbours."""
    cases = map(json.loads, Path(__file__).with_name("verdicts.jsonl").read_text(encoding="utf-8").splitlines())
    other = [one for one in cases if verifier(one["verifier"])(one["answer"], one["text"]) is not one["right"]]
    assert other == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>\\boxed{4}, no</think>\\boxed{5}", True),
        ("<think>\\boxed{5}</think> It is \\boxed{4}.", False),
        ("<think>so \\boxed{5}", False),
        ("It is \\boxed{4}, no.</think>\n\nThe answer is 5.", True),
        ("[THINK]\\boxed{4}[/THINK]5", True),
        ("<|channel|>analysis<|message|>4<|end|><|channel|>final<|message|>5<|return|>", True),
        ("5", True),
    ],
)
def test_what_is_thought_is_not_the_answer(text, right):
    for name in ("math", "numeric", "normalised"):
        assert verifier(name)("5", text.replace("The answer is 5.", "Answer: 5")) is right, name


def test_a_prompt_can_open_the_thought():
    assert opened_thought("<|assistant|><think>\n") == "<think>\n"
    assert opened_thought("<think>\n\n</think>\n\n") == opened_thought("What does <think> mean?") == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mathematics", "is not one of math, numeric"),
        ("math:3", "is not one of"),
        ("numeric:much", "a number from 0"),
        ("numeric:-1", "a number from 0"),
        ("regex:(", "not a regular expression"),
        ("regex:no group", "exactly one group"),
    ],
)
def test_verifiers_that_are_none(name, sentence):
    with pytest.raises(BasiscopeError, match=sentence):
        verifier(name)


@pytest.mark.parametrize("found", ["9^{9^{9^{9}}}", "9^(9^(9^9))", "(10^{10^{8}})!", "\\sqrt{" * 200])
def test_a_formula_without_end_holds_nobody_up(found):
    start = time.monotonic()
    assert not verifier("math")("\\frac{1}{2}", f"\\boxed{{{found}}}")
    assert verifier("math")("\\frac{1}{2}", "\\boxed{\\frac{2}{4}}"), "the next answer is verified"
    assert time.monotonic() - start < 90  # 5 seconds and a new process, on a loaded machine


def test_a_limit_holds_off_the_main_thread_and_is_counted_as_unverified():
    child, found = Child(seconds=1.0), []
    ask = ("same_formula", "\\frac{1}{2}", "9^{9^{9^{9}}}+x")
    thread = Thread(target=lambda: found.append(child.ask(*ask)))
    thread.start()
    thread.join(90)
    assert found == [None]
    assert child.ask("same_formula", "0.5", "1/2") is True
    process = child._process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert child.ask("same_formula", "0.5", "1/2") is None, "one whose process died is not verified"
    assert child.ask("same_formula", "0.5", "1/2") is True
    child.close()


def test_the_limit_is_of_processor_time():
    """A process that stands still for longer than its limit, as on a busy machine, still says what is right."""
    child = Child(seconds=1.0)
    assert child.ask("same_formula", "0.5", "1/2") is True
    group = child._process.pid
    os.killpg(group, signal.SIGSTOP)
    waking = Timer(2.5, os.killpg, [group, signal.SIGCONT])
    waking.start()
    start = time.monotonic()
    assert child.ask("same_formula", "5", "6") is False and child.ask("same_formula", "6", "6") is True
    assert time.monotonic() - start > 2 and child._process.pid == group
    child.close()


def test_what_a_question_ends_is_replaced_without_a_start():
    child = Child(seconds=1.0)
    assert child.ask("same_formula", "0.5", "1/2") is True
    process, start = child._process, time.process_time()
    for _ in range(3):
        assert child.ask("same_formula", "\\frac{1}{2}", "9^{9^{9^{9}}}+x") is None
        assert child.ask("same_formula", "0.5", "1/2") is True
    assert child._process is process and time.process_time() - start < 1
    child.close()
    assert process.returncode is not None


def test_a_pattern_without_end_holds_nobody_up():
    assert verifier("regex:(a+)+$")("aaaa", "a" * 60 + "b") is None


@pytest.mark.parametrize(
    "text", ["x " * 2_000_000, "{" * 4_000_000, "\\boxed{" * 500_000, "answer is " * 400_000, "9" * 4_000_000]
)
def test_megabytes_of_text_take_no_time(text):
    check = verifier("math")
    check("1", "2")
    start = time.process_time()
    for name in ("math", "numeric", "normalised", "choice", "exact", "world"):
        assert verifier(name)("12", text) is not True
    assert time.process_time() - start < 10


def test_nothing_is_evaluated(tmp_path):
    target = tmp_path / "made"
    code = f"__import__('pathlib').Path('{target}').touch()"
    for text in (code, f"\\boxed{{{code}}}", f"${code}$", f"Answer: {code}", f'#### eval("{code}")'):
        assert not verifier("math")("\\frac{1}{2}", text)
        assert not verifier("math")(f"1+{code}", "2")
    assert not target.exists()


def test_an_answer_is_what_the_last_box_holds_however_deep():
    assert (
        final_answer("\\boxed{1} then \\boxed{\\frac{\\sqrt{x^{2_{3}}}}{\\{4\\}}}.")
        == "\\frac{\\sqrt{x^{2_{3}}}}{\\{4\\}}"
    )
    assert final_answer("\\boxed 5$ and done, 6") == "5"


def math500_disagreements(path):
    verify = verifier("math")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 500
    return [row["unique_id"] for row in rows if verify(row["answer"], row["solution"]) is not True]


def test_the_solutions_of_math500_give_their_own_answers(data_folder):
    assert len(math500_disagreements(data_folder / "math" / "math500.jsonl")) <= 5


def test_the_wrong_answers_of_math500_are_not_its_own(data_folder):
    """Another problem's answer is accepted only where it is the same one."""
    verify = verifier("math")
    rows = [json.loads(line) for line in (data_folder / "math" / "math500.jsonl").read_text().splitlines()]
    others = [(row["answer"], other["answer"]) for row, other in pairwise(rows)]
    taken = [(a, b) for a, b in others[:150] if verify(a, f"\\boxed{{{b}}}") and a != b]
    assert taken == [("5", "x=5")]


def gsm8k_disagreements(folder):
    """(test solutions not verified, how many there are; model solutions judged otherwise, their number)."""
    verify = verifier("numeric")
    tests = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    own = [row["question"] for row in tests if not verify(row["answer"].rsplit("####", 1)[1], row["answer"])]
    judged, n = [], 0
    for number, line in enumerate((folder / "model_solutions.jsonl").read_text().splitlines()):
        row = json.loads(line)
        answer = row["ground_truth"].rsplit("A: ", 1)[1]
        for name, value in row.items():
            if isinstance(value, dict):
                n += 1
                if verify(answer, value["solution"]) is not value["is_correct"]:
                    judged.append((number, name, answer, value["is_correct"], value["solution"][-60:]))
    return own, len(tests), judged, n


def test_gsm8k_is_verified_as_its_makers_did(data_folder):
    own, n, judged, solutions = gsm8k_disagreements(data_folder / "gsm8k")
    assert own == [] and n == 1_319
    assert len(judged) <= 0.005 * solutions and solutions == 5_276, judged


# --- Pass@k ---------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    """Against every draw of k of n rollouts, counted one by one."""
    for n, right in product(range(1, 7), range(7)):
        for k in range(1, n + 1):
            if right <= n:
                draws = list(combinations([True] * right + [False] * (n - right), k))
                assert pass_at_k(np.array([right]), n, k)[0] == pytest.approx(
                    np.mean([any(draw) for draw in draws])
                )
    assert np.isnan(pass_at_k(np.array([1]), 2, 3)).all()
    assert usual_k(8) == (1, 2, 4, 8) and usual_k(1) == (1,) and usual_k(6) == (1, 2, 4, 6)


def rollouts_of(right, variant=UNSTEERED, n=None):
    """Rollouts with so many right ones for each problem."""
    n = n or 4
    return [
        Rollout(variant, p, i, "text", i < count, False, 10, -1.0 - i)
        for p, count in enumerate(right)
        for i in range(n)
    ]


def test_pass_at_k_of_an_evaluation():
    tally = Tally.of([*rollouts_of([0, 1, 4]), Rollout(UNSTEERED, 1, 4, "", None, False, 0)])
    assert tally.right.tolist() == [0, 1, 4] and tally.n.tolist() == [4, 5, 4] and tally.least == 4
    found = pass_at_intervals(Tally.of(rollouts_of([0, 1, 4])), (1, 2, 4))
    assert [found[k].value for k in (1, 2, 4)] == pytest.approx([5 / 12, 0.5, 2 / 3])
    assert all(one.low <= one.value <= one.high and one.n == 3 for one in found.values())


@pytest.mark.parametrize("name", ["math", "numeric"])
def test_a_number_of_a_unit_is_the_number(name):
    check = verifier(name)
    for said in (
        "5 m/s.",
        "5 m^2.",
        "$5/hour.",
        "$5$ m/s.",
        "5m",
        r"5\text{ m/s}.",
        "5 kg·m/s²",
        "5 meters/second^2",
    ):
        assert check("5", f"The answer is {said}"), said
    assert check("9.8", "The answer is 9.8 m/s^2") and check("9.8", "So it falls at 9.8 m/s^2.")
    assert check("5", "#### 5 m/s") and check("5", r"\boxed{5 m/s}")
    for said in ("6 m/s", "5/6", "5x^2", "5x", "x^5", "5 m + 3", r"5\pi", r"5\sqrt{2}", "5s^2", "5/x"):
        assert not check("5", f"The answer is {said}"), said
    assert not check("2", "The answer is 5 m^2") and not check("2", "So it falls at 9.8 m/s^2.")


def test_the_bootstrap_is_scipys():
    rng = np.random.default_rng(0)
    right = rng.binomial(8, rng.beta(1, 2, 200))
    values = pass_at_k(right, 8, 4)
    (ours,) = bootstrap_intervals(values[:, None], resamples=20_000)
    plain = bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=1 - 2 * expanded_tail(200),
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), abs=0.002)
    assert expanded_tail(10_000) == pytest.approx(0.025, abs=1e-4) and expanded_tail(10) < 0.02


def solved_half_the_time(share):
    return lambda rng, n: (rng.random(n) < share) * 0.5


@pytest.mark.parametrize(
    ("n", "rollouts", "k", "drawn", "highest"),
    [
        (40, 8, 1, lambda rng, n: rng.beta(0.8, 1.2, n), 0.98),
        (100, 8, 4, lambda rng, n: rng.beta(0.8, 1.2, n), 0.98),
        (200, 8, 8, lambda rng, n: rng.beta(0.8, 1.2, n), 0.98),
        (30, 4, 1, solved_half_the_time(0.05), 1),
        (100, 4, 1, solved_half_the_time(0.05), 1),
        (100, 4, 4, lambda rng, n: rng.beta(0.1, 2, n), 1),
        (40, 8, 1, lambda rng, n: np.where(rng.random(n) < 0.95, 0.97, 0), 1),
    ],
)
def test_intervals_cover_what_they_say(n, rollouts, k, drawn, highest):
    """95% intervals cover 93 to 98%, as do those of differences; never less where few are ever solved."""
    rng, covered, paired = np.random.default_rng(n + k), [], []
    difficulty = drawn(rng, 200_000)
    truth = np.mean(1 - (1 - difficulty) ** k)
    change = np.mean((1 - difficulty) ** k - (1 - changed(difficulty)) ** k)
    for _ in range(500):
        chosen = rng.choice(difficulty, n)
        a = pass_at_k(rng.binomial(rollouts, chosen), rollouts, k)
        b = pass_at_k(rng.binomial(rollouts, changed(chosen)), rollouts, k)
        first, second = mean_share_interval(a), difference_interval(b - a)
        covered.append(first.low <= truth <= first.high)
        paired.append(second.low <= change <= second.high)
    assert 0.93 <= np.mean(covered) <= highest, np.mean(covered)
    assert 0.93 <= np.mean(paired) <= highest, np.mean(paired)


def uneven(rng, n):
    return rng.beta(0.8, 1.2, n)


def almost_all_solved(rng, n):
    return np.where(rng.random(n) < 0.95, 0.97, 0)


@pytest.mark.parametrize(
    ("n", "rollouts", "k", "drawn", "highest"),
    [
        (40, 8, 1, uneven, 0.97),
        (100, 8, 4, uneven, 0.97),
        (200, 8, 8, uneven, 0.97),
        (400, 4, 1, uneven, 0.97),
        (30, 4, 1, solved_half_the_time(0.05), 0.97),
        (400, 4, 1, solved_half_the_time(0.05), 0.97),
        (100, 4, 4, lambda rng, n: rng.beta(0.1, 2, n), 0.97),
        (400, 8, 1, almost_all_solved, 0.97),
        (10, 8, 1, uneven, 1.0),
        (20, 8, 1, uneven, 0.98),
        (100, 4, 1, solved_half_the_time(0.05), 0.98),
        (40, 8, 1, almost_all_solved, 0.985),
    ],
)
def test_intervals_of_pass_at_k_cover_93_to_97_percent_but_where_little_is_known(n, rollouts, k, drawn, highest):
    """Measured with 2,000 samples each. The last four are too wide: 99.6% with 10 problems, 97.5% with 20, 97.3%
    where 5 of 100 problems are ever solved, 98.1% where 2 of 40 never are: so few problems say little of their
    variance, and the case that is counted on top outweighs them. With 400 problems the same two give 95.5 and
    94.8%."""
    rng, covered = np.random.default_rng(n + k), []
    difficulty = drawn(rng, 200_000)
    truth = np.mean(1 - (1 - difficulty) ** k)
    for _ in range(2_000):
        found = mean_share_interval(pass_at_k(rng.binomial(rollouts, rng.choice(difficulty, n)), rollouts, k))
        covered.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(covered) <= highest, np.mean(covered)
    assert highest == 0.97 or np.mean(covered) > 0.97, "else it can be held to 97%"


def changed(difficulty):
    return np.clip(difficulty - 0.1, 0, 1)


def test_problems_that_come_to_be_solved_are_covered_by_the_interval_of_the_difference():
    """5% of the problems go from never to every other time."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(500):
        differences = rng.binomial(4, solved_half_the_time(0.05)(rng, 30)) / 4
        found = difference_interval(differences)
        covered.append(found.low <= 0.025 <= found.high)
    assert np.mean(covered) >= 0.93


def test_intervals_of_shares_and_differences_are_the_published_ones():
    """Wilson's by t where each problem is all or nothing; Bonett and Price's where each difference is."""
    from scipy.stats import binomtest, norm, t

    solved = np.repeat([0.0, 1.0], [14, 6])
    level = 1 - 2 * norm.sf(t.ppf(0.975, 19))
    wilson = binomtest(6, 20).proportion_ci(level, "wilson")
    found = mean_share_interval(solved)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))
    n, up, down = 20, 6, 2
    found = difference_interval(np.repeat([-1.0, 0.0, 1.0], [down, n - up - down, up]))
    shares = (up + 1) / (n + 2), (down + 1) / (n + 2)
    middle = shares[0] - shares[1]
    half = t.ppf(0.975, n - 1) * np.sqrt((sum(shares) - middle**2) / (n + 1))
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert difference_interval(np.ones(20)).high == 1


def test_nothing_solved_is_not_certainty():
    found = pass_at_intervals(Tally.of(rollouts_of([0] * 20)), (1,))[1]
    assert (found.value, found.low) == (0, 0) and 0.1 < found.high < 0.2
    found = pass_at_intervals(Tally.of(rollouts_of([4] * 20)), (1,))[1]
    assert found.value == found.high == 1 and 0.8 < found.low < 0.9
    found = difference_interval(np.zeros(20))
    assert found.value == 0 and found.low == -found.high < -0.1
    assert math.isnan(pass_at_intervals(Tally.of(rollouts_of([1])), (1,))[1].low), "one problem has no interval"


def test_a_difference_is_paired_by_problem():
    before, after = rollouts_of([0, 1, 2, 3] * 10), rollouts_of([1, 2, 3, 4] * 10, "1:+2")
    found = paired_difference("1:+2", after, before, 1)
    assert found.difference.value == pytest.approx(0.25) and 0.2 < found.difference.low < 0.25
    assert (found.better, found.worse, found.variant, found.baseline) == (40, 0, "1:+2", UNSTEERED)
    assert found.p == pytest.approx(1 / 10_001)
    (unpaired,) = bootstrap_intervals(Tally.of(after).pass_at(1)[:, None])
    assert unpaired.high - unpaired.low > 0.1


@pytest.mark.parametrize("n", [8, 40])
def test_the_p_value_is_scipys(n):
    rng = np.random.default_rng(n)
    differences = rng.choice([-0.25, 0, 0.25, 0.5], n)
    theirs = permutation_test(
        (differences, np.zeros(n)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=20_000, vectorized=True, rng=0,
    ).pvalue  # fmt: skip
    assert sign_flip_p(differences) == pytest.approx(theirs, abs=0.02)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_p_values_of_no_difference_are_uniform():
    rng = np.random.default_rng(3)
    found = [sign_flip_p((rng.binomial(8, 0.4, 30) - rng.binomial(8, 0.4, 30)) / 8, i) for i in range(400)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.08


def test_rollouts_are_kept_as_they_are(tmp_path):
    kept = KeptEvaluation(tmp_path)
    first = [Rollout(UNSTEERED, 1, 0, "a\u2028b\r\n\u0085c", True, False, 5, -1.0)]
    second = [Rollout("1:+2", 0, 0, "", None, False, 0, note="odd"), *first]
    kept.append(first)
    kept.append(second)
    assert kept.rollouts() == [second[0], first[0]]


def test_what_is_counted_apart():
    odd = [
        Rollout(UNSTEERED, 0, 0, "a", True, True, 5, -1.0),
        Rollout(UNSTEERED, 0, 1, "b", None, False, 5, -3.0),
        Rollout(UNSTEERED, 1, 0, "", False, False, 0),
        Rollout(UNSTEERED, 1, 1, "c", False, True, 5, -2.0),
    ]
    (found,) = Result.of(odd).variants
    assert (found.cut, found.cut_right, found.unverified) == (2, 1, 1)
    assert (found.rollouts, found.right) == (4, 1) and found.pass_at[1].value == 0.25
    assert found.logprob.value == pytest.approx(-2.0) and found.logprob_right.value == -1.0
    json.dumps(Result.of(odd).as_dict(), allow_nan=False)


# --- problems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "preset", "n", "first"),
    [
        ("gsm8k/test.jsonl", "gsm8k", 1_319, "18"),
        ("math/math500.jsonl", "math500", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("math/amc23.jsonl", "amc", 40, "27"),
        ("math/college_math.jsonl", None, 2_818, "$10-4 n$"),
    ],
)
def test_usual_sets_are_known_by_path_and_columns(data_folder, path, preset, n, first):
    found = read_problems(str(data_folder / path))
    assert (found.preset, len(found.problems), found.problems[0].answer) == (preset, n, first)
    name = found.verifier or "math"
    assert all(can_verify(name, problem.answer) for problem in found.problems[:200])


def olympiad(question, final_answer, answer_type="Numerical", is_multiple_answer=False, unit=None):
    row = {"id": 1606, "question": question, "solution": ["Let ..."], "final_answer": final_answer}
    row |= {"context": None, "image_1": None, "modality": "Text-only", "difficulty": "Competition"}
    row |= {"is_multiple_answer": is_multiple_answer, "unit": unit, "answer_type": answer_type, "error": None}
    return row | {"question_type": "Open-ended", "subfield": "Algebra", "subject": "Math", "language": "English"}


HUB_ROWS = {
    "HuggingFaceH4/aime_2024.jsonl": (
        "aime",
        [
            {"id": 60, "problem": "How many minutes does it take her?", "solution": "so \\boxed{204}",
             "answer": "204", "url": "https://artofproblemsolving.com", "year": "2024"},
            {"id": 61, "problem": "Find $xy$.", "solution": "", "answer": "025", "url": "", "year": "2024"},
            {"id": 62, "problem": "Find $m+n$.", "solution": "", "answer": 33, "url": "", "year": "2024"},
        ],
        [("204", "Hence \\boxed{204}.", "\\boxed{20}"), ("025", "\\boxed{25}", "\\boxed{250}"),
         ("33", "The answer is 033.", "The answer is 32.")],
    ),
    "Maxwell-Jia/AIME_2024.jsonl": (
        "aime",
        [{"ID": "2024-II-4", "Problem": "Find $m+n$.", "Solution": "", "Answer": 33}],
        [("33", "\\boxed{33}", "\\boxed{3}")],
    ),
    "math-ai/amc23.jsonl": (
        "amc",
        [
            {"id": 0, "answer": 27.0, "url": "https://artofproblemsolving.com", "question": "How many miles?"},
            {"id": 1, "answer": "36.0", "url": "", "question": "How many?"},
            {"id": 2, "answer": -1.0, "url": "", "question": "What is $x$?"},
        ],
        [("27", "\\boxed{27}", "\\boxed{2.7}"), ("36.0", "\\boxed{36}", "\\boxed{360}"),
         ("-1", "\\boxed{-1}", "\\boxed{1}")],
    ),
    "math-ai/minervamath.jsonl": (
        "minerva",
        [
            {"question": "How luminous, in erg/s?", "answer": "4.5e33"},
            {"question": "What frequency?", "answer": "2.75e11"},
            {"question": "How long, in seconds?", "answer": "7.5e-7"},
            {"question": "Which angle?", "answer": "\\arcsin{1.3 \\sin{\\theta_w}}"},
            {"question": "What is it in terms of $g$ and $R$?", "answer": "\\sqrt{\\frac{g}{R}}"},
            {"question": "What is $y(t)$?", "answer": "e^{-t}-\\frac{1}{2}"},
            {"question": "Is it stable?", "answer": "False"},
        ],
        [
            ("4.5e33", "\\boxed{4.5 \\times 10^{33}}", "\\boxed{4.5 \\times 10^{32}}"),
            ("2.75e11", "The answer is $2.75 \\cdot 10^{11}$ Hz.", "\\boxed{2.75}"),
            ("7.5e-7", "\\boxed{7.5e-7 \\text{ s}}", "\\boxed{7.5 \\times 10^{7}}"),
            ("\\arcsin{1.3 \\sin{\\theta_w}}", "\\boxed{\\arcsin(1.3\\sin\\theta_w)}",
             "\\boxed{\\arcsin(1.2\\sin\\theta_w)}"),
            ("\\sqrt{\\frac{g}{R}}", "\\boxed{\\sqrt{g/R}}", "\\boxed{\\sqrt{R/g}}"),
            ("e^{-t}-\\frac{1}{2}", "\\boxed{-0.5+e^{-t}}", "\\boxed{e^{t}-\\frac{1}{2}}"),
            ("False", "\\boxed{\\text{False}}", "\\boxed{True}"),
        ],
    ),
    "Hothan/OlympiadBench.jsonl": (
        "olympiadbench",
        [
            olympiad("Find the slope.", ["$-\\frac{2}{3}$"]),
            olympiad("Find all $n$.", ["$1,8,19$"], "Numerical", is_multiple_answer=True),
            olympiad("Find both.", ["$\\frac{1}{2}$", "$2$"], "Expression", is_multiple_answer=True),
            olympiad("For which $x$?", ["$(-\\infty, 3]$"], "Interval"),
            olympiad("Which angle?", ["75"], unit="^{\\circ}"),
        ],
        [
            ("$-\\frac{2}{3}$", "\\boxed{-2/3}", "\\boxed{2/3}"),
            ("$1,8,19$", "\\boxed{19, 8, 1}", "\\boxed{1, 8}"),
            ("$\\frac{1}{2}$, $2$", "\\boxed{2, 0.5}", "\\boxed{2}"),
            ("$(-\\infty, 3]$", "\\boxed{(-\\infty,3]}", "\\boxed{(-\\infty,3)}"),
            ("75", "\\boxed{75^{\\circ}}", "\\boxed{15^{\\circ}}"),
        ],
    ),
}  # fmt: skip
"""File -> the preset it is read by, rows with the columns and answer forms of the hub's data set, and of each its
answer as read, a text that gives it, and one that does not."""


@pytest.mark.parametrize("name", HUB_ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_presets_read_their_data_sets_and_verify_their_answers(tmp_path, name, ending):
    preset, rows, expected = HUB_ROWS[name]
    path = tmp_path / Path(name).with_suffix(f".{ending}").name
    if ending == "parquet":
        pd.DataFrame(
            [row | {"answer": str(row["answer"])} if "answer" in row else row for row in rows]
        ).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for chosen in (None, preset):
        found = read_problems(str(path), preset=chosen)
        assert (found.preset, len(found.problems), found.notes) == (preset, len(rows), ())
    check = verifier(found.verifier)
    for problem, (answer, right, wrong) in zip(found.problems, expected, strict=True):
        assert problem.answer == answer or float(problem.answer) == float(answer)
        assert can_verify(found.verifier, problem.answer)
        assert check(problem.answer, right) is True and check(problem.answer, wrong) is False


def test_columns_of_any_file(write_rows):
    path = write_rows(
        [{"q": {"text": "1+1"}, "a": [2, 3]}, {"q": {"text": ""}, "a": 2}, {"q": {"text": "2"}, "a": None}]
    )
    found = read_problems(path, "q.text", "a")
    assert found.problems == (Problem(0, "1+1", "2, 3"),)
    assert found.notes == ("1 row: left out, no problem (row 1)", "1 row: left out, no answer (row 2)")
    limited = read_problems(path, "q.text", "a", limit=1)
    assert limited.notes == () and limited.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"problem": "nothing"}, "no row has the column 'nothing'.*question, answer"),
        ({"preset": "nothing"}, "is not one of gsm8k"),
    ],
)
def test_problem_sets_that_cannot_be_read(write_rows, options, sentence):
    path = write_rows([{"question": "1+1", "answer": 2}])
    with pytest.raises(BasiscopeError, match=sentence):
        read_problems(path, **options)


def test_problem_sets_without_columns_answers_or_a_file(write_rows, tmp_path):
    with pytest.raises(BasiscopeError, match=r"name the column of the answers with --answer.*question, label_of"):
        read_problems(write_rows([{"question": "1", "label_of": 2}]))
    with pytest.raises(BasiscopeError, match="no row has a problem and its answer"):
        read_problems(write_rows([{"question": "1", "answer": ""}]))
    with pytest.raises(BasiscopeError, match="there is no file"):
        read_problems(str(tmp_path / "none.jsonl"))
    with pytest.raises(BasiscopeError, match="give --problems"):
        read_problems()


def test_problems_are_asked_as_published():
    problem = Problem(0, "What is {x} for \\frac{1}{2}?", "3")
    assert asked(problem, "boxed").startswith(problem.prompt) and "\\boxed{}" in asked(problem, "boxed")
    assert asked(problem, "bare") == problem.prompt
    assert asked(problem, "Q: {problem}\nA:") == f"Q: {problem.prompt}\nA:"
    with pytest.raises(BasiscopeError, match=r"\{problem\} in it"):
        asked(problem, "boxes")


# --- rollouts -------------------------------------------------------------------------------------------

SAMPLING = Sampling(12, temperature=1.0, seed=7)


@pytest.fixture(scope="module")
def model(stories):
    return load_model(stories, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def problems(data_folder):
    return read_problems(str(data_folder / "gsm8k" / "test.jsonl"), limit=5).problems


def rolled(model, problems, batch_rows=32, done=frozenset(), **options):
    prompts = encode_problems(model, problems, "bare", "auto", SAMPLING.max_new_tokens)
    options = {"r": 3, "sampling": SAMPLING, "verify": verifier("numeric")} | options
    batches = list(roll_out(model, problems, prompts, done=done, batch_rows=batch_rows, **options))
    return {one.key: one for batch in batches for one in batch}


def test_rollouts_hang_on_seed_problem_and_number_alone(model, problems):
    whole = rolled(model, problems)
    assert len(whole) == 15 and len({one.text for one in whole.values()}) == 15
    one_by_one = rolled(model, problems, batch_rows=1)
    other_order = rolled(model, problems[::-1], batch_rows=4)
    for key, one in whole.items():
        assert one.text == one_by_one[key].text == other_order[key].text
        assert one.logprob == pytest.approx(one_by_one[key].logprob, abs=1e-4)
    done = frozenset(list(whole)[:7])
    continued = rolled(model, problems, done=done, batch_rows=4)
    assert continued.keys() == whole.keys() - done
    assert all(one.text == whole[key].text for key, one in continued.items())
    other_seed = rolled(model, problems, sampling=replace(SAMPLING, seed=8))
    assert all(other_seed[key].text != one.text for key, one in whole.items())
    assert len({noise_seed(0, p, i) for p in range(100) for i in range(100)}) == 10_000


def test_the_log_probability_is_that_of_a_plain_pass(model, problems, gsm8k_run):
    """Of unsteered texts against the perplexity that core.steering.assessment reads off one pass."""
    directions = Directions.of(gsm8k_run)
    prompts = encode_problems(model, problems, "bare", "auto", SAMPLING.max_new_tokens)
    rows = [Row(prompts[p.problem_id], Steering(), noise_seed(SAMPLING.seed, p.problem_id, 0)) for p in problems]
    generation = Generation(model, directions, rows, SAMPLING, with_logprobs=True).run()
    plain = [-np.log(one.perplexity) for one in assess(model, directions, rows, generation.tokens)]
    found = rolled(model, problems, r=1)
    assert [found[UNSTEERED, p.problem_id, 0].logprob for p in problems] == pytest.approx(plain, abs=1e-4)
    assert [one.cut for one in found.values()] == [one.n_tokens == 12 for one in found.values()]


def test_variants_meet_the_same_noise(model, problems, gsm8k_run):
    directions = Directions.of(gsm8k_run)
    variants = {UNSTEERED: Steering(), "1:+0.001": Steering(((1, 1e-6),)), "1:+3": Steering(((1, 3.0),))}
    found = rolled(model, problems, variants=variants, directions=directions)
    alone = rolled(model, problems)
    for (variant, problem_id, i), one in found.items():
        if variant != "1:+3":
            assert one.text == alone[UNSTEERED, problem_id, i].text
    assert any(found["1:+3", p, i].text != one.text for (_, p, i), one in alone.items())
    with pytest.raises(BasiscopeError, match="needs the directions of a run"):
        rolled(model, problems, variants=variants)


def test_problems_without_room_are_left_out(model, problems):
    room = model.context - 80
    prompts = encode_problems(model, problems, "bare", "auto", room)
    assert 0 < len(prompts) < len(problems)
    assert {key[1] for key in rolled(model, problems[:2])} == {0, 1}
    with pytest.raises(BasiscopeError, match=r"Problem 0: .*exceed the model's context"):
        encode_problems(model, problems, "bare", "auto", model.context)


def test_a_chat_model_is_asked_by_its_template(chat_stories, model, problems):
    chat = load_model(chat_stories, dtype="float32", device="cpu")
    for template, expected in (("auto", True), ("chat", True), ("plain", False)):
        prompts = encode_problems(chat, problems[:1], "bare", template, 10)
        assert ("[assistant]" in chat.tokenizer.decode(prompts[0])) is expected
    with pytest.raises(BasiscopeError, match="no chat template"):
        encode_problems(model, problems, "bare", "chat", 10)


def test_intervals_of_stored_results():
    from core.tables import share_text, stored_interval

    stored = {"value": 0.5, "low": None, "high": None, "n": 1}
    assert math.isnan(stored_interval(stored).low) and share_text(stored_interval(stored)) == "50.0% (one problem)"
    assert share_text(Interval(0.5, 0.25, 0.75, 9)) == "50.0% (25.0 to 75.0)"
