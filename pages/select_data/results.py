"""What a selection means: its measures, charts, map, ledger and examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from core import figures
from core.provenance import (
    NO_SOURCE,
    VALUE_NOTE,
    Origins,
    count_sources,
    ledger,
    licence_conflicts,
    licence_sentence,
)
from core.selection import measures
from core.selection.live import (
    MOST_SECONDS,
    QUICK_SECONDS,
    Baseline,
    Prospect,
    all_rows,
    ledger_seconds,
    measures_table,
)
from core.selection.pool import Constraints, Pool
from core.selection.screening import Screening
from core.selection.step import Request
from core.spreadsheet import as_csv
from core.tables import colour_columns, placed_examples, sorted_rows
from core.workspace import Run
from pages.common.session import colours, is_dark, search, table, with_sentences
from pages.select_data.choices import DROPPED, PINNED, columns_of

LISTED = 200
PLACE = "place in the selection"
LEDGER = "select_ledger"
"""Session key: the run, origins and rows whose ledger was asked for although it takes long."""


def show_measures(pool: Pool, found: Prospect, bands: list[Baseline], wanted: Constraints) -> None:
    st.dataframe(measures_table(pool, found, bands, wanted))
    st.caption(
        f"{found.budget:,} of {pool.n:,} examples. Read radius, mean distance and norm percentile together: "
        "farthest-point coverage has the smallest radius because it picks the outer shell. The baselines "
        "choose from the whole pool, constraints aside."
    )


def show_curves(found: Prospect, bands: list[Baseline]) -> None:
    st.html(figures.selection_legend([band.name for band in bands]))
    left, right = st.columns(2)
    own = found.curve
    for column, title, name in ((left, "covering radius", "radius"), (right, "mean distance", "mean")):
        around = {band.name: band.band(name) for band in bands}
        knee = own.knee if name == "radius" else None
        chart = figures.covering(own.budgets, getattr(own, name), around, found.budget, knee, title)
        column.echarts_chart(chart, key=f"curve_{name}", height=300)


def show_make_up(pool: Pool, found: Prospect, bands: list[Baseline], wanted: Constraints, column: str) -> None:
    chart = figures.direction_shift(measures.direction_coverage(pool, found.rows))
    st.echarts_chart(chart, key="direction_shift", height=260)
    compared = {"selection": found.rows} | {band.name: all_rows(pool, band, wanted) for band in bands}
    values, left_out = counted(pool, pool.run, column)
    st.text(f"Shares by {column}{left_out}")
    shares = measures.composition(values, compared)
    st.echarts_chart(figures.shares(shares, with_legend=False), key="composition", height=320)


@st.cache_resource(max_entries=32, show_spinner=False)
def counted(_pool: Pool, run_id: str, column: str) -> tuple[pd.Categorical, str]:
    """A column's values as they are counted, and what is left out of them."""
    return measures.counted(_pool.facts[column]), measures.what_is_shown(_pool.facts[column])


def map_points(run: Run, pool: Pool) -> np.ndarray:
    """(n, 2) the run's map, or the first two directions where it has none."""
    plane = table(run, "map")
    return plane[["x", "y"]].to_numpy() if len(plane) == pool.n else pool.whitened[:, :2]


def show_map(run: Run, pool: Pool, found: Prospect) -> None:
    column = st.selectbox("Colour the map by", columns_of(str(run.folder), run), key=f"map_colour_{run.id}")
    bins = colours(run, column, "examples")
    chosen = np.isin(np.arange(pool.n), found.rows)
    st.html(figures.legend(bins))
    spec = figures.scatter(map_points(run, pool), bins, chosen, "map, across", "map, up", is_dark())
    st.echarts_chart(spec, key=f"select_map_{run.id}", height=420)


def show_dropped(found: Prospect) -> None:
    dropped = found.selection.dropped
    for note in found.selection.notes:
        st.text(note)
    if len(dropped):
        with st.expander(f"{len(dropped):,} examples cannot be chosen"):
            st.dataframe(dropped, hide_index=True, height=220)


def show_overlaps(found: Prospect, screening: Screening) -> None:
    """What screening found, the words themselves: most overlaps are no contamination."""
    chosen = set(found.selection.example_id[: found.budget].tolist())
    rows = [vars(overlap) | {"chosen": overlap.example_id in chosen} for overlap in screening.overlaps]
    duplicates = screening.duplicates("near")
    repeats, inside = len(chosen & set(duplicates)), sum(row["chosen"] for row in rows)
    said = f"{len(duplicates):,} near or exact duplicates in the run, {repeats:,} of them chosen"
    if screening.against:
        said += f"; {len(rows):,} overlaps with held-out files, {inside:,} of them chosen"
    st.caption(f"{said}.")
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, height=220)


@st.cache_resource(max_entries=16, show_spinner="Finding what each source is worth")
def ledger_for(_pool: Pool, folder: str, origins: Origins, rows: tuple[int, ...]) -> pd.DataFrame:
    return ledger(_pool, np.array(rows), origins)


