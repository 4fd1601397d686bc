"""`review`: what the page says, and the page itself in a browser: sorting, filtering, keyboard, no network."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from ops.__main__ import main
from ops.history import PARENT, Group, Run, grouped, runs_of
from ops.review.groups import change_together, labels_of, recipe_differences, rows_of, sentences, varied_fields
from ops.review.page import same_evaluations, shared_metrics

CHROMIUM = Path("/usr/bin/chromium")


def run(name: str, seed: int, score: float, **fields: str) -> Run:
    usual = {"train.batch_size": "64", "student.model": "small", "teacher.model": "large"}
    recipe = {"name": name, "seed": str(seed), **usual} | fields
    terms = [value for key, value in recipe.items() if key.endswith(".term")]
    return Run(name, "0", name, "FINISHED", seed, recipe, {"method": "+".join(terms)}, {"val/top1": score})


def alone(seed: int, score: float, **fields: str) -> Run:
    return run(f"alone-{seed}", seed, score, **{"method.0.term": "ce"}, **fields)


def kd(seed: int, score: float, temperature: str = "4.0", **fields: str) -> Run:
    terms = {"method.0.term": "ce", "method.1.term": "kd", "method.1.temperature": temperature}
    return run(f"kd-{seed}", seed, score, **terms, **fields)


def test_runs_of_one_recipe_are_a_group():
    groups = grouped([alone(0, 0.5), kd(0, 0.6), alone(1, 0.6), kd(1, 0.7, temperature="2.0")])
    assert [len(group.runs) for group in groups] == [2, 1, 1]


def test_rows_are_sorted_and_gain_is_paired():
    rows = rows_of(grouped([alone(0, 0.50), alone(1, 0.60), kd(0, 0.61), kd(1, 0.72)]), "val/top1")
    assert [row.label for row in rows] == ["ce+kd", "student alone"]
    assert rows[0].gain.value == pytest.approx(0.115)
    assert rows[0].gain.within_noise is False
    assert rows[1].gain is None
    assert rows[0].score == {
        "n": 2,
        "mean": pytest.approx(0.665),
        "stdev": pytest.approx(statistics.stdev([0.61, 0.72])),
    }


def test_what_differs_beside_the_method_is_flagged():
    odd = kd(0, 0.9, temperature="8.0", **{"train.batch_size": "32"})
    rows = rows_of(grouped([alone(0, 0.5), kd(0, 0.6), kd(1, 0.7), odd]), "val/top1")
    assert {row.label: row.flags for row in rows if row.flags} == {
        "ce+kd: kd.temperature 8.0": ["train.batch_size 32, not 64"]
    }
    assert "They differ in more than the method: train.batch_size." in sentences(rows, "val/top1")[0]


def test_a_section_that_others_have_not_is_one_flag():
    cache = {"cache.dir": "c", "cache.logits": "sparse", "teacher.source": "cache"}
    rows = rows_of(grouped([alone(0, 0.5), kd(0, 0.6), kd(1, 0.7), kd(0, 0.65, **cache)]), "val/top1")
    flags = ["cache given", "teacher.source cache, not online"]
    assert [row.flags for row in rows if row.flags] == [flags]
    others = [alone(0, 0.5, **cache), kd(0, 0.6, **cache), kd(0, 0.65)]
    assert ["cache absent", "teacher.source online, not cache"] in [
        row.flags for row in rows_of(grouped(others), "val/top1")
    ]


def test_labels_say_what_sets_groups_apart():
    groups = [Group((kd(0, 0.5, temperature=t),)) for t in ("1.0", "4.0")]
    assert labels_of(groups) == ["ce+kd: kd.temperature 1.0", "ce+kd: kd.temperature 4.0"]


def test_another_network_has_no_gain():
    """A teacher's own run beside its students: labels only as well, but another network."""
    teacher = alone(0, 0.9, **{"student.model": "large"})
    rows = rows_of(grouped([teacher, alone(0, 0.5), alone(1, 0.5), kd(0, 0.6), kd(1, 0.7)]), "val/top1")
    assert [(row.label, row.gain is None) for row in rows] == [
        ("ce: student.model large", True),
        ("ce+kd", False),
        ("student alone", True),
    ]


def test_fields_that_change_together_are_one():
    assert change_together(("0.1", "0.4", "0.1"), ("0.9", "0.6", "0.9"))
    assert not change_together(("1", "1", "2"), ("3", "4", "3"))
    runs = [
        kd(0, 0.5, t, **{"method.0.weight": a, "method.1.weight": b})
        for t in "12"
        for a, b in (("0.1", "0.9"), ("0.4", "0.6"))
    ]
    assert varied_fields(runs) == {"method.1.temperature": ["1", "2"], "method.1.weight": ["0.6", "0.9"]}


def test_differences_between_two_recipes():
    assert recipe_differences(kd(0, 0.5), kd(1, 0.5, temperature="2.0")) == [
        ("kd.temperature", "4.0", "2.0"),
        ("seed", "0", "1"),
    ]


