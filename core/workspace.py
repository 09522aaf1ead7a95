"""The workspace: runs, labels, named sets and the shards of runs under way. Nothing else touches its files.

    runs/<run>/          finished runs, never changed but for labels.json, tokens/ and steering/
    partial/<run>/       a run under way or interrupted; renamed into runs/ when it is complete
    sets/<run>/          named sets of examples
    selections/<name>/   kept selections; they outlive their run
    screenings/<run>/    duplicates and overlaps with held-out files
    vectors/<run>/       the run's texts as vectors
    comparisons/<run>/   kept comparisons of steered texts
    sweeps/<run>/        sweeps over strengths
    usefulness/<run>/    what utility and proxies found, and the recommendation
    evaluations/<id>/    rollouts and Pass@k; they outlive their run
    jobs/<job>/          see core.jobs

Every file is written under a temporary name and renamed, so nothing half-written is ever read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from core.errors import BasiscopeError
from core.selection import FORMATS, SCREENING_VERSION, VECTORS_VERSION

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from core.activations import Activations, PooledBatch, TokenWindows
    from core.basis import Basis, Scores
    from core.evaluation.problems import Problem
    from core.evaluation.rollouts import Rollout
    from core.reading import Label, TokenScores
    from core.selection.screening import Screening
    from core.steering.comparison import Comparison
    from core.steering.sweep import SuggestedRange, Sweep
    from core.usefulness.evidence import Evidence
    from core.usefulness.recommend import Recommendation

FORMAT_VERSION = 1
DEFAULT_ROOT = Path(__file__).resolve().parent.parent / "cache"
RUN_PARTS = ("sets", "comparisons", "sweeps", "screenings", "vectors", "usefulness")
"""What belongs to a run outside its folder, and goes with it."""
MANIFEST_PARTS = ("model", "data", "recipe", "n", "d", "k", "blocks", "basis", "warnings")
READ_FILES = ("examples.parquet", "tokens.safetensors")
"""What reading the examples leaves in a run's folder, beside read.json."""
PROGRESS = "progress.json"
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 60.0
STORE_DTYPES = ("float32", "float16")
PARTS_HELD = 16
"""Of a run's texts: a thousand examples each."""
LOCK_SECONDS = 1.0
"""How long to wait for a run's lock: longer than a look at whether it is held."""


