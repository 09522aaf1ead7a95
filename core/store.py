"""Files: written whole or not at all, on the disk before they get their name, and checked when they are opened.

A file that is written once has its SHA-256 in the manifest beside it; one that is written again carries its own:
JSON objects under the key `sha256`, Parquet and safetensors in their metadata. What has none, as older versions
wrote it, is read as it is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError
from core.limits import Limits

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

SEAL = "sha256"
MARK = "basiscope"
CHECKED = ".checked.json"
"""In a folder of large files: their digests and the size and time at which they had them."""
REPLACED = "replaced"
"""In a scratch folder: the folder with what is to be replaced, under its own name."""
NEWBORN_SECONDS = 60
"""How long a folder may be there before its process has locked it: some microseconds are needed."""
LARGE = 32 * 2**20
"""Bytes from which on a digest is worth keeping for the next process."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, RecursionError)
"""What readers of damaged files raise; those of pyarrow and safetensors are among them."""

_digests: dict[Path, tuple[int, int, str]] = {}


# --- writing --------------------------------------------------------------------------------------------


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A path in a hidden folder next to `beside`, to be written and renamed to it; gone at the end. What killed
    processes have left in the same place is removed first; a living one holds the lock of its own."""
    parent = beside.parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    name = f".{beside.name[:80]}.{MARK}-{uuid.uuid4().hex[:8]}"
    folder = parent / f"{name}.tmp"
    unlocked = parent / f"{name}.new"
    unlocked.mkdir()
    descriptor = os.open(unlocked, os.O_RDONLY)
    try:
        with suppress(OSError):  # where folders cannot be locked, none is ever removed
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(folder)
        yield folder / "part"
    finally:
        shutil.rmtree(unlocked, ignore_errors=True)
        with suppress(OSError):
            _clear(folder)
        os.close(descriptor)


def sweep(parent: Path) -> None:
    """Remove what killed processes have left in a folder; what they were about to replace is put back."""
    for left in parent.glob(f".*.{MARK}-*"):
        with suppress(OSError):  # its process is at work, or it is gone
            if left.suffix == ".new" and time.time() - left.stat().st_mtime < NEWBORN_SECONDS:
                continue
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(left)
            finally:
                os.close(descriptor)


def _clear(scratch_folder: Path) -> None:
    """Remove it; what was moved aside into it goes back where nothing has taken its place."""
    for old in scratch_folder.glob(f"{REPLACED}/*"):
        if not (place := scratch_folder.parent / old.name).exists():
            old.rename(place)
    shutil.rmtree(scratch_folder, ignore_errors=True)


def write_atomic(path: Path, write: Callable[[Path], Any], *, sync: bool = True) -> None:
    """Call `write` on a temporary path, then rename it to `path`. An OSError names `path`.

    sync: have it on the disk before, so that it outlives a crash of the machine
    Raises BasiscopeError where nothing may be written.
    """
    Limits.now().check_writing()
    try:
        with scratch(path) as temporary:
            write(temporary)
            if sync:
                _sync(temporary)
                if temporary.stat().st_size >= LARGE:
                    _remember(path, temporary.stat(), _hash(temporary))
            temporary.replace(path)
        if sync:
            _sync(path.parent)
    except OSError as error:
        if error.errno and error.strerror:
            error.filename = str(path)  # the temporary name says nothing, or there is none
        raise


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that is renamed to `path` at the end, in place of an empty one or, with `replace`, of any; nothing
    is left behind where that is not reached."""
    with scratch(path) as folder:
        folder.mkdir()
        yield folder
        put_folder(folder, path, replace=replace)


def put_folder(folder: Path, path: Path, *, replace: bool = True) -> None:
    """Rename a folder to `path`; what lies there, where it may be replaced, is moved aside first, and back where
    that is not reached. Raises BasiscopeError where what is there may not be replaced, or came meanwhile."""
    for place, _folders, files in os.walk(folder):
        for name in files:
            _sync(Path(place) / name)
        _sync(Path(place))
    with scratch(path) as part, _taken_named(path):
        old = part.with_name(REPLACED) / path.name
        old.parent.mkdir()
        with suppress(FileNotFoundError):
            if replace:
                path.rename(old)
            else:
                path.rmdir()
        folder.rename(path)
        _sync(path.parent)


