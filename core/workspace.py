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

core.store writes every file under a temporary name and renames it, so nothing half-written is ever read, and
checks it when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from core.errors import BasiscopeError
from core.limits import Limits
from core.selection import FORMATS, SCREENING_VERSION, VECTORS_VERSION
from core.spreadsheet import as_csv
from core.store import (
    SEAL,
    UNREADABLE,
    checked,
    described,
    digest,
    has_changed,
    is_held,
    is_known,
    link,
    map_tensors,
    new_folder,
    open_table,
    put_folder,
    read_json,
    read_lines,
    read_object,
    read_table,
    read_tensors,
    remove_folder,
    rows,
    seal,
    unsealed,
    write_atomic,
    write_json,
    write_lines,
    write_table,
    write_tensors,
)
from core.store import (
    disk_sentence as disk_sentence,
)
from core.store import (
    disk_sentences as disk_sentences,
)
from core.store import (
    is_disk_full as is_disk_full,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock

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
MEND = "Give this run's `recover` command again: it is mended from what is intact."
SELECT_AGAIN = "Give its `select` command again with --replace, or delete the selection."
EVALUATE_AGAIN = (
    "Give the command that made it again: what is intact stays. Where that does not mend it, delete the "
    "evaluation first."
)
FILES = "files.json"
"""Of an evaluation: SHA-256, bytes and rows of the files beside it."""
DAMAGED_LABELS = "labels.damaged.json"
JOB_SECONDS = 2.0
"""How long a new job's folder may lack its job.json."""
LOCK_SECONDS = 1.0
"""How long to wait for a run's lock: longer than a look at whether it is held."""


def content_hash(value: Mapping[str, Any]) -> str:
    """Twelve hex digits that name a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
            raise BasiscopeError(f"Run {self.id}: {path} is missing; the run is not complete. {MEND}")
        manifest = read_object(path, MEND)
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise BasiscopeError(
                f"Run {self.id} has format version {version}, this Basiscope reads version {FORMAT_VERSION}. "
                "Recover it again, or open it with the version that wrote it: "
                f"{manifest.get('versions', {}).get('basiscope', 'unknown')}."
            )
        if lacking := [name for name in MANIFEST_PARTS if name not in manifest]:
            raise BasiscopeError(f"{path} is damaged: it lacks {', '.join(lacking)}. {MEND}")
        return manifest

    @property
    def k(self) -> int:
        return int(self.manifest["k"])

    @property
    def pooled_text(self) -> str:
        """The column of `examples` that is pooled: `response` where prompts are left out, else `text`."""
        return "response" if self.manifest["recipe"]["pooling"] == "mean-response" else "text"

    def _file(self, name: str) -> Path:
        """The path of one of the run's files. Raises BasiscopeError where it is not what the manifest says."""
        try:
            return checked(self.folder / name, self._digest(name), MEND)
        except BasiscopeError:
            self.__dict__.pop("manifest", None)  # recovered again meanwhile
            return checked(self.folder / name, self._digest(name), MEND)

    def _digest(self, name: str) -> str | None:
        return self.manifest.get("files", {}).get(name)

    def _table(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        return read_table(self._file(name), MEND, columns)

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
        with open_table(self._file("examples.parquet"), MEND) as file:
            yield file

    def damaged_files(self) -> list[str]:
        """Names of the run's files that are missing or no longer what the manifest says. Reads them all."""
        stored = self.manifest.get("files", {})
        return [name for name, expected in stored.items() if has_changed(self.folder / name, expected)]

    def scores(self) -> pd.DataFrame:
        """example_id, d1..dk in the order of `examples`."""
        return self._table("scores.parquet")

    def cosines(self) -> pd.DataFrame:
        """As `scores`, with the uncentred cosine."""
        return self._table("cosines.parquet")

    def map(self) -> pd.DataFrame | None:
        """example_id, x, y, or None where the run has no map. x, y are empty for examples left out of it."""
        has_map = self._digest("map.parquet") or (self.folder / "map.parquet").exists()
        return self._table("map.parquet") if has_map else None

    def basis(self) -> Basis:
        from core.basis import Basis

        tensors = read_tensors(self._file("basis.safetensors"), MEND)
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

        return pd.DataFrame(read_json(self._file("directions.json"), MEND))

    def activations(self) -> Activations:
        named = [name for name in self.manifest.get("files", {}) if name.startswith("activations/")]
        for name in named or [f"activations/{path.name}" for path in _shards(self.folder)]:
            self._file(name)
        found = load_activations(self.folder, self.manifest["blocks"])
        if found.n != self.manifest["n"]:
            raise BasiscopeError(
                f"{self.folder / 'activations'} has {found.n:,} examples, the run {self.manifest['n']:,}. {MEND}"
            )
        return found

    def windows(self) -> TokenWindows:
        self._file("tokens.safetensors")
        return _load_windows(self.folder)

    def labels(self) -> dict[int, Label]:
        """Direction (from 1) -> label. Raises BasiscopeError where one is not what was written, or all are
        gone."""
        labels, damaged = self._labels()
        if not (self.folder / "labels.json").exists():
            raise BasiscopeError(
                f"{self.folder / 'labels.json'} is missing. `basiscope label {self.id} --words` makes the labels "
                "anew; those that a person has set are to be set again."
            )
        if damaged:
            raise BasiscopeError(
                f"{self.folder / 'labels.json'} is damaged: {damaged}. `basiscope label {self.id} --words` gives "
                f"the directions that have lost theirs new ones; the damaged file is kept as {DAMAGED_LABELS}."
            )
        return labels

    def intact_labels(self) -> dict[int, Label]:
        """As `labels`, without those that are damaged."""
        return self._labels()[0]

    def _labels(self) -> tuple[dict[int, Label], str]:
        """The labels that are what was written, and in words which are not."""
        from core.reading import Label

        path = self.folder / "labels.json"
        if not path.exists():
            return {}, ""
        try:
            stored = read_object(path)
        except BasiscopeError as error:
            return {}, str(error)
        labels, damaged = {}, []
        for name, facts in stored.items():
            try:
                known = unsealed(facts)
                if int(known.pop("direction", name)) != int(name):
                    raise ValueError("another direction's")
                labels[int(name)] = Label.from_dict(known)
            except UNREADABLE:
                damaged.append(f"the label of direction {name!r} is not what was written")
        return labels, "; ".join(damaged)

    def save_label(self, direction: int, label: Label, *, over_person: bool = True) -> None:
        """Keep a label; unless `over_person`, one that a person has set stays."""
        Limits.now().check_writing()
        path = self.folder / "labels.json"
        with _labels_lock(self.folder):
            labels, damaged = self._labels()
            if damaged:
                shutil.copyfile(path, self.folder / DAMAGED_LABELS)
            if not over_person and direction in labels and labels[direction].source == "person":
                return
            labels[direction] = label
            stored = {str(j): seal(labels[j].as_dict() | {"direction": j}) for j in sorted(labels)}
            write_json(path, stored, sealed=False)

    def token_scores(self, example_id: int) -> TokenScores | None:
        """Scores of every token of an example on every direction, where they have been computed. Raises
        BasiscopeError where they are not what was written."""
        from core.reading import TokenScores

        path = self.folder / "tokens" / f"{example_id}.parquet"
        if not path.exists():
            return None
        remedy = f"`basiscope tokens {self.id} --example {example_id}` computes the scores again."
        with open_table(path, remedy) as file:
            stored = file.read(use_threads=False)
        tokens, *scores = stored.columns
        by_direction = np.stack([column.to_numpy().astype(np.float32) for column in scores], axis=1)
        found = TokenScores(example_id, tuple(tokens.to_pylist()), by_direction)
        expected = (stored.schema.metadata or {}).get(SEAL.encode())
        if expected and expected.decode() != _token_digest(found):
            raise BasiscopeError(f"{path} is damaged: it is not what was written (another SHA-256). {remedy}")
        return found

    def has_token_scores(self, example_id: int) -> bool:
        return (self.folder / "tokens" / f"{example_id}.parquet").exists()

    def lacks_token_scores(self, example_id: int) -> bool:
        """Whether they have not been computed, or cannot be read."""
        try:
            return self.token_scores(example_id) is None
        except BasiscopeError:
            return True

    def save_token_scores(self, tokens: TokenScores) -> None:
        import pyarrow as pa

        columns = [pa.array(tokens.tokens, pa.string()), *(pa.array(column) for column in tokens.scores.T)]
        table = pa.table(columns, ["token", *_direction_names(tokens.scores.shape[1])])
        facts = {SEAL: _token_digest(tokens)}
        write_table(self.folder / "tokens" / f"{tokens.example_id}.parquet", table.replace_schema_metadata(facts))

    def suggested_range(self, direction: int) -> SuggestedRange | None:
        """The strengths of a direction (from 1) that do no damage, where they have been looked for. A damaged
        file is passed over: the sweep can be made again."""
        with suppress(BasiscopeError):
            return _read_range(self.folder / "steering" / f"d{direction}.json")
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


def _token_digest(tokens: TokenScores) -> str:
    found = hashlib.sha256(json.dumps([tokens.example_id, *tokens.tokens]).encode())
    found.update(np.ascontiguousarray(tokens.scores, dtype="<f4").tobytes())
    return found.hexdigest()


def _direction_names(k: int) -> list[str]:
    return [f"d{j + 1}" for j in range(k)]


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "activations").glob("[0-9]*.safetensors"))


