import errno
import os
import threading

import numpy as np
import pytest

from core import workspace as workspace_module
from core.activations import PooledBatch
from core.errors import BasiscopeError
from core.reading import Label
from core.workspace import (
    NamedSet,
    PartialRun,
    Workspace,
    content_hash,
    disk_sentences,
    is_disk_full,
    read_json,
    write_atomic,
)

OTHER_VERSION = b'{"format_version": 99, "versions": {"basiscope": "9.1"}}'


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_hash_names_a_value_whatever_its_order():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1}) != content_hash({"a": 1, "b": [3]})
    assert len(content_hash({})) == 12


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_atomic(path, lambda temporary: temporary.write_text("old"))

    def half(temporary):
        temporary.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as error:
        write_atomic(path, half)
    assert is_disk_full(error.value) and not is_disk_full(ValueError("no"))
    assert error.value.filename == str(path)
    assert path.read_text() == "old" and names(tmp_path) == ["deep/x.json"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The disk is full .*x.json.* Free some space"),
        (errno.EDQUOT, "The disk is full .*x.json.* Free some space"),
        (errno.EROFS, r"may not be written or read here .*x\.json.* choose another --workspace"),
        (errno.EACCES, r"may not be written or read here .*x\.json.* choose another --workspace"),
    ],
)
def test_a_disk_that_takes_nothing_is_a_sentence_with_the_file(tmp_path, number, sentence):
    def refuse(_temporary):
        raise OSError(number, os.strerror(number))

    with pytest.raises(BasiscopeError, match=sentence), disk_sentences():
        write_atomic(tmp_path / "x.json", refuse)
    with pytest.raises(FileNotFoundError), disk_sentences():
        (tmp_path / "none").read_bytes()