def content_hash(value: Mapping[str, Any]) -> str:
    """Twelve hex digits that name a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary path beside `path`, then rename it into place. An OSError names `path`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.strerror:
            error.filename = str(path)  # the temporary name says nothing, or there is none
        raise
    finally:
        with suppress(OSError):  # on a disk that may not be written there is none
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Raises BasiscopeError where the file is not there or not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BasiscopeError(f"{path} is missing.") from error
    except ValueError as error:
        raise BasiscopeError(f"{path} is damaged: not valid JSON ({error}).") from error


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


# --- a finished run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder as needed."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise BasiscopeError(f"Run {self.id}: {path} is missing; the run is not complete.")
        manifest = read_json(path)
        if not isinstance(manifest, dict):
            raise BasiscopeError(f"{path} is damaged: not a JSON object.")
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise BasiscopeError(
                f"Run {self.id} has format version {version}, this Basiscope reads version {FORMAT_VERSION}. "
                "Recover it again, or open it with the version that wrote it: "
                f"{manifest.get('versions', {}).get('basiscope', 'unknown')}."
            )
        if lacking := [name for name in MANIFEST_PARTS if name not in manifest]:
            raise BasiscopeError(f"{path} is damaged: it lacks {', '.join(lacking)}.")
        return manifest

    @property
    def k(self) -> int:
        return int(self.manifest["k"])

    @property
    def pooled_text(self) -> str:
        """The column of `examples` that is pooled: `response` where prompts are left out, else `text`."""
        return "response" if self.manifest["recipe"]["pooling"] == "mean-response" else "text"

    def _table(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        import pandas as pd
        import pyarrow as pa

        try:
            return pd.read_parquet(self.folder / name, columns=columns)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BasiscopeError(f"Run {self.id}: {name} cannot be read ({reason}).") from error

    def examples(self, columns: list[str] | None = None) -> pd.DataFrame:
        """One row per example: example_id, text, prompt, response, n_tokens and the original columns."""
        found = self._table("examples.parquet", columns)
        return found.assign(**self._whole_numbers(found))

    def _whole_numbers(self, found: pd.DataFrame) -> dict[str, pd.Series]:
        """The columns of whole numbers with gaps, which pandas takes for floats: 5.0, and 2**53 + 1 as 2**53."""
        import pandas as pd
        import pyarrow as pa

        with self._examples_file() as file:
            whole = (field.name for field in file.schema_arrow if pa.types.is_integer(field.type))
            names = [name for name in whole if name in found and pd.api.types.is_float_dtype(found[name])]
            table = file.read(columns=names) if names else pa.table({})
        return {name: table[name].to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get) for name in names}

    def records(self, example_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows of `examples` by example id, in the order asked for, each value of its stored type; of the file no
        more than one part is held beside them. Raises BasiscopeError for an id that is not there."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(example_ids, type=pa.int64())
        with self._examples_file() as file:
            groups = (file.read_row_group(i, use_threads=False) for i in range(file.num_row_groups))
            parts = [group.filter(pc.is_in(group["example_id"], wanted)) for group in groups]
        found = pa.concat_tables(parts)
        row_of = {example: row for row, example in enumerate(found["example_id"].to_pylist())}
        missing = [example for example in example_ids if example not in row_of]
        if missing:
            raise BasiscopeError(f"Run {self.id} has no example {missing[0]} any more.")
        rows = [row_of[example] for example in example_ids]
        for start in range(0, len(rows), 1_000):
            yield from found.take(rows[start : start + 1_000]).to_pylist()

    def all_texts(self) -> RunTexts:
        return RunTexts(self)

    def columns(self) -> list[str]:
        """The names of the columns of `examples`."""
        with self._examples_file() as file:
            return list(file.schema_arrow.names)

    def facts_columns(self) -> list[str]:
        """The columns of `examples` without the texts: short enough to keep for all examples at once."""
        used = self.manifest["data"]["columns"].values()
        texts = {"text", "prompt", "response", *used, *(f"data_{name}" for name in used)}
        return [name for name in self.columns() if name not in texts]

    def texts(self, rows: Iterable[int], column: str = "text") -> list[str]:
        """The texts of some examples by row number, in the order asked for, or their `response`; only their part
        of the file is read."""
        wanted = np.asarray(list(rows), dtype=np.int64)
        found = np.empty(len(wanted), dtype=object)
        with self._examples_file() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            group = np.searchsorted(ends, wanted, side="right")
            for i in np.unique(group):
                texts = file.read_row_group(i, columns=[column], use_threads=False)[column]
                here = group == i
                found[here] = texts.take(wanted[here] - (ends[i] - sizes[i])).to_pylist()
        return found.tolist()

    def search(self, text: str) -> np.ndarray:
        """(n,) whether an example's text contains `text`, case ignored; the texts are streamed."""
        import pyarrow.compute as pc

        with self._examples_file() as file:
            batches = file.iter_batches(columns=["text"], use_threads=False)
            found = [pc.match_substring(batch["text"], text, ignore_case=True) for batch in batches]
        return np.concatenate([mask.to_numpy(zero_copy_only=False) for mask in found])

    @contextmanager
    def _examples_file(self) -> Iterator[pq.ParquetFile]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.folder / "examples.parquet") as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BasiscopeError(f"Run {self.id}: examples.parquet cannot be read ({reason}).") from error

    def damaged_files(self) -> list[str]:
        """Names of the run's files that are missing or no longer what the manifest says. Reads them all."""
        stored = self.manifest.get("files", {})
        return [name for name, digest in stored.items() if _digest(self.folder / name) != digest]

    def scores(self) -> pd.DataFrame:
        """example_id, d1..dk in the order of `examples`."""
        return self._table("scores.parquet")

    def cosines(self) -> pd.DataFrame:
        """As `scores`, with the uncentred cosine."""
        return self._table("cosines.parquet")

    def map(self) -> pd.DataFrame | None:
        """example_id, x, y, or None where the run has no map. x, y are empty for examples left out of it."""
        return self._table("map.parquet") if (self.folder / "map.parquet").exists() else None

    def basis(self) -> Basis:
        from core.basis import Basis

        tensors = _load_tensors(self.folder / "basis.safetensors")
        facts = self.manifest["basis"]
        return Basis(
            **tensors,
            total_variance=facts["total_variance"],
            n=self.manifest["n"],
            residuals=np.array(facts["residuals"]),
        )

    def directions(self) -> pd.DataFrame:
        """What is known of each direction, one row each: variance, stability, concentration, length."""
        import pandas as pd

        return pd.DataFrame(read_json(self.folder / "directions.json"))

    def activations(self) -> Activations:
        return load_activations(self.folder, self.manifest["blocks"])

    def windows(self) -> TokenWindows:
        return _load_windows(self.folder)

    def labels(self) -> dict[int, Label]:
        """Direction (from 1) -> label."""
        from core.reading import Label

        path = self.folder / "labels.json"
        stored = read_json(path) if path.exists() else {}
        return {int(direction): Label.from_dict(label) for direction, label in stored.items()}

    def save_label(self, direction: int, label: Label, *, over_person: bool = True) -> None:
        """Keep a label; unless `over_person`, one that a person has set stays."""
        from filelock import FileLock

        path = self.folder / "labels.json"
        with FileLock(self.folder / ".labels.lock"):
            stored = read_json(path) if path.exists() else {}
            if not over_person and stored.get(str(direction), {}).get("source") == "person":
                return
            stored[str(direction)] = label.as_dict()
            write_json(path, dict(sorted(stored.items(), key=lambda item: int(item[0]))))

    def token_scores(self, example_id: int) -> TokenScores | None:
        """Scores of every token of an example on every direction, where they have been computed."""
        from core.reading import TokenScores

        path = self.folder / "tokens" / f"{example_id}.parquet"
        if not path.exists():
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            tokens, *scores = pq.read_table(path, use_threads=False).columns
        except (pa.ArrowException, OSError) as error:
            raise BasiscopeError(f"Run {self.id}: {path} cannot be read ({error}).") from error
        by_direction = [column.to_numpy().astype(np.float32) for column in scores]
        return TokenScores(example_id, tuple(tokens.to_pylist()), np.stack(by_direction, axis=1))

    def has_token_scores(self, example_id: int) -> bool:
        return (self.folder / "tokens" / f"{example_id}.parquet").exists()

    def save_token_scores(self, tokens: TokenScores) -> None:
        import pandas as pd

        table = pd.DataFrame(tokens.scores, columns=_direction_names(tokens.scores.shape[1]))
        table.insert(0, "token", list(tokens.tokens))
        path = self.folder / "tokens" / f"{tokens.example_id}.parquet"
        write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))

    def suggested_range(self, direction: int) -> SuggestedRange | None:
        """The strengths of a direction (from 1) that do no damage, where they have been looked for. A damaged
        file is passed over: the sweep can be made again."""
        from core.steering.sweep import SuggestedRange

        path = self.folder / "steering" / f"d{direction}.json"
        if not path.exists():
            return None
        with suppress(BasiscopeError):
            return SuggestedRange.from_dict(read_json(path))
        return None

    def save_suggested_range(self, direction: int, found: SuggestedRange) -> None:
        write_json(self.folder / "steering" / f"d{direction}.json", vars(found))


