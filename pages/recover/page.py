"""Pick a model, data and a recipe; see what it costs; start, watch and cancel the job; open the run."""

from __future__ import annotations

import streamlit as st

from core.errors import BasiscopeError
from core.jobs import command_line, start_job
from core.workspace import disk_sentences
from pages.common.session import may_write, show_sentence, workspace
from pages.recover.choices import choose_data, choose_model, choose_recipe
from pages.recover.jobs import show_estimate, show_jobs, show_runs

ESTIMATE_JOB = "estimate_job"

st.title("Recover")
st.caption("Run a language model over a data set and recover the basis along which it organises the examples.")
left, right = st.columns(2, gap="large")
with left:
    model = choose_model()
    data = choose_data()
with right:
    recipe = choose_recipe()
    st.subheader("Start")
    if not model or not data:
        missing = [what for what, chosen in (("a model", model), ("data and its columns", data)) if not chosen]
        asked = "Mend what is said about the data." if data is None else f"Choose {' and '.join(missing)}."
        st.info(asked, icon=":material/info:")
    else:
        arguments = ["recover", *model, *data, *recipe]
        start, cost = st.columns(2)
        try:
            with disk_sentences():
                shut = not may_write()
                if start.button("Recover", type="primary", key="start", width="stretch", disabled=shut):
                    start_job(workspace(), arguments)
                    st.rerun()
                if cost.button("Estimate the cost", key="estimate", width="stretch", disabled=shut):
                    job = start_job(workspace(), [*arguments, "--estimate"])
                    st.session_state[ESTIMATE_JOB] = (arguments, job.id)
        except BasiscopeError as error:
            show_sentence(str(error))
        estimated, job_id = st.session_state.get(ESTIMATE_JOB, (None, ""))
        if estimated == arguments:
            show_estimate(job_id)
        st.caption("The same from a terminal")
        st.code(command_line(arguments), language="bash", wrap_lines=True)
show_jobs()
show_runs()
