"""The app under load: cold start, click to update and lasso to table, in a real browser at 50,000 examples.

A load test: the run is made of random numbers and words, so it says nothing about any model. The clicks go to
a server that has torch and transformers imported and a model of 30M parameters alive in its own process, which
is checked in the process's memory map.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.selection.pool import RULES
from core.workspace import Workspace
from tests.browser import driver
from tests.synthetic import synthetic_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXAMPLES, DIRECTIONS, WORDS = 50_000, 10, 60
TARGETS = {"first paint": 2_000, "click to update": 200, "lasso to table": 1_000}
MEASURE = """
const now = () => performance.now();
window.lastDrawn = window.lastChanged = window.lastText = window.clicked = 0;
const fill = CanvasRenderingContext2D.prototype.fill;
CanvasRenderingContext2D.prototype.fill = function (...a) {
  window.lastDrawn = now();
  return fill.apply(this, a);
};
addEventListener('click', () => { window.clicked = now(); }, true);
addEventListener('mouseup', () => { window.clicked = now(); }, true);
addEventListener('keydown', () => { window.clicked = now(); }, true);
const TEXTS = '[data-testid=stHtml], h1, [data-testid=stHeading],'
  + ' .st-key-select_layout [data-testid=stCaptionContainer]';
// What a person does not see: the table that a canvas holds for screen readers is brought up to date later.
const passing = '[data-testid=stStatusWidget], [data-testid=stToolbar], canvas';
const element = (c) => c.target.closest ? c.target : c.target.parentElement;
const notice = (changes) => {
  const counts = (c) => !(element(c) && element(c).closest(passing))
    && (c.type !== 'attributes' || c.attributeName === 'data-test-script-state');
  if (changes.some(counts)) window.lastChanged = now();
  const isText = (c) => c.type !== 'attributes' && element(c) && element(c).closest(TEXTS);
  if (changes.some(isText)) window.lastText = now();
};
addEventListener('DOMContentLoaded', () => new MutationObserver(notice).observe(
  document.body, {subtree: true, childList: true, characterData: true, attributes: true}));
// Milliseconds from the last click or key to the last change or drawing, once all was quiet for half a second.
window.sinceClick = () => {
  const last = Math.max(window.lastDrawn, window.lastChanged);
  const app = document.querySelector('[data-testid=stApp]');
  const idle = app && app.dataset.testScriptState === 'notRunning';
  return idle && now() - Math.max(last, window.clicked) > 500
    ? [window.lastText - window.clicked, last - window.clicked] : null;
};
"""
COMBOBOX = "[class*=st-key-colour_] input"
SLIDER = "[class*=st-key-budget_examples_]"
CHOSEN_RULES = ("longest", "shortest", "order", "random", "along", "both", "coverage")
"""Rules of the page Select that it makes at once at 50,000 examples; the last one is where it begins."""


def main(quick: bool) -> None:
    """Print the figures; quick: fewer examples and repeats."""
    from playwright.sync_api import sync_playwright

    examples, repeats = (5_000, 3) if quick else (EXAMPLES, 10)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workspace = Workspace(folder)
        run = synthetic_run(workspace, n=examples, k=DIRECTIONS, words=WORDS)
        path = driver.chromium_path(playwright)
        if path is None:
            print("app: no Chromium here; `python -m playwright install chromium` brings one")
            return
        browser = driver.launch(playwright, path)
        print(f"app: {examples:,} examples, random numbers and words; load {os.getloadavg()[0]:.1f} before")
        painted, complete = zip(
            *(cold_start(browser, workspace.root) for _ in range(1 if quick else 3)), strict=True
        )
        bare = [bare_start(browser, Path(folder)) for _ in range(1 if quick else 3)]
        report("first paint", painted, "process start to the title of the Basis page")
        report("rival", bare, "the same for a page of Streamlit with a title alone")
        report("all charts drawn", complete, "process start to nothing changing any more")
        with driver.serve(workspace.root, ("-m", "bench.app"), seconds=180) as address:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.add_init_script(MEASURE)
            check_loaded(address)
            texts, everything = next_direction(page, f"{address}/directions?run={run.id}", repeats)
            report("click to update", texts, "next direction: its title and examples")
            report("all drawn", everything, "next direction: nothing changes any more")
            legend, everything = recolour(page, f"{address}/?run={run.id}", repeats)
            report("click to update", legend, "colour of the map: its legend")
            report("all drawn", everything, "colour of the map: both maps drawn")
            report("lasso to table", draw(page, repeats // 2 + 1), "mouse up to the table of the chosen")
            address = f"{address}/select?run={run.id}"
            figures, everything = move_budget(page, address, repeats)
            report("click to update", figures, "Select, budget by a key: the number chosen")
            report("all drawn", everything, "Select, budget by a key: nothing changes any more")
            report("all drawn", change_rule(page, address), "Select, a rule for the first time")
            report("all drawn", change_rule(page), "Select, a rule once more")
        browser.close()
        print(f"app: load {os.getloadavg()[0]:.1f} after")


def report(name: str, milliseconds: Sequence[float], what: str) -> None:
    target = f", target {TARGETS[name]:,} ms" if name in TARGETS else ""
    print(
        f"  {name:<17} {what:<45} median {statistics.median(milliseconds):>6.0f} ms "
        f"({min(milliseconds):.0f} to {max(milliseconds):.0f}, n = {len(milliseconds)}{target})"
    )


def cold_start(browser: Browser, root: Path) -> tuple[float, float]:
    """Milliseconds from the start of the process to the title, and to the last change, in a fresh browser
    context, as the first visitor of a new process sees it."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.add_init_script(MEASURE)
    start = time.perf_counter()
    with driver.serve(root) as address:
        page.goto(driver.with_token(address), wait_until="commit")
        page.wait_for_selector("h1")
        painted = time.perf_counter() - start
        page.wait_for_selector("[class*=st-key-map_] canvas")
        page.wait_for_selector(driver.SETTLED)
        quiet(page)
        drawn = page.evaluate("performance.timeOrigin + window.lastDrawn") / 1_000
        complete = drawn - time.time() + time.perf_counter() - start
    context.close()
    return 1_000 * painted, 1_000 * complete