class RunTexts(Sequence[str]):
    """The texts of a run's examples by row, of which a few parts of the file are in memory at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        with run._examples_file() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._part = lru_cache(maxsize=PARTS_HELD)(self._read)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        return self._part(part)[row - first]

    def _read(self, part: int) -> list[str]:
        with self._run._examples_file() as file:
            texts: list[str] = file.read_row_group(part, columns=["text"], use_threads=False)["text"].to_pylist()
        return texts


def _direction_names(k: int) -> list[str]:
    return [f"d{j + 1}" for j in range(k)]


def _load_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BasiscopeError(f"{path} is damaged or missing ({error}).") from error


def _map_tensors(path: Path) -> dict[str, Any]:
    """Torch tensors mapped from a safetensors file, not copied into memory."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BasiscopeError(
            f"{path} is damaged or missing ({error}). Recover the run again: what is intact is kept."
        ) from error


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "activations").glob("[0-9]*.safetensors"))


def load_activations(folder: Path, blocks: Iterable[int]) -> Activations:
    """The activations of a run folder, mapped from its shards."""
    from core.activations import Activations

    tensors = [_map_tensors(path) for path in _shards(folder)]
    if not tensors:
        raise BasiscopeError(f"{folder / 'activations'} holds no shards.")
    ids = np.concatenate([shard["example_id"].numpy() for shard in tensors])
    return Activations(ids, [shard["activations"] for shard in tensors], tuple(blocks))


def _load_windows(folder: Path) -> TokenWindows:
    from core.activations import TokenWindows

    tensors = {name: tensor.numpy() for name, tensor in _map_tensors(folder / "tokens.safetensors").items()}
    return TokenWindows(**tensors)


# --- a run under way ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartialRun:
    """The folder of a run that is not complete. Only the holder of its lock writes to it."""

    folder: Path
    store_dtype: str

    @property
    def is_read(self) -> bool:
        """Whether the examples have been read to their end, and their files are what they were then."""
        return _is_read(self.folder)

    def facts(self) -> dict[str, Any]:
        """What reading the examples found, for the manifest."""
        return read_json(self.folder / "read.json")

    def windows(self) -> TokenWindows:
        return _load_windows(self.folder)

    def write_examples(
        self, rows: Iterable[dict[str, Any]], kinds: Mapping[str, str], spans: Iterable[str]
    ) -> None:
        """Stream rows to examples.parquet in the order given."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema(kinds, spans)

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for batch in _batched(rows, 1_000):
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))

        write_atomic(self.folder / "examples.parquet", write)

    @contextmanager
    def token_writer(self) -> Iterator[Callable[[int, list[int], int], None]]:
        """Yields write(example_id, ids, first); the windows are complete when the block ends."""
        from safetensors.numpy import save_file

        raw = self.folder / ".tokens.bin"
        example_id, first, lengths = [], [], []
        with raw.open("wb") as file:

            def write(example: int, ids: list[int], start: int) -> None:
                file.write(np.asarray(ids, dtype=np.int32).tobytes())
                example_id.append(example)
                first.append(start)
                lengths.append(len(ids))

            yield write
        tensors = {
            "ids": np.memmap(raw, dtype=np.int32, mode="r") if raw.stat().st_size else np.zeros(0, np.int32),
            "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            "first": np.array(first, dtype=np.int64),
            "example_id": np.array(example_id, dtype=np.int64),
        }
        write_atomic(self.folder / "tokens.safetensors", lambda path: save_file(tensors, path))
        raw.unlink()

    def save_facts(self, facts: Mapping[str, Any]) -> None:
        """Written last of the reading, with the SHA-256 of its files: where it is, the examples are complete."""
        files = {name: _digest(self.folder / name) for name in READ_FILES}
        write_json(self.folder / "read.json", {**facts, "files": files})

    def stored_ids(self) -> np.ndarray:
        """Ids of the examples whose activations are on disk. A damaged shard is deleted, to be made again."""
        from safetensors import SafetensorError, safe_open

        ids = [np.zeros(0, dtype=np.int64)]
        for path in _shards(self.folder):
            try:
                with safe_open(path, framework="np") as file:
                    ids.append(file.get_tensor("example_id"))
            except (SafetensorError, OSError):
                path.unlink()
        return np.concatenate(ids)

    def store(self, batches: Iterable[PooledBatch], example_id: np.ndarray) -> Generator[int, None, None]:
        """Write batches to shards, yielding the number of tokens after each. What is finished when the
        caller stops or an error comes is written, too."""
        waiting: list[PooledBatch] = []
        size, since = 0, time.monotonic()
        try:
            for batch in batches:
                waiting.append(batch)
                size += batch.activations.nbytes
                if size >= SHARD_BYTES or time.monotonic() - since >= SHARD_SECONDS:
                    flushing, waiting, size = waiting, [], 0
                    self._write_shard(flushing, example_id)
                    since = time.monotonic()
                yield batch.n_tokens
        finally:
            if waiting:
                self._write_shard(waiting, example_id)

    def _write_shard(self, batches: list[PooledBatch], example_id: np.ndarray) -> None:
        from safetensors.numpy import save_file

        rows = np.concatenate([batch.activations for batch in batches])
        ids = example_id[np.concatenate([batch.positions for batch in batches])]
        with np.errstate(over="ignore"):
            stored = rows.astype(self.store_dtype)
        if not np.isfinite(stored).all():
            bad = ids[~np.isfinite(stored).all(axis=1)][0]
            raise BasiscopeError(
                f"Example {bad}: its activations exceed the range of float16; use --store-dtype float32."
            )
        taken = [int(path.stem) for path in _shards(self.folder)]
        path = self.folder / "activations" / f"{max(taken, default=-1) + 1:05d}.safetensors"
        write_atomic(path, lambda temporary: save_file({"activations": stored, "example_id": ids}, temporary))

    def activations(self, blocks: Iterable[int]) -> Activations:
        return load_activations(self.folder, blocks)

    def discard(self) -> None:
        shutil.rmtree(self.folder)

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Written last: with the SHA-256 of every file of the run that no later step changes."""
        patterns = ("*.parquet", "*.safetensors", "activations/*.safetensors", "directions.json")
        names = sorted(str(path.relative_to(self.folder)) for p in patterns for path in self.folder.glob(p))
        files = {name: _digest(self.folder / name) for name in names if not Path(name).name.startswith(".")}
        write_json(self.folder / "manifest.json", {**manifest, "files": files})

    def steps(self) -> dict[str, dict[str, Any]]:
        """Seconds and tokens per step so far, over all processes that have worked on the run."""
        path = self.folder / "steps.json"
        return read_json(path) if path.exists() else {}

    def save_step(self, name: str, facts: Mapping[str, Any]) -> None:
        write_json(self.folder / "steps.json", {**self.steps(), name: dict(facts)})

    def has_activations(self) -> bool:
        return bool(_shards(self.folder))

    def save_results(self, basis: Basis, scores: Scores, directions: pd.DataFrame) -> None:
        """basis.safetensors, scores.parquet and cosines.parquet in the order of the examples, and
        directions.json."""
        import pandas as pd
        from safetensors.numpy import save_file

        tensors = {
            "directions": basis.directions,
            "mean": basis.mean,
            "singular_values": basis.singular_values,
            "block_scale": basis.block_scale,
        }
        write_atomic(self.folder / "basis.safetensors", lambda path: save_file(tensors, path))
        order = np.argsort(scores.example_id, kind="stable")
        for name, values in (("scores", scores.scores), ("cosines", scores.cosines)):
            table = pd.DataFrame(values[order], columns=_direction_names(basis.k))
            table.insert(0, "example_id", scores.example_id[order])
            self._save_table(name, table)
        records = json.loads(directions.to_json(orient="records", double_precision=15))
        write_json(self.folder / "directions.json", records)

    def save_map(self, example_id: np.ndarray, points: np.ndarray) -> None:
        """points (n, 2), not a number where an example has no place on the map."""
        import pandas as pd

        table = pd.DataFrame({"example_id": example_id, "x": points[:, 0], "y": points[:, 1]})
        self._save_table("map", table)

    def _save_table(self, name: str, table: pd.DataFrame) -> None:
        path = self.folder / f"{name}.parquet"
        write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))


