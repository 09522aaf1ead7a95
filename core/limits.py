"""What the app may do where several people share it: which folders it reads, how much it takes, whether it writes.

`basiscope app` puts the limits into the environment, so that the jobs it starts have the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from core.errors import BasiscopeError
from core.paths import is_there, typed_path

VARIABLE = "BASISCOPE_LIMITS"
PLACES = (
    *("--data", "--model", "--problems", "--prompts", "--against", "--text-model", "--train-model"),
    *("--from-manifest", "--traces", "--out"),
)
"""Options of commands that name a file or folder, some of them a hub id as well."""
WRITTEN = ("--traces", "--out")
"""Those that never name a hub id: there may be nothing yet where they lead."""
NOWHERE = Path("/")
"""Where paths lead that lead to no file: into no root."""
READ_ONLY = "Nothing can be changed here: the app was started with --read-only."


@dataclass(frozen=True)
class Limits:
    """roots: folders outside which nothing is read or written, any where there are none; jobs: how many may run at
    once; uploads: bytes of all uploads together. None is no limit."""

    roots: tuple[str, ...] = ()
    read_only: bool = False
    jobs: int | None = None
    uploads: int | None = None

    @classmethod
    def now(cls) -> Limits:
        """Those of this process."""
        given = json.loads(os.environ.get(VARIABLE, "{}"))
        return cls(**given | {"roots": tuple(given.get("roots", ()))})

    def to_environment(self) -> None:
        os.environ[VARIABLE] = json.dumps(asdict(self))

    def check_writing(self) -> None:
        """Raises BasiscopeError where nothing may be written."""
        if self.read_only:
            raise BasiscopeError(READ_ONLY)

    def check_place(self, written: str, *, is_path: bool = False) -> None:
        """Raises BasiscopeError for a path that leads out of the roots, itself or by a symlink in it; what names
        nothing here is taken for a hub id, unless `is_path`. It says the same whether or not there is such a
        file."""
        if self.roots and (is_path or _is_path(written)) and not all(map(self._holds, _reached(written))):
            listed = ", ".join(self.roots)
            raise BasiscopeError(f"{written} lies outside the folders that this app may use: {listed} (--roots).")

    def allows(self, written: str) -> bool:
        with suppress(BasiscopeError):
            self.check_place(written)
            return True
        return False

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """The same for every path in a command, written as `--out X` or `--out=X`."""
        for word, following in pairwise([*arguments, ""]):
            name, is_joined, value = word.partition("=")
            if name in PLACES:
                self.check_place(value if is_joined else following, is_path=name in WRITTEN)

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(Path(root).resolve()) for root in self.roots)


def _is_path(written: str) -> bool:
    has_form = written.startswith(("/", ".", "~")) or "://" in written or ".." in Path(written).parts
    return has_form or "\0" in written or is_there(Path(written))


def _reached(written: str) -> Iterator[Path]:
    """Where a path leads, and where every symlink in a folder does."""
    path = typed_path(written)
    yield _resolved(path) if "://" not in written else NOWHERE
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (inner := Path(folder, name)).is_symlink():
                yield _resolved(inner)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, in a circle, with a NUL
        return NOWHERE
