"""SIGKILL at random moments of every step: given again, it comes to the same, byte for byte but for times."""

import os
import random
import signal
import time

import pytest
from steps import DEMO, STEPS, WHOLE, asked_for, content

KILLS = 3 if WHOLE else 1
SHORT = ("recover", "evaluate", "select and export", "export vector")
chosen = [step for step in STEPS if WHOLE or step.name in SHORT] + ([DEMO] if WHOLE else [])


@pytest.fixture(scope="module")
def tally():
    """What came of the kills; printed at the end for docs/reliability.md."""
    counts = {"kills": 0, "too late": 0}
    yield counts
    print(f"\nSIGKILLs: {counts}")


@pytest.mark.parametrize("step", chosen, ids=lambda step: step.name)
def test_a_killed_step_comes_to_the_same(world, step, tally, tmp_path):
    log, commands = tmp_path / "log.txt", world.commands
    place = world.copy("undisturbed", empty=step.is_first)
    start = time.monotonic()
    assert commands.run(step.command(world, place), log) == 0, log.read_text()
    seconds, expected, asked = time.monotonic() - start, content(place), asked_for(place)
    moments = random.Random(step.name)
    for number in range(KILLS):
        killed = world.copy("killed", empty=step.is_first)
        for _ in range(1 + number % 2):  # the second try is killed, too, now and then
            pid = commands.start(step.command(world, killed), log)
            time.sleep(moments.uniform(0.02, 1.0) * seconds)
            os.kill(pid, signal.SIGKILL)
            late = commands.wait(pid) != -signal.SIGKILL
            tally["too late" if late else "kills"] += 1
        status = commands.run(step.command(world, killed), log)
        if late and status == 1:  # it had ended: the same again is refused where it would replace something
            assert "already" in log.read_text() or "not empty" in log.read_text(), log.read_text()
        else:
            assert status == 0, log.read_text()
        assert not [path for path in killed.rglob(".*") if path.is_dir()], "a temporary folder is left"
        if step.is_timed:
            assert asked_for(killed) == asked
        else:
            found = content(killed)
            assert {n for n in {*found, *expected} if found.get(n) != expected.get(n)} == set()


def test_a_label_that_a_person_set_survives_a_killed_mending(world, tmp_path, tally):
    from core.reading import Label
    from core.workspace import Workspace

    log, commands, step = tmp_path / "log.txt", world.commands, STEPS[0]
    place = world.copy("labelled")
    run = Workspace(place / "workspace").run()
    run.save_label(2, Label("set by hand", "person"))
    moments = random.Random(1)
    for name in ("scores.parquet", "examples.parquet", "activations/00001.safetensors")[: 3 if WHOLE else 1]:
        path = run.folder / name
        path.write_bytes(path.read_bytes()[:-40])
        pid = commands.start(step.command(world, place), log)
        time.sleep(moments.uniform(0.1, 1.5))
        os.kill(pid, signal.SIGKILL)
        tally["kills" if commands.wait(pid) == -signal.SIGKILL else "too late"] += 1
        assert commands.run(step.command(world, place), log) == 0, log.read_text()
        mended = Workspace(place / "workspace").run()
        assert mended.labels()[2] == Label("set by hand", "person") and mended.damaged_files() == []
