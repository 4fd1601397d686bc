"""`review`: what the page says, and the page itself in a browser: sorting, filtering, keyboard, no network."""

import re
from pathlib import Path

import mlflow
import pytest

from cluster.sweep.tracking import POINT, TRIAL
from ops.__main__ import main
from ops.history import PARENT, runs_of

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def sweep(finished, store) -> str:
    """The kd runs as a sweep of batch sizes: a parent run, whose children they are."""
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("small").experiment_id
    parent = client.create_run(experiment, run_name="batch sizes")
    client.set_terminated(parent.info.run_id)
    for one in runs_of(client, "small"):
        if one.method == "ce+kd":
            size = one.recipe["train.batch_size"]
            tags = {PARENT: parent.info.run_id, TRIAL: f"{size}-seed{one.seed}", f"{POINT}train.batch_size": size}
            for name, value in tags.items():
                client.set_tag(one.run_id, name, value)
    return parent.info.run_id


@pytest.fixture(scope="module")
def path(finished, sweep, tmp_path_factory) -> Path:
    """The page of the finished runs, two of them compared after their evaluation."""
    for name in ("kd-0", "alone-0"):
        assert main(["evaluate", str(finished / "out" / name)]) == 0
    made = tmp_path_factory.mktemp("page") / "review.html"
    words = ["review", "small", "--store", str(finished / "out"), "-o", str(made), "--compare", "alone-0", "kd-0"]
    assert main(words) == 0
    return made


def test_the_page_stands_alone(path):
    """One file: nothing in it is fetched from elsewhere, and plotly is in it once."""
    text = path.read_text()
    assert not re.findall(r"<(?:script|img|iframe)[^>]+src=", text)
    assert re.findall(r"<link[^>]+href=\"([^\"]+)", text) == ["data:,"]
    assert text.count("plotly.js v") == 1


def test_an_experiment_that_is_not_there(finished, store, capsys):
    assert main(["review", "other", "--store", str(finished / "out")]) == 2
    assert "has no experiment 'other'; it has: Default, small" in capsys.readouterr().err


def test_a_metric_or_run_that_is_not_there(finished, store, capsys, tmp_path):
    words = ["review", "small", "--store", str(finished / "out"), "-o", str(tmp_path / "x.html")]
    assert main([*words, "--metric", "val/top9"]) == 2
    assert "no finished run with val/top9" in capsys.readouterr().err
    assert main([*words, "--compare", "kd-0", "kd-77"]) == 2
    assert "no run 'kd-77' in this experiment" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is absent: no browser to look at the page with")
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def opened(browser, path):
    """The page in a tab, and what its console complains of; a request for anything else fails the last test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    yield tab, complaints
    tab.close()
    assert requests == [path.as_uri()]


@pytest.fixture
def page(opened):
    """The one open page, since drawing its figures takes seconds: on a light screen, nothing filtered, and its tables
    sorted as the tests before have left them, each by headers of its own. A complaint on its console fails the test."""
    tab, complaints = opened
    tab.emulate_media(media="screen", color_scheme="light")
    for field in tab.locator("[data-filters]").all():
        field.fill("")
    yield tab
    assert not complaints


def column(page, table: str, number: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr:visible > :nth-child({number})").all_inner_texts()
    return [text.split()[0] if text.strip() else "" for text in cells]


def test_sorting(page):
    """A click on a number's header sorts the highest first, the next click the lowest."""
    header = page.locator("#runs thead th").nth(4)
    for order, reverse in (("descending", True), ("ascending", False)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        scores = [float(text.rstrip("%")) for text in column(page, "runs", 5)]
        assert scores == sorted(scores, reverse=reverse)
    assert len(scores) == 10
    names = page.locator("#runs thead th").nth(0)
    names.locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert column(page, "runs", 1) == sorted(column(page, "runs", 1))


def test_sorting_by_keyboard(page):
    """Headers are reached by the tab key, show that they are, and sort on Enter."""
    page.locator("[data-filters=recipes]").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#recipes thead th").nth(0).get_attribute("aria-sort") == "ascending"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_what_is_missing_is_sorted_last(page):
    """The student alone has no gain over itself."""
    button = page.locator("#recipes thead th").nth(3).locator("button")
    for _ in range(2):
        button.click()
        assert column(page, "recipes", 1)[-1] == "student"


def test_filtering(page):
    field = page.locator("[data-filters=runs]")
    field.fill("kd-")
    assert set(column(page, "runs", 1)) == {"kd-0", "kd-1", "kd-2", "kd-large-batch"}
    assert page.locator("[data-counts=runs]").inner_text() == "4 of 10"
    field.fill("kd- nothing")
    assert column(page, "runs", 1) == []
    field.fill("")
    assert len(column(page, "runs", 1)) == 10


def test_figures_are_drawn(page):
    """Every figure has its plot, also those of the sweep and of the comparison."""
    keys = page.eval_on_selector_all("script[data-figure]", "all => all.map(one => one.dataset.figure)")
    assert {"curve-val-top1", "pair-train-loss", "pair-classes", "sweep-0-0", "sweep-0-all"} <= set(keys)
    for key in keys:
        assert page.locator(f"#{key} .main-svg").count(), key


def test_links_lead_to_mlflow(page, store):
    client = mlflow.MlflowClient(store)
    wanted = {f"/runs/{one.run_id}" for one in runs_of(client, "small")}
    found = page.eval_on_selector_all("#runs a", "all => all.map(one => one.href)")
    assert {link[link.index("/runs/") :] for link in found} == wanted


def test_light_and_dark(page):
    """The page and the text of its figures follow the reader's choice, at once."""
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#curve-val-top1 .xtitle').style.fill"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background), page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== {light[1]!r}")
    assert page.evaluate(background) != light[0]


def test_it_prints(page):
    """On paper the page is light, without what only a screen can use."""
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".tools").first.is_visible()
