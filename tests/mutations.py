"""Seeded damage to the files of a model folder, as disks, editors and other tools do it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES = [None, -1, 0, 3, 10**9, 10**30, -2.5, float("nan"), float("inf"), "x", "", [], {}, [1, 2], True, {"a": 1}]
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12\n"
)


def damage(folder: Path, seed: int) -> str:
    """Change one file of the folder, or take it away; what was done, in words. The same for the same seed."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    path = rng.choices(files, [4 if path.name == "config.json" else 1 for path in files])[0]
    if path.suffix == ".json" and rng.random() < 0.7:
        return _change_field(rng, path)
    content = path.read_bytes()
    ways = {
        "cut": lambda: content[: rng.randrange(len(content))],
        "bits flipped": lambda: _flipped(rng, content),
        "empty": lambda: b"",
        "nested": lambda: b"[" * 100_000,
        "random bytes": lambda: rng.randbytes(500),
        "pointer": lambda: POINTER,
        "a list": lambda: b"[1]",
        "null": lambda: b"null",
    }
    way = rng.choice([*ways, "deleted"])
    if way == "deleted":
        path.unlink()
    else:
        path.write_bytes(ways[way]())
    return f"{path.name}: {way}"


def _flipped(rng: random.Random, content: bytes) -> bytes:
    """Most flips in what comes first, where formats keep what they are."""
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 20])):
        end = min(len(flipped), 4_000) if rng.random() < 0.7 else len(flipped)
        flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _change_field(rng: random.Random, path: Path) -> str:
    value = json.loads(path.read_bytes())
    *parents, field = rng.choice(list(_fields(value)))
    inner = value
    for key in parents:
        inner = inner[key]
    before = inner[field]
    if rng.random() < 0.2:
        del inner[field]
        done = "deleted"
    elif type(before) in (int, float) and rng.random() < 0.4:
        inner[field] = rng.choice([before * 2, before + 1, before - 1, -before, before * 1_000])
        done = f"{before} -> {inner[field]}"
    else:
        inner[field] = rng.choice(VALUES)
        done = f"{str(before)[:30]!r} -> {inner[field]!r}"
    path.write_text(json.dumps(value))
    return f"{path.name}: {'.'.join(map(str, [*parents, field]))} {done}"


def _fields(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*above, key)
        if above != ("model", "vocab"):
            yield from _fields(one, (*above, key))