def test_a_seed_counts_once():
    """Score, spread and gain are of the same runs: of two that repeat each other the later one, which is said."""
    repeated = replace(alone(0, 0.9), name="again", started=5.0)
    rows = rows_of(grouped([alone(0, 0.5), alone(1, 0.6), kd(0, 0.7), kd(1, 0.8), repeated]), "val/top1")
    student = next(row for row in rows if row.label == "student alone")
    assert student.score["n"] == 2
    assert student.score["mean"] == pytest.approx(0.75)
    assert student.by_seed == {"0": 0.9, "1": 0.6}
    assert student.set_aside == 1
    kd_row = next(row for row in rows if row.label == "ce+kd")
    assert kd_row.gain.value == pytest.approx(kd_row.score["mean"] - student.score["mean"])
    assert (kd_row.gain.test, kd_row.set_aside) == ("paired t, n = 2 seeds", 0)


@pytest.mark.parametrize(
    ("views", "seeds"),
    [
        ((None, None, None), {"0": 0.7, "1": 0.9}),
        (("0", "None", "1"), {"0": 0.7, "1": 0.9}),
        (("5", "5", "5"), {"0": 0.7, "1": 0.9}),
        ((None, "5", None), {"0, views 0": 0.5, "0, views 5": 0.7, "1": 0.9}),
    ],
)
def test_views_of_another_seed_are_a_repetition(views, seeds):
    """As long as nothing else tells two runs of a seed apart; where all share their views, seeds are paired."""
    scores = ((0, 0.5), (0, 0.7), (1, 0.9))
    runs = [alone(*one, **({} if v is None else {"view_seed": v})) for one, v in zip(scores, views, strict=True)]
    (group,) = grouped([replace(run, started=number) for number, run in enumerate(runs)])
    assert group.by_seed("val/top1") == seeds
    assert group.values("val/top1") == list(seeds.values())
    assert group.set_aside("val/top1") == 3 - len(seeds)


def test_evaluations_are_compared_on_the_same_images_alone():
    """One name may be of two sets: another root's validation images, or what an earlier version wrote over them."""
    client = Artifacts(one={"val": "a", "other": "b", "third": "c"}, other={"val": "x", "other": "b"})
    pair = [replace(kd(0, 0.5), run_id=run_id) for run_id in ("one", "other")]
    same = same_evaluations(client, pair)
    assert {name: [found["run"] for found in both] for name, both in same.items()} == {"other": ["one", "other"]}
    metrics = {"evaluation/val/ece": 0.1, "evaluation/other/ece": 0.2, "val/top1": 0.5}
    one, other = (replace(run, metrics=metrics) for run in pair)
    assert shared_metrics(one, other, same) == [("evaluation/other/ece", 0.2, 0.2)]
    assert shared_metrics(one, other, {}) == [("val/top1", 0.5, 0.5)]


def test_what_images_are_called_hides_no_metric():
    metrics = {f"evaluation/teacher_images/{name}": 0.1 for name in ("top1", "images", "teacher_top1")}
    one, other = (replace(kd(seed, 0.5), metrics=metrics) for seed in (0, 1))
    assert shared_metrics(one, other, ["teacher_images"]) == [("evaluation/teacher_images/top1", 0.1, 0.1)]


class Artifacts:
    """What MLflow's client gives of runs that were evaluated on {images: their fingerprint}."""

    def __init__(self, **runs: dict[str, str]) -> None:
        self.runs = runs

    def list_artifacts(self, run_id: str, path: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(path=f"{path}/{name}") for images in self.runs[run_id] for name in files_of(images)]

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        made = Path(folder) / Path(path).name
        made.write_text(json.dumps({"run": run_id, "fingerprint": self.runs[run_id][made.stem]}))
        return str(made)


def files_of(images: str) -> tuple[str, str]:
    return f"{images}.json", f"{images}-cka.png"


@pytest.fixture(scope="module")
def sweep(finished, store) -> str:
    """The kd runs as a sweep of temperatures: a parent run, whose children they are."""
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("small").experiment_id
    parent = client.create_run(experiment, run_name="batch sizes")
    client.set_terminated(parent.info.run_id)
    for one in runs_of(client, "small"):
        if one.method == "ce+kd":
            client.set_tag(one.run_id, PARENT, parent.info.run_id)
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


def test_a_teacher_made_in_the_same_experiment_is_called_one(tmp_path):
    """By its weights, which others learn from; no path of the machine is in a label."""
    weights = str(tmp_path / "teacher" / "student.safetensors")
    shared = {"output_dir": str(tmp_path), "data.root": "/images", "student.model": "small"}
    teacher = made("teacher", "ce", {**shared, "student.model": "big", "student.checkpoint": str(tmp_path / "web.pth")})
    alone = made("alone", "ce", {**shared, "teacher.model": "big", "teacher.checkpoint": weights})
    distilled = made("kd", "ce+kd", {**shared, "teacher.model": "big", "teacher.checkpoint": weights})
    rows = rows_of(grouped([teacher, alone, distilled]), "val/top1")
    assert {row.label for row in rows} == {"the teacher: big", "student alone", "ce+kd"}
    said = sentences(rows, "val/top1")
    assert not any(str(tmp_path) in text for text in [*said, *(flag for row in rows for flag in row.flags)])
    assert any("with one run each, nothing can be said" in text for text in said)


def made(name: str, method: str, fields: dict[str, str]) -> Run:
    """A finished run of one seed."""
    terms = {f"method.{number}.term": term for number, term in enumerate(method.split("+"))}
    recipe = {"name": name, "seed": "0", **terms, **fields}
    return Run(name, "1", name, "FINISHED", 0.0, recipe, {"method": method}, {"val/top1": 0.5})
