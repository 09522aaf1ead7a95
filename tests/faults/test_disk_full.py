"""Every step on a disk that is full at some moment: a sentence and nothing half-written, then the same as ever."""

import os
import shutil
import subprocess

import pytest
from steps import STEPS, WHOLE, check, content

ROOM = (0, 12_000, 60_000) if WHOLE else (12_000,)
"""Bytes that are left when the step begins."""
SHORT = ("recover", "evaluate", "select and export")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("room", ROOM)
@pytest.mark.parametrize("step", [s for s in STEPS if WHOLE or s.name in SHORT], ids=lambda step: step.name)
def test_a_step_on_a_full_disk_says_so_and_goes_on_when_there_is_room(world, step, room, small_disk, tmp_path):
    log, commands = tmp_path / "log.txt", world.commands
    if not step.is_first:
        shutil.copytree(world.base, small_disk / "workspace")
    before = content(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room)))
    status = commands.run(step.command(world, small_disk), log)
    said = log.read_text()
    assert "Traceback" not in said
    assert status == 0 or (status == 1 and "disk" in said and "full" in said), said
    filler.unlink()
    kept = content(small_disk)
    assert {name: digest for name, digest in kept.items() if name in before} == before, "something is lost"
    assert not [path for path in small_disk.rglob(".*") if path.is_dir()], "a temporary folder is left"
    if status == 1:
        assert commands.run(step.command(world, small_disk), log) == 0, log.read_text()
    check(world, step, small_disk)