def _is_read(folder: Path) -> bool:
    with suppress(BasiscopeError):
        digests = read_json(folder / "read.json").get("files", {})
        return all(_digest(folder / name) == digest for name, digest in digests.items())
    return False


def _schema(kinds: Mapping[str, str], spans: Iterable[str]) -> pa.Schema:
    import pyarrow as pa

    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    fields = [("example_id", pa.int64()), ("text", pa.string())]
    fields += [(name, pa.string()) for name in spans] + [("n_tokens", pa.int64())]
    fields += [(name, types.get(kind, pa.string())) for name, kind in kinds.items()]
    return pa.schema(fields)


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# --- the workspace --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedSet:
    """Examples of a run that a person kept under a name."""

    name: str
    run: str
    example_id: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class KeptSelection:
    """A selection's folder: manifest.json, chosen.parquet in order, dropped.parquet, ledger.csv."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        manifest = read_json(self.folder / "manifest.json")
        request = manifest.get("request") if isinstance(manifest, dict) else None
        if not isinstance(request, dict) or "run" not in request or "example_ids" not in manifest:
            raise BasiscopeError(f"{self.folder / 'manifest.json'} is damaged: not the manifest of a selection.")
        return manifest

    @property
    def run(self) -> str:
        return str(self.manifest["request"]["run"])

    @property
    def example_ids(self) -> list[int]:
        return list(self.manifest["example_ids"])

    def chosen(self) -> pd.DataFrame:
        return self._table("chosen.parquet")

    def dropped(self) -> pd.DataFrame:
        """example_id and reason of what could not be chosen."""
        return self._table("dropped.parquet")

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd
        import pyarrow as pa

        try:
            return pd.read_parquet(self.folder / name)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BasiscopeError(f"Selection {self.name}: {name} cannot be read ({reason}).") from error


@dataclass(frozen=True)
class KeptEvaluation:
    """An evaluation's folder: manifest.json, problems.jsonl, and rollouts/*.jsonl, one part a batch, written as
    they come."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def manifest(self) -> dict[str, Any]:
        manifest = read_json(self.folder / "manifest.json")
        if not isinstance(manifest, dict) or not isinstance(manifest.get("request"), dict):
            raise BasiscopeError(f"{self.folder / 'manifest.json'} is damaged: not the manifest of an evaluation.")
        return manifest

    @property
    def run(self) -> str | None:
        """The run whose model and directions were used, where there was one."""
        return self.manifest["request"].get("run")

    @property
    def is_complete(self) -> bool:
        return self.manifest.get("status") == "complete"

    def rollouts(self) -> list[Rollout]:
        """All rollouts so far, by problem, rollout and variant. Raises BasiscopeError for a damaged part."""
        from core.evaluation.rollouts import Rollout

        found: dict[tuple[str, int, int], Rollout] = {}
        for path in sorted((self.folder / "rollouts").glob("[0-9]*.jsonl")):
            found |= {rollout.key: rollout for rollout in map(Rollout.from_dict, _read_lines(path))}
        return sorted(found.values(), key=lambda one: (one.problem_id, one.rollout, one.variant))

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Write a part. Only the holder of the evaluation's lock does."""
        taken = [int(path.stem) for path in (self.folder / "rollouts").glob("[0-9]*.jsonl")]
        path = self.folder / "rollouts" / f"{max(taken, default=-1) + 1:05d}.jsonl"
        write_lines(path, (one.as_dict() for one in rollouts))

    def problems(self) -> dict[int, Problem]:
        """The problems that were asked, by id."""
        from core.evaluation.problems import Problem

        try:
            found = [Problem(**stored) for stored in _read_lines(self.folder / "problems.jsonl")]
        except TypeError as error:
            raise BasiscopeError(f"Evaluation {self.id}: its problems are damaged ({error}).") from error
        return {problem.problem_id: problem for problem in found}

    def save_problems(self, problems: Iterable[Problem]) -> None:
        write_lines(self.folder / "problems.jsonl", (vars(problem) for problem in problems))

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.folder / "manifest.json", dict(manifest))


