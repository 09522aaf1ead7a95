import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from synthetic import synthetic_run

from core import store
from core.errors import BasiscopeError
from core.jobs import list_jobs
from core.reading import Label
from core.selection.export import export
from core.selection.pool import Constraints, Rule
from core.selection.step import Request, select
from core.workspace import DAMAGED_LABELS, KeptEvaluation, NamedSet, PartialRun, Workspace

ROOT = Path(__file__).resolve().parent.parent


def flip(path, where=0.5):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 4
    path.write_bytes(content)


# --- one file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"a": 1, "b": [0.1, None, "é\u2028"]}, {1: "x"}, {}, [1, 2], {"n": (1, 2)}])
def test_json_comes_back_and_a_flipped_bit_never_does(tmp_path, value):
    path = tmp_path / "x.json"
    store.write_json(path, value)
    assert store.read_json(path) == json.loads(json.dumps(value))
    whole, survived = path.read_bytes(), []
    for byte in range(len(whole)) if isinstance(value, dict) else ():
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        try:
            survived.append(store.read_json(path))
        except BasiscopeError as error:
            assert "x.json is damaged" in str(error)
    # what is left is white space, or the name of the digest itself: the content is what was written
    assert all(
        {k: v for k, v in one.items() if len(str(v)) != 64} == json.loads(json.dumps(value)) for one in survived
    )


def test_json_of_older_versions_has_no_digest_and_opens(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert store.read_json(tmp_path / "x.json") == {"a": 1}


def test_tensors_carry_their_digest(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "example_id": np.array([4, 5])}
    store.write_tensors(path, tensors)
    assert store.rows(path) == 2
    read = store.read_tensors(path, "Again.")
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)
    flip(path, 0.99)
    with pytest.raises(BasiscopeError, match=r"x\.safetensors is damaged: .* Again\."):
        store.read_tensors(path, "Again.")


def test_a_page_of_a_table_has_a_checksum(tmp_path):
    path = tmp_path / "x.parquet"
    store.write_table(path, pd.DataFrame({"a": np.random.default_rng(0).normal(size=1_000)}))
    flip(path, 0.3)
    pd.read_parquet(path)  # another number, without a word
    with pytest.raises(BasiscopeError, match=r"x\.parquet is damaged .*CRC"):
        store.read_table(path, "Again.")


def test_a_digest_is_computed_once_for_a_size_and_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LARGE", 10)
    path = tmp_path / "x.bin"
    store.write_atomic(path, lambda temporary: temporary.write_bytes(b"0123456789"))
    expected, computed = store._hash(path), []
    hashed = store._hash
    monkeypatch.setattr(store, "_hash", lambda path: computed.append(path) or hashed(path))
    store._digests.clear()  # as in another process
    assert store.checked(path, expected, "") == path and store.digest(path) == expected and computed == []
    path.write_bytes(b"0123456780")
    os.utime(path, (1, 1))
    with pytest.raises(BasiscopeError, match=r"x\.bin is damaged: it is not what was written .* Again"):
        store.checked(path, expected, "Again.")
    assert computed == [path]
    path.unlink()
    with pytest.raises(BasiscopeError, match=r"x\.bin is missing. Again"):
        store.checked(path, expected, "Again.")


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    seen = []
    real = os.fsync
    path = tmp_path / "x.json"
    monkeypatch.setattr(
        store.os, "fsync", lambda fd: seen.append((os.fstat(fd).st_ino, path.exists())) or real(fd)
    )
    store.write_json(path, {"a": 1})
    assert seen == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


# --- what killed processes leave ------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from core.store import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


def writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    return process


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    (tmp_path / ".other.12345678.tmp").mkdir()  # another program's
    killed, alive = writer(tmp_path / "a"), writer(tmp_path / "b")
    try:
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 3
        with store.new_folder(tmp_path / "c") as folder:
            (folder / "x").write_text("x")
        left = sorted(path.name.split(".")[1] for path in tmp_path.glob(".*"))
        assert left == ["b", "other"] and (tmp_path / "c" / "x").read_text() == "x"
    finally:
        alive.kill()
        alive.wait()


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with store.new_folder(tmp_path / "out", replace=True) as folder:
            (folder / text).write_text(text)
    with pytest.raises(RuntimeError), store.new_folder(tmp_path / "out", replace=True) as folder:
        raise RuntimeError
    with (
        pytest.raises(BasiscopeError, match="not empty"),
        store.new_folder(tmp_path / "out") as folder,
    ):
        (folder / "third").write_text("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


REPLACER = """
import os, signal, sys
from pathlib import Path
from core.store import new_folder

path, rename = Path(sys.argv[1]), Path.rename
Path.rename = lambda old, new: os.kill(os.getpid(), signal.SIGKILL) if new == path else rename(old, new)
with new_folder(path, replace=True) as folder:
    (folder / "new").write_text("new")
"""


def test_what_was_about_to_be_replaced_is_put_back(tmp_path):
    out = tmp_path / "out"
    with store.new_folder(out) as folder:
        (folder / "old").write_text("old")
    killed = subprocess.run([sys.executable, "-c", REPLACER, str(out)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    store.write_json(tmp_path / "x.json", {})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["out", "out/old", "x.json"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError):
        store.put_folder(tmp_path / "none", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_two_processes_that_replace_one_folder_end_in_a_sentence(tmp_path):
    out, said = tmp_path / "out", []

    def replace(name):
        for _ in range(30):
            try:
                with store.new_folder(out, replace=True) as folder:
                    (folder / name).write_text(name)
            except BasiscopeError as error:
                said.append(str(error))
            except OSError as error:
                said.append(repr(error))

    writers = [threading.Thread(target=replace, args=(name,)) for name in "abcd"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert all("not empty" in one for one in said)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(list(out.iterdir())) == 1


def test_many_writers_of_one_file(tmp_path):
    path = tmp_path / "x.json"
    writers = [threading.Thread(target=store.write_json, args=(path, {"i": i})) for i in range(20)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert set(store.read_json(path)) == {"i"} and [one.name for one in tmp_path.iterdir()] == ["x.json"]


@contextmanager
def as_nobody():
    """Without the rights of root, where the tests have them."""
    user = os.geteuid()
    os.seteuid(65_534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_lock_that_may_not_be_written_is_looked_at():
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lock = Path(folder) / "x.lock"
        assert not store.is_held(lock) and not lock.exists()
        with FileLock(lock):
            lock.chmod(0o444)
            with as_nobody():
                assert store.is_held(lock)
        lock.touch(0o444)
        with as_nobody():
            assert not store.is_held(lock)


# --- a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: os.truncate(path, 100)])
@pytest.mark.parametrize(
    ("file", "look"),
    [
        ("examples.parquet", lambda run: run.examples()),
        ("examples.parquet", lambda run: run.texts([3])),
        ("examples.parquet", lambda run: list(run.records([3]))),
        ("scores.parquet", lambda run: run.scores()),
        ("cosines.parquet", lambda run: run.cosines()),
        ("basis.safetensors", lambda run: run.basis()),
        ("directions.json", lambda run: run.directions()),
        ("tokens.safetensors", lambda run: run.windows()),
        ("activations/00000.safetensors", lambda run: run.activations()),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_what_mends_it(gsm8k_copy, file, look, damage):
    run = gsm8k_copy.run()
    damage(run.folder / file)
    with pytest.raises(BasiscopeError, match=rf"{Path(file).name} is (damaged|missing).*`recover` command again"):
        look(run)


def test_a_manifest_names_the_rows_of_every_table(gsm8k_run):
    rows = gsm8k_run.manifest["rows"]
    assert rows == dict.fromkeys(rows, 60) | {"examples.parquet": 60}
    assert {"scores.parquet", "cosines.parquet", "tokens.safetensors", "activations/00000.safetensors"} <= set(
        rows
    )


def test_a_run_of_an_older_version_opens(gsm8k_copy):
    run = gsm8k_copy.run()
    path = run.folder / "manifest.json"
    manifest = {
        name: value for name, value in json.loads(path.read_text()).items() if name not in ("rows", "sha256")
    }
    path.write_text(json.dumps(manifest))
    labels = json.loads((run.folder / "labels.json").read_text())
    for label in labels.values():
        del label["sha256"], label["direction"]
    (run.folder / "labels.json").write_text(json.dumps(labels))
    opened = gsm8k_copy.run()
    assert len(opened.scores()) == opened.activations().n == 60 and len(opened.labels()) == 3


def test_a_damaged_label_loses_no_other(gsm8k_copy, run_cli):
    run = gsm8k_copy.run()
    run.save_label(2, Label("by hand", "person"))
    path = run.folder / "labels.json"
    stored = json.loads(path.read_text())
    stored["1"]["text"] += "?"
    path.write_text(json.dumps(stored))
    with pytest.raises(BasiscopeError, match=r"labels\.json is damaged: the label of direction '1' .*--words"):
        run.labels()
    assert set(run.intact_labels()) == {2, 3}
    status, _, err = run_cli("label", run.id, "--words", "--workspace", gsm8k_copy.root)
    assert status == 0, err
    labels = run.labels()
    assert set(labels) == {1, 2, 3} and labels[2].text == "by hand"
    assert "?" in (run.folder / DAMAGED_LABELS).read_text()


def test_token_scores_that_are_damaged_are_computed_again(gsm8k_copy, run_cli):
    run = gsm8k_copy.run()
    (example, *_) = [int(path.stem) for path in (run.folder / "tokens").glob("*.parquet")]
    before = run.token_scores(example)
    path = run.folder / "tokens" / f"{example}.parquet"
    table = pq.read_table(path)
    changed = table.set_column(1, "d1", [np.zeros(len(table), dtype=np.float32)])
    pq.write_table(changed, path)
    with pytest.raises(BasiscopeError, match=r"is damaged: .*basiscope tokens"):
        run.token_scores(example)
    assert run_cli("tokens", run.id, "--example", example, "--workspace", gsm8k_copy.root)[0] == 0
    np.testing.assert_allclose(run.token_scores(example).scores, before.scores, atol=1e-5)


# --- shards ---------------------------------------------------------------------------------------------


def batches(rows):
    from core.activations import PooledBatch

    for i in rows:
        yield PooledBatch(np.array([i]), np.full((1, 8), i, dtype=np.float32), 1)


def test_shards_are_the_same_however_often_the_work_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("core.workspace.SHARD_BYTES", 96)  # three rows
    ids = np.arange(100, 108)
    whole, stopped = PartialRun(tmp_path / "whole", "float32"), PartialRun(tmp_path / "stopped", "float32")
    list(whole.store(batches(range(8)), ids))
    list(stopped.store(batches(range(4)), ids))
    list(stopped.store(batches(range(4, 5)), ids, 103))
    (tmp_path / "stopped" / "activations" / "00000.safetensors").unlink()
    list(stopped.store(batches(range(3)), ids, None))
    list(stopped.store(batches(range(5, 8)), ids, 104))
    for path in (tmp_path / "whole" / "activations").iterdir():
        assert (tmp_path / "stopped" / "activations" / path.name).read_bytes() == path.read_bytes()
    flip(tmp_path / "stopped" / "activations" / "00001.safetensors", 0.99)
    assert stopped.stored_ids().tolist() == [100, 101, 102, 106, 107]


# --- evaluations ----------------------------------------------------------------------------------------


def rollout(i):
    from core.evaluation.rollouts import Rollout

    return Rollout("unsteered", i, 0, f"text {i}", True, False, 3)


@pytest.fixture
def evaluation(tmp_path):
    kept = KeptEvaluation(tmp_path / "evaluations" / "abc")
    kept.save_manifest({"request": {"run": None}, "status": "complete"})
    for i in range(3):
        kept.append([rollout(2 * i), rollout(2 * i + 1)])
    return kept


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: os.truncate(path, 10)])
def test_a_damaged_part_of_an_evaluation_is_named_and_mended(evaluation, damage):
    assert [one.problem_id for one in evaluation.rollouts()] == list(range(6))
    assert {facts["rows"] for facts in evaluation.files.values()} == {2}
    damage(evaluation.folder / "rollouts" / "00001.jsonl")
    with pytest.raises(BasiscopeError, match=r"00001\.jsonl is (damaged|missing).*Give the command that made it"):
        evaluation.rollouts()
    assert evaluation.mend() and not evaluation.mend()
    assert [one.problem_id for one in evaluation.rollouts()] == [0, 1, 4, 5]


def test_a_part_whose_writer_was_killed_before_its_digest_is_read_and_gets_one(evaluation):
    store.write_lines(evaluation.folder / "rollouts" / "00003.jsonl", [rollout(9).as_dict()])
    assert len(evaluation.rollouts()) == 7
    evaluation.append([rollout(10)])
    assert len(evaluation.files) == 5 and len(evaluation.rollouts()) == 8


# --- lists ----------------------------------------------------------------------------------------------


def test_whatever_is_damaged_is_listed_and_deleted_and_hides_no_other(gsm8k_copy, evaluation, run_cli, tmp_path):
    root, run = gsm8k_copy.root, gsm8k_copy.run()
    bad = {
        "runs/aaaaaaaaaaa1/manifest.json": "{",
        "runs/aaaaaaaaaaa2/scores.parquet": "a run without its manifest",
        "partial/aaaaaaaaaaa3/request.json": "[]",
        "partial/aaaaaaaaaaa4/read.json": "an unfinished run without its request",
        "evaluations/aaaaaaaaaaa5/manifest.json": "\0",
        "evaluations/aaaaaaaaaaa6/problems.jsonl": "an evaluation without its manifest",
        "selections/bad one/manifest.json": '{"request": 3}',
        "jobs/20260101-000000-aaaaaa/job.json": "",
        "jobs/20260101-000000-bbbbbb/job.json": '{"arguments": ["runs"]}',
        f"comparisons/{run.id}/aaaaaaaaaaa8.json": "{}",
        f"sweeps/{run.id}/aaaaaaaaaaa9.json": "null",
        f"sets/{run.id}/bad set.json": '{"name": 3}',
        f"usefulness/{run.id}/evidence/aaaaaaaaaab1.json": '{"proxy": "utility"}',
        f"screenings/{run.id}/aaaaaaaaaab2.json": "{}",
        f"runs/{run.id}/steering/d1.json": "{}",
    }
    for name, content in bad.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    gsm8k_copy.save_set(NamedSet("good set", run.id, (1,)))
    assert list_jobs(gsm8k_copy) == [] and [named.name for named in gsm8k_copy.sets()] == ["good set"]
    for command in ("runs", "evaluations", "selections", "jobs"):
        status, out, err = run_cli(command, "--workspace", root)
        assert status == 0 and "damaged" in out, err
    assert "aaaaaaaaaaa4" in run_cli("runs", "--workspace", root)[1]
    status, _, err = run_cli("recommend", run.id, "--workspace", root)
    assert status == 1 and "aaaaaaaaaab1 cannot be read, so nothing is built on the rest" in err
    names = [one.name for one in gsm8k_copy.damaged()]
    assert len(names) == len(bad)
    for name in names:
        status, _, err = run_cli("delete", name, "--yes", "--workspace", root)
        assert status == 0, err
    assert gsm8k_copy.damaged() == [] and [one.id for one in gsm8k_copy.runs()] == [run.id]


def test_of_two_that_are_called_the_same_none_is_deleted_by_chance(tmp_path, run_cli):
    runs = [synthetic_run(Workspace(tmp_path), seed=seed) for seed in (0, 1)]
    places = [f"runs/{run.id}/steering/d1.json" for run in runs]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("{}")
    status, _, err = run_cli("delete", "d1", "--yes", "--workspace", tmp_path)
    assert status == 1 and all(place in err for place in places)
    status, out, err = run_cli("delete", places[0], "--yes", "--workspace", tmp_path)
    assert status == 0 and "d1 is deleted" in out, err
    assert [(tmp_path / place).exists() for place in places] == [False, True]


# --- selections -----------------------------------------------------------------------------------------


def test_a_selection_whose_export_was_killed_is_made_again(gsm8k_copy, run_cli, tmp_path):
    run = gsm8k_copy.run()
    asked = Request(run.id, Rule("coverage"), Constraints(budget=5))
    select(asked, gsm8k_copy, "five")
    command = ["select", run.id, "--coverage", "--budget", "5", "--name", "five", "--workspace", gsm8k_copy.root]
    status, _, err = run_cli(*command)
    assert status == 1 and "There is a selection 'five' already" in err
    status, _, err = run_cli(*command, "--format", "trl", "--out", tmp_path / "out")
    assert status == 0, err
    status, _, err = run_cli(*command, "--format", "trl", "--out", tmp_path / "out")
    assert status == 1 and "has something in it already" in err
    command[command.index("5")] = "6"
    status, _, err = run_cli(*command, "--out", tmp_path / "other")
    assert status == 1 and "There is a selection 'five' already" in err


def test_every_file_of_a_selection_and_its_export_has_its_digest(gsm8k_copy, tmp_path):
    run = gsm8k_copy.run()
    kept = select(Request(run.id, Rule("coverage"), Constraints(budget=5)), gsm8k_copy, "five")
    export(kept, run, tmp_path / "out", "trl")
    for folder in (kept.folder, tmp_path / "out"):
        files = store.read_json(folder / "manifest.json")["files"]
        assert {path.name for path in folder.iterdir()} == {*files, "manifest.json"}
        assert all(store.digest(folder / name) == facts["sha256"] for name, facts in files.items())
    assert files["selection.jsonl"]["rows"] == kept.manifest["files"]["chosen.parquet"]["rows"] == 5
    flip(kept.folder / "chosen.parquet")
    with pytest.raises(BasiscopeError, match=r"chosen\.parquet is damaged: .*--replace, or delete"):
        gsm8k_copy.selection("five").chosen()