def show_ledger(run: Run, pool: Pool, found: Prospect, request: Request) -> None:
    if request.origins.source is None:
        st.info(f"{NO_SOURCE} Choose one under Provenance, beside the rule.")
        if request.origins.licence is None:
            return
    asked = (str(run.folder), request.origins, tuple(found.rows.tolist()))
    seconds = ledger_seconds(pool, found.rows, request.origins)
    if seconds > QUICK_SECONDS and st.session_state.get(LEDGER) != asked:
        sources = f"{count_sources(pool, found.rows, request.origins):,} sources"
        if seconds > MOST_SECONDS:
            st.text(f"{sources} are too many for a page: save the selection (Kept), and a job makes its ledger.")
            return
        st.text(f"{sources}: what each is worth takes about {seconds:,.0f} s to find.")
        if not st.button("Find it", key="find_ledger"):
            return
        st.session_state[LEDGER] = asked
    owners = ledger_for(pool, *asked).copy()
    if request.origins.source is None:
        owners["source"] = "all together"
    if request.origins.licence is None:
        st.text("No column of licences is named, so nothing is known of their terms. Choose it beside the source.")
    else:
        st.text(licence_sentence(owners, request.origins.use))
    for sentence in licence_conflicts(pool, found.rows, request.origins):
        st.text(sentence)
    st.dataframe(
        owners,
        hide_index=True,
        column_config={
            **{name: st.column_config.NumberColumn(format="percent") for name in ("share", "shapley share")},
            **{
                name: st.column_config.NumberColumn(format="%.4f")
                for name in ("coverage alone", "shapley", "leave one out")
            },
            "payment": st.column_config.NumberColumn(format="%.2f"),
        },
    )
    st.caption(
        f"{VALUE_NOTE} Leave one out is what coverage would lose without the source: two identical sources get "
        "nothing there, and share in Shapley."
    )
    st.download_button("Ledger as CSV", as_csv(owners), "ledger.csv", key="ledger_csv")


@with_sentences
def show_chosen(run: Run, pool: Pool, found: Prospect) -> None:
    facts = table(run, "examples")
    wanted, order, flip = st.columns([3, 2, 1.4], vertical_alignment="bottom")
    text = wanted.text_input("Search the chosen examples", key="search_chosen")
    by = order.selectbox("Order by", [PLACE, *colour_columns(run)], key=f"order_chosen_{run.id}")
    rows = found.rows
    if text:
        rows = rows[search(run, text)[rows]]
    if by != PLACE:
        rows = sorted_rows(facts[by], rows, flip.toggle("Highest first", key="highest_chosen"))
    say_how_many(len(rows))
    place = {int(row): i for i, row in enumerate(found.selection.rows, 1)}
    places = [place[int(row)] for row in rows[:LISTED]]
    reasons = [found.selection.reasons[i - 1] for i in places]
    listed = placed_examples(run, facts, rows[:LISTED], places, reasons)
    key = f"chosen_table_{hash(tuple(listed['example']))}"  # marks are by position: other examples, other marks
    event = st.dataframe(
        listed, hide_index=True, on_select="rerun", selection_mode="multi-row", key=key, height=300
    )
    positions = [i for i in event["selection"]["rows"] if i < len(listed)]
    marked = listed.iloc[positions]["example"].tolist()
    reason, pin, drop = st.columns([4, 1, 1], vertical_alignment="bottom")
    why = reason.text_input("Reason", key="pin_reason", placeholder="why it must be in, or must not") or "by hand"
    for button, key, title in ((pin, PINNED, "Pin"), (drop, DROPPED, "Drop")):
        if button.button(title, key=f"mark_{title}", disabled=not marked, width="stretch"):
            mark(key, run, marked, why)
            st.rerun()
    show_marks(run)


def say_how_many(n: int) -> None:
    st.caption(f"{n:,} examples" + (f", the first {LISTED} are listed" if n > LISTED else ""))


def show_marks(run: Run) -> None:
    """What is pinned and dropped; each can be taken back."""
    marks = [
        {"example": example, "mark": title, "reason": reason}
        for key, title in ((PINNED, "pinned"), (DROPPED, "dropped"))
        for example, reason in st.session_state.get(key, {}).get(run.id, {}).items()
    ]
    if not marks:
        return
    st.caption("Pinned and dropped by hand. Mark rows to take these back alone.")
    listed = pd.DataFrame(marks)
    key = f"marks_table_{hash(tuple(listed['example']))}"
    event = st.dataframe(listed, hide_index=True, on_select="rerun", selection_mode="multi-row", key=key)
    positions = [i for i in event["selection"]["rows"] if i < len(listed)]
    one, all_ = st.columns(2)
    if one.button("Take back", key="take_back", disabled=not positions, width="stretch"):
        mark(None, run, listed.iloc[positions]["example"].tolist(), "")
        st.rerun()
    if all_.button("Forget all", key="forget_marks", width="stretch"):
        mark(None, run, listed["example"].tolist(), "")
        st.rerun()


def mark(key: str | None, run: Run, examples: list[int], reason: str) -> None:
    """Pin or drop examples, or neither; the newest mark holds."""
    for name in (PINNED, DROPPED):
        marks = st.session_state.setdefault(name, {}).setdefault(run.id, {})
        for example in examples:
            marks.pop(int(example), None)
            if name == key:
                marks[int(example)] = reason
