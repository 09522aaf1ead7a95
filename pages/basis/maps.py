"""Two linked scatters of all examples: any two directions, and the UMAP map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from core import figures
from core.errors import BasiscopeError
from core.tables import chosen_examples, colour_columns
from core.workspace import NamedSet, Run
from pages.common.session import KEPT, colours, is_dark, may_write, table, with_sentences, workspace

PAGE_ROWS = 25


@st.fragment
@with_sentences
def show_maps(run: Run) -> None:
    st.subheader("Map", help="Draw a lasso or a box in one map: the examples light up in both and are listed.")
    scores = table(run, "scores")
    controls = st.columns(3)
    across = _direction(run, controls[0], "Across", "map_x", 1)
    up = _direction(run, controls[1], "Up", "map_y", min(2, run.k))
    bins = colours(run, *_colour(run, controls[2]))
    planes = {
        "scatter": (scores[[f"d{across}", f"d{up}"]].to_numpy(), f"direction {across}", f"direction {up}"),
        "map": (_map_points(run, len(scores)), "map, across", "map, up"),
    }
    chosen = _chosen(run, planes)
    mask = None if chosen is None else np.isin(np.arange(len(scores)), chosen)
    st.html(figures.legend(bins))
    left, right = st.columns(2)
    for column, (name, (points, x, y)) in zip((left, right), planes.items(), strict=True):
        with column:
            if points is None:
                st.info("This run has no map: it was recovered with --no-map.")
                continue
            if np.isnan(points).all():
                st.info("This run has too few examples for a map.")
                continue
            spec = figures.scatter(points, bins, mask, x, y, is_dark())
            st.echarts_chart(spec, key=_key(run, name), on_select="rerun", height=460)
    if chosen is None:
        st.caption("No examples are chosen. Pick the lasso or the box at a map's upper right and draw.")
    else:
        with st.container(key="chosen"):
            _list_chosen(run, scores, chosen)


def _direction(run: Run, column: st.delta_generator.DeltaGenerator, label: str, key: str, first: int) -> int:
    options = list(range(1, run.k + 1))
    return column.selectbox(label, options, index=first - 1, key=key, format_func="direction {}".format)


def _colour(run: Run, column: st.delta_generator.DeltaGenerator) -> tuple[str, str]:
    """The column to colour by and its table."""
    options = [(name, "examples") for name in colour_columns(run)]
    options += [(f"d{j}", "scores") for j in range(1, run.k + 1)]
    return column.selectbox("Colour", options, key=f"colour_{run.id}", format_func=_colour_name)


def _colour_name(option: tuple[str, str]) -> str:
    name, source = option
    if source == "scores":
        return f"score on direction {name.removeprefix('d')}"
    return "length in tokens" if name == "n_tokens" else name


def _map_points(run: Run, n: int) -> np.ndarray | None:
    found = table(run, "map")
    return found[["x", "y"]].to_numpy() if len(found) == n else None


def _key(run: Run, name: str) -> str:
    return f"{name}_{run.id}_{st.session_state.get('map_round', 0)}"


def _chosen(run: Run, planes: dict[str, tuple[np.ndarray | None, str, str]]) -> np.ndarray | None:
    """Row numbers inside the newest brush of either map, kept until another is drawn or it is cleared."""
    for name, (points, _, _) in planes.items():
        event = st.session_state.get(_key(run, name))
        areas = event["selection"]["areas"] if event else []
        seen = st.session_state.get(f"areas_{name}")
        if points is not None and areas != (seen or []):
            st.session_state[f"areas_{name}"] = areas
            rows = np.flatnonzero(figures.inside(points, areas))
            st.session_state[KEPT] = (run.id, rows) if areas else None
    kept = st.session_state.get(KEPT)
    return kept[1] if kept and kept[0] == run.id else None


def _list_chosen(run: Run, scores: pd.DataFrame, chosen: np.ndarray) -> None:
    left, middle, right = st.columns([3, 2, 1], vertical_alignment="bottom")
    left.text(f"{len(chosen):,} of {len(scores):,} examples are chosen.")
    name = middle.text_input("Keep them as a named set", key="set_name", placeholder="name")
    if right.button("Keep", key="keep_set", disabled=not (name and len(chosen) and may_write())):
        ids = tuple(int(i) for i in scores["example_id"].to_numpy()[chosen])
        try:
            workspace().save_set(NamedSet(name, run.id, ids))
            st.toast("The set is kept in the workspace.")
        except BasiscopeError as error:
            st.text(str(error))
    if len(chosen):
        pages = -(-len(chosen) // PAGE_ROWS)
        page = st.number_input("Page", 1, pages, key=f"chosen_page_{pages}") if pages > 1 else 1
        rows = chosen[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
        st.dataframe(
            chosen_examples(run, table(run, "examples"), rows),
            hide_index=True,
        )
    if st.button("Clear the choice", key="clear_chosen"):
        st.session_state[KEPT] = None
        st.session_state["map_round"] = st.session_state.get("map_round", 0) + 1
        for plane in ("scatter", "map"):
            st.session_state.pop(f"areas_{plane}", None)
        st.rerun(scope="fragment")
    if kept := workspace().sets(run.id):
        with st.expander(f"{len(kept)} named set{'s' * (len(kept) != 1)} of this run"):
            for named in kept:
                st.text(f"{named.name}: {len(named.example_id):,} examples")
