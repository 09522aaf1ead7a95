"""The figures of README.md on GSM8K's model solutions: utility over all of them, held against every control.

python -m bench.traces --model MODEL --data model_solutions.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench.measure import machine, show
from core.activations import Recipe
from core.examples import Columns, DataSource
from core.recovery import Request, load_run_model, recover
from core.usefulness.controls import MODELS
from core.usefulness.table import control_table, evidence_notes, evidence_table
from core.usefulness.utility import UtilityRequest, utility
from core.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first problems")
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces.jsonl"
        write_traces(asked.data, traces, asked.limit)
        request = Request(
            asked.model,
            DataSource(str(traces)),
            Columns(prompt="question", response="solution"),
            Recipe(pooling="mean-response", dtype="float32"),
            device="cpu",
            with_map=False,
        )
        run = recover(request, Workspace(Path(folder) / "workspace"))
        chosen = UtilityRequest("is_correct", problem="question", models=MODELS)
        found = utility(run, chosen, lambda: load_run_model(run, "cpu"))
    primary = evidence_table(found)[["direction", found.primary, "p", "adjusted", "beats controls"]]
    for table in (primary, control_table(found)):
        show(list(table.columns), table.astype(str).to_numpy().tolist())
    print("\n".join(evidence_notes(found)))


def write_traces(source: Path, target: Path, limit: int | None) -> None:
    """A line for each solution: every row of the source has several of one problem, each with its verdict."""
    rows = [json.loads(line) for line in source.read_text().splitlines()[:limit]]
    with target.open("w") as file:
        for row in rows:
            solutions = [value for value in row.values() if isinstance(value, dict)]
            file.writelines(json.dumps({"question": row["question"], **one}) + "\n" for one in solutions)


if __name__ == "__main__":
    main()
