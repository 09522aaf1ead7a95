"""Every disagreement of the verifiers with the answers and verdicts of MATH-500 and GSM8K.

    python -m bench.verifiers DATA

DATA is a folder with `math/math500.jsonl`, `gsm8k/test.jsonl` and `gsm8k/model_solutions.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from core.evaluation.answers import final_answer
from core.evaluation.verifiers import verifier


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    math, number = verifier("math"), verifier("numeric")
    problems = rows(data / "math" / "math500.jsonl")
    wrong = [row for row in problems if math(row["answer"], row["solution"]) is not True]
    print(f"MATH-500: {len(wrong)} of {len(problems)} solutions are not their own answer")
    for row in wrong:
        print(f"  {row['unique_id']}: {row['answer']!r}, found {final_answer(row['solution'])!r}")
    problems = rows(data / "gsm8k" / "test.jsonl")
    wrong = [row for row in problems if not number(row["answer"].rsplit("####", 1)[1], row["answer"])]
    print(f"GSM8K: {len(wrong)} of {len(problems)} solutions are not their own answer")
    for row in wrong:
        print(f"  {row['question'][:60]!r}: found {final_answer(row['answer'])!r}")
    judged = [
        (place, name, row["ground_truth"].rsplit("A: ", 1)[1], one)
        for place, row in enumerate(rows(data / "gsm8k" / "model_solutions.jsonl"))
        for name, one in row.items()
        if isinstance(one, dict)
    ]
    other = [one for one in judged if number(one[2], one[3]["solution"]) is not one[3]["is_correct"]]
    print(f"GSM8K: {len(other)} of {len(judged):,} model solutions are judged otherwise than by its makers")
    for place, name, answer, one in other:
        found = final_answer(one["solution"])
        print(f"  row {place}, {name}: {answer!r}, found {found!r}, theirs {one['is_correct']}")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