def bare_start(browser: Browser, folder: Path) -> float:
    """Milliseconds from the start of the process to the title of a page that has nothing else: what no app of
    this framework can undercut here."""
    (folder / "bare.py").write_text('import streamlit\n\nstreamlit.title("Bare")\n')
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    start = time.perf_counter()
    with driver.serve(folder, ("-m", "bench.app", "bare")) as address:
        page.goto(address, wait_until="commit")
        page.wait_for_selector("h1")
        painted = time.perf_counter() - start
    context.close()
    return 1_000 * painted


def quiet(page: Page) -> tuple[float, float]:
    """Wait until nothing changed or was drawn for half a second: milliseconds from the last click to the last
    change of a text, and to the last change or drawing."""
    text, last = page.wait_for_function("window.sinceClick()", timeout=60_000).json_value()
    return text, last


def next_direction(page: Page, address: str, repeats: int) -> tuple[list[float], list[float]]:
    driver.open_page(page, f"{address}&direction=1")

    def once() -> tuple[float, float]:
        page.locator(".st-key-next button").click()
        return quiet(page)

    return repeated(once, repeats)


def recolour(page: Page, address: str, repeats: int) -> tuple[list[float], list[float]]:
    """Choose one colour of the map after another: a column, then directions in turn."""
    driver.open_page(page, address)
    page.wait_for_selector("[class*=st-key-map_] canvas")
    quiet(page)
    turn = 0

    def once() -> tuple[float, float]:
        nonlocal turn
        turn = turn % 6 + 1
        page.locator(COMBOBOX).click()
        page.locator(COMBOBOX).press("ArrowDown")
        page.wait_for_selector("[role=option]")
        quiet(page)
        page.locator("[role=option]").nth(turn).click()
        return quiet(page)

    return repeated(once, repeats)


def move_budget(page: Page, address: str, repeats: int) -> tuple[list[float], list[float]]:
    """Press an arrow key on the slider of the budget."""
    open_select(page, address)

    def once() -> tuple[float, float]:
        page.locator(SLIDER).get_by_role("slider").press("ArrowRight")
        return quiet(page)

    return repeated(once, repeats)


def change_rule(page: Page, address: str | None = None) -> list[float]:
    """Choose one rule after another."""
    if address:
        open_select(page, address)
    found = []
    for rule in CHOSEN_RULES:
        page.locator(".st-key-rule input").click()
        quiet(page)
        page.get_by_role("option", name=RULES[rule], exact=True).click()
        found.append(quiet(page)[1])
    return found


def open_select(page: Page, address: str) -> None:
    driver.open_page(page, address)
    page.wait_for_selector(".st-key-curve_mean canvas", timeout=120_000)
    quiet(page)


def draw(page: Page, repeats: int) -> list[float]:
    """Lasso some thousands of examples: mouse up to the list of them."""
    found = []
    for turn in range(repeats):
        far = 0.55 + 0.05 * turn
        driver.lasso(page, "scatter", [(0.3, 0.3), (far, 0.3), (far, 0.7), (0.3, 0.7)])
        page.wait_for_selector(".st-key-chosen [data-testid=stDataFrame]")
        found.append(page.evaluate("performance.now() - window.clicked"))
        quiet(page)
        page.locator(".st-key-clear_chosen button").click()
        page.wait_for_selector(".st-key-chosen [data-testid=stDataFrame]", state="detached")
        quiet(page)
    return found


def repeated(measure: Callable[[], tuple[float, float]], repeats: int) -> tuple[list[float], list[float]]:
    measure()
    texts, everything = zip(*(measure() for _ in range(repeats)), strict=True)
    return list(texts), list(everything)


def check_loaded(address: str) -> None:
    """Raises where the process that answers has no torch in its memory."""
    port = address.rsplit(":", 1)[1]
    found = subprocess.run(
        ["pgrep", "-f", f"bench.app .*--port {port} "], capture_output=True, text=True, check=True
    )
    maps = Path(f"/proc/{found.stdout.split()[0]}/maps").read_text()
    if "libtorch_cpu" not in maps:
        raise RuntimeError("The server of the load test has no torch loaded.")


def serve_bare() -> None:
    from streamlit.web.cli import main as streamlit

    given = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    page = str(Path(given["--workspace"]) / "bare.py")
    streamlit(["run", page, "--server.port", given["--port"], "--server.headless", "true"])


def serve_with_model() -> None:
    """The app's own server in this process, which has a model loaded. Arguments as those of `basiscope app`."""
    import torch
    from streamlit.web.cli import main as streamlit
    from transformers import LlamaConfig, LlamaForCausalLM

    given = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    config = LlamaConfig(hidden_size=512, intermediate_size=1_376, num_hidden_layers=8, num_attention_heads=8)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model(torch.ones(1, 8, dtype=torch.long))
    os.environ["BASISCOPE_WORKSPACE"] = given["--workspace"]
    streamlit(["run", "serve.py", "--server.port", given["--port"], "--server.headless", "true"])


if __name__ == "__main__":
    serve_bare() if sys.argv[1] == "bare" else serve_with_model()
