"""Flipped bits, truncations and losses of every kind of file: a command is right as before, or says which file."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from steps import STEPS, WHOLE, content

from core.workspace import Workspace

FLIPS, SAMPLED = 2 if WHOLE else 1, 8
KEPT = ("recover", "tokens", "screen", "sweep", "evaluate", "utility", "select and export")
"""The steps whose files are damaged."""
COMMANDS = (
    ["runs"],
    ["show", "RUN"],
    ["show", "RUN", "--direction", "1", "--top", "2"],
    ["label", "RUN"],
    ["tokens", "RUN", "--example", "1", "--device", "cpu"],
    ["evaluations"],
    ["selections"],
    ["compare-selections", "nine", "ten"],
    ["select", "RUN", "--coverage", "--budget", "4", "--dedup", "exact", "--name", "four", "--replace"],
    ["recommend", "RUN"],
    ["jobs"],
)
SEEN = re.compile(
    r"damaged|is missing|cannot be read|is not complete|is no single one|There is no selection|unreadable"
    "|has no evidence yet"
)


@pytest.fixture(scope="module")
def full(world, tmp_path_factory):
    """A workspace with something of everything."""
    place, log = world.copy("full"), tmp_path_factory.mktemp("full") / "log.txt"
    for step in STEPS:
        if step.name in KEPT:
            assert world.commands.run(step.command(world, place), log) == 0, log.read_text()
    ten = ["select", world.run, "--coverage", "--budget", "10", "--name", "ten"]
    assert world.commands.run([*ten, "--workspace", str(place / "workspace")], log) == 0, log.read_text()
    return place / "workspace"


def results(run_cli, run, workspace):
    """What every command says, as JSON without times, or its sentence."""
    found = {}
    for command in COMMANDS:
        arguments = [run if part == "RUN" else part for part in command]
        status, out, err = run_cli(*arguments, "--json", "--workspace", workspace)
        assert "Traceback" not in err, (command, err)
        said = re.sub(r'"(created|seconds)": [^,}]*', "", out)
        found[" ".join(command)] = (status, said, err)
    return found


def damages(random_):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        path.write_bytes(content)

    def truncate(path):
        content = path.read_bytes()
        path.write_bytes(content[: random_.randrange(len(content))])

    return [*[flip] * FLIPS, truncate, lambda path: path.unlink()]


def kinds(workspace):
    """One file of every kind."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        name = str(path.relative_to(workspace))
        if path.is_file() and not path.name.startswith(".") and not name.endswith((".lock", ".svg", ".csv")):
            found.setdefault(re.sub(r"[0-9a-f]{6,}|\d+", "N", name), name)
    return found


def test_damage_is_seen_or_harmless_and_recovering_again_mends_a_run(world, full, run_cli, tmp_path):
    results(run_cli, world.run, full)  # what the commands themselves keep is there from now on
    expected, whole = results(run_cli, world.run, full), content(full)
    seen, harmless, wrong = dict[str, int](), dict[str, int](), list[tuple[str, str, str]]()
    random_ = random.Random(15)
    tried = list(kinds(full).items())
    for kind, name in tried if WHOLE else random_.sample(tried, SAMPLED):
        for damage in damages(random_) if WHOLE else random_.sample(damages(random_), 1):
            copy = tmp_path / "copy"
            shutil.copytree(full, copy)
            damage(copy / name)
            found = results(run_cli, world.run, copy)
            differing = {c: found[c] for c in found if at(found[c], copy) != at(expected[c], full)}
            for command, (_, out, err) in differing.items():
                before = len(SEEN.findall(expected[command][1]))
                if not SEEN.search(err) and len(SEEN.findall(out)) <= before:
                    wrong.append((name, command, out[:500] + err))
            counts = seen if differing else harmless
            counts[kind] = counts.get(kind, 0) + 1
            shutil.rmtree(copy)
    with Path(os.environ.get("BASISCOPE_FAULTS_FIGURES", os.devnull)).open("a") as file:
        print("seen", json.dumps(seen), "\nharmless", json.dumps(harmless), file=file)
    assert wrong == []
    assert whole == content(full)


def at(result, workspace):
    return tuple(str(part).replace(str(workspace), "") for part in result)


@pytest.mark.parametrize("number", range(8 if WHOLE else 2))
def test_a_damaged_run_is_mended_to_the_same(world, full, tmp_path, number):
    random_, log = random.Random(number), tmp_path / "log.txt"
    place = world.copy("mended")
    run = Workspace(place / "workspace").run()
    names = sorted(run.manifest["files"])
    for name in random_.sample(names, 2):
        damages(random_)[random_.choice((0, -2, -1))](run.folder / name)
    recover = STEPS[0]
    assert world.commands.run(recover.command(world, place), log) == 0, log.read_text()
    found, expected = content(place / "workspace"), content(world.base)
    assert {n for n in {*found, *expected} if found.get(n) != expected.get(n)} == set()
