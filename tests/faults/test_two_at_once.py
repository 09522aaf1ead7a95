"""Two processes at the same step of the same workspace: both are right, or one says that another is at it."""

import pytest
from steps import STEPS, WHOLE, check

SHORT = ("recover", "evaluate", "select and export")
REFUSALS = ("another process", "already", "not empty")


@pytest.mark.parametrize("step", [s for s in STEPS if WHOLE or s.name in SHORT], ids=lambda step: step.name)
def test_two_processes_come_to_the_same(world, step, tmp_path):
    commands = world.commands
    shared = world.copy("shared", empty=step.is_first)
    logs = [tmp_path / "one.txt", tmp_path / "two.txt"]
    started = [commands.start(step.command(world, shared), log) for log in logs]
    for pid, log in zip(started, logs, strict=True):
        status, said = commands.wait(pid), log.read_text()
        assert "Traceback" not in said
        assert status == 0 or (status == 1 and any(words in said for words in REFUSALS)), said
    check(world, step, shared)
