"""Basiscope's web app: page configuration, style and navigation, nothing else."""

from pathlib import Path

import streamlit as st

from pages.common.login import ask_login
from pages.common.session import show_limits
from pages.common.style import NARROW

st.set_page_config(page_title="Basiscope", page_icon=Path(__file__).with_name("docs") / "icon.svg", layout="wide")
st.html(NARROW)
ask_login()
chosen = st.navigation(
    [
        st.Page("pages/recover/page.py", title="Recover", icon=":material/play_circle:", url_path="recover"),
        st.Page(
            "pages/basis/page.py", title="Basis", icon=":material/scatter_plot:", url_path="basis", default=True
        ),
        st.Page(
            "pages/directions/page.py", title="Directions", icon=":material/swap_horiz:", url_path="directions"
        ),
        st.Page("pages/select_data/page.py", title="Select", icon=":material/checklist:", url_path="select"),
        st.Page("pages/steer/page.py", title="Steer", icon=":material/tune:", url_path="steer"),
        st.Page("pages/usefulness/page.py", title="Usefulness", icon=":material/trophy:", url_path="usefulness"),
    ]
)
show_limits()
chosen.run()
