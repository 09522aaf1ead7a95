"""The pages in a real Chromium, served as `basiscope app` serves them, on a real run."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import driver
import pytest
from playwright.sync_api import expect, sync_playwright

from core.demo.default import MODEL as DEMO
from core.examples import Columns, DataSource
from core.recovery import Request, recover
from core.workspace import Workspace

STORIES = driver.ROOT.parent / "shared" / "data" / "models" / "stories260K"
HOSTILE = [
    "<img src=http://evil.test/x> is an image tag",
    "![](http://evil.test/y) is an image in markdown",
    "$$x$$ and $y$, :material/home: :red[red] `code` **bold** [link](http://evil.test/z)",
    "<script>document.title = 'taken over'</script> is a script",
    "long " + "x" * 6_000,
    "w o r d " * 500,
    "🙂👩‍👩‍👧‍👦🇨🇭 " * 8,
    "שלום עולם and مرحبا بالعالم",
    "# heading\n\n* item\n\n---\n\n| a | b |\n| - | - |\n| 1 | 2 |",
    "</div></section><style>body { display: none }</style> closes everything",
]
expect.set_options(timeout=20_000)
OFFER = (
    ("Ann has {} apples and gives {} of them away.", "She keeps {} apples."),
    ("A train runs {} miles and then {} miles more.", "It runs {} miles."),
    ("Tom buys {} pens at {} dollars each.", "He pays {} dollars."),
)


def rows(n):
    made = []
    for i in range(n):
        question, answer = OFFER[i % 3]
        words = {"question": question.format(3 * i + 7, i + 2), "answer": answer.format(2 * i + 5)}
        kind = ("<b>apples</b>", "trains", "![](http://evil.test/k)")[i % 3]
        made.append(words | {"kind": kind, "level": i % 20})
    hostile = [{"question": text, "answer": text[:40], "kind": "hostile", "level": 99} for text in HOSTILE]
    return [*made, *hostile]


def write(path, made):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in made), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model():
    for folder in (DEMO, STORIES):
        if list(folder.glob("*.safetensors")):
            return str(folder)
    pytest.skip("no model here: neither the demo model's weights nor the shared ones")


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
def workspace(browser, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    data = DataSource(write(folder / "examples.jsonl", rows(190)))
    recover(Request(model, data, Columns(prompt="question", response="answer"), k=5), Workspace(folder))
    return Workspace(folder)


@pytest.fixture(scope="module")
def run(workspace):
    return workspace.runs()[0]


@pytest.fixture(scope="module")
def address(workspace):
    with driver.serve(workspace.root) as url:
        yield url


@pytest.fixture
def visit(browser):
    """A fresh visitor, who at the end has fetched nothing from elsewhere, and seen no exception."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    seen = driver.Visit(page)
    yield seen
    assert page.locator("[data-testid=stException]").count() == 0
    assert seen.remote() == []
    assert seen.serious() == []
    context.close()


def asked(page, name):
    return parse_qs(urlsplit(page.url).query).get(name, [None])[0]


def expect_asked(page, name, value):
    page.wait_for_function(f"new URL(location).searchParams.get('{name}') === '{value}'")


# --- every page -----------------------------------------------------------------------------------------


def test_a_deep_link_into_a_new_process_opens_the_direction(visit, workspace, run):
    with driver.serve(workspace.root) as url:
        driver.open_page(visit.page, f"{url}/directions?run={run.id}&direction=3")
        expect(visit.page.locator("h1")).to_have_text("Direction 3")
        visit.page.locator(".st-key-histogram canvas").first.wait_for()
        assert visit.page.get_by_role("dialog").count() == 0
        visit.page.wait_for_load_state("networkidle")
        visit.page.goto("about:blank")  # before the server goes: the page would miss it


@pytest.mark.parametrize("path", ["", "basis", "directions", "recover", "select", "steer"])
def test_every_page_opens(visit, address, run, path):
    driver.open_page(visit.page, f"{address}/{path}?run={run.id}")
    expect(visit.page.locator("h1")).to_have_text(path.capitalize() or "Basis")
    assert visit.page.get_by_role("dialog").count() == 0


