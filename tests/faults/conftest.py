import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from processes import Commands
from steps import STEPS, World

EXAMPLES = 40


@pytest.fixture(scope="session")
def commands():
    started = Commands()
    yield started
    started.close()


@pytest.fixture(scope="session")
def world(commands, tmp_path_factory):
    """The workspace that every step starts from."""
    from tiny import SHAPE, save_tiny
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("faults")
    save_tiny(LlamaConfig(**SHAPE), folder / "model")
    random = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(EXAMPLES):
            words = [f"w{j}" for j in random.integers(3, 90, random.integers(4, 20))]
            row = {
                "question": " ".join(words),
                "answer": f"w{words[0][1:]}",
                "right": bool(i % 3),
                "kind": f"k{i % 2}",
            }
            file.write(json.dumps(row) + "\n")
    made = World(folder, commands)
    place = made.copy("first", empty=True)
    log = folder / "log.txt"
    assert commands.run(STEPS[0].command(made, place), log) == 0, log.read_text()
    shutil.move(place / "workspace", made.base)
    (run,) = (path.name for path in (made.base / "runs").iterdir())
    return replace(made, run=run)
