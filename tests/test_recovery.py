import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import recovery
from core import workspace as workspace_module
from core.activations import Pooler, Recipe
from core.errors import BasiscopeError
from core.examples import Columns, DataSource
from core.reading import Label
from core.recovery import Request, load_run_model, recover
from core.workspace import Workspace, is_disk_full, lend

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_shading(monkeypatch):
    """Leave out the token scores, which take most of the time of a small run; the shared run has them."""
    monkeypatch.setattr(recovery, "shade_examples", lambda *_args: None)


# --- the plain reference: one example at a time, float64, exact SVD -------------------------------------


class Reference:
    """What method.md says, word by word: texts of (prompt, response or None) -> activations, basis, scores."""

    def __init__(self, folder, texts, blocks, pooling="mean", max_tokens=512, block_scale="raw", special=True):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        rows = []
        for prompt, response in texts:
            text = prompt if response is None else f"{prompt}\n{response}"
            encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
            ids = torch.tensor([encoded.input_ids[:max_tokens]])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states
            start = 1
            if pooling == "mean-response":
                start = next(t for t, (_, end) in enumerate(encoded.offset_mapping) if end > len(prompt) + 1)
            if pooling == "last":
                start = ids.shape[1] - 1
            rows.append(torch.cat([states[b + 1][0, start:].mean(0) for b in blocks]))
        self.activations = torch.stack(rows).numpy()
        n, hidden = len(rows), self.activations.shape[1] // len(blocks)
        scale = np.ones(len(blocks))
        if block_scale == "rms":
            scale = np.sqrt((self.activations.reshape(n, len(blocks), hidden) ** 2).mean(axis=(0, 2)))
        scaled = self.activations / np.repeat(scale, hidden)
        _, self.sizes, self.directions = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
        largest = np.abs(self.directions).argmax(axis=1)
        self.directions *= np.sign(self.directions[np.arange(len(largest)), largest])[:, None]
        self.scores = (scaled - scaled.mean(axis=0)) @ self.directions.T
        self.cosines = scaled @ self.directions.T / np.linalg.norm(scaled, axis=1, keepdims=True)


def stored_activations(run):
    activations = run.activations()
    rows = np.concatenate([shard.float().numpy() for shard in activations.shards])
    return rows[np.argsort(activations.example_id)]


def assert_equals(run, reference):
    """float32 against float64. One forward pass loses 1e-6 relative or so; a direction turns by that over its
    relative gap to its neighbours, so directions and scores get two digits less."""
    size = np.abs(reference.activations).max()
    np.testing.assert_allclose(stored_activations(run), reference.activations, atol=2e-5 * size)
    basis, k = run.basis(), run.k
    np.testing.assert_allclose(basis.singular_values, reference.sizes[:k], rtol=1e-4)
    np.testing.assert_allclose(basis.directions @ basis.directions.T, np.eye(k), atol=1e-5)
    angles = np.linalg.svd(basis.directions @ reference.directions[:k].T, compute_uv=False)
    assert angles.min() > 1 - 1e-5  # the span of all k
    for j in range(min(k, 3)):
        np.testing.assert_allclose(basis.directions[j], reference.directions[j], atol=2e-3)
        scores, exact = run.scores()[f"d{j + 1}"].to_numpy(), reference.scores[:, j]
        np.testing.assert_allclose(scores, exact, atol=2e-3 * np.abs(exact).max())
        np.testing.assert_allclose(run.cosines()[f"d{j + 1}"], reference.cosines[:, j], atol=2e-3)
        apart = np.abs(np.diff(np.sort(exact))).clip(min=1e-30)
        top = np.argsort(-exact)[:10]
        assert len(set(top) & set(np.argsort(-scores)[:10])) >= 9, apart.min()  # near ties may swap at the tenth
        assert np.argmax(scores) == top[0] and np.argmin(scores) == np.argmin(exact)


def gsm8k_texts(path, n):
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(n), strict=False)]
    return [(row["question"], row["answer"]) for row in rows]