@pytest.mark.parametrize("width", [1_400, 390])
@pytest.mark.parametrize("path", ["", "directions", "directions?direction=1", "recover", "select", "steer"])
def test_pages_in_the_dark_and_in_a_narrow_window_do_not_overflow(browser, address, path, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark")
    page = context.new_page()
    driver.open_page(page, f"{address}/{path}")
    sizes = "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('[data-testid=stMain]'))"
    wide, there = page.evaluate(sizes)
    assert wide <= there
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60
    context.close()


# --- Basis ----------------------------------------------------------------------------------------------


def test_a_lasso_lists_the_examples_links_the_maps_and_keeps_a_set(visit, address, workspace, run):
    page = visit.page
    driver.open_page(page, f"{address}/?run={run.id}")
    other = page.locator("[class*=st-key-map_] canvas").first
    other.wait_for()
    page.wait_for_timeout(500)
    before = other.screenshot()
    table = page.locator(".st-key-chosen [data-testid=stDataFrame]")
    for left, right in ((0.5, 0.8), (0.3, 0.5)):  # where the examples lie depends on the model
        driver.lasso(page, "scatter", [(left, 0.2), (right, 0.2), (right, 0.7), (left, 0.7)])
        expect(page.locator(".st-key-chosen")).to_contain_text("examples are chosen")
        driver.settle(page, 1_000)
        if table.count():
            break
    said = page.locator(".st-key-chosen").get_by_text("examples are chosen").inner_text()
    chosen, n = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", said))
    assert 0 < chosen < n == 200
    assert other.screenshot() != before
    page.locator(".st-key-set_name input").fill("a set")
    page.locator(".st-key-set_name input").press("Tab")
    page.locator(".st-key-keep_set button:not([disabled])").click()
    expect(page.get_by_text("The set is kept")).to_be_visible()
    (kept,) = workspace.sets(run.id)
    assert kept.name == "a set" and len(kept.example_id) == chosen
    page.locator(".st-key-clear_chosen button").click()
    table.wait_for(state="detached")


# --- Directions -----------------------------------------------------------------------------------------


def test_arrow_keys_go_through_the_directions_and_the_address_follows(visit, address, run):
    page = visit.page
    driver.open_page(page, f"{address}/directions?run={run.id}&direction=5")
    page.locator(".st-key-next button").wait_for()
    driver.settle(page, 1_000)
    for key, direction in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1")):
        page.keyboard.press(key)
        expect(page.locator("h1")).to_have_text(f"Direction {direction}")
        expect_asked(page, "direction", direction)
        driver.settle(page)
    assert asked(page, "run") == run.id
    page.locator(".st-key-all_directions button").click()
    expect(page.locator("h1")).to_have_text("Directions")


def test_back_goes_to_the_direction_before(visit, address, run):
    page = visit.page
    driver.open_page(page, f"{address}/directions?run={run.id}&direction=1")
    for direction in ("2", "3"):
        page.locator(".st-key-next button").click()
        expect(page.locator("h1")).to_have_text(f"Direction {direction}")
        expect_asked(page, "direction", direction)
    driver.settle(page)
    page.go_back()
    expect(page.locator("h1")).to_have_text("Direction 2")
    expect_asked(page, "direction", "2")


def test_a_label_outlives_a_reload(visit, address, run):
    page = visit.page
    link = f"{address}/directions?run={run.id}&direction=2"
    driver.open_page(page, link)
    field = page.locator(f".st-key-label_{run.id}_2 input")
    field.fill("<b>mine</b> : $yours$")
    field.press("Enter")
    expect(page.get_by_text("This label is yours.")).to_be_visible()
    driver.open_page(page, link)
    expect(field).to_have_value("<b>mine</b> : $yours$")
    expect(page.get_by_test_id("stMain").get_by_text("<b>mine</b> : $yours$")).to_be_visible()


@pytest.mark.parametrize("shaded", [True, False])
def test_hostile_texts_are_shown_as_texts(visit, address, run, shaded):
    page = visit.page
    driver.open_page(page, f"{address}/directions?run={run.id}&direction=1")
    if not shaded:
        page.locator(".st-key-shade label").first.click()
        driver.settle(page)
    for text in HOSTILE[:4]:
        search = page.locator(".st-key-search input")
        search.fill(text[:24])
        search.press("Enter")
        cards = page.locator(".example-card")
        expect(cards).to_have_count(2)
        driver.settle(page)
        if "<unk>" not in cards.first.inner_text():  # tokens of a model whose vocabulary lacks most characters
            expect(cards.first).to_contain_text(text)
        assert cards.locator("img, script, a, .katex").count() == 0
    assert page.title() != "taken over"


# --- Recover --------------------------------------------------------------------------------------------


def start_job(page, address, model, data, limit=None):
    driver.open_page(page, f"{address}/recover")
    field = page.locator(".st-key-model input")
    field.fill(model)
    field.press("Enter")
    driver.settle(page)
    page.locator(".st-key-data_path input").fill(data)
    page.locator(".st-key-data_path input").press("Enter")
    page.locator(".st-key-start button").wait_for()
    if limit:
        page.locator(".st-key-limit input").fill(str(limit))
        page.locator(".st-key-limit input").press("Enter")
        expect(page.locator("[data-testid=stCode]").first).to_contain_text(f"--limit {limit}")
    driver.settle(page)
    page.locator(".st-key-start button").click()
    job = page.locator("[class*=st-key-job_]").first
    job.wait_for()
    return job


def test_a_job_is_cancelled_resumed_survives_a_reload_and_opens_its_run(visit, address, model, tmp_path):
    page = visit.page
    data = write(tmp_path / "tiny.jsonl", rows(60))
    job = start_job(page, address, model, data, limit=30)
    expect(job.locator("[data-testid=stProgress]")).to_be_visible()
    job.get_by_role("button", name="Cancel").click()
    expect(job).to_contain_text("Stopped. What was finished is kept")
    job.get_by_role("button", name="Resume").click()
    jobs = page.locator("[class*=st-key-job_]")
    expect(jobs.get_by_text("Stopped.")).to_have_count(0)
    driver.open_page(page, f"{address}/recover")
    expect(jobs).to_have_count(1)
    expect(jobs.first).to_contain_text("--limit 30")
    opened = jobs.first.get_by_role("button", name="Open")
    opened.click(timeout=120_000)
    expect(page.locator("h1")).to_have_text("Basis")
    expect(page.get_by_test_id("stMain")).to_contain_text("on tiny.jsonl: 30 examples")


def test_data_that_is_not_there_is_said(visit, address):
    page = visit.page
    driver.open_page(page, f"{address}/recover")
    page.locator(".st-key-data_path input").fill(str(Path("/no/such/file.jsonl")))
    page.locator(".st-key-data_path input").press("Enter")
    expect(page.get_by_test_id("stMain")).to_contain_text("/no/such/file.jsonl")


# --- Steer ----------------------------------------------------------------------------------------------


def write_tokens(page, n):
    page.get_by_role("button", name="Generation").click()
    field = page.locator(".st-key-steer_tokens input")
    field.fill(str(n))
    field.press("Enter")
    driver.settle(page)
    page.keyboard.press("Escape")


def write_without_end(page):
    """So strongly steered that the text does not come to an end."""
    write_tokens(page, 900)
    slider = page.locator("[class*=st-key-strength_] input[type=range]").first
    slider.focus()
    slider.press("End")
    driver.settle(page, 400)
    generate(page)
    expect(output(page, 1)).to_contain_text(re.compile(r"\w+"), timeout=120_000)


def written(page):
    return " ".join(output(page, i).inner_text() for i in range(3))


def generate(page):
    page.locator(".st-key-generate button").click()


def output(page, number):
    return page.locator(f".st-key-steered_{number} .steered-text, .st-key-steered_{number} .example-text")


def wait_for_done(page):
    expect(page.get_by_test_id("stMain")).to_contain_text("Done: ", timeout=120_000)
    driver.settle(page, 400)


def test_steered_texts_stream_side_by_side_are_shaded_kept_and_reopened(visit, address, workspace, run):
    page = visit.page
    driver.open_page(page, f"{address}/steer?run={run.id}&direction=2")
    page.locator("textarea").first.fill("Ann has 9 apples and gives 4 of them away. <b>x</b>")
    write_tokens(page, 40)
    generate(page)
    wait_for_done(page)
    expect(page.get_by_test_id("stMain")).to_contain_text("a second over 3 columns; first token after")
    texts = [output(page, i).inner_text() for i in range(3)]
    assert all(texts) and len(set(texts)) > 1
    assert output(page, 0).locator("mark").count() == 0
    assert page.locator("[class*=st-key-steered_] mark").count() > 0
    page.locator(".st-key-steer_shade label").first.click()
    expect(output(page, 1).locator("span[title]").first).to_be_visible()
    page.locator(".st-key-steer_name input").fill("<i>mine</i>")
    page.locator(".st-key-steer_name input").press("Enter")
    driver.settle(page)
    page.locator(".st-key-steer_keep button").click()
    expect(page.get_by_test_id("stMain")).to_contain_text("<i>mine</i>")
    ((kept_id, kept),) = workspace.comparisons(run.id).items()
    assert kept.prompt.endswith("<b>x</b>") and kept.responses[0].text.split() == texts[0].split()
    driver.open_page(page, f"{address}/steer?run={run.id}")
    page.locator(f".st-key-open_comparison_{kept_id} button").click()
    expect(output(page, 0)).to_contain_text(kept.responses[0].text.split("\n")[0].strip())
    with page.expect_download() as download:
        page.locator(".st-key-steer_md button").click()
    assert kept.responses[1].text.splitlines()[0] in Path(download.value.path()).read_text()


def test_a_stream_is_stopped_and_another_strength_gives_another_text(visit, address, run):
    page = visit.page
    driver.open_page(page, f"{address}/steer?run={run.id}&direction=1")
    write_without_end(page)
    before = written(page)
    page.wait_for_timeout(1_500)
    assert len(written(page)) > len(before)  # it streams
    page.locator(".st-key-stop button").click()
    expect(page.get_by_test_id("stMain")).to_contain_text("Stopped: ")
    driver.settle(page, 400)
    said = page.get_by_text("Stopped: ").inner_text()
    assert 0 < int(re.search(r"[\d,]+", said)[0].replace(",", "")) < 3 * 900
    write_tokens(page, 30)
    generate(page)
    wait_for_done(page)
    first = output(page, 1).inner_text()
    slider = page.locator("[class*=st-key-strength_] input[type=range]").first
    slider.focus()
    slider.press("Home")
    driver.settle(page, 400)
    generate(page)
    expect(page.locator(".st-key-steered_1").filter(has_text="1: -8 sd")).to_be_visible()
    wait_for_done(page)
    assert output(page, 1).inner_text() != first


def test_two_browsers_at_once_wait_for_each_other(browser, visit, address, run):
    other = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    link = f"{address}/steer?run={run.id}&direction=1"
    driver.open_page(visit.page, link)
    driver.open_page(other, link)
    write_tokens(other, 20)
    write_without_end(visit.page)
    generate(other)
    expect(other.get_by_test_id("stMain")).to_contain_text("Waiting: 1 before you.")
    visit.page.locator(".st-key-stop button").click()
    wait_for_done(other)
    expect(visit.page.get_by_test_id("stMain")).to_contain_text("Stopped: ")
    assert output(other, 0).inner_text()
    other.context.close()


def test_a_short_sweep_suggests_a_range(visit, address, workspace, run):
    page = visit.page
    driver.open_page(page, f"{address}/steer?run={run.id}&direction=3")
    page.get_by_role("button", name="Suggest a range").click()
    expect(page.get_by_test_id("stMain")).to_contain_text("Suggested: ", timeout=240_000)
    assert workspace.run(run.id).suggested_range(3) is not None
    expect(page.locator(".st-key-sweep_guard .main-svg").first).to_be_visible()


# --- Select ---------------------------------------------------------------------------------------------


def test_a_selection_is_made_pinned_and_kept(visit, address, workspace, run):
    page = visit.page
    driver.open_page(page, f"{address}/select?run={run.id}")
    expect(page.locator("h1")).to_have_text("Select")
    page.locator(".st-key-curve_radius canvas").wait_for()
    view = page.locator(".st-key-select_view")
    view.get_by_text("Map").click()
    page.locator("[class*=st-key-select_map_] canvas").first.wait_for()
    driver.settle(page)
    view.get_by_text("Kept").click()
    name = page.locator(".st-key-selection_name input")
    name.fill("mine")
    name.press("Enter")
    page.locator(".st-key-save_selection button:not([disabled])").click()
    expect(page.get_by_text("Kept in")).to_be_visible(timeout=60_000)
    kept = workspace.selection("mine")
    assert kept.run == run.id and len(kept.example_ids) == 100
    expect(page.locator(f".st-key-kept_{run.id}")).to_be_visible()


def mark_first(page, title, reason):
    """Mark the first listed example by hand, and return its id."""
    table = page.locator("[class*=st-key-chosen_table_]").first
    table.scroll_into_view_if_needed()
    area = table.bounding_box()
    page.mouse.click(area["x"] + 18, area["y"] + 35 + 17)  # the box of the first row, below the header
    page.locator(f".st-key-mark_{title} button:not([disabled])").wait_for()
    field = page.locator(".st-key-pin_reason input")
    field.fill(reason)
    field.press("Enter")
    driver.settle(page)
    page.locator(f".st-key-mark_{title} button:not([disabled])").click()
    driver.settle(page)


def test_examples_are_pinned_and_dropped_with_a_reason_and_reopened(visit, address, workspace, run):
    page = visit.page
    driver.open_page(page, f"{address}/select?run={run.id}")
    view = page.locator(".st-key-select_view")
    page.locator(".st-key-curve_radius canvas").wait_for()
    view.get_by_text("Examples").click()
    driver.settle(page)
    mark_first(page, "Drop", "wrong <b>answer")
    mark_first(page, "Pin", "a good one")
    view.get_by_text("Kept").click()
    driver.settle(page)
    command = page.get_by_test_id("stCode").inner_text()
    dropped = re.search(r"--never '(\d+):wrong <b>answer'", command)[1]
    pinned = re.search(r"--must '(\d+):a good one'", command)[1]
    assert dropped != pinned
    name = page.locator(".st-key-selection_name input")
    name.fill("by hand")
    name.press("Enter")
    page.locator(".st-key-save_selection button:not([disabled])").click()
    expect(page.get_by_text("Kept in")).to_be_visible(timeout=60_000)
    kept = workspace.selection("by hand")
    assert kept.example_ids[0] == int(pinned) and int(dropped) not in kept.example_ids
    assert kept.dropped().set_index("example_id").loc[int(dropped), "reason"] == "never: wrong <b>answer"
    driver.open_page(page, f"{address}/select?run={run.id}")
    view.get_by_text("Kept").click()
    driver.settle(page)
    assert "--must" not in page.get_by_test_id("stCode").inner_text()
    page.locator(f".st-key-kept_{run.id} input").click()
    page.get_by_role("option", name="by hand").click()
    driver.settle(page)
    page.locator(".st-key-open_selection button:visible").click()
    driver.settle(page, 400)
    view.get_by_text("Kept").click()
    driver.settle(page)
    assert page.get_by_test_id("stCode").inner_text() == command
