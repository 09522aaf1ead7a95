"""A real Chromium on the real server: starting both, waiting until the page has settled, drawing a lasso."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Playwright

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning]"
TOKEN = secrets.token_urlsafe(24)
"""Of every app that is started here."""
BRUSH_FROM_RIGHT, BRUSH_FROM_TOP = 105, 34
"""Where the polygon tool of a chart is, in pixels from its upper right corner."""


def chromium_path(playwright: Playwright) -> str | None:
    """The system's Chromium, or the one that `playwright install chromium` brought."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def launch(playwright: Playwright, path: str) -> Browser:
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


@contextmanager
def serve(
    workspace: Path,
    command: Sequence[str] = ("-m", "core.cli", "app"),
    seconds: float = 60,
    options: Sequence[str] = (),
    health: str = "/_stcore/health",
) -> Iterator[str]:
    """The app on `workspace` and a free port, as `basiscope app` starts it with the further options; yields its
    address, to which `with_token` adds the token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command, "--headless", "--port", str(port), "--workspace", str(workspace), *options]
    log = workspace / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"BASISCOPE_TOKEN": TOKEN},
        )
    address = f"http://localhost:{port}"
    try:
        end = time.monotonic() + seconds
        while not is_healthy(f"{address}{health}"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The app did not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


@dataclass
class Visit:
    """A page with everything it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._hear(message.type, message.text))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def remote(self) -> list[str]:
        """Addresses outside this machine that the page asked for."""
        local = ("localhost", "127.0.0.1", None)
        return [url for url in self.requests if urlsplit(url).hostname not in local]

    def serious(self) -> list[str]:
        """Complaints but the 404 of a deep link: Streamlit first asks for its own files beside the page."""
        return [text for text in self.complaints if "404 (Not Found)" not in text]


def settle(page: Page, wait: int = 150) -> None:
    """Wait until no script runs, and still none after a moment."""
    page.wait_for_selector(SETTLED)
    page.wait_for_timeout(wait)
    page.wait_for_selector(SETTLED)


def with_token(address: str) -> str:
    """The address as it is printed and opened."""
    return f"{address}{'&' if urlsplit(address).query else '?'}token={TOKEN}"


def open_page(page: Page, address: str) -> None:
    page.goto(with_token(address))
    page.wait_for_selector("[data-testid=stMain] h1, [data-testid=stAlert]")
    settle(page)


def lasso(page: Page, chart: str, corners: Sequence[tuple[float, float]]) -> None:
    """Draw a polygon over the chart of the key `chart`; corners are shares of its width and
    height, the first inside the axes."""
    box = page.locator(f"[class*=st-key-{chart}_]").first
    box.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    area = box.bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + area["width"] - BRUSH_FROM_RIGHT, area["y"] + BRUSH_FROM_TOP)
    places = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in [*places[1:], places[0]]:
        page.mouse.move(*place, steps=4)
    page.wait_for_timeout(250)
    page.mouse.up()
