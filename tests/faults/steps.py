"""The steps that the faults are thrown at, over one small workspace, and what of it has to be the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from processes import Commands

WHOLE = os.environ.get("BASISCOPE_FAULTS") == "all"
MOMENT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?Z?")
TIMES = {
    "created",
    "created_at",
    "finished",
    "seconds",
    "tokens_per_second",
    "first_token",
    "cost",
    "pid",
    "rate",
    "from",
}
"""What two runs of the same step may differ in."""
DIGESTS = {"sha256", "bytes"}
"""Of JSON files that hold times, and so differ."""
HIDDEN = (".lock", ".checked.json")


@dataclass(frozen=True)
class World:
    """A tiny model, texts with answers, and a workspace with a run of them."""

    folder: Path
    commands: Commands
    run: str = ""

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def data(self) -> str:
        return str(self.folder / "rows.jsonl")

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def copy(self, name: str, empty: bool = False) -> Path:
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if not empty:
            shutil.copytree(self.base, place / "workspace")
        return place


@dataclass(frozen=True)
class Step:
    """arguments: of the command, for a place that has a workspace; is_first: it starts from an empty one;
    is_timed: it works until its time is over, so that only what was asked for can be compared."""

    name: str
    arguments: Callable[[World, Path], list[str]]
    is_first: bool = False
    is_timed: bool = False

    def command(self, world: World, place: Path) -> list[str]:
        return [*self.arguments(world, place), "--workspace", str(place / "workspace")]


def _recover(world: World, k: int = 3) -> list[str]:
    options = ["--model", world.model, "--data", world.data, "--prompt", "question", "--response", "answer"]
    options += ["--k", str(k), "--dtype", "float32", "--device", "cpu", "--token-budget", "60", "--no-map"]
    return ["recover", *options]


def _problems(world: World) -> list[str]:
    return ["--problems", world.data, "--problem", "question", "--answer", "answer", "--verifier", "exact"]


STEPS = [
    Step("recover", lambda w, _: _recover(w), is_first=True),
    Step("recover again, other k", lambda w, _: _recover(w, 2)),
    Step("label", lambda w, _: ["label", w.run, "--words"]),
    Step("tokens", lambda w, _: ["tokens", w.run, "--example", "1", "--example", "2", "--example", "30"]),
    Step("screen", lambda w, _: ["screen", w.run, "--against", w.data]),
    Step("vectors", lambda w, _: ["vectors", w.run]),
    Step(
        "steer",
        lambda w, _: [
            *["steer", w.run, "--direction", "1", "--strength", "1", "--prompt", "w3 w9"],
            *["--max-new-tokens", "9"],
        ],
    ),
    Step("sweep", lambda w, _: ["sweep", w.run, "--direction", "1", "--limit", "3", "--max-new-tokens", "6"]),
    Step(
        "evaluate",
        lambda w, _: [
            *["evaluate", w.run, *_problems(w), "--rollouts", "4", "--max-new-tokens", "6", "--limit", "24"],
            *["--steer", "1:+1"],
        ],
    ),
    Step("utility", lambda w, _: ["utility", w.run, "--correct", "right"]),
    Step(
        "proxies first-order",
        lambda w, _: ["proxies", w.run, "--kind", "first-order", *_problems(w), "--limit", "20"],
    ),
    Step(
        "proxies steering",
        lambda w, _: [
            *["proxies", w.run, "--kind", "steering", *_problems(w), "--limit", "12", "--rollouts", "2"],
            *["--random", "3", "--directions", "1", "--strengths", "1", "--cost", "20", "--max-new-tokens", "4"],
        ],
        is_timed=True,
    ),
    Step(
        "proxies sft",
        lambda w, _: [
            *["proxies", w.run, "--kind", "sft", *_problems(w)[:-2], "--solution", "answer", "--limit", "10"],
            *["--random", "3", "--directions", "1", "--examples", "8", "--seeds", "1", "--device", "cpu"],
        ],
    ),
    Step(
        "select and export",
        lambda w, place: [
            *["select", w.run, "--coverage", "--budget", "9", "--dedup", "near", "--name", "nine"],
            *["--format", "trl", "--out", str(place / "out")],
        ],
    ),
    *(
        Step(
            f"export {form}",
            lambda w, place, form=form: [
                *["export", w.run, "--direction", "1", "--strength", "2", "--format", form],
                *["--out", str(place / "out")],
            ],
        )
        for form in ("vector", "checkpoint", "peft")
    ),
]
DEMO = Step("demo", lambda _world, _place: ["demo"], is_first=True)


def content(place: Path) -> dict[str, str]:
    """File -> its content but for times, of everything that is kept; a temporary one is content, too."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir() or path.name.endswith(HIDDEN) or "/jobs/" in name:
            continue
        found[name] = _digest(path, place)
    return found


def _digest(path: Path, place: Path) -> str:
    whole = path.read_bytes().replace(str(place).encode(), b"PLACE")
    if path.suffix == ".json":
        whole = json.dumps(_timeless(json.loads(whole)), sort_keys=True).encode()
    return hashlib.sha256(MOMENT.sub(b"", whole)).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES | DIGESTS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Outcome:
    """What a step comes to that nothing disturbs: its files, what it was asked, and how long it takes."""

    files: dict[str, str]
    asked: set[str]
    seconds: float

    def differing(self, place: Path) -> set[str]:
        """The files that differ there, or are missing or too many."""
        found = content(place)
        return {name for name in {*found, *self.files} if found.get(name) != self.files.get(name)}


@cache
def undisturbed(world: World, step: Step) -> Outcome:
    place, start = world.copy("undisturbed", empty=step.is_first), time.monotonic()
    log = world.folder / "undisturbed.txt"
    assert world.commands.run(step.command(world, place), log) == 0, log.read_text()
    return Outcome(content(place), asked_for(place), time.monotonic() - start)


def check(world: World, step: Step, place: Path) -> None:
    """That a disturbed step has come to what an undisturbed one does."""
    expected = undisturbed(world, step)
    if step.is_timed:
        assert asked_for(place) == expected.asked
    else:
        assert expected.differing(place) == set()
    assert not [path for path in place.rglob(".*") if path.is_dir()], "a temporary folder is left"


def asked_for(place: Path) -> set[str]:
    """Of a step that works against the clock: the requests that it has kept an answer to."""
    kept = place / "workspace"
    return {str(path.parent.relative_to(kept)) for path in kept.glob("evaluations/*/manifest.json")}