def _read_lines(path: Path) -> list[Any]:
    """The JSON values of a file, one a line. Raises BasiscopeError where it is damaged or not there."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise BasiscopeError(f"{path} is damaged ({error}); delete it, and evaluate again.") from error


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """JSON values, one a line."""
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    write_atomic(path, lambda temporary: temporary.write_text(lines, encoding="utf-8"))


class Workspace:
    """A folder of runs. Creating the object creates nothing on disk."""

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self.root = Path(root).expanduser()

    def runs(self) -> list[Run]:
        """Finished runs, newest first. Folders that are no complete run of any version are passed over."""
        made = {}
        for path in self.root.glob("runs/*/manifest.json"):
            with suppress(FileNotFoundError):  # deleted meanwhile
                made[Run(path.parent)] = path.stat().st_mtime
        return sorted(made, key=lambda run: made[run], reverse=True)

    def readable_runs(self) -> list[Run]:
        """Finished runs, newest first, without those whose manifest this Basiscope cannot read."""
        readable = []
        for run in self.runs():
            with suppress(BasiscopeError):
                readable += [run] if run.manifest else []
        return readable

    def partial_manifests(self) -> dict[str, dict[str, Any]]:
        """Run id -> what it was asked to be, of the runs under way or interrupted."""
        found = {}
        for path in sorted(self.root.glob("partial/*/request.json")):
            with suppress(BasiscopeError):  # finished meanwhile, or damaged
                found[path.parent.name] = read_json(path)
        return found

    def run(self, reference: str = "latest") -> Run:
        """A run by id, unique prefix or `latest`. Raises BasiscopeError where there is none or several."""
        runs = self.runs()
        if reference == "latest" and runs:
            return runs[0]
        if exact := [run for run in runs if run.id == reference]:
            return exact[0]
        matches = [run for run in runs if reference and run.id.startswith(reference)]
        if len(matches) == 1:
            return matches[0]
        if len(matches) > 1:
            raise BasiscopeError(f"Run {reference!r} could be any of {', '.join(run.id for run in matches)}.")
        if any(run.startswith(reference) for run in self.partial_manifests()):
            raise BasiscopeError(
                f"Run {reference} is not complete; start its `recover` command again, or `delete` it."
            )
        known = ", ".join(run.id for run in runs[:5]) or "none yet"
        raise BasiscopeError(f"Run {reference!r} is not in {self.root}. Runs there: {known}.")

    @contextmanager
    def start(
        self,
        request: Mapping[str, Any],
        shared: str,
        asked: Mapping[str, str] | None = None,
        lender: Path | None = None,
    ) -> Iterator[PartialRun]:
        """The locked partial folder of the run that `request` asks for. `shared` names what determines its
        examples and activations; a finished run that agrees in it lends its own, or else the one that
        `lend` copied to the folder `lender`. `asked` is kept with the request: the names of model and data, for
        people.

        A request that fails before any activations are stored leaves nothing behind. Raises BasiscopeError
        where another process is at work on the same run.
        """
        from filelock import FileLock, Timeout

        folder = self.root / "partial" / content_hash(request)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=LOCK_SECONDS):
                for leftover in folder.rglob(".*.tmp"):
                    leftover.unlink()
                facts = {"asked": dict(asked or {}), "shared": shared, "pid": os.getpid()}
                write_json(folder / "request.json", {**request, **facts})
                (folder / PROGRESS).unlink(missing_ok=True)
                under_way = PartialRun(folder, request["store_dtype"])
                if not under_way.has_activations() and not under_way.is_read:
                    self._borrow(under_way, shared, lender)
                try:
                    yield under_way
                except BasiscopeError:
                    if folder.exists() and not under_way.has_activations():
                        under_way.discard()
                    raise
        except Timeout as error:
            raise BasiscopeError(
                f"Run {folder.name} is being recovered by another process; wait for it or stop it first."
            ) from error

    def _borrow(self, under_way: PartialRun, shared: str, outside: Path | None) -> None:
        """Link activations of the first lender that has some, and examples of the first that has them."""
        folder, missing = under_way.folder, {"read", "activations"}
        for lender, damaged in self._lenders(folder, shared, outside):
            shards = [f"activations/{path.name}" for path in _shards(lender)]
            parts = {"activations": [name for name in shards if name not in damaged]}
            if not set(READ_FILES) & set(damaged):
                parts["read"] = [*READ_FILES, "read.json"]
            taken = {step: names for step, names in parts.items() if names and step in missing}
            names = [name for part in taken.values() for name in part]
            try:
                for name in names:
                    write_atomic(folder / name, partial(_link, lender / name))
            except FileNotFoundError:  # deleted meanwhile: take nothing of it, another's may overlap
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                continue
            for name, facts in _steps(lender).items():
                if name in taken:
                    under_way.save_step(name, {"from": lender.name, **facts})
            missing -= taken.keys()
            if "activations" not in missing:
                return

    def _lenders(self, folder: Path, shared: str, outside: Path | None) -> Iterator[tuple[Path, list[str]]]:
        """Folders of finished runs, then of interrupted ones that have read their examples, each with the
        names of its damaged files; last those that can lend activations alone, as the one `outside`."""
        without_examples = []
        for run in self.readable_runs():
            if run.manifest.get("shared") == shared:
                damaged = run.damaged_files()
                if set(READ_FILES) & set(damaged):
                    without_examples.append((run.folder, damaged))
                else:
                    yield run.folder, damaged
        for run_id, request in self.partial_manifests().items():
            other = self.root / "partial" / run_id
            if other != folder and request.get("shared") == shared and (other / "read.json").exists():
                if _is_read(other):
                    yield other, []
                else:
                    without_examples.append((other, list(READ_FILES)))
        yield from without_examples
        if outside is not None:
            with suppress(BasiscopeError):  # none is there, or one of another format: nothing is lent
                if Run(outside).manifest.get("shared") == shared:
                    yield outside, [*Run(outside).damaged_files(), *READ_FILES]

    def is_locked(self, run_id: str) -> bool:
        """Whether a process is at work on the partial run."""
        return _is_held(self.root / "partial" / f"{run_id}.lock")

    def finish(self, under_way: PartialRun) -> Run:
        """Rename a complete partial run into place, where a broken one of the same id may lie."""
        final = self.root / "runs" / under_way.folder.name
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            _keep_later_work(Run(final), Run(under_way.folder))
        shutil.rmtree(final, ignore_errors=True)
        for name in ("request.json", "steps.json", PROGRESS):
            (under_way.folder / name).unlink(missing_ok=True)
        under_way.folder.rename(final)
        return Run(final)

    def finished(self, request: Mapping[str, Any]) -> Run | None:
        """The finished run of a request, where there is one and all its files are what they were."""
        run = Run(self.root / "runs" / content_hash(request))
        with suppress(BasiscopeError):  # a damaged manifest
            return run if (run.folder / "manifest.json").is_file() and not run.damaged_files() else None
        return None

    def any_run_id(self, reference: str) -> str:
        """The id that a reference means, of a run finished or not. Raises BasiscopeError as `run` does."""
        known = {*self.partial_manifests(), *(run.id for run in self.runs())}
        matches = sorted(run_id for run_id in known if reference and run_id.startswith(reference))
        if len(matches) > 1 and reference not in known:
            raise BasiscopeError(f"Run {reference!r} could be any of {', '.join(matches)}.")
        return matches[0] if len(matches) == 1 else self.run(reference).id

    def delete(self, run_id: str) -> None:
        """Remove a finished or partial run with everything in it. Raises BasiscopeError while a process is
        at work on it, and where there is none."""
        from filelock import FileLock, Timeout

        folders = [self.root / part / run_id for part in ("runs", "partial")]
        if not re.fullmatch("[0-9a-f]+", run_id) or not any(folder.is_dir() for folder in folders):
            raise BasiscopeError(f"Run {run_id!r} is not in {self.root}.")
        lock = self.root / "partial" / f"{run_id}.lock"
        lock.parent.mkdir(exist_ok=True)
        try:
            with FileLock(lock, timeout=LOCK_SECONDS):
                for folder in [*folders, *(self.root / part / run_id for part in RUN_PARTS)]:
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            raise BasiscopeError(f"Run {run_id} is being recovered; stop it first.") from None

    def free_bytes(self) -> int:
        existing = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        return shutil.disk_usage(existing).free

    def save_set(self, named: NamedSet) -> None:
        if not re.fullmatch(r"[\w. -]{1,80}", named.name):
            raise BasiscopeError(f"Set name {named.name!r}: use letters, digits, space, '.', '_' and '-'.")
        path = self.root / "sets" / named.run / f"{named.name}.json"
        if path.exists():
            raise BasiscopeError(f"Set name {named.name!r}: this run has such a set; take another name.")
        write_json(path, vars(named) | {"created": now()})

    def sets(self, run_id: str | None = None) -> list[NamedSet]:
        """The named sets, of one run where given, by name."""
        sets = []
        for path in self.root.glob("sets/**/*.json"):
            with suppress(BasiscopeError, KeyError, TypeError):  # a damaged one hides no other
                s = read_json(path)
                sets.append(NamedSet(s["name"], s["run"], tuple(s["example_id"]), s.get("note", "")))
        return sorted(
            (named for named in sets if run_id in (None, named.run)), key=lambda named: (named.name, named.run)
        )

    def save_comparison(self, comparison: Comparison) -> str:
        """Keep a comparison; its id names its content."""
        stored = comparison.as_dict()
        comparison_id = content_hash(stored)
        write_json(self.root / "comparisons" / comparison.run / f"{comparison_id}.json", stored)
        return comparison_id

    def comparisons(self, run_id: str) -> dict[str, Comparison]:
        """Id -> kept comparison of a run, newest first. Damaged files are passed over."""
        from core.steering.comparison import Comparison

        found = {}
        for path in self.root.glob(f"comparisons/{run_id}/*.json"):
            with suppress(BasiscopeError):
                found[path.stem] = Comparison.from_dict(read_json(path))
        return dict(sorted(found.items(), key=lambda item: item[1].created, reverse=True))

    def delete_comparison(self, run_id: str, comparison_id: str) -> None:
        if re.fullmatch("[0-9a-f]+", comparison_id):
            (self.root / "comparisons" / run_id / f"{comparison_id}.json").unlink(missing_ok=True)

    def save_sweep(self, sweep: Sweep) -> str:
        """Keep a sweep under the hash of what was asked for, so that the same again replaces it."""
        sweep_id = content_hash(sweep.request)
        write_json(self.root / "sweeps" / sweep.run / f"{sweep_id}.json", sweep.as_dict())
        return sweep_id

    def sweeps(self, run_id: str) -> dict[str, Sweep]:
        """Id -> sweep of a run, newest first. Damaged files are passed over."""
        from core.steering.sweep import Sweep

        paths = sorted(self.root.glob(f"sweeps/{run_id}/*.json"), key=lambda path: -path.stat().st_mtime)
        found = {}
        for path in paths:
            with suppress(BasiscopeError):
                found[path.stem] = Sweep.from_dict(read_json(path))
        return found

    def save_evidence(self, evidence: Evidence) -> str:
        """Keep what a proxy found under the hash of what was asked for, so that the same again replaces it."""
        evidence_id = content_hash({"proxy": evidence.proxy, "request": evidence.request})
        write_json(
            self.root / "usefulness" / evidence.run / "evidence" / f"{evidence_id}.json", evidence.as_dict()
        )
        return evidence_id

    def save_recommendation(self, found: Recommendation) -> None:
        """Keep what a run's evidence comes to; the newest alone."""
        write_json(self.root / "usefulness" / found.run / "recommendation.json", found.as_dict())

    def evidence(self, run_id: str) -> dict[str, Evidence]:
        """Id -> evidence of a run, newest first. Damaged files are passed over."""
        from core.usefulness.evidence import Evidence

        paths = sorted(
            self.root.glob(f"usefulness/{run_id}/evidence/*.json"), key=lambda path: -path.stat().st_mtime_ns
        )
        found = {}
        for path in paths:
            with suppress(BasiscopeError):
                found[path.stem] = Evidence.from_dict(read_json(path))
        return found

    @contextmanager
    def start_evaluation(self, request: Mapping[str, Any]) -> Iterator[KeptEvaluation]:
        """The locked folder of the evaluation that `request` asks for, new or begun before. One that fails
        before its first rollout leaves nothing behind. Raises BasiscopeError where another process is at it."""
        from filelock import FileLock, Timeout

        folder = self.root / "evaluations" / content_hash(request)
        folder.mkdir(parents=True, exist_ok=True)
        kept = KeptEvaluation(folder)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=LOCK_SECONDS):
                try:
                    yield kept
                except BasiscopeError:
                    if not any((folder / "rollouts").glob("*.jsonl")):
                        shutil.rmtree(folder)
                    raise
        except Timeout as error:
            raise BasiscopeError(
                f"Evaluation {folder.name} is being made by another process; wait for it or stop it first."
            ) from error

    def evaluations(self, run_id: str | None = None) -> list[KeptEvaluation]:
        """Evaluations, complete or not, newest first; of one run where given. Damaged ones are passed over."""
        made = {}
        for path in self.root.glob("evaluations/*/manifest.json"):
            with suppress(BasiscopeError, FileNotFoundError):
                kept = KeptEvaluation(path.parent)
                if run_id in (None, kept.run):
                    made[kept] = path.stat().st_mtime
        return sorted(made, key=lambda kept: made[kept], reverse=True)

    def evaluation(self, reference: str) -> KeptEvaluation:
        """An evaluation by id or unique beginning. Raises BasiscopeError where there is none or several."""
        found = [kept for kept in self.evaluations() if reference and kept.id.startswith(reference)]
        if len(found) != 1:
            known = ", ".join(kept.id for kept in found or self.evaluations()[:8]) or "none yet"
            raise BasiscopeError(f"Evaluation {reference!r} is no single one in {self.root}. There: {known}.")
        return found[0]

    def is_evaluating(self, evaluation_id: str) -> bool:
        """Whether a process is at work on the evaluation."""
        return _is_held(self.root / "evaluations" / f"{evaluation_id}.lock")

    def delete_evaluation(self, reference: str) -> None:
        """Raises BasiscopeError where there is none or several, and while a process is at work on it."""
        kept = self.evaluation(reference)
        if self.is_evaluating(kept.id):
            raise BasiscopeError(f"Evaluation {kept.id} is being made; stop it first.")
        shutil.rmtree(kept.folder)
        kept.folder.with_suffix(".lock").unlink(missing_ok=True)

    def check_selection_name(self, name: str, replace_old: bool) -> None:
        """Raises BasiscopeError for a name that no folder can have, or that another selection has; with
        `replace_old`, for one with something in its folder that was not written here."""
        if not re.fullmatch(r"\w[\w. -]{0,79}", name):
            raise BasiscopeError(f"Selection name {name!r}: use letters, digits, space, '.', '_' and '-'.")
        if (self.root / "selections" / name).exists() and not replace_old:
            raise BasiscopeError(
                f"There is a selection {name!r} already; choose another name, or replace it (--replace)."
            )
        self._check_only_own_files(self.root / "selections" / name)

    def _check_only_own_files(self, folder: Path) -> None:
        """Raises BasiscopeError where a selection's exports have something beside or in them, such as a model that
        was trained there."""
        exports = folder / "export"
        others = [path for path in exports.glob("*") if path.name not in FORMATS]
        others += [path for path in exports.glob("*/*") if path.is_dir()]
        if others:
            raise BasiscopeError(
                f"Selection {folder.name}: {others[0]} is no part of it; move it elsewhere first."
            )

    def save_selection(
        self,
        name: str,
        manifest: Mapping[str, Any],
        chosen: pd.DataFrame,
        dropped: pd.DataFrame,
        ledger: pd.DataFrame,
        replace_old: bool = False,
    ) -> KeptSelection:
        """Keep a selection in a folder of its own, written whole or not at all. Raises BasiscopeError as
        `check_selection_name` does."""
        self.check_selection_name(name, replace_old)
        folder = self.root / "selections" / name
        temporary = folder.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
        try:
            chosen.to_parquet(temporary / "chosen.parquet", index=False)
            dropped.to_parquet(temporary / "dropped.parquet", index=False)
            ledger.to_csv(temporary / "ledger.csv", index=False)
            write_json(temporary / "manifest.json", manifest)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return KeptSelection(folder)

    def selections(self, run_id: str | None = None) -> list[KeptSelection]:
        """Kept selections by name, of one run where given. Damaged ones are passed over."""
        found = []
        for path in sorted(self.root.glob("selections/[!.]*/manifest.json")):
            kept = KeptSelection(path.parent)
            with suppress(BasiscopeError):
                found += [kept] if run_id in (None, kept.run) else []
        return found

    def selection(self, name: str) -> KeptSelection:
        """Raises BasiscopeError where there is none of that name."""
        kept = KeptSelection(self.root / "selections" / Path(name).name)
        if not (kept.folder / "manifest.json").is_file():
            known = ", ".join(one.name for one in self.selections()[:8]) or "none yet"
            raise BasiscopeError(f"There is no selection {name!r} in {self.root}. Selections there: {known}.")
        return kept

    def copy_selection(self, name: str, new_name: str) -> KeptSelection:
        """Keep a selection under another name, too."""
        self.check_selection_name(new_name, replace_old=False)
        folder = self.root / "selections" / new_name
        temporary = folder.with_name(f".{new_name}.{os.getpid()}.tmp")
        try:
            shutil.copytree(self.selection(name).folder, temporary)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return KeptSelection(folder)

    def delete_selection(self, name: str) -> None:
        """Remove a selection with its exports. Raises BasiscopeError where anything else is among them."""
        folder = self.selection(name).folder
        self._check_only_own_files(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def save_screening(self, run_id: str, screening: Screening) -> None:
        write_json(self._screening_path(run_id, screening.against), screening.as_dict())

    def screening(self, run_id: str, against: Mapping[str, str]) -> Screening | None:
        """What was found in a run's texts against these files (path -> SHA-256), None before a look."""
        from core.selection.screening import Screening

        path = self._screening_path(run_id, against)
        return Screening.from_dict(read_json(path)) if path.exists() else None

    def duplicates(self, run_id: str) -> Screening | None:
        """What any look at a run's texts has found of their duplicates, overlaps left out; None before a look."""
        found = self.screening(run_id, {})
        for path in [] if found else sorted((self.root / "screenings" / run_id).glob("[!.]*.json")):
            against = read_json(path).get("against", {})
            if path == self._screening_path(run_id, against) and (other := self.screening(run_id, against)):
                return replace(other, overlaps=(), against={}, problems=())
        return found

    def _screening_path(self, run_id: str, against: Mapping[str, str]) -> Path:
        key = content_hash({"version": SCREENING_VERSION, "against": dict(against)})
        return self.root / "screenings" / run_id / f"{key}.json"

    def save_text_vectors(self, run_id: str, model: str | None, vectors: np.ndarray) -> None:
        """Keep the vectors of a run's texts, by TF-IDF or by a sentence model as it is now: a folder is known by
        its files, whatever its name."""
        from safetensors.numpy import save_file

        path = self._vectors_path(run_id, model)
        write_atomic(path, lambda temporary: save_file({"vectors": vectors}, temporary))

    def text_vectors(self, run_id: str, model: str | None) -> np.ndarray | None:
        """(n, m) vectors of a run's texts by a sentence model, or by TF-IDF; None before they are made."""
        path = self._vectors_path(run_id, model)
        return _load_tensors(path)["vectors"] if path.exists() else None

    def has_text_vectors(self, run_id: str, model: str | None) -> bool:
        return self._vectors_path(run_id, model).exists()

    def _vectors_path(self, run_id: str, model: str | None) -> Path:
        from core.selection.vectors import text_model_fingerprint

        key = content_hash({"version": VECTORS_VERSION, "model": text_model_fingerprint(model) or model})
        return self.root / "vectors" / run_id / f"{key}.safetensors"

    def save_upload(self, name: str, content: bytes) -> Path:
        """Keep an uploaded data file under its own name in a folder named by its content."""
        safe = re.sub(r"[^\w.-]", "_", Path(name).name)
        path = self.root / "uploads" / hashlib.sha256(content).hexdigest()[:12] / safe
        if not path.exists():
            write_atomic(path, lambda temporary: temporary.write_bytes(content))
        return path


def _keep_later_work(old: Run, new: Run) -> None:
    """What was added to a run after it was recovered: labels that are not from the words, token scores, and what
    steering has kept."""
    with suppress(BasiscopeError):
        for direction, label in old.labels().items():
            if label.source != "words":
                new.save_label(direction, label)
    for name in ("tokens", "steering"):
        for path in (old.folder / name).glob("[!.]*"):
            if not (new.folder / name / path.name).exists():
                write_atomic(new.folder / name / path.name, partial(_link, path))


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def lend(run: Run, folder: Path) -> None:
    """Make `folder` what a run in any workspace can take of this one: its activations, and its manifest without
    the paths and the speed of this machine."""
    manifest = run.manifest
    shards = {name: digest for name, digest in manifest["files"].items() if name.startswith("activations/")}
    facts = {
        "model": {**manifest["model"], "name": Path(manifest["model"]["name"]).name},
        "data": {**manifest["data"], "path": Path(manifest["data"]["path"]).name},
        "steps": {"activations": {"tokens": manifest["data"]["tokens"]}},
        "files": shards,
    }
    shutil.rmtree(folder, ignore_errors=True)
    for name in shards:
        write_atomic(folder / name, partial(shutil.copyfile, run.folder / name))
    write_json(folder / "manifest.json", manifest | facts)


def _steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Time and tokens per step, of a finished run or one under way."""
    path = folder / "manifest.json"
    return read_json(path)["steps"] if path.exists() else PartialRun(folder, "").steps()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
