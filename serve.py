"""What `basiscope app` serves: app.py under headers that keep the page from fetching anything elsewhere."""

import os
from importlib import import_module
from pathlib import Path
from threading import Thread

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.pages_manager import PagesManager

STARTED_IN = "BASISCOPE_STARTED_IN"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' ws://localhost:* ws://127.0.0.1:* data: blob:; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'self'"
)


class OnlyLocal:
    """Adds the Content-Security-Policy to every page, so that text from a data set cannot call home."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


async def to_start(request: Request) -> RedirectResponse:
    """The default page has the address `/`; a person may well type its name."""
    return RedirectResponse(f"/?{request.url.query}")


def import_early() -> None:
    """Import what the pages need while the browser still loads its own."""
    for name in ("plotly.graph_objects", "pyarrow.parquet", "core.tables", "core.figures"):
        import_module(name)


# st.navigation says so on its first run; without it the first deep link into a new process is "not found".
PagesManager.uses_pages_directory = False
# The pages use no component packages; looking for some parses the metadata of everything installed.
manifest_scanner.scan_component_manifests = lambda max_workers=None: []

Thread(target=import_early, daemon=True).start()

os.chdir(os.environ.get(STARTED_IN, "."))  # a path typed into a page means what it means in the terminal

app = st.App(
    Path(__file__).with_name("app.py"), routes=[Route("/basis", to_start)], middleware=[Middleware(OnlyLocal)]
)
