"""Paths as people type them. What may not be looked at, or cannot be a path at all, counts as not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def typed_path(written: str) -> Path:
    """The path with `~` and `~user` replaced where there is such a user."""
    with suppress(RuntimeError):
        return Path(written).expanduser()
    return Path(written)


def is_there(path: Path) -> bool:
    with suppress(OSError):
        return path.exists()
    return False


def is_seen_file(path: Path) -> bool:
    with suppress(OSError):
        return path.is_file()
    return False


def is_open_folder(path: Path) -> bool:
    """Whether it is a folder whose files can be listed and looked at."""
    with suppress(OSError):
        return path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    return False