def load_activations(folder: Path, blocks: Iterable[int]) -> Activations:
    """The activations of a run folder, mapped from its shards."""
    from core.activations import Activations

    tensors = [map_tensors(path, MEND) for path in _shards(folder)]
    if not tensors:
        raise BasiscopeError(f"{folder / 'activations'} holds no shards. {MEND}")
    ids = np.concatenate([shard["example_id"].numpy() for shard in tensors])
    return Activations(ids, [shard["activations"] for shard in tensors], tuple(blocks))


def _load_windows(folder: Path) -> TokenWindows:
    from core.activations import TokenWindows

    tensors = map_tensors(folder / "tokens.safetensors", MEND)
    return TokenWindows(**{name: tensor.numpy() for name, tensor in tensors.items()})


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
            with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
                for batch in _batched(rows, 1_000):
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))

        write_atomic(self.folder / "examples.parquet", write)

    @contextmanager
    def token_writer(self) -> Iterator[Callable[[int, list[int], int], None]]:
        """Yields write(example_id, ids, first); the windows are complete when the block ends."""
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
        write_tensors(self.folder / "tokens.safetensors", tensors)
        raw.unlink()

    def save_facts(self, facts: Mapping[str, Any]) -> None:
        """Written last of the reading, with the SHA-256 of its files: where it is, the examples are complete."""
        files = {name: digest(self.folder / name) for name in READ_FILES if (self.folder / name).exists()}
        write_json(self.folder / "read.json", {**facts, "files": files})

    def stored_ids(self) -> np.ndarray:
        """Ids of the examples whose activations are on disk. A damaged shard is deleted, to be made again."""
        ids = [np.zeros(0, dtype=np.int64)]
        for path in _shards(self.folder):
            try:
                read = map_tensors if is_known(path) else read_tensors
                ids.append(np.asarray(read(path, MEND)["example_id"]))
            except (BasiscopeError, KeyError):
                path.unlink()
        return np.concatenate(ids)

    def store(
        self, batches: Iterable[PooledBatch], example_id: np.ndarray, before: int | None = None
    ) -> Generator[int, None, None]:
        """Write batches to shards, yielding the number of tokens after each. What is finished when the
        caller stops or an error comes is written, too.

        before: the example before the first, whose shard goes on where it is not full: so the shards are the same
        however often the work was stopped
        """
        number, waiting = self._begun(example_id, before)
        size, since, is_new = sum(batch.activations.nbytes for batch in waiting), time.monotonic(), False
        try:
            for batch in batches:
                waiting.append(batch)
                size, is_new = size + batch.activations.nbytes, True
                if size >= SHARD_BYTES or time.monotonic() - since >= SHARD_SECONDS:
                    is_new = False  # where this fails, it is not tried again
                    self._write_shard(number, waiting, example_id)
                    since = time.monotonic()
                if size >= SHARD_BYTES:
                    number, waiting, size = self._free_number(), [], 0
                yield batch.n_tokens
        finally:
            if is_new:
                self._write_shard(number, waiting, example_id)

    def _begun(self, example_id: np.ndarray, before: int | None) -> tuple[int, list[PooledBatch]]:
        """The number of the shard to write, and what it has already: that which ends in the example `before`,
        where it is not full, else a new one."""
        from core.activations import PooledBatch

        for path in _shards(self.folder) if before is not None else []:
            shard = map_tensors(path, MEND)
            ids, rows = shard["example_id"].numpy(), shard["activations"]
            if ids[-1] == before and 4 * rows.numel() < SHARD_BYTES:
                position = {example: i for i, example in enumerate(example_id.tolist())}
                positions = np.array([position[example] for example in ids.tolist()])
                return int(path.stem), [PooledBatch(positions, rows.float().numpy().copy(), 0)]
        return self._free_number(), []

    def _free_number(self) -> int:
        taken = {int(path.stem) for path in _shards(self.folder)}
        return next(number for number in count() if number not in taken)

    def _write_shard(self, number: int, batches: list[PooledBatch], example_id: np.ndarray) -> None:
        rows = np.concatenate([batch.activations for batch in batches])
        ids = example_id[np.concatenate([batch.positions for batch in batches])]
        with np.errstate(over="ignore"):
            stored = rows.astype(self.store_dtype)
        if not np.isfinite(stored).all():
            bad = ids[~np.isfinite(stored).all(axis=1)][0]
            raise BasiscopeError(
                f"Example {bad}: its activations exceed the range of float16; use --store-dtype float32."
            )
        path = self.folder / "activations" / f"{number:05d}.safetensors"
        write_tensors(path, {"activations": stored, "example_id": ids})

    def activations(self, blocks: Iterable[int]) -> Activations:
        return load_activations(self.folder, blocks)

    def discard(self) -> None:
        remove_folder(self.folder)

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Written last: with SHA-256 and rows of every file of the run that no later step changes."""
        patterns = ("*.parquet", "*.safetensors", "activations/*.safetensors", "directions.json")
        names = sorted(str(path.relative_to(self.folder)) for p in patterns for path in self.folder.glob(p))
        paths = {name: self.folder / name for name in names if not Path(name).name.startswith(".")}
        facts = {
            "files": {name: digest(path) for name, path in paths.items()},
            "rows": {name: found for name, path in paths.items() if (found := rows(path)) is not None},
        }
        write_json(self.folder / "manifest.json", {**manifest, **facts})

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

        tensors = {
            "directions": basis.directions,
            "mean": basis.mean,
            "singular_values": basis.singular_values,
            "block_scale": basis.block_scale,
        }
        write_tensors(self.folder / "basis.safetensors", tensors)
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
        write_table(self.folder / f"{name}.parquet", table)


def _is_read(folder: Path) -> bool:
    with suppress(BasiscopeError):
        stored = read_object(folder / "read.json").get("files", {})
        return not any(has_changed(folder / name, expected) for name, expected in stored.items())
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
class Damaged:
    """Something kept that cannot be read, with the sentence that says why. kind: what it is, a key of KINDS."""

    kind: str
    name: str
    reason: str
    path: Path


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
        path = self.folder / "manifest.json"
        manifest = read_object(path, SELECT_AGAIN)
        request = manifest.get("request")
        if not isinstance(request, dict) or "run" not in request or "example_ids" not in manifest:
            raise BasiscopeError(f"{path} is damaged: not the manifest of a selection. {SELECT_AGAIN}")
        if "contamination" in manifest:  # as 0.1 called them
            manifest["overlaps"] = manifest.pop("contamination")
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

    def file(self, name: str) -> Path:
        """The path of one of its files. Raises BasiscopeError where it is not what the manifest says."""
        known = self.manifest.get("files", {}).get(name, {})
        return checked(self.folder / name, known.get(SEAL), SELECT_AGAIN)

    def _table(self, name: str) -> pd.DataFrame:
        return read_table(self.file(name), SELECT_AGAIN)


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
        path = self.folder / "manifest.json"
        manifest = read_object(path, EVALUATE_AGAIN)
        if not isinstance(manifest.get("request"), dict):
            raise BasiscopeError(f"{path} is damaged: not the manifest of an evaluation. {EVALUATE_AGAIN}")
        return manifest

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """File -> SHA-256, bytes and rows; empty for an evaluation of an older version."""
        path = self.folder / FILES
        return read_object(path, EVALUATE_AGAIN) if path.exists() else {}

    @property
    def run(self) -> str | None:
        """The run whose model and directions were used, where there was one."""
        return self.manifest["request"].get("run")

    @property
    def is_complete(self) -> bool:
        return self.manifest.get("status") == "complete"

    def rollouts(self) -> list[Rollout]:
        """All rollouts so far, by problem, rollout and variant. Raises BasiscopeError for a part that is damaged
        or missing."""
        from core.evaluation.rollouts import Rollout

        found: dict[tuple[str, int, int], Rollout] = {}
        for name in self._parts(known := self.files):
            lines = self._lines(name, known)
            found |= {rollout.key: rollout for rollout in map(Rollout.from_dict, lines)}
        return sorted(found.values(), key=lambda one: (one.problem_id, one.rollout, one.variant))

    def _parts(self, known: Mapping[str, Any]) -> list[str]:
        there = {f"rollouts/{path.name}" for path in (self.folder / "rollouts").glob("[0-9]*.jsonl")}
        return sorted(there | {name for name in known if name.startswith("rollouts/")})

    def _lines(self, name: str, known: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        path = checked(self.folder / name, known.get(name, {}).get(SEAL), EVALUATE_AGAIN)
        return read_lines(path, EVALUATE_AGAIN)

    def mend(self) -> bool:
        """Forget the parts that are damaged or missing, so that they are made again; whether there were some. Only
        the holder of the evaluation's lock does."""
        try:
            known = self.files
        except BasiscopeError:
            known = {}
        intact = {name: facts for name, facts in known.items() if not has_changed(self.folder / name, facts[SEAL])}
        for name in (parts := self._parts(known)):
            if name in known and name not in intact:
                (self.folder / name).unlink(missing_ok=True)
                continue
            try:
                self._lines(name, intact)
            except BasiscopeError:
                (self.folder / name).unlink(missing_ok=True)
                continue
            intact[name] = described(self.folder / name)
        if intact != known:
            write_json(self.folder / FILES, intact)
        return any(name not in intact for name in (*known, *parts))

    def append(self, rollouts: Sequence[Rollout]) -> None:
        """Write a part. Only the holder of the evaluation's lock does."""
        taken = [int(Path(name).stem) for name in self._parts(self.files)]
        name = f"rollouts/{max(taken, default=-1) + 1:05d}.jsonl"
        self._write_lines(name, (one.as_dict() for one in rollouts))

    def _write_lines(self, name: str, values: Iterable[Any]) -> None:
        """A part that was written when its process was killed is what it is: its digest is taken then."""
        write_lines(self.folder / name, values)
        known = self.files
        late = [part for part in self._parts(known) if part not in known]
        write_json(self.folder / FILES, known | {part: described(self.folder / part) for part in (*late, name)})

    def problems(self) -> dict[int, Problem]:
        """The problems that were asked, by id."""
        from core.evaluation.problems import Problem

        try:
            found = [Problem(**stored) for stored in self._lines("problems.jsonl", self.files)]
        except TypeError as error:
            raise BasiscopeError(f"Evaluation {self.id}: its problems are damaged ({error}).") from error
        return {problem.problem_id: problem for problem in found}

    def save_problems(self, problems: Iterable[Problem]) -> None:
        self._write_lines("problems.jsonl", (vars(problem) for problem in problems))

    def save_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.folder / "manifest.json", dict(manifest))


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
                found[path.parent.name] = read_object(path)
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
        broken = [path for path in _folders(self.root / "runs") if reference and path.name.startswith(reference)]
        if len(broken) == 1:
            _ = Run(broken[0]).manifest  # raises: it is missing
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
                    shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
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
                    write_atomic(folder / name, partial(link, lender / name))
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
        return is_held(self.root / "partial" / f"{run_id}.lock")

    def finish(self, under_way: PartialRun) -> Run:
        """Rename a complete partial run into place, where a broken one of the same id may lie."""
        final = self.root / "runs" / under_way.folder.name
        with _labels_lock(final) if final.is_dir() else nullcontext():
            _keep_later_work(Run(final), Run(under_way.folder))
            put_folder(under_way.folder, final)
        _tidy(final)
        return Run(final)

    def finished(self, request: Mapping[str, Any]) -> Run | None:
        """The finished run of a request, where there is one and all its files are what they were."""
        run = Run(self.root / "runs" / content_hash(request))
        with suppress(BasiscopeError):  # a damaged manifest
            if (run.folder / "manifest.json").is_file() and not run.damaged_files():
                _tidy(run.folder)
                return run
        return None

    def run_ids(self) -> set[str]:
        """Of all runs, finished or not, damaged or not."""
        return {path.name for part in ("runs", "partial") for path in _folders(self.root / part)}

    def any_run_id(self, reference: str) -> str:
        """The id that a reference means, of a run finished or not. Raises BasiscopeError as `run` does."""
        known = self.run_ids()
        matches = sorted(run_id for run_id in known if reference and run_id.startswith(reference))
        if len(matches) > 1 and reference not in known:
            raise BasiscopeError(f"Run {reference!r} could be any of {', '.join(matches)}.")
        return matches[0] if len(matches) == 1 else self.run(reference).id

    def delete(self, run_id: str) -> None:
        """Remove a finished or partial run with everything in it. Raises BasiscopeError while a process is
        at work on it, and where there is none."""
        from filelock import FileLock, Timeout

        Limits.now().check_writing()
        folders = [self.root / part / run_id for part in ("runs", "partial")]
        if not re.fullmatch("[0-9a-f]+", run_id) or not any(folder.is_dir() for folder in folders):
            raise BasiscopeError(f"Run {run_id!r} is not in {self.root}.")
        lock = self.root / "partial" / f"{run_id}.lock"
        lock.parent.mkdir(exist_ok=True)
        try:
            with FileLock(lock, timeout=LOCK_SECONDS):
                parts = [self.root / part / run_id for part in RUN_PARTS]
                for folder in filter(Path.is_dir, [*folders, *parts]):
                    remove_folder(folder)
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
            with suppress(BasiscopeError):  # a damaged one hides no other
                sets.append(_read_set(path))
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
        """Id -> kept comparison of a run, newest first. Damaged files are passed over; `damaged` names them."""
        found = {}
        for path in self.root.glob(f"comparisons/{run_id}/[!.]*.json"):
            with suppress(BasiscopeError):
                found[path.stem] = _read_comparison(path)
        return dict(sorted(found.items(), key=lambda item: item[1].created, reverse=True))

    def delete_comparison(self, run_id: str, comparison_id: str) -> None:
        Limits.now().check_writing()
        if re.fullmatch("[0-9a-f]+", comparison_id):
            (self.root / "comparisons" / run_id / f"{comparison_id}.json").unlink(missing_ok=True)

    def save_sweep(self, sweep: Sweep) -> str:
        """Keep a sweep under the hash of what was asked for, so that the same again replaces it."""
        sweep_id = content_hash(sweep.request)
        write_json(self.root / "sweeps" / sweep.run / f"{sweep_id}.json", sweep.as_dict())
        return sweep_id

    def sweeps(self, run_id: str) -> dict[str, Sweep]:
        """Id -> sweep of a run, newest first. Damaged files are passed over; `damaged` names them."""
        paths = sorted(self.root.glob(f"sweeps/{run_id}/*.json"), key=lambda path: -path.stat().st_mtime)
        found = {}
        for path in paths:
            with suppress(BasiscopeError):
                found[path.stem] = _read_sweep(path)
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
        """Id -> evidence of a run, newest first. Damaged files are passed over; `damaged` names them."""
        paths = sorted(
            self.root.glob(f"usefulness/{run_id}/evidence/*.json"), key=lambda path: -path.stat().st_mtime_ns
        )
        found = {}
        for path in paths:
            with suppress(BasiscopeError):
                found[path.stem] = _read_evidence(path)
        return found

    def intact_evidence(self, run_id: str) -> dict[str, Evidence]:
        """As `evidence`, for what is built on all of it: raises BasiscopeError where one cannot be read."""
        if damaged := self.damaged("evidence", run_id=run_id):
            raise BasiscopeError(
                f"Evidence {damaged[0].name} cannot be read, so nothing is built on the rest. {damaged[0].reason} "
                f"Give its command again, or `basiscope delete {damaged[0].name}`."
            )
        return self.evidence(run_id)

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
                        remove_folder(folder)
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

    def damaged(self, *kinds: str, run_id: str = "*") -> list[Damaged]:
        """What cannot be read of some kinds, or of all; of one run's where given. What a process is at work on is
        left out."""
        found = []
        for kind in kinds or KINDS:
            pattern, read = KINDS[kind]
            for path in sorted(self.root.glob(pattern.format(run=run_id))):
                try:
                    read(path)
                except BasiscopeError as error:
                    name = path.stem if path.is_file() else path.name
                    if path.exists() and not is_held(path.with_suffix(".lock")):
                        found.append(Damaged(kind, name, str(error), path))
        return found

    def delete_damaged(self, one: Damaged) -> None:
        """Raises BasiscopeError while a process is at work on it."""
        Limits.now().check_writing()
        if one.kind in ("run", "unfinished run"):
            self.delete(one.name)
        elif one.path.is_dir():
            if one.kind == "selection":
                self._check_only_own_files(one.path)
            if is_held(one.path.with_suffix(".lock")):
                raise BasiscopeError(f"{one.path} is being written; stop that first.")
            remove_folder(one.path)
        else:
            one.path.unlink(missing_ok=True)

    def is_evaluating(self, evaluation_id: str) -> bool:
        """Whether a process is at work on the evaluation."""
        return is_held(self.root / "evaluations" / f"{evaluation_id}.lock")

    def delete_evaluation(self, reference: str) -> None:
        """Raises BasiscopeError where there is none or several, and while a process is at work on it."""
        Limits.now().check_writing()
        kept = self.evaluation(reference)
        if self.is_evaluating(kept.id):
            raise BasiscopeError(f"Evaluation {kept.id} is being made; stop it first.")
        remove_folder(kept.folder)
        kept.folder.with_suffix(".lock").unlink(missing_ok=True)

    def check_selection_name(self, name: str, replace_old: bool, request: Mapping[str, Any] | None = None) -> None:
        """Raises BasiscopeError for a name that no folder can have, or that another selection than that of
        `request` has; with `replace_old`, for one with something in its folder that was not written here."""
        Limits.now().check_writing()
        if not re.fullmatch(r"\w[\w. -]{0,79}", name):
            raise BasiscopeError(f"Selection name {name!r}: use letters, digits, space, '.', '_' and '-'.")
        there = self.root / "selections" / name
        if there.exists() and not replace_old and not self._is_selection_of(there, request):
            raise BasiscopeError(
                f"There is a selection {name!r} already; choose another name, or replace it (--replace)."
            )
        self._check_only_own_files(there)

    def _is_selection_of(self, folder: Path, request: Mapping[str, Any] | None) -> bool:
        with suppress(BasiscopeError):
            return request is not None and content_hash(KeptSelection(folder).manifest["request"]) == content_hash(
                request
            )
        return False

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
        again: bool = False,
    ) -> KeptSelection:
        """Keep a selection in a folder of its own, written whole or not at all; with `again`, the one that is
        there stays where it has chosen the same. Raises BasiscopeError as `check_selection_name` does."""
        if again and self._is_selection_of(there := self.root / "selections" / name, manifest["request"]):
            kept = KeptSelection(there)
            if not replace_old and kept.example_ids == manifest["example_ids"]:
                return kept
        self.check_selection_name(name, replace_old)
        folder = self.root / "selections" / name
        with new_folder(folder, replace=True) as made:
            write_table(made / "chosen.parquet", chosen)
            write_table(made / "dropped.parquet", dropped)
            ledger_csv = as_csv(ledger)
            write_atomic(
                made / "ledger.csv", lambda path: path.write_text(ledger_csv, encoding="utf-8", newline="")
            )
            files = {path.name: described(path) for path in sorted(made.iterdir())}
            write_json(made / "manifest.json", {**manifest, "files": files})
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
        with new_folder(folder) as made:
            shutil.copytree(self.selection(name).folder, made, dirs_exist_ok=True)
        return KeptSelection(folder)

    def delete_selection(self, name: str) -> None:
        """Remove a selection with its exports. Raises BasiscopeError where anything else is among them."""
        Limits.now().check_writing()
        folder = self.selection(name).folder
        self._check_only_own_files(folder)
        remove_folder(folder)

    def save_screening(self, run_id: str, screening: Screening) -> None:
        write_json(self._screening_path(run_id, screening.against), screening.as_dict())

    def screening(self, run_id: str, against: Mapping[str, str]) -> Screening | None:
        """What was found in a run's texts against these files (path -> SHA-256), None before a look."""
        path = self._screening_path(run_id, against)
        return _read_screening(path) if path.exists() else None

    def duplicates(self, run_id: str) -> Screening | None:
        """What any look at a run's texts has found of their duplicates, overlaps left out; None before a look."""
        found = self.screening(run_id, {})
        for path in [] if found else sorted((self.root / "screenings" / run_id).glob("[!.]*.json")):
            against = _read_screening(path).against
            if path == self._screening_path(run_id, against) and (other := self.screening(run_id, against)):
                return replace(other, overlaps=(), against={}, problems=())
        return found

    def _screening_path(self, run_id: str, against: Mapping[str, str]) -> Path:
        key = content_hash({"version": SCREENING_VERSION, "against": dict(against)})
        return self.root / "screenings" / run_id / f"{key}.json"

    def save_text_vectors(self, run_id: str, model: str | None, vectors: np.ndarray) -> None:
        """Keep the vectors of a run's texts, by TF-IDF or by a sentence model as it is now: a folder is known by
        its files, whatever its name."""
        write_tensors(self._vectors_path(run_id, model), {"vectors": vectors})

    def text_vectors(self, run_id: str, model: str | None) -> np.ndarray | None:
        """(n, m) vectors of a run's texts by a sentence model, or by TF-IDF; None before they are made."""
        path = self._vectors_path(run_id, model)
        remedy = "Delete the file: the vectors are made again when they are needed."
        return read_tensors(path, remedy)["vectors"] if path.exists() else None

    def has_text_vectors(self, run_id: str, model: str | None) -> bool:
        return self._vectors_path(run_id, model).exists()

    def _vectors_path(self, run_id: str, model: str | None) -> Path:
        from core.selection.vectors import text_model_fingerprint

        key = content_hash({"version": VECTORS_VERSION, "model": text_model_fingerprint(model) or model})
        return self.root / "vectors" / run_id / f"{key}.safetensors"

    def save_upload(self, name: str, content: bytes) -> Path:
        """Keep an uploaded data file under its own name in a folder named by its content. Raises BasiscopeError
        where all uploads together may not have so many bytes."""
        safe = re.sub(r"[^\w.-]", "_", Path(name).name)
        path = self.root / "uploads" / hashlib.sha256(content).hexdigest()[:12] / safe
        if not path.exists():
            self._check_uploads(len(content))
            write_atomic(path, lambda temporary: temporary.write_bytes(content))
        return path

    def _check_uploads(self, more: int) -> None:
        most = Limits.now().uploads
        if most is None:
            return
        kept = sum(path.stat().st_size for path in self.root.glob("uploads/*/*"))
        if kept + more > most:
            raise BasiscopeError(
                f"The uploads kept here have {kept / 1e6:,.1f} of at most {most / 1e6:,.0f} MB; with this file's "
                f"{more / 1e6:,.1f} MB they would have more. Delete some in {self.root / 'uploads'} first."
            )


