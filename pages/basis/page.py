"""The basis at a glance: spectrum, block energies, stability, and two linked maps."""

from __future__ import annotations

import streamlit as st

from core import figures
from core.errors import BasiscopeError
from core.tables import STABLE_ANGLE, basis_summary, grouping_sentence, table_of_directions
from pages.basis.maps import show_maps
from pages.common.session import PLAIN, pick_run, stop_with, table

run = pick_run()
manifest = run.manifest
st.title("Basis")
st.text(basis_summary(manifest))
if manifest["warnings"]:
    with st.expander(f"Notes on the data and the recipe ({len(manifest['warnings'])})"):
        for warning in manifest["warnings"]:
            st.text(warning)

try:
    basis, labels = run.basis(), run.labels()
    directions = table(run, "directions")
except BasiscopeError as error:
    stop_with(error)

left, right = st.columns(2)
with left:
    st.subheader("Spectrum", help="Share of the variance per direction; whiskers are 95% bootstrap intervals.")
    st.plotly_chart(figures.spectrum(directions), key="spectrum", config=PLAIN)
with right:
    st.subheader("Block energies", help="Squared norm of each direction's part in each block; rows sum to 1.")
    energies = figures.block_energy_map(basis.block_energies, manifest["blocks"])
    st.plotly_chart(energies, key="block_energies", config=PLAIN)

left, right = st.columns(2)
with left:
    st.subheader(
        "Stability",
        help="How far the directions turn when the examples are resampled: median, and whisker to the 95th "
        "percentile. Directions whose eigenvalues lie close together are stable only as a span.",
    )
    st.plotly_chart(figures.stability(directions, STABLE_ANGLE), key="stability", config=PLAIN)
    st.text(grouping_sentence(directions, manifest["basis"]["last_group_is_open"]))
with right:
    st.subheader(
        "What else they carry",
        help="Concentration: share on the ten largest dimensions; near 100% means massive activations "
        "survived the pooling. Length: Spearman correlation of score and number of tokens.",
    )
    st.dataframe(
        table_of_directions(directions, labels),
        hide_index=True,
        column_config={"direction": {"width": 70}, "length correlation": {"width": 150}},
        height=min(330, 38 + 35 * run.k),
    )

show_maps(run)
