"""The choices of a recovery, each returned as the command-line options that say it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import streamlit as st

from core.activations import PRESETS
from core.errors import BasiscopeError
from core.examples import Columns, DataSource, Row, column_paths, guess_columns, preview_rows
from core.limits import Limits
from core.model import find_local_models, is_folder
from core.readers import COMPRESSIONS, FILE_TYPES
from core.recovery import MOST_SEED
from core.source import local_splits
from core.workspace import DEFAULT_ROOT, disk_sentences
from pages.common.session import show_sentence, workspace

HUB_MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "EleutherAI/pythia-160m",
    "allenai/OLMo-2-0425-1B",
)
PREVIEW_CHARACTERS = 300


@st.cache_data(ttl=30, show_spinner=False)
def known_models() -> list[str]:
    """Models of earlier runs, local ones found, then a few small ones from the hub."""
    recent = [run.manifest["model"]["name"] for run in workspace().readable_runs()]
    roots = [workspace().root / "models", DEFAULT_ROOT.parent / "models", DEFAULT_ROOT.parent / "core" / "demo"]
    known = dict.fromkeys([*recent, *find_local_models([*roots, Path.cwd()]), *HUB_MODELS])
    return [name for name in known if Limits.now().allows(name)]


def choose_model() -> list[str]:
    st.subheader("Model")
    name = st.selectbox(
        "A local folder or a hub id",
        known_models(),
        index=None,
        accept_new_options=True,
        key="model",
        placeholder="Choose, or type a folder or owner/model",
        persist_state="session",
    )
    if not name:
        return []
    try:
        Limits.now().check_place(name)
    except BasiscopeError as error:
        show_sentence(str(error))
        return []
    revision = ""
    if not is_folder(name):
        revision = st.text_input("Revision", key="revision", placeholder="main", persist_state="session")
    return ["--model", name, *option("--revision", revision)]


def option(name: str, value: str | int | None) -> list[str]:
    return [name, str(value)] if value not in (None, "") else []


def choose_data() -> list[str] | None:
    """None where the data cannot be read, which has been said."""
    st.subheader("Data")
    kinds = ("File or folder", "Upload", "Hub")
    kind = st.segmented_control("Data from", kinds, default=kinds[0], key="data_kind", required=True)
    try:
        with disk_sentences():
            source = {kinds[0]: _local, kinds[1]: _upload, kinds[2]: _hub}[kind]()
        if source is None:
            return []
        rows = preview(source)
    except BasiscopeError as error:
        show_sentence(str(error))
        return None
    if not rows:
        show_sentence("None of the first rows can be read.")
        return None
    show_preview(rows)
    if not (paths := column_paths(rows)):
        show_sentence("The first rows have no columns.")
        return None
    columns = choose_columns(paths)
    limit = st.number_input("Only the first rows", 1, None, None, key="limit", placeholder="all")
    if columns is None:
        return []
    named = [word for role, column in columns.named().items() for word in (f"--{role}", column)]
    hub = [*option("--config", source.config), *option("--split", source.split)]
    return ["--data", source.path, *hub, *named, *option("--limit", limit)]


@st.cache_data(ttl=60, show_spinner="Reading the first rows")
def preview(source: DataSource) -> list[Row]:
    return preview_rows(source)


def _local() -> DataSource | None:
    path = st.text_input(
        "JSONL, JSON, CSV, TSV or Parquet file, or a folder of those", key="data_path", persist_state="session"
    )
    if not path or not path.strip():
        return None
    source = allowed_source(path.strip())
    if splits := local_splits(source):
        split: str = st.selectbox("Split", [*splits, "all"], key=f"split_of_{source.path}")
        return replace(source, split=split)
    return source


def allowed_source(path: str, config: str | None = None, split: str | None = None) -> DataSource:
    """Raises BasiscopeError for a path that the app may not read."""
    Limits.now().check_place(path)
    return DataSource(path, config, split)


def _upload() -> DataSource | None:
    file = st.file_uploader("A data file", [ending[1:] for ending in (*FILE_TYPES, *COMPRESSIONS)], key="upload")
    return DataSource(str(workspace().save_upload(file.name, file.getvalue()))) if file else None


def _hub() -> DataSource | None:
    name = st.text_input("Data set id", key="hub_data", placeholder="openai/gsm8k", persist_state="session")
    left, right = st.columns(2)
    config = left.text_input("Configuration", key="hub_config", placeholder="main", persist_state="session")
    split = right.text_input("Split", "train", key="hub_split", persist_state="session")
    looked = st.button("Look at the first rows", key="look", disabled=not name)
    if looked:
        st.session_state["looked"] = name
    if not name or st.session_state.get("looked") != name:
        return None
    return allowed_source(name, config or None, split or None)


def show_preview(rows: list[Row]) -> None:
    short = [{name: str(value)[:PREVIEW_CHARACTERS] for name, value in row.items()} for row in rows]
    st.dataframe(pd.DataFrame(short), hide_index=True, key="preview", height=150)


def choose_columns(paths: list[str]) -> Columns | None:
    guess = guess_columns(paths)
    ways = {"prompt": "Prompt and response", "text": "One text", "messages": "Chat messages"}
    guessed = next(role for role in ("messages", "prompt", "text") if getattr(guess, role))
    way: str = st.segmented_control(
        "The text is",
        list(ways),
        default=guessed,
        format_func=ways.__getitem__,
        key=f"way_{guessed}",
        required=True,
    )
    if way == "prompt":
        left, right = st.columns(2)
        prompt = left.selectbox("Prompt column", paths, index=_place(paths, guess.prompt), key="prompt_column")
        others = ["", *paths]
        response = right.selectbox(
            "Response column", others, index=_place(others, guess.response), key="response_column"
        )
        about = left.selectbox(
            "Input column",
            others,
            index=_place(others, guess.input),
            key="input_column",
            help="What the prompt is about, as Alpaca has it; it is written below the prompt.",
        )
        return Columns(prompt=prompt, response=response or None, input=about or None)
    chosen = st.selectbox("Column", paths, index=_place(paths, getattr(guess, way)), key=f"{way}_column")
    return Columns(**{way: chosen})


def _place(options: list[str], wanted: str | None) -> int:
    return options.index(wanted) if wanted in options else 0


def choose_recipe() -> list[str]:
    st.subheader("Recipe")
    presets = {"reasoning": "Reasoning", "safety": "Safety"}
    preset = st.segmented_control(
        "Published recipe",
        list(presets),
        default="reasoning",
        format_func=presets.__getitem__,
        key="preset",
        required=True,
        help="Reasoning: mean over all tokens after the first, all blocks but the first and the last. "
        "Safety: the last token of the chat-templated prompt in the middle block.",
    )
    k = st.number_input("Number of directions (k)", 1, 500, PRESETS[preset][0], key=f"k_{preset}")
    chosen = [*(["--recipe", "safety"] if preset == "safety" else []), "--k", str(k)]
    with st.expander("Variants"):
        left, right = st.columns(2)
        default = "as the recipe"
        pooling = left.selectbox("Pooling", [default, "mean", "mean-response", "last"], key="pooling")
        blocks = right.text_input("Blocks", key="blocks", placeholder="as the recipe, such as 1:-1 or 15")
        scale = left.selectbox("Block scale", ["raw", "rms"], key="block_scale")
        template = right.selectbox("Template", [default, "plain", "chat", "chat-prompt"], key="template")
        max_tokens = left.number_input("Token limit per example", 2, None, 8_000, key="max_tokens")
        dtype = right.selectbox("Data type", ["auto", "float32", "bfloat16", "float16"], key="dtype")
        store = left.selectbox("Stored as", ["float32", "float16"], key="store_dtype")
        seed = right.number_input("Seed", 0, MOST_SEED, 0, key="seed")
    return [
        *chosen,
        *(option("--pooling", pooling) if pooling != default else []),
        *option("--blocks", blocks),
        *(option("--block-scale", scale) if scale != "raw" else []),
        *(option("--template", template) if template != default else []),
        *(option("--max-tokens", max_tokens) if max_tokens != 8_000 else []),
        *(option("--dtype", dtype) if dtype != "auto" else []),
        *(option("--store-dtype", store) if store != "float32" else []),
        *(option("--seed", seed) if seed else []),
    ]
