"""What `basiscope app` serves: app.py behind a door that asks for the token, under headers that keep the page from
fetching anything elsewhere."""

import os
import re
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, quote, urlencode

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime import get_instance
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.pages_manager import PagesManager

from core.access import Access, access, cookie_name, pasted_token
from core.limits import Limits
from pages.common.door import asking_page, leading_page

STARTED_IN = "BASISCOPE_STARTED_IN"
OPEN_WITH = "BASISCOPE_OPEN_WITH"
"""The file that a browser is opened with."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' {sockets} data: blob:; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'self'"
)
MOST_FORM = 4_096
"""Bytes of a pasted address."""


class OnlyLocal:
    """Adds to every answer what keeps text from a data set from calling home, and other pages from reading it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = policy_for(HTTPConnection(scope).headers.get("host", ""))
                headers["referrer-policy"] = "same-origin"
                headers["x-content-type-options"] = "nosniff"
                headers["cross-origin-resource-policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def policy_for(host: str) -> str:
    """The policy of a page of `host`; not every browser counts a socket of the same address as its own."""
    sockets = f"ws://{host} wss://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host) else ""
    return POLICY.format(sockets=sockets)


class Door:
    """Lets in who has the token, and only from the app's own pages: to pages, files, uploads and the socket alike.

    Only the health of the server is told to everybody. Nothing of a request that is refused reaches Streamlit.
    """

    def __init__(self, app: ASGIApp, rules: Access) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == f"{self.rules.base}/_stcore/health":
            await self.app(scope, receive, send)
            return
        visitor = HTTPConnection(scope)
        if problem := self.problem(visitor):
            await refuse(PlainTextResponse(problem, 403), scope, receive, send)
        elif "token" in visitor.query_params and scope["type"] == "http":
            await self.answer(visitor, visitor.query_params["token"])(scope, receive, send)
        elif self.has_cookie(visitor):
            await self.app(scope, receive, send)
        elif scope.get("method") == "POST":
            token = pasted_token(await form_field(Request(scope, receive), "token"))
            await self.answer(visitor, token)(scope, receive, send)
        else:
            await refuse(self.ask(visitor, is_wrong=False), scope, receive, send)

    def problem(self, visitor: HTTPConnection) -> str:
        """Why a request is refused whatever token it has."""
        host, origin = visitor.headers.get("host"), visitor.headers.get("origin")
        if not self.rules.knows(host):
            return "This is not the name of this app. Behind a proxy: basiscope app --share --address URL."
        reads = visitor.scope["type"] == "http" and visitor.scope["method"] in ("GET", "HEAD")
        if (origin or not reads) and not self.rules.is_own(origin, host):
            return "Only pages of this app may ask for this."
        return ""

    def has_cookie(self, visitor: HTTPConnection) -> bool:
        return not self.rules.token or self.rules.opens(visitor.cookies.get(cookie_name(port_of(visitor))))

    def answer(self, visitor: HTTPConnection, token: str) -> Response:
        """To a token in the address or form: the way on without it, or the question for the right one."""
        is_right = self.rules.opens(token)
        if not is_right and not self.has_cookie(visitor):
            return self.ask(visitor, is_wrong=True)
        asked = [(name, value) for name, value in visitor.query_params.multi_items() if name != "token"]
        path = "/" + quote(visitor.scope["path"]).lstrip("/")  # two of them would lead to another server
        answer = HTMLResponse(leading_page(f"{path}?{urlencode(asked)}" if asked else path))
        answer.headers["cache-control"] = "no-store"
        if is_right:
            self.give_cookie(answer, port_of(visitor))
        return answer

    def give_cookie(self, answer: Response, port: int) -> None:
        answer.set_cookie(
            cookie_name(port),
            self.rules.token,
            path=self.rules.base or "/",
            secure=self.rules.address.startswith("https://"),
            httponly=True,
            samesite="strict",
        )

    def ask(self, visitor: HTTPConnection, *, is_wrong: bool) -> Response:
        if "text/html" not in visitor.headers.get("accept", ""):
            return PlainTextResponse("This app opens with the address that `basiscope app` printed.", 403)
        answer = HTMLResponse(asking_page(port_of(visitor), is_wrong), 403)
        answer.headers["cache-control"] = "no-store"
        return answer


async def refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """The answer, or for a socket, which has none before it is accepted, its end."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)


def port_of(visitor: HTTPConnection) -> int:
    """The port that the server listens on, whatever a tunnel or proxy calls it."""
    return int(visitor.scope["server"][1])


async def form_field(request: Request, name: str) -> str:
    """Of a short form; empty where it has none."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM:
            return ""
    return parse_qs(body.decode(errors="replace")).get(name, [""])[0]


class UploadLimit:
    """Refuses an upload with which those in memory would exceed `most` bytes together."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most, self.coming = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "PUT":
            await self.app(scope, receive, send)
            return
        size = HTTPConnection(scope).headers.get("content-length", "")
        if not size.isdecimal():
            await PlainTextResponse("An upload says how long it is.", 411)(scope, receive, send)
        elif self.coming + int(size) + uploaded_bytes() > self.most:
            said = f"All uploads together may have {self.most / 1e6:,.0f} MB here; close pages that have some."
            await PlainTextResponse(said, 413)(scope, receive, send)
        else:
            self.coming += int(size)
            try:
                await self.app(scope, receive, send)
            finally:
                self.coming -= int(size)


def uploaded_bytes() -> int:
    """All that is in memory of files that people have uploaded."""
    files = get_instance().uploaded_file_mgr
    assert isinstance(files, MemoryUploadedFileManager)
    return sum(len(file.data) for own in list(files.file_storage.values()) for file in list(own.values()))


async def to_start(request: Request) -> RedirectResponse:
    """The default page has the address `/`; a person may well type its name."""
    return RedirectResponse(f"{access().base}/?{request.url.query}")


@asynccontextmanager
async def announced(_app: object) -> AsyncIterator[None]:
    """Says where the app is as soon as it can be asked, and opens a browser there."""
    link = access().link(int(config.get_option("server.port")))
    print(f"\n  Basiscope is open.\n\n  URL: {link}\n", flush=True)
    if page := os.environ.pop(OPEN_WITH, ""):
        Thread(target=webbrowser.open, args=(Path(page).as_uri(),), daemon=True).start()
    yield


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

most_uploaded = Limits.now().uploads
app = st.App(
    Path(__file__).with_name("app.py"),
    lifespan=announced,
    routes=[Route(f"{access().base}/basis", to_start)],
    middleware=[
        Middleware(OnlyLocal),
        Middleware(Door, rules=access()),
        *([Middleware(UploadLimit, most=most_uploaded)] if most_uploaded else []),
    ],
)
