"""The atlas as people use it: a real page in a headless browser, by keyboard alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.index import read_index
from cache.segments import Segments
from tests.conftest import Project, make_dataset, run_stages
from tests.test_atlas import STAGES, page_data

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = (
    next((found for name in names if (found := shutil.which(name))), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
MARKUP = '<img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A project that has run up to the report, with names of files and classes that are markup."""
    folder = tmp_path_factory.mktemp("browser")
    make_dataset(folder / "photos", {"train": 6, "val": 3})
    (folder / "photos/classes.txt").write_text(f"sky\n{MARKUP}\nroad & rail\n</script><b>box\n")
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        path = folder / f"photos/{kind}/val/000.{suffix}"
        path.rename(path.with_name(f"<i onclick='window.hacked=1'>&amp;.{suffix}"))
    return run_stages(folder, weights, *STAGES)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    log = driver.get_log("browser")
    messages = [entry["message"] for entry in log if entry["level"] == "SEVERE"]
    hacked = driver.execute_script("return window.hacked")
    driver.quit()
    assert not messages and hacked is None


class Page:
    """The atlas in a browser, and what a person does there."""

    def __init__(self, driver: Any, project: Path, width: int = 1280) -> None:
        self.driver = driver
        self.path = project / "results/report/clusters.html"
        self.data = page_data(self.path.read_text())
        size = {"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(self.path.as_uri())

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def chord(self, *keys: str) -> None:
        actions = webdriver.ActionChains(self.driver)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in keys[:-1]:
            actions.key_up(key)
        actions.perform()

    def text(self, id_: str) -> str:
        return self.driver.find_element("id", id_).text

    def given(self) -> list[str]:
        return self.driver.execute_script("return given")

    @property
    def order(self) -> list[int]:
        return [cluster["id"] for cluster in self.data["clusters"]]


def until(holds: Callable[[], Any]) -> Any:
    """Wait for what a browser does in its own time."""
    end = time.monotonic() + 30
    while not (found := holds()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def pixels(page: Page, canvas: str) -> list[int]:
    """The bytes of a canvas; empty before it is drawn."""
    return page.driver.execute_script(
        "const c = document.querySelector(arguments[0]); if (!c || !c.width) return [];"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]",
        canvas,
    )


def test_names_by_keyboard_reach_predict(
    finished: Path, browser: Any, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = webdriver.Keys
    page = Page(browser, finished)
    first, second, third, *others = page.order
    drawn = until(lambda: pixels(page, "#photos canvas"))
    page.press("sky", keys.ENTER)
    page.press(MARKUP, keys.ENTER)  # a name like any other
    page.press("?", keys.ENTER)
    given = page.given()
    assert [given[i] for i in (first, second, third)] == ["sky", MARKUP, "?"]
    until(lambda: pixels(page, "#photos canvas") not in ([], drawn))  # recoloured at once
    share = {cluster["id"]: cluster["share"] for cluster in page.data["clusters"]}
    named = 100 * (share[first] + share[second])
    assert page.text("told").startswith(f"{named:.1f} % of the pixels have a name (2 of ")

    page.chord(keys.CONTROL, "z")
    assert page.given()[third] == "" and f"cluster {third}" in page.text("which")
    page.press(keys.ARROW_UP, keys.ARROW_UP, "meadow", keys.ENTER)
    assert page.given()[first] == "meadow"

    page.driver.refresh()
    assert [page.given()[i] for i in (first, second)] == ["meadow", MARKUP]
    assert f"cluster {second}" in page.text("which")
    page.press(keys.ARROW_DOWN)
    page.chord(keys.SHIFT, keys.ARROW_DOWN)
    assert "and 1 more" in page.text("which")
    page.press("both", keys.ENTER)
    assert page.given().count("both") == 2

    page.chord(keys.CONTROL, "s")
    saved = until(lambda: list(tmp_path.glob("names.json")))[0]
    value = json.loads(until(saved.read_text))
    codes = value["clusters"]
    assert value["classes"] == [MARKUP, "meadow", "both"] and len(codes) == 6
    assert codes[second] == 0 and codes[first] == 1 and codes[third] == codes[others[0]] == 2

    monkeypatch.chdir(finished)
    project = Project(finished, weights)
    arguments = ("photos/images", "--out", str(tmp_path / "out"), "--names", str(saved))
    result = project.run("predict", *arguments)
    assert result.exit_code == 0, result.output
    values = np.where(np.array(codes) < 0, 255, codes)
    with Segments("data/segments.h5") as maps:
        for row in read_index("data/index.csv"):
            found = np.asarray(Image.open(tmp_path / f"out/labels/{row.split}/{row.stem}.png"))
            np.testing.assert_array_equal(found, values[maps.read("ours", row.id)])


def test_labels_begin_files_are_checked_and_undo_takes_all_back(
    finished: Path, browser: Any, tmp_path: Path
) -> None:
    page = Page(browser, finished)
    page.driver.find_element("id", "suggest").click()
    classes = (finished / "photos/classes.txt").read_text().splitlines()
    (mapping,) = json.loads((finished / "results/mapping.json").read_text())["datasets"].values()
    codes = mapping["clusters"]["ours"]["majority_iou"]
    assert page.given() == ["" if code < 0 else classes[code] for code in codes]
    assert page.driver.find_elements("css selector", "#legend img, #chips b, #list img") == []
    page.chord(webdriver.Keys.CONTROL, "z")
    assert page.given() == [""] * 6

    head = page.data["head"]
    good = {"format": 1, "head": head, "predictor": "ours", "classes": ["a"], "clusters": [0] * 6}
    for changes, told in (({"head": "b"}, "another head"), ({"clusters": [0]}, "must name 6")):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps({**good, **changes}))
        page.driver.find_element("id", "load").send_keys(str(path))
        until(lambda told=told: told in page.text("told"))
        assert page.given() == [""] * 6
    (tmp_path / "good.json").write_text(json.dumps(good))
    page.driver.find_element("id", "load").send_keys(str(tmp_path / "good.json"))
    until(lambda: page.given() == ["a"] * 6)


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_and_examples_open(finished: Path, browser: Any, width: int) -> None:
    page = Page(browser, finished, width)
    measure = "return [document.documentElement.scrollWidth, innerWidth]"
    shown, room = page.driver.execute_script(measure)
    assert shown <= room
    until(lambda: pixels(page, "#typical canvas"))
    page.chord(webdriver.Keys.ALT, "1")
    until(lambda: page.driver.find_element("id", "zoom").get_attribute("open"))
    assert f"cluster {page.order[0]} outlined" in until(lambda: page.text("where"))
    page.chord(webdriver.Keys.ESCAPE)
    until(lambda: not page.driver.find_element("id", "zoom").get_attribute("open"))
    assert page.driver.switch_to.active_element.get_attribute("id") == "name"
