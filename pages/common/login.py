"""The login of Streamlit (OpenID Connect), where the app was started with --login."""

from __future__ import annotations

import streamlit as st
from streamlit import runtime

from core.access import access, is_served


def ask_login() -> None:
    """Stops the page until somebody has logged in who may come in, and where no door stands before it. Others see
    nothing else."""
    if has_server() and not is_served():
        st.text("This app is started with `basiscope app`, not by Streamlit alone: nobody would ask who comes in.")
        st.stop()
    rules = access()
    if not rules.users:
        return
    is_known = bool(st.user.get("is_logged_in", False))
    email = st.user.get("email") if is_known and st.user.get("email_verified", True) else None
    if rules.lets_in(email):
        st.sidebar.button("Log out", on_click=st.logout)
        return
    st.title("Basiscope")
    if is_known:
        st.text("This app is open to others; ask who started it (basiscope app --login).")
        st.button("Log out", on_click=st.logout)
    else:
        st.button("Log in", type="primary", on_click=st.login)
    st.stop()


def has_server() -> bool:
    """Whether a server runs the page, rather than a test, which has a likeness of one."""
    return runtime.exists() and type(runtime.get_instance()) is runtime.Runtime