def test_gsm8k_equals_the_reference(gsm8k_run, gsm8k, stories):
    texts = gsm8k_texts(gsm8k, 60)
    assert_equals(gsm8k_run, Reference(stories, texts, (1, 2, 3), max_tokens=200))
    examples = gsm8k_run.examples()
    assert examples["text"].tolist() == [f"{prompt}\n{response}" for prompt, response in texts]
    assert examples["response"].tolist() == examples["answer"].tolist() == [response for _, response in texts]


@pytest.mark.parametrize(
    ("recipe", "blocks"),
    [
        (Recipe("mean-response", dtype="float32"), (1, 2, 3)),
        (Recipe("last", blocks="0:", dtype="float32"), (0, 1, 2, 3, 4)),
        (Recipe(block_scale="rms", blocks="2:4", dtype="float32"), (2, 3)),
    ],
)
def test_the_variants_equal_the_reference(gsm8k_request, gsm8k, stories, tmp_path, recipe, blocks, monkeypatch):
    if blocks[-1] == 4:  # hidden_states[-1] is after the final norm, which the reference has to take off
        monkeypatch.setattr(Reference, "__init__", without_final_norm(Reference.__init__))
    source = replace(gsm8k_request.source, limit=30)
    run = recover(replace(gsm8k_request, recipe=recipe, source=source), Workspace(tmp_path))
    reference = Reference(stories, gsm8k_texts(gsm8k, 30), blocks, recipe.pooling, 512, recipe.block_scale)
    assert_equals(run, reference)


def without_final_norm(build):
    def patched(self, *args, **options):
        norm = AutoModelForCausalLM.from_pretrained

        def load(*a, **o):
            model = norm(*a, **o)
            model.model.norm = torch.nn.Identity()
            return model

        AutoModelForCausalLM.from_pretrained = load
        try:
            build(self, *args, **options)
        finally:
            AutoModelForCausalLM.from_pretrained = norm

    return patched


