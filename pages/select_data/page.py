"""Select: from directions to a training set, with what the choice means shown at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import streamlit as st

from core.cli.selecting import parse_selection
from core.errors import BasiscopeError
from core.selection.live import (
    Baseline,
    Prospect,
    baseline,
    budget_alone,
    is_quick,
    prospect,
    widest,
    within,
    within_budget,
)
from core.selection.pool import BASELINES, Constraints, Pool, Rule, pool_of
from core.selection.screening import Screening
from core.selection.step import (
    Request,
    needs_screening,
    rule_of,
    screening_of,
    utility_sentences,
    vectors_of,
)
from core.selection.vectors import text_model_fingerprint
from core.workspace import Run
from pages.common.session import may_write, pick_run, table, with_sentences, workspace
from pages.select_data.choices import (
    choose_budget,
    choose_constraints,
    choose_origins,
    choose_rule,
    columns_of,
    state_of,
)
from pages.select_data.kept import REOPEN, SAVE_JOB, show_kept, show_save, start_job, watch
from pages.select_data.results import (
    counted,
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


@st.cache_resource(max_entries=4, show_spinner=False)
def pool_for(_run: Run, folder: str) -> Pool:
    return pool_of(_run, table(_run, "scores"), table(_run, "examples"))


@st.cache_resource(max_entries=64, show_spinner=False)
def baseline_for(_pool: Pool, _run: Run, folder: str, rule: Rule, budget: Constraints) -> Baseline:
    return baseline(_pool, rule, budget, vectors(_run, rule.text_model))


@st.cache_resource(max_entries=32, show_spinner="Choosing (once on a machine, this compiles for some seconds)")
def prospect_for(
    _pool: Pool,
    _run: Run,
    folder: str,
    rule: Rule,
    constraints: Constraints,
    _screening: Screening | None,
    against: tuple[tuple[str, str], ...],
    text_model: str | None,
) -> Prospect:
    """against: held-out file and SHA-256; text_model: the fingerprint of the rule's, that a changed file or model
    is not taken for the old one."""
    return prospect(_pool, rule, constraints, vectors(_run, rule.text_model), _screening)


def vectors(run: Run, model: str | None) -> Callable[[], np.ndarray]:
    return lambda: vectors_of(run, workspace(), model)


@with_sentences
def show(run: Run) -> None:
    st.title("Select")
    st.caption("Choose examples along directions, or so that they cover the basis, and see what the choice means.")
    pool = pool_for(run, str(run.folder))
    if name := st.session_state.pop(REOPEN, None):
        request = Request.from_dict(workspace().selection(name).manifest["request"])
        st.session_state.update(state_of(run, pool, request) | {VIEW: VIEWS[0]})
    with st.container(key="select_layout"):
        left, right = st.columns([1, 2.6], gap="medium")
    with left:
        rule = choose_rule(run)
        budget, largest = choose_budget(run, pool)
        constraints = choose_constraints(run)
        origins = choose_origins(run)
    with right:
        show_results(run, pool, ["select", run.id, *rule, *budget, *constraints, *origins], largest)


@with_sentences
def show_results(run: Run, pool: Pool, arguments: list[str], largest: int) -> None:
    view: str = st.segmented_control(
        "View", VIEWS, default=VIEWS[0], key=VIEW, required=True, label_visibility="collapsed"
    )
    if view == "Kept":
        show_save(arguments, problem_with(run, pool, arguments, largest))
        show_kept(run, pool)
        return
    asked = ask(run, pool, arguments, largest)
    wanted, rule, screening = asked.request.constraints, asked.rule, asked.screening
    if asked.keyed is None:
        files = [word for path in wanted.against for word in ("--against", path)]
        offer("Duplicates and overlaps are looked for once, in a job.", "Look for them", "screen", run, files)
        return
    if not asked.is_quick:
        model = ["--text-model", rule.text_model] if rule.text_model else []
        if rule.name == "text" and not workspace().has_text_vectors(run.id, rule.text_model):
            offer("The texts are turned into vectors once, in a job.", "Make the vectors", "vectors", run, model)
        else:
            st.info("This takes more than a moment: save it under a name (Kept), which starts a job.")
        return
    found = look_ahead(run, pool, asked)
    if view == "What it means":
        for sentence in utility_sentences(asked.request, pool):
            st.text(sentence)
        column, bands = choose_baselines(run, pool, budget_alone(asked.keyed), wanted)
        show_measures(pool, found, bands, wanted)
        show_curves(found, bands)
        show_make_up(pool, found, bands, wanted, column)
        show_dropped(found)
        if screening is None:
            offer("Duplicates have not been looked for yet.", "Look for them", "screen", run, [])
        else:
            show_overlaps(found, screening)
    elif view == "Map":
        show_map(run, pool, found)
    elif view == "Examples":
        show_chosen(run, pool, found)
    else:
        show_ledger(run, pool, found, asked.request)


@dataclass(frozen=True)
class Asked:
    """What the controls ask for. keyed: the constraints within which the page chooses, so that a smaller budget
    chooses nothing; None until the texts have been looked at. is_quick: whether the page may wait for it."""

    request: Request
    rule: Rule
    screening: Screening | None
    keyed: Constraints | None
    is_quick: bool


def ask(run: Run, pool: Pool, arguments: list[str], largest: int) -> Asked:
    """Raises BasiscopeError where the controls contradict each other or the run."""
    request = parse_selection(workspace(), arguments)
    rule = rule_of(request, pool)
    screening = screening_of(request.constraints, run, workspace())
    if needs_screening(request.constraints) and screening is None:
        return Asked(request, rule, None, None, is_quick=False)
    keyed = widest(pool, rule, request.constraints, largest, screening)
    has_vectors = workspace().has_text_vectors(run.id, rule.text_model)
    return Asked(request, rule, screening, keyed, is_quick(pool, rule, keyed, has_vectors))


def look_ahead(run: Run, pool: Pool, asked: Asked) -> Prospect:
    """What is asked for, of a selection that is made once for all smaller budgets."""
    rule, keyed, screening = asked.rule, asked.keyed or asked.request.constraints, asked.screening
    against = tuple(screening.against.items()) if screening else ()
    made_by = text_model_fingerprint(rule.text_model)
    whole = prospect_for(pool, run, str(run.folder), rule, keyed, screening, against, made_by)
    return within(whole, pool, asked.request.constraints)


def problem_with(run: Run, pool: Pool, arguments: list[str], largest: int) -> str:
    """Why the selection cannot be made, as far as a page can tell at once; nothing where it can."""
    try:
        asked = ask(run, pool, arguments, largest)
        if asked.is_quick:
            look_ahead(run, pool, asked)
    except BasiscopeError as error:
        return str(error)
    return ""


def choose_baselines(run: Run, pool: Pool, budget: Constraints, wanted: Constraints) -> tuple[str, list[Baseline]]:
    """(column of the composition and of the baseline `label`, the baselines of which the budget allows any)."""
    chosen = st.pills("Compare with", BASELINES, default=BASELINES, selection_mode="multi", key="baselines")
    column = st.selectbox("Column", columns_of(str(run.folder), run), key=f"composition_{run.id}")
    rules = [Rule(name, column=column if name == "label" else None) for name in chosen]
    if len(counted(pool, pool.run, column)[0].categories) < 2:
        rules = [rule for rule in rules if rule.name != "label"]
    ready = workspace().has_text_vectors(run.id, None)
    quick = [rule for rule in rules if is_quick(pool, rule, budget, ready)]
    if len(quick) < len(rules) and not ready:
        why = "For text diversity, the texts are turned into vectors once, in a job."
        offer(why, "Make the vectors", "vectors", run, [])
    for name in [rule.name for rule in rules if rule not in quick and (ready or rule.name != "text")]:
        st.text(f"Baseline {name} is left out: with this budget it takes more than a moment.")
    made: list[Baseline] = []
    for rule in quick:
        try:
            one = baseline_for(pool, run, str(run.folder), rule, budget)
            made.append(within_budget(pool, one, wanted))
        except BasiscopeError as error:
            st.text(f"Baseline {rule.name} is left out. {error}")
    return column, made


def offer(sentence: str, label: str, command: str, run: Run, options: list[str]) -> None:
    """A step that a job has to do first."""
    st.text(sentence)
    key = f"{command}_job_{run.id}"
    if st.button(label, key=command, disabled=not may_write()):
        st.session_state[key] = st.session_state[SAVE_JOB] = start_job(workspace(), [command, run.id, *options]).id
    if job_id := st.session_state.get(key):
        watch(job_id, command)


show(pick_run())
