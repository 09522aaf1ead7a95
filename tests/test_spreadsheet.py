import csv
import io

import pandas as pd
import pytest
from synthetic import synthetic_run

from core.provenance import Origins
from core.selection.pool import Constraints, Rule
from core.selection.step import Request, select
from core.spreadsheet import as_csv, plain
from core.workspace import Workspace

FORMULAS = (
    "=1+1",
    '=HYPERLINK("http://evil.test","x")',
    "+1+cmd",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "-",
)


INNER = ("a;=1+1", "a\r=1", "a\n=1", 'a"=1')


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_a_text(text):
    assert plain(text) == f"'{text}"


@pytest.mark.parametrize("cell", [-5, 1.5, "-5", "+3.2e-5", "-.5", "a=b", "", " =1", None, "'=1", True])
def test_all_else_stays(cell):
    assert plain(cell) is cell


def test_no_cell_and_no_name_of_a_csv_is_a_formula():
    table = pd.DataFrame({"=name": FORMULAS, "n": range(-4, 5), "x": [None, *[-0.5] * 8]})
    header, *rows = csv.reader(io.StringIO(as_csv(table), newline=""))
    assert header == ["'=name", "n", "x"]
    assert [row[0] for row in rows] == [f"'{text}" for text in FORMULAS]
    assert [row[1] for row in rows] == [str(n) for n in range(-4, 5)]
    assert [row[2] for row in rows] == ["", *["-0.5"] * 8]


@pytest.mark.parametrize("text", INNER)
def test_no_text_is_split_into_cells(text):
    quoted = text.replace('"', '""')
    assert f'"{quoted}"' in as_csv(pd.DataFrame({"name": [text]}))


def test_a_source_in_a_ledger_is_no_formula(tmp_path, monkeypatch):
    space = Workspace(tmp_path)
    run = synthetic_run(space, n=60, columns={"kind": [FORMULAS[i % 2] for i in range(60)]})
    kept = select(Request(run.id, Rule("random"), Constraints(budget=20), Origins("kind", "kind")), space, "x")
    with (kept.folder / "ledger.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        {row["source"] for row in rows} == {row["licence"] for row in rows} == {f"'{one}" for one in FORMULAS[:2]}
    )
    assert {row["source"] for row in kept.manifest["ledger"]} == set(FORMULAS[:2])
