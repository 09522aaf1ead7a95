"""Select: from directions to a training set, with what the choice means shown at once."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.cli.selecting import parse_selection
from core.selection.choose import possible
from core.selection.live import Baseline, Prospect, baseline, is_prefix_stable, is_quick, prospect
from core.selection.pool import Constraints, Pool, Rule, pool_of
from core.selection.step import needs_screening, rule_of, screening_of
from core.workspace import Run
from pages.common.session import pick_run, table, with_sentences, workspace
from pages.select_data.choices import choose_budget, choose_constraints, choose_origins, choose_rule
from pages.select_data.kept import SAVE_JOB, show_kept, show_save, start_job, watch
from pages.select_data.results import (
    show_chosen,
    show_curves,
    show_dropped,
    show_ledger,
    show_make_up,
    show_map,
    show_measures,
    show_overlaps,
)

VIEWS = ("What it means", "Map", "Examples", "Provenance", "Kept")
VIEW = "select_view"
SHOWN_BASELINES = ("longest", "shortest")


@st.cache_resource(max_entries=4, show_spinner=False)
def pool_for(_run: Run, folder: str) -> Pool:
    return pool_of(_run, table(_run, "scores"), table(_run, "examples"))


@st.cache_resource(max_entries=32, show_spinner=False)
def baseline_for(_pool: Pool, folder: str, name: str, largest: int) -> Baseline:
    return baseline(_pool, name, largest)


@st.cache_resource(max_entries=32, show_spinner="Choosing (once on a machine, this compiles for some seconds)")
def prospect_for(
    _pool: Pool, _run: Run, folder: str, rule: Rule, constraints: Constraints, largest: int
) -> Prospect:
    screening = screening_of(constraints, _run, workspace())
    return prospect(_pool, rule, constraints, largest, lambda: _run.texts(range(_pool.n)), screening)


@with_sentences
def show(run: Run) -> None:
    st.title("Select")
    st.caption("Choose examples along directions, or so that they cover the basis, and see what the choice means.")
    folder = str(run.folder)
    pool = pool_for(run, folder)
    left, right = st.columns([1, 2.6], gap="medium")
    with left:
        rule = choose_rule(run)
        budget, largest = choose_budget(run)
        constraints = choose_constraints(run)
        origins = choose_origins(run)
    arguments = ["select", run.id, *rule, "--budget", str(budget), *constraints, *origins]
    with right:
        show_results(run, pool, arguments, largest)


@with_sentences
def show_results(run: Run, pool: Pool, arguments: list[str], largest: int) -> None:
    request = parse_selection(workspace(), arguments)
    wanted = request.constraints
    view: str = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key=VIEW, required=True, label_visibility="collapsed"
    )
    if view == "Kept":
        show_save(arguments)
        show_kept(run)
        return
    screening = screening_of(wanted, run, workspace())
    if needs_screening(wanted) and screening is None:
        offer_screening(run, wanted)
        return
    rule = rule_of(request, pool)
    largest = min(largest, possible(pool, rule, wanted, screening))
    if not is_quick(pool, rule, max(largest, wanted.budget or 0)):
        st.info("This takes more than a moment: save it under a name (Kept), which starts a job.")
        return
    keyed = replace(wanted, budget=largest) if is_prefix_stable(rule, wanted) and largest else wanted
    key = str(run.folder)
    found = prospect_for(pool, run, key, rule, keyed, largest)
    found = replace(found, budget=min(wanted.budget or found.budget, found.selection.budget))
    if view == "What it means":
        chance = baseline_for(pool, key, "random", largest)
        bands = [chance, *(baseline_for(pool, key, name, largest) for name in SHOWN_BASELINES)]
        show_measures(pool, found, chance)
        show_curves(found, bands)
        show_make_up(run, pool, found, bands)
        show_dropped(found)
        show_overlaps(found, screening)
    elif view == "Map":
        show_map(run, pool, found)
    elif view == "Examples":
        show_chosen(run, pool, found)
    else:
        show_ledger(pool, found, request)


def offer_screening(run: Run, constraints: Constraints) -> None:
    st.text("Duplicates and overlaps are looked for once, in a job.")
    files = [word for path in constraints.against for word in ("--against", path)]
    if st.button("Look for them", key="screen"):
        st.session_state[SAVE_JOB] = start_job(workspace(), ["screen", run.id, *files]).id
    if job_id := st.session_state.get(SAVE_JOB):
        watch(job_id)


show(pick_run())