@contextmanager
def _taken_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise BasiscopeError(
            f"{path} is there and not empty, perhaps by a command that ran at the same time; it stays as it is. "
            "Choose another place, or start again."
        ) from error


def remove_folder(path: Path) -> None:
    """Take a folder away at once, then delete what is in it."""
    Limits.now().check_writing()
    with scratch(path) as aside, suppress(FileNotFoundError):
        path.rename(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # no such thing on this file system
            raise
    finally:
        os.close(descriptor)


# --- digests --------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """The SHA-256 of a file, computed once for its size and time."""
    stat = path.stat()
    known = _digests.get(path) or (_kept(path) if stat.st_size >= LARGE else None)
    if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
        return known[2]
    found = _hash(path)
    _remember(path, stat, found)
    return found


def is_known(path: Path) -> bool:
    """Whether a file has the size and time at which its digest was taken."""
    stat, known = path.stat(), _digests.get(path) or _kept(path)
    return known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path) -> tuple[int, int, str] | None:
    with suppress(BasiscopeError, *UNREADABLE):
        size, modified, found = read_json(path.parent / CHECKED)[path.name]
        return int(size), int(modified), str(found)
    return None


def _remember(path: Path, stat: os.stat_result, found: str) -> None:
    _digests[path] = (stat.st_size, stat.st_mtime_ns, found)
    if stat.st_size >= LARGE and not Limits.now().read_only:
        kept = path.parent / CHECKED
        with suppress(OSError):  # of a disk that takes no more, or may not be written
            try:
                known = read_json(kept)
            except BasiscopeError:
                known = {}
            write_json(kept, {**known, path.name: _digests[path]}, sync=False)


def has_changed(path: Path, expected: str | None) -> bool:
    """Whether a file is missing or no longer what it was, read anew whatever is known of it."""
    return not path.is_file() or (expected is not None and _hash(path) != expected)


def checked(path: Path, expected: str | None, remedy: str) -> Path:
    """The path of a file that is what it was when it was written. Raises BasiscopeError, ending in the remedy."""
    try:
        if expected is None:
            path.stat()
        elif digest(path) != expected:
            raise BasiscopeError(f"{path} is damaged: it is not what was written (another SHA-256). {remedy}")
    except FileNotFoundError as error:
        raise BasiscopeError(f"{path} is missing. {remedy}") from error
    except OSError as error:
        raise BasiscopeError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    return path