def test_stories_equal_the_reference_and_have_a_map(data_folder, stories, tmp_path, write_rows):
    whole = (data_folder / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
    texts = [text.strip() for text in whole.split("<|endoftext|>") if text.strip()][:80]
    path = write_rows([{"story": text, "n": i} for i, text in enumerate(texts)])
    recipe = Recipe(dtype="float32", max_tokens=150)
    run = recover(Request(stories, DataSource(path), Columns(text="story"), recipe, k=3), Workspace(tmp_path))
    assert_equals(run, Reference(stories, [(text, None) for text in texts], (1, 2, 3), max_tokens=150))
    points = run.map()
    assert list(points.columns) == ["example_id", "x", "y"]
    assert points["example_id"].tolist() == list(range(80)) and points[["x", "y"]].notna().all(axis=None)
    scores = run.scores()[["d1", "d2", "d3"]].to_numpy()
    near = np.argsort(np.linalg.norm(scores[:, None] - scores, axis=2), axis=1)[:, 1:6]
    distance = np.linalg.norm(points[["x", "y"]].to_numpy()[:, None] - points[["x", "y"]].to_numpy(), axis=2)
    # neighbours by score lie closer on the map than examples at random: by a factor of 2, UMAP being loose
    assert 2 * np.take_along_axis(distance, near, axis=1).mean() < distance.mean()


def test_the_safety_recipe_takes_the_last_token_of_the_templated_prompt(chat_stories, gsm8k, tmp_path):
    recipe = Recipe("last", "middle", template="chat-prompt", dtype="float32")
    columns = Columns(prompt="question", response="answer")
    run = recover(
        Request(chat_stories, DataSource(gsm8k, limit=30), columns, recipe, k=2, with_map=False),
        Workspace(tmp_path),
    )
    texts = [(f"<s>[user]{prompt}\n[assistant]", None) for prompt, _ in gsm8k_texts(gsm8k, 30)]
    assert run.manifest["blocks"] == [1] and run.manifest["d"] == 64
    assert run.examples()["text"].tolist() == [text for text, _ in texts]
    assert_equals(run, Reference(chat_stories, texts, (1,), "last", special=False))


# --- the run folder -------------------------------------------------------------------------------------


def test_the_run_folder_is_as_published(gsm8k_run):
    folder, manifest = gsm8k_run.folder, json.loads((gsm8k_run.folder / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert {"name", "revision", "fingerprint"} <= set(manifest["model"]) and manifest["data"]["fingerprint"]
    assert (manifest["n"], manifest["d"], manifest["k"], manifest["blocks"]) == (60, 192, 3, [1, 2, 3])
    assert manifest["recipe"]["pooling"] == "mean" and manifest["recipe"]["max_tokens"] == 200
    assert manifest["seeds"]["basis"] == 0 and manifest["versions"]["torch"] == torch.__version__
    assert manifest["steps"]["activations"]["tokens"] == manifest["data"]["tokens"]
    assert all(step["seconds"] >= 0 for step in manifest["steps"].values())
    assert any("cut at 200 tokens" in warning for warning in manifest["warnings"])
    examples = pd.read_parquet(folder / "examples.parquet")
    assert list(examples.columns) == ["example_id", "text", "prompt", "response", "n_tokens", "question", "answer"]
    assert examples["n_tokens"].sum() == manifest["data"]["tokens"]
    shards = [load_file(path) for path in sorted((folder / "activations").glob("*.safetensors"))]
    assert all(set(shard) == {"activations", "example_id"} for shard in shards)
    assert sorted(np.concatenate([shard["example_id"] for shard in shards])) == list(range(60))
    assert all(
        shard["activations"].dtype == np.float32 and shard["activations"].shape[1] == 192 for shard in shards
    )
    basis = load_file(folder / "basis.safetensors")
    shapes = {name: (tensor.shape, tensor.dtype.name) for name, tensor in basis.items()}
    assert shapes == {
        "directions": ((3, 192), "float32"),
        "mean": ((192,), "float32"),
        "singular_values": ((3,), "float32"),
        "block_scale": ((3,), "float32"),
    }
    scores = pd.read_parquet(folder / "scores.parquet")
    assert list(scores.columns) == ["example_id", "d1", "d2", "d3"]
    assert scores["example_id"].tolist() == examples["example_id"].tolist()
    np.testing.assert_allclose(scores.drop(columns="example_id").mean(), 0, atol=1e-5)
    assert set(json.loads((folder / "labels.json").read_text())) == {"1", "2", "3"}
    assert not (folder / "map.parquet").exists() and not list(folder.rglob("*.tmp"))


def test_awkward_columns_survive(stories, tmp_path, write_rows):
    rows = [
        {
            "text": f"Tim had {i} toys and a dog.",
            "nested": {"a": i},
            "mixed": i if i % 2 else "odd",
            "data_text": "own",
        }
        for i in range(12)
    ]
    run = recover(
        Request(stories, DataSource(write_rows(rows)), Columns(text="text"), k=2, with_map=False),
        Workspace(tmp_path),
    )
    examples = run.examples()
    assert examples["data_text"].tolist() == [row["text"] for row in rows]
    assert examples["data_data_text"].tolist() == ["own"] * 12
    assert json.loads(examples["nested"][3]) == {"a": 3} and json.loads(examples["mixed"][2]) == "odd"
    assert run.columns() == list(examples.columns)


def test_float16_halves_the_shards(gsm8k_request, gsm8k_run, tmp_path):
    run = recover(replace(gsm8k_request, store_dtype="float16"), Workspace(tmp_path))
    assert run.activations().shards[0].dtype == torch.float16
    assert run.id != gsm8k_run.id
    # float16 rounds to 2^-11 relative
    np.testing.assert_allclose(stored_activations(run), stored_activations(gsm8k_run), rtol=2**-10, atol=1e-6)


# --- identity -------------------------------------------------------------------------------------------


def test_the_same_request_returns_the_run_and_another_k_its_activations(gsm8k_request, gsm8k_run):
    workspace = Workspace(gsm8k_run.folder.parent.parent)
    before = (gsm8k_run.folder / "manifest.json").stat().st_mtime_ns
    steps = []
    again = recover(gsm8k_request, workspace, lambda step, *_: steps.append(step))
    assert again.id == gsm8k_run.id and set(steps) == {"model"}
    assert (again.folder / "manifest.json").stat().st_mtime_ns == before
    wider = recover(replace(gsm8k_request, k=6), workspace)
    assert wider.id != gsm8k_run.id
    assert {wider.manifest["steps"][step]["from"] for step in ("read", "activations")} == {again.id}
    for name in ("directions", "singular_values"):  # the same to the solver's tolerance, 1e-5 relative residual
        np.testing.assert_allclose(getattr(wider.basis(), name)[:3], getattr(again.basis(), name)[:3], atol=2e-3)
    workspace.delete(wider.id)


@pytest.fixture
def lender(gsm8k_run, tmp_path):
    lend(gsm8k_run, tmp_path / "lender")
    return tmp_path / "lender"


def activations_step(run):
    return run.manifest["steps"]["activations"]


def test_activations_are_lent_to_another_workspace(gsm8k_request, gsm8k_run, lender, tmp_path, monkeypatch):
    told = (lender / "manifest.json").read_text()
    assert str(gsm8k_run.folder.parent.parent) not in told and "tokens_per_second" not in told
    before = (lender / "activations" / "00000.safetensors").read_bytes()
    monkeypatch.setattr(recovery, "extract", None)
    run = recover(gsm8k_request, Workspace(tmp_path / "w"), lender=lender)
    assert activations_step(run) == {"from": "lender", "tokens": gsm8k_run.manifest["data"]["tokens"]}
    assert run.damaged_files() == []
    np.testing.assert_array_equal(stored_activations(run), stored_activations(gsm8k_run))
    Workspace(tmp_path / "w").delete(run.id)
    assert (lender / "activations" / "00000.safetensors").read_bytes() == before


def test_no_activations_are_lent_to_another_recipe_and_no_damaged_ones(gsm8k_request, lender, tmp_path):
    other = replace(gsm8k_request, recipe=replace(gsm8k_request.recipe, pooling="last"), k=2)
    assert "from" not in activations_step(recover(other, Workspace(tmp_path / "other"), lender=lender))
    shard = lender / "activations" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    run = recover(replace(gsm8k_request, k=2), Workspace(tmp_path / "damaged"), lender=lender)
    assert "from" not in activations_step(run)
    assert activations_step(run)["tokens"] == run.manifest["data"]["tokens"], "none is counted twice"


def test_a_run_whose_activations_are_damaged_keeps_its_examples_and_borrows_the_others(
    gsm8k_request, gsm8k_copy, lender, monkeypatch
):
    run = gsm8k_copy.run()
    (run.folder / "activations" / "00000.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(recovery, "extract", None)
    monkeypatch.setattr(recovery, "_read", None)
    mended = recover(gsm8k_request, gsm8k_copy, lender=lender)
    assert mended.id == run.id and mended.damaged_files() == []
    assert activations_step(mended)["from"] == "lender" and mended.manifest["steps"]["read"]["from"] == run.id


def test_what_is_lent_again_replaces_what_was(gsm8k_run, lender):
    (lender / "activations" / "00001.safetensors").write_bytes(b"of an earlier run")
    lend(gsm8k_run, lender)
    assert [path.name for path in (lender / "activations").iterdir()] == ["00000.safetensors"]


@pytest.mark.parametrize("name", ["activations/00000.safetensors", "scores.parquet", "examples.parquet"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_run_is_mended_by_its_own_command(gsm8k_request, gsm8k_copy, name, harm):
    run = gsm8k_copy.run()
    run_tokens = iter([path.stem for path in (run.folder / "tokens").glob("*.parquet")])
    path = run.folder / name
    before = path.read_bytes()
    expected = run.scores()
    path.unlink()
    if harm != "remove":
        middle = len(before) // 2
        path.write_bytes(before[:middle] + (b"" if harm == "truncate" else b"\x55" + before[middle + 1 :]))
    assert run.damaged_files() == [name]
    run.save_label(2, Label("mine : yours", "person"))
    (run.folder / "steering").mkdir()
    (run.folder / "steering" / "d1.json").write_text("{}")
    mended = recover(gsm8k_request, gsm8k_copy)
    assert mended.labels()[2].text == "mine : yours" and (mended.folder / "steering" / "d1.json").exists()
    assert mended.has_token_scores(int(next(run_tokens)))
    assert mended.id == run.id and mended.damaged_files() == []
    pd.testing.assert_frame_equal(mended.scores(), expected, atol=1e-4, rtol=0)  # float32, other batches


def steps_of(request, workspace):
    """The run, and the steps that recovering it took."""
    steps = {}
    run = recover(request, workspace, lambda step, done, _total: steps.setdefault(step, done))
    return run, steps


@pytest.mark.parametrize("name", ["examples.parquet", "tokens.safetensors", "read.json"])
def test_damaged_examples_of_a_finished_run_cost_no_activations(gsm8k_request, gsm8k_copy, name):
    run = gsm8k_copy.run()
    shards = {path.name: path.read_bytes() for path in run.folder.glob("activations/*")}
    expected = run.examples()
    (run.folder / name).write_bytes(b"{ damaged")
    (run.folder / "scores.parquet").unlink()  # so that it is no whole run where its read.json is the damaged file
    mended, steps = steps_of(gsm8k_request, gsm8k_copy)
    assert "read" in steps and "activations" not in steps
    assert {path.name: path.read_bytes() for path in mended.folder.glob("activations/*")} == shards
    assert mended.id == run.id and mended.damaged_files() == []
    pd.testing.assert_frame_equal(mended.examples(), expected)


@pytest.mark.parametrize("name", ["examples.parquet", "tokens.safetensors", "read.json"])
def test_damaged_examples_of_an_unfinished_run_cost_no_activations(
    gsm8k_request, gsm8k_run, tmp_path, monkeypatch, name
):
    def stopped(*_arguments, **_options):
        raise KeyboardInterrupt

    workspace = Workspace(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recovery, "recover_basis", stopped)
        recover(gsm8k_request, workspace)
    path = tmp_path / "partial" / gsm8k_run.id / name
    path.write_bytes(path.read_bytes()[:-50])
    lent, steps = steps_of(replace(gsm8k_request, k=2), workspace)
    assert "read" in steps and "activations" not in steps and lent.damaged_files() == []
    run, steps = steps_of(gsm8k_request, workspace)
    assert "read" in steps and "activations" not in steps and run.damaged_files() == []
    pd.testing.assert_frame_equal(run.examples(), gsm8k_run.examples())


def test_a_damaged_manifest_is_mended_too(gsm8k_request, gsm8k_copy):
    manifest = gsm8k_copy.run().folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    assert recover(gsm8k_request, gsm8k_copy).damaged_files() == []


def test_k_above_what_borrowed_activations_allow_leaves_nothing(gsm8k_request, gsm8k_copy):
    with pytest.raises(BasiscopeError, match="at most 59 directions"):
        recover(replace(gsm8k_request, k=100), gsm8k_copy)
    assert gsm8k_copy.partial_manifests() == {}


@pytest.mark.parametrize(
    ("owner", "step"),
    [(recovery, "tokenize"), (Workspace, "start")],
    ids=["while read", "since the run was named"],
)
def test_data_that_changes_is_refused(stories, tmp_path, write_rows, monkeypatch, owner, step):
    path = write_rows([{"t": f"text number {i}"} for i in range(9)])
    real = getattr(owner, step)

    def write_first(*arguments):
        with Path(path).open("a") as file:
            file.write('{"t": "one more", "new": 1}\n')
        return real(*arguments)

    monkeypatch.setattr(owner, step, write_first)
    request = Request(stories, DataSource(path), Columns(text="t"), k=2, device="cpu", with_map=False)
    with pytest.raises(BasiscopeError, match="it changed while it was read"):
        recover(request, Workspace(tmp_path / "w"))
    assert Workspace(tmp_path / "w").partial_manifests() == {} and Workspace(tmp_path / "w").runs() == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_cannot_be_used_is_refused(gsm8k_request, seed):
    with pytest.raises(BasiscopeError, match=f"Seed {seed}: it must be from 0 to 4294967295"):
        replace(gsm8k_request, seed=seed)


def test_texts_are_read_by_row_and_searched(gsm8k_run):
    texts = gsm8k_run.examples()["text"]
    rows = [len(texts) - 1, 0, 7, 7]
    assert gsm8k_run.texts(rows) == texts.iloc[rows].tolist()
    assert gsm8k_run.texts([]) == []
    for wanted in ("HOW many", "zzz", "."):
        found = texts.str.contains(wanted, case=False, regex=False).to_numpy()
        np.testing.assert_array_equal(gsm8k_run.search(wanted), found)


def test_time_and_tokens_add_up_over_processes(gsm8k_request, gsm8k_run, tmp_path, monkeypatch):
    def stopped(*_arguments, **_options):
        raise KeyboardInterrupt

    workspace = Workspace(tmp_path)
    monkeypatch.setattr(recovery, "recover_basis", stopped)
    with pytest.raises(KeyboardInterrupt):
        recover(gsm8k_request, workspace)
    monkeypatch.undo()
    monkeypatch.setattr(recovery, "shade_examples", lambda *_args: None)
    steps = recover(gsm8k_request, workspace).manifest["steps"]
    assert steps["activations"]["tokens"] == gsm8k_run.manifest["steps"]["activations"]["tokens"]
    assert steps["activations"]["seconds"] > 0.05 and steps["read"]["seconds"] > 0
    other = recover(replace(gsm8k_request, k=2), workspace).manifest["steps"]
    assert other["activations"]["from"] and other["activations"]["tokens"] == steps["activations"]["tokens"]


def test_every_input_changes_the_run(gsm8k_request, gsm8k_run, chat_stories, monkeypatch, tmp_path):
    recipe = gsm8k_request.recipe
    others = [
        replace(gsm8k_request, k=5),
        replace(gsm8k_request, seed=1),
        replace(gsm8k_request, with_map=True),
        replace(gsm8k_request, store_dtype="float16"),
        replace(gsm8k_request, model=chat_stories),
        replace(gsm8k_request, source=replace(gsm8k_request.source, limit=59)),
        replace(gsm8k_request, columns=Columns(prompt="question")),
        replace(gsm8k_request, columns=Columns(text="question")),
        *(replace(gsm8k_request, recipe=replace(recipe, **{name: value})) for name, value in RECIPES.items()),
    ]
    seen = set()

    class Asked(Exception):
        pass

    def start(_self, request, *_args):
        seen.add(workspace_module.content_hash(request))
        raise Asked

    monkeypatch.setattr(Workspace, "start", start)
    for request in others:
        with pytest.raises(Asked):
            recover(request, Workspace(tmp_path))
    assert len(seen) == len(others) and gsm8k_run.id not in seen
    with pytest.raises(Asked):  # what does not change a result does not change the run
        recover(replace(gsm8k_request, token_budget=99), Workspace(tmp_path))
    assert gsm8k_run.id in seen


RECIPES = {
    "pooling": "last",
    "blocks": "2",
    "block_scale": "rms",
    "max_tokens": 199,
    "dtype": "bfloat16",
}


def test_two_workspaces_agree(gsm8k_request, gsm8k_run, tmp_path):
    other = recover(replace(gsm8k_request, token_budget=500), Workspace(tmp_path))
    assert other.id == gsm8k_run.id
    # other batches: sums of float32 in another order, see assert_equals
    np.testing.assert_allclose(other.basis().directions[:3], gsm8k_run.basis().directions[:3], atol=2e-3)
    a, b = other.scores().to_numpy(), gsm8k_run.scores().to_numpy()
    np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b[:, 1:4]).max())


def test_a_changed_model_is_noticed(gsm8k_copy, chat_stories):
    run = gsm8k_copy.run()
    assert load_run_model(run, "cpu").fingerprint == run.manifest["model"]["fingerprint"]
    run.manifest["model"]["name"] = chat_stories
    with pytest.raises(BasiscopeError, match="has changed since run"):
        load_run_model(run, "cpu")


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "k", "sentence"),
    [
        ([{"t": ""}], 1, r"no usable example in 1 rows \(1 row: left out, empty text \(row 0\)\)"),
        ([{"t": "Tim ran."}], 1, r"1 of 1 rows can be used, at least 2 are needed"),
        ([{"t": "Tim ran."}, {"t": None}], 1, r"1 of 2 rows can be used.*1 row: left out, no text"),
        ([{"t": "Tim ran."}, {"t": "Lily sat."}, {"t": "A dog."}], 3, r"k = 3: 3 examples .* lower --k"),
    ],
)
def test_too_few_examples(stories, tmp_path, write_rows, rows, k, sentence):
    request = Request(stories, DataSource(write_rows(rows)), Columns(text="t"), k=k, with_map=False)
    with pytest.raises(BasiscopeError, match=sentence):
        recover(request, Workspace(tmp_path))
    assert Workspace(tmp_path).runs() == []


def test_activations_that_are_not_finite_name_the_example(gsm8k_request, gsm8k_run, tmp_path, monkeypatch):
    windows = gsm8k_run.windows()
    shortest = int(windows.lengths.argmin())
    real = Pooler.__call__

    def broken(self, texts, first):
        pooled = real(self, texts, first)
        pooled[[np.array_equal(text, windows.tokens(shortest)) for text in texts]] = np.nan
        return pooled

    monkeypatch.setattr(Pooler, "__call__", broken)
    with pytest.raises(BasiscopeError, match=f"Example {windows.example_id[shortest]}: .* not finite"):
        recover(gsm8k_request, Workspace(tmp_path))
    (partial,) = (tmp_path / "partial").glob("*/")
    assert list((partial / "activations").glob("*.safetensors"))  # the longer ones came first and are kept


# --- interruption ---------------------------------------------------------------------------------------

DRIVER = """
import sys, time
from core import workspace
from core.activations import Pooler
from core.cli import main
workspace.SHARD_BYTES = 4_000
pool = Pooler.__call__
Pooler.__call__ = lambda *args: time.sleep(0.05) or pool(*args)
sys.exit(main(sys.argv[1:]))
"""


def command(stories, gsm8k, workspace):
    options = ["--model", stories, "--data", gsm8k, "--prompt", "question", "--response", "answer"]
    options += ["--limit", "60", "--max-tokens", "200", "--k", "3", "--dtype", "float32", "--device", "cpu"]
    options += ["--no-map", "--token-budget", "400", "--workspace", str(workspace)]
    return [sys.executable, "-c", DRIVER, "recover", *options]


def stop_in_extraction(arguments, root, how):
    """Start the command, wait for the third shard, send the signal; (exit status, stderr, shards then)."""
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while len(shards := list(root.glob("partial/*/activations/0*.safetensors"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, {path: path.stat().st_mtime_ns for path in shards}


def extracted(done):
    """A Progress that notes how many tokens have their activations."""

    def progress(step, tokens, _total):
        if step == "activations":
            done.append(tokens)

    return progress


def test_killed_and_stopped_runs_continue_to_the_same_result(gsm8k_request, gsm8k_run, gsm8k, stories, tmp_path):
    arguments = command(stories, gsm8k, tmp_path)
    status, _, _ = stop_in_extraction(arguments, tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL and Workspace(tmp_path).runs() == []
    folder = tmp_path / "partial" / gsm8k_run.id
    damaged, cut = sorted(folder.glob("activations/0*.safetensors"))[:2]
    damaged.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-100])
    (folder / "activations" / ".00099.safetensors.1.tmp").write_bytes(b"half")
    assert not Workspace(tmp_path).is_locked(gsm8k_run.id)

    request = json.loads((folder / "request.json").read_text())
    assert request["asked"] == {"model": stories, "data": gsm8k}
    for path in sorted(folder.glob("activations/0*.safetensors"))[2:]:
        path.unlink()  # so that the second stop, too, comes in mid extraction
    status, errors, kept = stop_in_extraction(arguments, tmp_path, signal.SIGTERM)
    assert status == 1 and "Stopped. What was finished is kept; the same command continues." in errors
    assert all(path.stat().st_mtime_ns == made for path, made in kept.items() if path.exists())

    done = []
    run = recover(replace(gsm8k_request, token_budget=400), Workspace(tmp_path), extracted(done))
    assert run.id == gsm8k_run.id and 0 < done[0] < done[-1] == run.manifest["data"]["tokens"]
    assert sorted(run.activations().example_id) == list(range(60))
    size = np.abs(stored_activations(gsm8k_run)).max()
    np.testing.assert_allclose(stored_activations(run), stored_activations(gsm8k_run), atol=2e-5 * size)
    np.testing.assert_allclose(run.basis().directions[:3], gsm8k_run.basis().directions[:3], atol=2e-3)
    assert not list(run.folder.rglob("*.tmp")) and not (tmp_path / "partial" / run.id).exists()


def test_a_run_killed_while_reading_reads_again(gsm8k_request, gsm8k_run, tmp_path, monkeypatch):
    source = replace(gsm8k_request.source, limit=20)

    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after the tokens, before the last file of the reading
        patch.setattr(workspace_module.PartialRun, "save_facts", killed)
        with pytest.raises(KeyboardInterrupt):
            recover(replace(gsm8k_request, source=source), Workspace(tmp_path))
    assert recover(replace(gsm8k_request, source=source), Workspace(tmp_path)).manifest["n"] == 20


def test_a_stop_between_shards_keeps_what_waits(gsm8k_request, tmp_path):
    def stop(step, done, total):
        if step == "activations" and done > total / 2:
            raise KeyboardInterrupt

    request = replace(gsm8k_request, token_budget=2_000)
    with pytest.raises(KeyboardInterrupt):
        recover(request, Workspace(tmp_path), stop)
    done = []
    run = recover(request, Workspace(tmp_path), extracted(done))
    tokens = run.manifest["data"]["tokens"]
    assert 0.5 * tokens < done[0] < 0.7 * tokens
    assert run.manifest["steps"]["activations"]["tokens"] == tokens  # of both together: nothing was done twice


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_keeps_what_is_finished(gsm8k_request, small_disk, monkeypatch):
    monkeypatch.setattr(workspace_module, "SHARD_BYTES", 8_000)
    filler, workspace = small_disk / "filler", Workspace(small_disk)

    def fill(step, done, _total):
        if step == "activations" and done == 0:
            filler.write_bytes(bytes(workspace.free_bytes() - 40_000))  # room for three shards

    request = replace(gsm8k_request, token_budget=1_000)
    with pytest.raises((OSError, SafetensorError)) as error:
        recover(request, workspace, fill)
    assert is_disk_full(error.value)
    kept = list(small_disk.glob("partial/*/activations/*.safetensors"))
    assert 1 <= len(kept) <= 4 and not list(small_disk.rglob("*.tmp")) and workspace.runs() == []
    assert all(set(load_file(path)) == {"activations", "example_id"} for path in kept)
    filler.unlink()
    done = []
    run = recover(request, workspace, extracted(done))
    assert 0 < done[0] < done[-1] == run.manifest["data"]["tokens"]


def test_two_processes_on_one_run(gsm8k_request, gsm8k_run, tmp_path, monkeypatch):
    monkeypatch.setattr(workspace_module, "LOCK_SECONDS", 0.05)
    workspace = Workspace(tmp_path)
    request = gsm8k_run.manifest["request"]
    with workspace.start(request, "x", {"model": "m"}):
        assert workspace.is_locked(gsm8k_run.id)
        with pytest.raises(BasiscopeError, match=f"{gsm8k_run.id} is being recovered by another process"):
            recover(gsm8k_request, Workspace(tmp_path))
        with pytest.raises(BasiscopeError, match="is being recovered; stop it first"):
            workspace.delete(gsm8k_run.id)
    assert not workspace.is_locked(gsm8k_run.id)


def test_a_run_that_another_process_finished_meanwhile_is_returned(gsm8k_request, gsm8k_copy, monkeypatch):
    looks = []
    real = Workspace.finished

    def finished(self, request):
        looks.append(request)
        return None if len(looks) == 1 else real(self, request)

    monkeypatch.setattr(Workspace, "finished", finished)
    run = recover(gsm8k_request, gsm8k_copy)
    assert run.manifest["n"] == 60 and len(looks) == 2 and gsm8k_copy.partial_manifests() == {}
