"""Commands as processes of their own that start in milliseconds: one process imports everything, then forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 600
IMPORTED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.trainer",
    "accelerate",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "safetensors.torch",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "scipy.sparse",
    "sklearn.feature_extraction.text",
    "sklearn.metrics",
    "matplotlib.backends.backend_svg",
    "math_verify",
    "rensa",
    "rapidfuzz",
    "gguf",
    "filelock",
    "psutil",
    "core.demo.default",
    "core.evaluation.step",
    "core.recovery",
    "core.selection.export",
    "core.selection.kernels",
    "core.selection.screening",
    "core.selection.farthest",
    "core.steering.sweep",
    "core.steering.comparison",
    "core.checkpoint",
    "core.usefulness.sft",
    "core.usefulness.steering",
    "core.usefulness.utility",
    "core.usefulness.first_order",
    "core.usefulness.table",
    "core.usefulness.recommend",
    "core.tables",
)
"""What the commands import, which takes longer than their work."""
SHARD_BYTES = 4_000
"""So that a run of some dozens of examples has several shards."""


class Commands:
    """Runs `basiscope ARGUMENTS` in children that can be killed. Not for several threads at once."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self._parent = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, *question: object) -> int:
        assert self._parent.stdin and self._parent.stdout
        print(json.dumps(question), file=self._parent.stdin, flush=True)
        return int(self._parent.stdout.readline())

    def start(self, arguments: list[str], log: Path) -> int:
        """The process that runs the command; what it prints goes to `log`."""
        return self._ask("start", arguments, str(log))

    def wait(self, pid: int) -> int:
        """Its exit status, negative for the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask("wait", pid))

    def run(self, arguments: list[str], log: Path) -> int:
        return self.wait(self.start(arguments, log))

    def close(self) -> None:
        self._parent.kill()
        self._parent.wait()


def serve() -> None:
    """Fork a child for every command that comes in; none of this process' own work starts a thread."""
    from core import cli, workspace

    for name in IMPORTED:
        import_module(name)
    workspace.SHARD_BYTES = SHARD_BYTES
    for line in sys.stdin:
        verb, *facts = json.loads(line)
        if verb == "wait":
            print(os.waitpid(facts[0], 0)[1], flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            signal.alarm(MOST_SECONDS)
            os.setsid()
            arguments, log = facts
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            status = cli.main(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