def described(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: SHA-256, bytes, and rows where it has some."""
    facts = {SEAL: digest(path), "bytes": path.stat().st_size}
    n = rows(path)
    return facts if n is None else facts | {"rows": n}


def rows(path: Path) -> int | None:
    """How many rows a table, or a file of one row a line, has; None for other files."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(1 for _ in file)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            known = "example_id" in file.keys()  # noqa: SIM118
            return int(file.get_slice("example_id").get_shape()[0]) if known else None
    return None


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of all else in it."""
    rest = {str(key): item for key, item in value.items() if key != SEAL}
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return {**rest, SEAL: hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its digest, where it has one. Raises ValueError where it is not what was written."""
    if SEAL in value and seal(value)[SEAL] != value[SEAL]:
        raise ValueError("it is not what was written, another SHA-256")
    return {key: item for key, item in value.items() if key != SEAL}


# --- JSON -----------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any, *, sync: bool = True, sealed: bool = True) -> None:
    """An object is written with its digest, which `read_json` checks; unless `sealed`, as it is."""
    whole = seal(value) if sealed and isinstance(value, Mapping) else value
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"), sync=sync)


def read_json(path: Path, remedy: str = "") -> Any:
    """Raises BasiscopeError where the file is not there, not valid JSON or not what was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BasiscopeError(f"{path} is missing. {remedy}".rstrip()) from error
    except (ValueError, RecursionError) as error:
        raise BasiscopeError(f"{path} is damaged: not valid JSON ({error}). {remedy}".rstrip()) from error
    try:
        return unsealed(value) if isinstance(value, dict) else value
    except ValueError as error:
        raise BasiscopeError(f"{path} is damaged: {error}. {remedy}".rstrip()) from error


def read_object(path: Path, remedy: str = "") -> dict[str, Any]:
    """As `read_json`, and raises BasiscopeError where it is no object."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise BasiscopeError(f"{path} is damaged: not a JSON object. {remedy}".rstrip())
    return value


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """JSON values, one a line."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)

    write_atomic(path, write)


def read_lines(path: Path, remedy: str) -> list[Any]:
    """The JSON values of a file, one a line. Raises BasiscopeError where it is damaged or not there."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except UNREADABLE as error:
        raise BasiscopeError(f"{path} is damaged ({error}). {remedy}") from error


# --- tables and tensors ---------------------------------------------------------------------------------


def write_table(path: Path, table: pd.DataFrame | pa.Table) -> None:
    """Parquet with a checksum for every page."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    write_atomic(path, lambda temporary: pq.write_table(made, temporary, write_page_checksum=True))


def read_table(path: Path, remedy: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Raises BasiscopeError where it cannot be read."""
    import pandas as pd

    with damage_named(path, remedy):
        return pd.read_parquet(path, columns=columns, page_checksum_verification=True)


@contextmanager
def open_table(path: Path, remedy: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, for what reads it in parts. Raises BasiscopeError where it cannot be read."""
    import pyarrow.parquet as pq

    with damage_named(path, remedy), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


@contextmanager
def damage_named(path: Path, remedy: str) -> Iterator[None]:
    """Turns what pyarrow and safetensors say of a damaged file into a BasiscopeError."""
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    try:
        yield
    except (ArrowException, SafetensorError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BasiscopeError(f"{path} is damaged or missing: it cannot be read ({said}). {remedy}") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Arrays as safetensors, with the SHA-256 of their content."""
    from safetensors.numpy import save_file

    facts = {SEAL: _tensor_digest(tensors)}
    write_atomic(path, lambda temporary: save_file(dict(tensors), temporary, metadata=facts))


def read_tensors(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of a file, in memory. Raises BasiscopeError where they are not what was written."""
    with damage_named(path, remedy):
        tensors, known = _opened(path, "np")
    if known and _tensor_digest(tensors) != known:
        raise BasiscopeError(f"{path} is damaged: it is not what was written (another SHA-256). {remedy}")
    return tensors


def map_tensors(path: Path, remedy: str) -> dict[str, Any]:
    """Torch tensors mapped from a file that is known to be intact, not copied into memory."""
    with damage_named(path, remedy):
        return _opened(path, "pt")[0]


def _opened(path: Path, framework: str) -> tuple[dict[str, Any], str | None]:
    from safetensors import safe_open

    with safe_open(path, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(SEAL)  # noqa: SIM118


def _tensor_digest(tensors: Mapping[str, np.ndarray]) -> str:
    import numpy as np

    found = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.data.cast("B") if array.size else b"")
    return found.hexdigest()


# --- disks and locks ------------------------------------------------------------------------------------


def is_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


@contextmanager
def disk_sentences() -> Iterator[None]:
    """Turns the OSError of a disk that is full, or that may not be written, into a BasiscopeError."""
    try:
        yield
    except OSError as error:
        if said := disk_sentence(error):
            raise BasiscopeError(said) from error
        raise


def disk_sentence(error: BaseException) -> str | None:
    """What keeps a file from being written, and what to do; None for an error of another kind."""
    if is_disk_full(error):
        return f"The disk is full ({error}). Free some space and start again."
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"A file may not be written or read here ({error}). Allow it, or choose another --workspace."
    return None


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock, be it another user's; nothing is written for it. What cannot be looked at
    is held by none."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Another name for the same bytes, a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