def test_json_that_is_damaged_or_missing_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(BasiscopeError, match=r"x\.json is damaged: not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(BasiscopeError, match=r"y\.json is missing"):
        read_json(tmp_path / "y.json")


# --- opening runs ---------------------------------------------------------------------------------------


def second_run(workspace, run_id):
    """A copy of the run under another id, older than the first."""
    import shutil

    folder = workspace.root / "runs" / run_id
    shutil.copytree(workspace.run().folder, folder)
    os.utime(folder / "manifest.json", (1, 1))
    return folder


def test_a_run_is_found_by_id_prefix_and_latest(gsm8k_copy, gsm8k_run):
    other = "0" * 11 + "a"
    second_run(gsm8k_copy, other)
    second_run(gsm8k_copy, "0" * 11 + "b")
    assert gsm8k_copy.run("latest").id == gsm8k_copy.run(gsm8k_run.id[:5]).id == gsm8k_run.id
    assert gsm8k_copy.run(other).id == other
    with pytest.raises(BasiscopeError, match=f"could be any of .*{other}"):
        gsm8k_copy.run("000")
    for reference in ("zzz", ""):
        with pytest.raises(BasiscopeError, match=f"is not in .* Runs there: {gsm8k_run.id}"):
            gsm8k_copy.run(reference)
    with pytest.raises(BasiscopeError, match="none yet"):
        Workspace(gsm8k_copy.root / "empty").run()


def test_an_incomplete_run_says_so(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.start({"store_dtype": "float32"}, "x") as partial:
        run_id = partial.folder.name
    with pytest.raises(BasiscopeError, match="is not complete; start its `recover` command again"):
        workspace.run(run_id[:4])
    workspace.delete(run_id)
    assert workspace.partial_manifests() == {}


def test_deleting_needs_a_run(gsm8k_copy):
    for run_id in ("", ".", "..", "nope"):
        with pytest.raises(BasiscopeError, match="is not in"):
            gsm8k_copy.delete(run_id)
    gsm8k_copy.delete(gsm8k_copy.run().id)
    assert gsm8k_copy.runs() == []


@pytest.mark.parametrize(
    ("file", "content", "look", "sentence"),
    [
        ("manifest.json", b"{", lambda run: run.k, r"manifest.json is damaged"),
        ("manifest.json", b"[]", lambda run: run.k, r"manifest.json is damaged: not a JSON object"),
        ("manifest.json", OTHER_VERSION, lambda run: run.k, r"format version 99, .* that wrote it: 9\.1"),
        ("basis.safetensors", b"\0" * 40, lambda run: run.basis(), "basis.safetensors is damaged"),
        ("scores.parquet", b"PAR1", lambda run: run.scores(), "scores.parquet is damaged"),
        ("examples.parquet", None, lambda run: run.examples(), "examples.parquet is missing"),
        ("examples.parquet", b"", lambda run: run.columns(), "examples.parquet is damaged"),
        ("directions.json", None, lambda run: run.directions(), "directions.json is missing"),
        ("tokens.safetensors", b"short", lambda run: run.windows(), "tokens.safetensors is damaged"),
        ("activations/00000.safetensors", b"", lambda run: run.activations(), "00000.safetensors is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_run_says_which_file(gsm8k_copy, file, content, look, sentence):
    run = gsm8k_copy.run()
    path = run.folder / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BasiscopeError, match=sentence):
        look(gsm8k_copy.runs()[0])


def test_truncated_shards_and_tables_are_noticed(gsm8k_copy):
    run = gsm8k_copy.run()
    for file in ("activations/00000.safetensors", "scores.parquet"):
        path = run.folder / file
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BasiscopeError, match="damaged"):
        run.activations()
    with pytest.raises(BasiscopeError, match="damaged"):
        run.scores()


def test_one_unreadable_run_hides_no_other(gsm8k_copy):
    broken = second_run(gsm8k_copy, "f" * 12)
    (broken / "manifest.json").write_text("[]")
    assert len(gsm8k_copy.runs()) == 2 and len(gsm8k_copy.readable_runs()) == 1
    good = gsm8k_copy.readable_runs()[0]
    request = {**good.manifest["request"], "k": 2}
    with gsm8k_copy.start(request, good.manifest["shared"]) as partial:  # borrows in spite of the broken one
        assert partial.is_read and sorted(partial.stored_ids()) == list(range(60))
        assert names(partial.folder / "activations") == names(good.folder / "activations")


# --- shards ---------------------------------------------------------------------------------------------


def batches(n, d=8):
    for i in range(n):
        yield PooledBatch(np.array([i]), np.full((1, d), i, dtype=np.float32), n_tokens=10 * i)


def test_shards_are_written_by_size_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace_module, "SHARD_BYTES", 64)
    partial = PartialRun(tmp_path, "float32")
    ids = np.arange(100, 105)
    assert list(partial.store(batches(5), ids)) == [0, 10, 20, 30, 40]
    assert names(tmp_path) == [f"activations/0000{i}.safetensors" for i in range(3)]
    assert partial.stored_ids().tolist() == ids.tolist()
    activations = partial.activations([1, 2])
    assert [shard[:, 0].tolist() for shard in activations.shards] == [[0, 1], [2, 3], [4]]
    assert activations.hidden_size == 4


def test_an_error_between_batches_keeps_what_came_before(tmp_path):
    def failing():
        yield from batches(3)
        raise BasiscopeError("no more")

    partial = PartialRun(tmp_path, "float32")
    with pytest.raises(BasiscopeError, match="no more"):
        list(partial.store(failing(), np.arange(3)))
    assert partial.stored_ids().tolist() == [0, 1, 2]


def test_float16_that_overflows_names_the_example(tmp_path):
    rows = np.array([[1.0], [70_000.0]], dtype=np.float32)
    batch = PooledBatch(np.array([0, 1]), rows, 2)
    with pytest.raises(BasiscopeError, match=r"Example 11: .* range of float16; use --store-dtype float32"):
        list(PartialRun(tmp_path, "float16").store([batch], np.array([10, 11])))
    assert names(tmp_path) == []


# --- labels, sets, uploads ------------------------------------------------------------------------------


def test_labels_of_many_writers_are_all_kept(gsm8k_copy):
    run = gsm8k_copy.run()
    writers = [
        threading.Thread(target=run.save_label, args=(j, Label(f"l{j}", "person"))) for j in range(20, 0, -1)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    labels = run.labels()
    assert list(labels) == list(range(1, 21)) and labels[7].text == "l7"


def test_named_sets(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.save_set(NamedSet("odd ones", "abc", (1, 3), "note"))
    workspace.save_set(NamedSet("even", "def", (2,)))
    assert workspace.sets("abc") == [NamedSet("odd ones", "abc", (1, 3), "note")]
    workspace.save_set(NamedSet("even", "abc", (7,)))  # of the same name, of another run
    assert [(named.name, named.run) for named in workspace.sets()] == [
        ("even", "abc"),
        ("even", "def"),
        ("odd ones", "abc"),
    ]
    with pytest.raises(BasiscopeError, match="this run has such a set"):
        workspace.save_set(NamedSet("even", "abc", (8,)))
    (tmp_path / "sets" / "abc" / "bad.json").write_text("{")
    assert len(workspace.sets()) == 3
    for name in ("../x", "a/b", "", "x" * 81):
        with pytest.raises(BasiscopeError, match="Set name"):
            workspace.save_set(NamedSet(name, "abc", ()))


def test_a_reference_that_means_two_runs_is_refused(tmp_path):
    workspace = Workspace(tmp_path)
    for run_id in ("abc1", "abc2"):
        (tmp_path / "partial" / run_id).mkdir(parents=True)
        (tmp_path / "partial" / run_id / "request.json").write_text("{}")
    (tmp_path / "partial" / "abc3").mkdir()
    (tmp_path / "partial" / "abc3" / "request.json").write_text("half")
    with pytest.raises(BasiscopeError, match="could be any of abc1, abc2"):
        workspace.any_run_id("abc")
    assert workspace.any_run_id("abc1") == "abc1"


def test_a_request_that_fails_early_leaves_nothing(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(BasiscopeError, match="k = 9"), workspace.start({"store_dtype": "float32"}, "x") as partial:
        partial.save_facts({})
        raise BasiscopeError("k = 9")
    assert workspace.partial_manifests() == {} and not partial.folder.exists()


def test_an_upload_is_kept_once_under_a_safe_name(tmp_path):
    workspace = Workspace(tmp_path)
    path = workspace.save_upload("../../my data.csv", b"a,b\n")
    assert path == workspace.save_upload("../../my data.csv", b"a,b\n")
    assert path.name == "my_data.csv" and path.is_relative_to(tmp_path) and path.read_bytes() == b"a,b\n"
    assert workspace.free_bytes() > 0 and Workspace(tmp_path / "not" / "yet").free_bytes() > 0


def test_the_request_of_a_partial_run_is_kept_with_its_names(tmp_path):
    workspace = Workspace(tmp_path)
    request = {"store_dtype": "float16", "k": 3}
    with workspace.start(request, "x", {"model": "m", "data": "d"}) as partial:
        assert partial.folder.name == content_hash(request) and partial.store_dtype == "float16"
    stored = read_json(partial.folder / "request.json")
    assert stored == request | {"asked": {"model": "m", "data": "d"}, "shared": "x", "pid": os.getpid()}


def test_an_interrupted_run_lends_what_it_has_read(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.start({"store_dtype": "float32", "k": 3}, "x") as first:
        for name in ("examples.parquet", "tokens.safetensors", "read.json", "activations/00000.safetensors"):
            (first.folder / name).parent.mkdir(exist_ok=True)
            (first.folder / name).write_text(name)
