"""Usefulness: which directions help this model, by every proxy, beside the controls."""

from __future__ import annotations

import streamlit as st

from core.usefulness.evidence import Evidence
from core.workspace import Run
from pages.common.session import pick_run, show_damaged, with_sentences, workspace
from pages.usefulness.results import show_agreement, show_evidence, show_recommendation
from pages.usefulness.start import show_start


@with_sentences
def show(run: Run) -> None:
    st.title("Usefulness")
    st.caption("Which directions go with right answers, or make them. Evidence is what beats every control.")
    kept: dict[str, Evidence] = workspace().evidence(run.id)
    show_damaged("evidence", run_id=run.id)
    if kept:
        if not workspace().damaged("evidence", run_id=run.id):  # nothing is concluded from a part
            show_recommendation(run, kept)
        show_evidence(run, kept)
        show_agreement(kept)
    else:
        st.info(
            "Nothing is measured on this run yet. Utility needs only a column of verdicts; the proxies need "
            "problems with answers.",
            icon=":material/info:",
        )
    show_start(run)


show(pick_run())
