"""Which versions of the libraries are here, and which Basiscope was tested with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from core import __version__

TESTED = Path(__file__).resolve().parent.parent / "constraints.txt"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Name -> version of Basiscope and the `packages`, and under `tested` those of them of which Basiscope was
    tested with another version, with that version ("none other" where there are none).

    Raises PackageNotFoundError where one is not installed.
    """
    here = {name: version(name) for name in packages}
    others = [f"{name} {tested}" for name, found in here.items() if (tested := tested_with(name, found))]
    return {"basiscope": __version__, **here, "tested": ", ".join(others) or "none other"}


def tested_with(package: str, found: str) -> str | None:
    """The version of a package that Basiscope was tested with, None where it is the `found` one (whatever its
    build, such as 2.13.0+cpu) or is not known."""
    from packaging.utils import canonicalize_name

    tested = _tested().get(canonicalize_name(package))
    return tested if tested != found.partition("+")[0] else None


@cache
def _tested() -> dict[str, str]:
    """Canonical name -> version, of the lines of constraints.txt that hold on this machine."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if not TESTED.is_file():
        return {}
    lines = [line for line in TESTED.read_text(encoding="utf-8").splitlines() if line and line[0] not in "# "]
    held = [one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate()]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in held}
