"""The door of the app in a real Chromium: with the token, without it, from another page, and for looking only."""

import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import driver
import pytest
from playwright.sync_api import expect, sync_playwright
from synthetic import synthetic_run

from core.workspace import Workspace

expect.set_options(timeout=30_000)
ATTACK = """<!doctype html><title>other</title><script>
window.tried = (async () => {
  const app = 'APP';
  const opened = new Promise((done) => {
    const socket = new WebSocket(app.replace('http', 'ws') + '/_stcore/stream');
    socket.onopen = () => done('opened');
    socket.onerror = () => done('refused');
  });
  const read = fetch(app + '/_stcore/host-config', {credentials: 'include'}).then(() => 'read', () => 'refused');
  const blind = fetch(app + '/', {credentials: 'include', mode: 'no-cors'}).then(() => 'read', () => 'refused');
  return {opened: await opened, read: await read, blind: await blind};
})();
</script><iframe src="APP"></iframe>"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        path = driver.chromium_path(playwright)
        if path is None:
            pytest.skip("no Chromium here; `python -m playwright install chromium` brings one")
        chromium = driver.launch(playwright, path)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def workspace(browser, tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("door"))
    synthetic_run(space)
    return space


@pytest.fixture(scope="module")
def address(workspace):
    with driver.serve(workspace.root) as url:
        yield url


@pytest.fixture
def page(browser):
    """Of a browser that has not been here before."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    page.goto("about:blank")
    context.close()


def cookies(page):
    return {cookie["name"]: cookie for cookie in page.context.cookies()}


@contextmanager
def other_server(page_html):
    """Another local server, whose pages have `page_html`; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page_html.encode())

        def log_message(self, *_of):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


def test_the_address_that_is_printed_opens_the_app_and_loses_its_token(page, address):
    asked = []
    page.on("request", lambda request: asked.append((request.url, request.headers.get("referer", ""))))
    driver.open_page(page, f"{address}/directions?direction=2")
    expect(page.locator("h1")).to_have_text("Direction 2")
    assert driver.TOKEN not in page.url and "direction=2" in page.url
    assert [url for url, _ in asked if driver.TOKEN in url] == [asked[0][0]]
    assert not any(driver.TOKEN in referer for _, referer in asked[2:])
    port = urlsplit(address).port
    cookie = cookies(page)[f"basiscope_token_{port}"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["expires"] == -1
    page.goto(f"{address}/recover")
    expect(page.locator("h1")).to_have_text("Recover")
    page.go_back()
    page.wait_for_url(re.compile("direction"))
    page.go_back()
    assert driver.TOKEN not in page.url  # the address with it is no place to go back to


def test_without_the_token_it_is_asked_for_and_can_be_pasted(page, address):
    page.goto(f"{address}/recover")
    expect(page.get_by_text("basiscope app").first).to_be_visible()
    assert page.get_by_test_id("stApp").count() == 0
    field = page.get_by_label("The address or its token")
    field.fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("This is not the token")).to_be_visible()
    field.fill(driver.with_token(f"{address}/"))
    page.get_by_role("button", name="Open").click()
    expect(page.locator("h1")).to_have_text("Recover")
    driver.settle(page)
    assert page.url == f"{address}/recover"


def test_a_link_from_another_site_opens_the_app_too(page, address):
    """A strict cookie is not sent along a redirect that another site has begun."""
    link = driver.with_token(address.replace("localhost", "127.0.0.1") + "/recover")
    with other_server(f'<a href="{link}">open</a>') as other:
        page.goto(other)  # at localhost, which is another site than 127.0.0.1
        page.get_by_text("open").click()
        expect(page.locator("h1")).to_have_text("Recover")


def test_a_page_of_another_local_server_gets_nothing(page, address):
    driver.open_page(page, address)
    with other_server(ATTACK.replace("APP", address)) as other:
        page.goto(other)
        found = page.evaluate("window.tried")
        assert found["opened"] == found["read"] == found["blind"] == "refused"
        assert page.frames[1].url == "chrome-error://chromewebdata/"


def test_an_app_for_looking_only(page, workspace, tmp_path):
    before = {
        str(path): path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.name != "server.log"
    }
    options = ["--share", "--read-only", "--max-upload", "7", "--address", "http://127.0.0.1:1/lab"]
    with driver.serve(workspace.root, options=options, health="/lab/_stcore/health") as url:
        driver.open_page(page, f"{url}/lab/directions?direction=1")
        expect(page.locator("h1")).to_have_text("Direction 1")
        expect(page.get_by_text("For looking only")).to_be_visible()
        expect(page.locator("[class*=st-key-label_] input")).to_be_disabled()
        page.goto(f"{url}/lab/basis")
        expect(page.locator("h1")).to_have_text("Basis")
        assert urlsplit(page.url).path == "/lab/"
        page.goto(f"{url}/lab/recover")
        page.locator(".st-key-data_path input").fill("/etc/passwd")
        page.locator(".st-key-data_path input").press("Enter")
        expect(page.get_by_test_id("stMain")).to_contain_text("/etc/passwd lies outside the folders")
        page.get_by_text("Upload", exact=True).click()
        expect(page.get_by_test_id("stMain")).to_contain_text("7MB per file")
        assert page.get_by_test_id("stException").count() == 0
        page.goto("about:blank")
    after = {str(path): path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.name != "server.log"}
    assert {**after, **before} == after and set(after) == set(before)


def test_tables_offer_no_csv(page, address):
    driver.open_page(page, f"{address}/select")
    page.locator(".st-key-select_view").get_by_text("Examples").click()
    table = page.get_by_test_id("stDataFrame").first
    table.hover()
    expect(page.get_by_label(re.compile("Fullscreen")).first).to_be_visible()
    expect(page.locator("button[aria-label^='Download as CSV']").first).to_be_hidden()
