"""SIGKILL at random moments of every step: given again, it comes to the same, byte for byte but for times."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from steps import DEMO, STEPS, WHOLE, check, undisturbed

KILLS = 3 if WHOLE else 1
SHORT = ("recover", "evaluate", "select and export", "export vector")
chosen = [step for step in STEPS if WHOLE or step.name in SHORT] + ([DEMO] if WHOLE else [])


@pytest.fixture(scope="module")
def tally():
    """What came of the kills, for docs/reliability.md."""
    counts = {"kills": 0, "too late": 0}
    yield counts
    with Path(os.environ.get("BASISCOPE_FAULTS_FIGURES", os.devnull)).open("a") as file:
        print("SIGKILLs", counts, file=file)


@pytest.mark.parametrize("step", chosen, ids=lambda step: step.name)
def test_a_killed_step_comes_to_the_same(world, step, tally, tmp_path):
    log, commands = tmp_path / "log.txt", world.commands
    seconds = undisturbed(world, step).seconds
    moments = random.Random(step.name)
    for number in range(1 if step is DEMO else KILLS):
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
        check(world, step, killed)


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