def _read_request(folder: Path) -> None:
    """Of a run that is not complete."""
    if not is_held(folder.with_suffix(".lock")):
        read_object(folder / "request.json", "Give its `recover` command again, or delete the run.")


def read_job(folder: Path) -> dict[str, Any]:
    """What a job's folder says of it. Raises BasiscopeError where that cannot be read."""
    path = folder / "job.json"
    facts = read_object(path)
    if not isinstance(facts.get("arguments"), list) or not {"pid", "pid_created"} <= facts.keys():
        raise BasiscopeError(f"{path} is damaged: it does not say what was started.")
    return facts


def _read_old_job(folder: Path) -> None:
    if (folder / "job.json").exists() or time.time() - folder.stat().st_mtime > JOB_SECONDS:
        read_job(folder)


def _read_comparison(path: Path) -> Comparison:
    from core.steering.comparison import Comparison

    return Comparison.from_dict(read_object(path))


def _read_sweep(path: Path) -> Sweep:
    from core.steering.sweep import Sweep

    return Sweep.from_dict(read_object(path))


def _read_range(path: Path) -> SuggestedRange:
    from core.steering.sweep import SuggestedRange

    return SuggestedRange.from_dict(read_object(path))


def _read_evidence(path: Path) -> Evidence:
    from core.usefulness.evidence import Evidence

    return Evidence.from_dict(read_object(path))


