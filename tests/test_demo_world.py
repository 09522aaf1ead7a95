import itertools
import json
import re
from dataclasses import asdict

import numpy as np
import pytest

from core.demo import world

FACTORS = ("operation", "steps", "difficulty", "style", "check", "plan", "correct", "source", "license")
# What depends on what, on purpose: habits on who writes, the licence on who writes, mistakes on checking.
LINKED = {
    *itertools.product(("style", "check", "plan", "correct"), ("source", "license")),
    ("source", "license"),
    ("check", "correct"),
}


@pytest.fixture(scope="module")
def examples():
    return world.generate(10_000, seed=0)


def cramers_v(examples, a, b):
    """Association of two columns: 0 is independent, 1 is a function of each other."""
    pairs = [
        np.unique([str(getattr(example, name)) for example in examples], return_inverse=True)[1] for name in (a, b)
    ]
    table = np.zeros([codes.max() + 1 for codes in pairs])
    np.add.at(table, tuple(pairs), 1)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / (min(table.shape) - 1))


def test_a_seed_gives_the_same_examples_and_another_seed_gives_new_problems(examples):
    assert world.generate(300, seed=0) == examples[:300]
    seen = {example.prompt for example in examples}
    assert len(seen) > 0.999 * len(examples)
    assert not any(example.prompt in seen for example in world.generate(1_000, seed=1))


def test_the_verifier_agrees_with_the_construction(examples):
    assert all(world.verify(example, example.response) == example.correct for example in examples)


def test_wrong_solutions_state_another_answer_in_the_same_form(examples):
    wrong = [example for example in examples if not example.correct]
    answers = [world.final_answer(example.response) for example in wrong]
    assert wrong and all(answer is not None for answer in answers)
    assert all(answer != example.answer for answer, example in zip(answers, wrong, strict=True))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 57", "57"),
        ("So Mia has 57 eggs.\nAnswer: 57\n", "57"),
        ("Answer: 57\nSo Mia has 57 eggs.", None),
        ("The Answer: 57", None),
        ("Answer: 5 7", None),
        ("Answer: 57.", None),
        ("", None),
    ],
)
def test_only_the_closing_answer_form_counts(response, answer):
    assert world.final_answer(response) == answer


def test_true_equations_hold_in_symbolic_solutions_that_are_right(examples):
    signs = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    equation = re.compile(r"(?<![\d/] )\b(\d+) ([-+*/]) (\d+) = (\d+)\b(?! [-+*/])")
    checked = 0
    for example in examples:
        if example.style == "symbolic" and example.correct and "not" not in example.response:
            for a, sign, b, result in equation.findall(example.response):
                assert signs[sign](int(a), int(b)) == int(result), example.response
                checked += 1
    assert checked > 10_000


def test_every_factor_can_be_read_back_from_the_response(examples):
    for example in examples:
        read = world.read_response(example.response)
        assert (read.style, read.check, read.plan) == (example.style, example.check, example.plan)
        assert (read.answer == example.answer) == example.correct


@pytest.mark.parametrize("name", ["operation", "steps", "difficulty", "style", "check", "plan", "source"])
def test_levels_are_balanced(examples, name):
    counts = np.unique([str(getattr(example, name)) for example in examples], return_counts=True)[1]
    assert counts.min() > 0.8 * counts.mean()


def test_factors_are_crossed(examples):
    for a, b in itertools.combinations(FACTORS, 2):
        # 0.05 is three times what independence gives 10,000 examples of the largest tables here
        assert (a, b) in LINKED or cramers_v(examples, a, b) < 0.05, (a, b)
    for a, b in LINKED - {("source", "license"), ("check", "correct")}:
        assert cramers_v(examples, a, b) < 0.25, (a, b)


def test_checking_prevents_careless_mistakes(examples):
    wrong = {check: np.mean([not e.correct for e in examples if e.check is check]) for check in (True, False)}
    assert wrong[True] == pytest.approx(world.CARELESS[True], abs=0.01)
    assert wrong[False] == pytest.approx(world.CARELESS[False], abs=0.025)


def test_a_checked_step_says_so_before_its_result(examples):
    result = re.compile(r"=| (?:is|gives|makes) [0-9]")
    for example in examples[:2_000]:
        for line in filter(result.search, example.response.split("\n")):
            told = line[: result.search(line).start()]
            assert (world.CAREFULLY in told) == (example.check and not line.startswith("So ")), line


def test_length_is_not_a_matter_of_style_alone(examples):
    length = np.array([example.length for example in examples])
    symbolic = np.array([example.style == "symbolic" for example in examples])
    gap = length[~symbolic].mean() - length[symbolic].mean()
    assert abs(gap) < 0.7 * length.std()
    questions = [len(re.findall(world.TOKEN, example.prompt)) for example in examples]
    assert length.mean() > 2.5 * np.mean(questions)


def test_quantities_stay_within_the_difficulty(examples):
    assert all(0 < int(example.answer) <= world.LIMITS[example.difficulty] for example in examples)


def test_some_licences_are_missing(examples):
    assert 0.1 < np.mean([example.license is None for example in examples]) < 0.5


def test_a_mix_makes_operations_rare():
    drawn = [example.operation for example in world.generate(2_000, seed=0, mix={"fraction": 0.1})]
    assert 0 < drawn.count("fraction") < 0.3 * drawn.count("addition")


def test_jsonl_holds_every_column(tmp_path, examples):
    path = tmp_path / "world.jsonl"
    world.write_jsonl(path, 50, seed=0)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [asdict(example) for example in examples[:50]]
