"""What the README says of files is what they hold."""

import re
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from core.evaluation.rollouts import Rollout
from core.usefulness.evidence import Control, Effect, Evidence, Measure

README = (Path(__file__).parents[1] / "README.md").read_text()
ROWS = dict(re.findall(r"^\| (`.+?) \| (.+?) \|$", README, re.M))


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


def names_of(path):
    if path.suffix == ".parquet":
        return set(pq.read_schema(path).names)
    with safe_open(path, framework="np") as file:
        return set(file.keys())


def test_the_files_of_a_run_hold_what_is_said(gsm8k_run):
    written = {"prompt", "response", "d1", "dk"}  # columns here; the last direction is d3
    seen = 0
    for names, content in ROWS.items():
        for pattern in quoted(names):
            for path in sorted(gsm8k_run.folder.glob(pattern))[:1]:
                if path.suffix in (".parquet", ".safetensors"):
                    said = {name for name in quoted(content) if name.isidentifier() and name != "data_"} - written
                    assert said <= names_of(path), path.name
                    seen += 1
    assert seen >= 6
    assert all((gsm8k_run.folder / name).exists() for name in ("manifest.json", "read.json", "directions.json"))


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ("`proxy`, `primary`, `measures`", (Measure,)),
        ("`effects`", (Effect,)),
        ("`controls`", (Control,)),
    ],
)
def test_the_parts_of_evidence_are_all_said(row, kinds):
    said = set(quoted(ROWS[row]))
    assert all({field.name for field in fields(kind)} <= said for kind in kinds)


def test_every_field_of_evidence_and_of_rollouts_is_said():
    every = {name for names in ROWS for name in quoted(names)}
    assert {field.name for field in fields(Evidence)} <= every
    listed = re.search(r"`rollouts/\*\.jsonl` \((.*?)\)", README, re.S).group(1)
    assert set(quoted(listed)) == {field.name for field in fields(Rollout)}