def _read_screening(path: Path) -> Screening:
    from core.selection.screening import Screening

    remedy = "Delete the file; `basiscope screen` looks again."
    try:
        return Screening.from_dict(read_object(path, remedy))
    except UNREADABLE as error:
        raise BasiscopeError(f"{path} is damaged: no screening ({error}). {remedy}") from error


def _read_set(path: Path) -> NamedSet:
    stored = read_object(path)
    try:
        return NamedSet(
            str(stored["name"]), str(stored["run"]), tuple(map(int, stored["example_id"])), stored.get("note", "")
        )
    except UNREADABLE as error:
        raise BasiscopeError(f"{path} is damaged: no named set ({error}).") from error


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run": ("runs/[!.]*/", lambda path: Run(path).manifest),
    "unfinished run": ("partial/[!.]*/", _read_request),
    "evaluation": ("evaluations/[!.]*/", lambda path: KeptEvaluation(path).manifest),
    "selection": ("selections/[!.]*/", lambda path: KeptSelection(path).manifest),
    "job": ("jobs/[!.]*/", _read_old_job),
    "set": ("sets/{run}/[!.]*.json", _read_set),
    "comparison": ("comparisons/{run}/[!.]*.json", _read_comparison),
    "sweep": ("sweeps/{run}/[!.]*.json", _read_sweep),
    "suggested range": ("runs/{run}/steering/[!.]*.json", _read_range),
    "evidence": ("usefulness/{run}/evidence/[!.]*.json", _read_evidence),
    "screening": ("screenings/{run}/[!.]*.json", _read_screening),
}
"""What a workspace keeps -> where its entries lie, and what reads one or raises BasiscopeError."""


def _labels_lock(folder: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(folder / ".labels.lock")


def _keep_later_work(old: Run, new: Run) -> None:
    """What was added to a run after it was recovered: labels that are not from the words, token scores, and what
    steering has kept. Labels that are damaged are kept as a file of their own."""
    labels, damaged = old._labels()
    if damaged:
        shutil.copyfile(old.folder / "labels.json", new.folder / DAMAGED_LABELS)
    for direction, label in labels.items():
        if label.source != "words":
            new.save_label(direction, label)
    for name in ("tokens", "steering"):
        for path in (old.folder / name).glob("[!.]*"):
            if not (new.folder / name / path.name).exists():
                write_atomic(new.folder / name / path.name, partial(link, path))


def _tidy(folder: Path) -> None:
    """Remove what a finished run needs no more."""
    for name in ("request.json", "steps.json", PROGRESS):
        (folder / name).unlink(missing_ok=True)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir())


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


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
