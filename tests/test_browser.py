"""The atlas and the report as people use them: real pages in a headless browser."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache.index import read_index
from cache.names import read_names
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
    # Its window would wait for a person; a test that wants one puts its own there.
    source = "window.showSaveFilePicker = undefined"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
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
        """By cluster; a list where it is split."""
        return self.driver.execute_script("return byCluster()")

    def click(self, id_: str) -> None:
        self.driver.find_element("id", id_).click()

    def load(self, path: Path) -> None:
        self.driver.find_element("id", "load").send_keys(str(path))

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
    codes, classes = value["clusters"], value["classes"]
    assert sorted(classes) == sorted([MARKUP, "meadow", "both"]) and len(codes) == 6
    assert [classes[codes[i]] for i in (second, first, third)] == [MARKUP, "meadow", "both"]
    assert codes[third] == codes[others[0]] and len(value["colours"]) == 3
    assert "names (1).json" in page.text("told") and "•" not in page.text("save")

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
    codes = mapping["clusters"]["ours"]["majority_count"]
    assert page.given() == ["" if code < 0 else classes[code] for code in codes]
    assert page.driver.find_elements("css selector", "#legend img, #chips b, #list img") == []
    page.chord(webdriver.Keys.CONTROL, "z")
    assert page.given() == [""] * 6

    head = page.data["head"]
    good = {"format": 1, "head": head, "predictor": "ours", "classes": ["a"], "clusters": [0] * 6}
    path = tmp_path / "bad.json"
    for content, told in (
        (json.dumps({**good, "head": "b"}), "another head"),
        (json.dumps({**good, "clusters": [0]}), "must name 6"),
        (json.dumps({**good, "clusters": [0] * 5 + [1]}), "codes from -3 to 0"),
        (json.dumps({**good, "classes": [1]}), "its classes must be names"),
        ("null", "it is no file of names"),
        ("[]", "it is no file of names"),
        ("{", "it is not JSON"),
    ):
        path.write_text(content)
        page.load(path)
        until(lambda told=told: told in page.text("told"))
        assert page.given() == [""] * 6 and "Nothing has changed" in page.text("told")
    (tmp_path / "good.json").write_text(json.dumps({**good, "classes": ["a", "A"]}))
    page.load(tmp_path / "good.json")
    until(lambda: page.given() == ["a"] * 6)


def test_nothing_is_lost(finished: Path, browser: Any, tmp_path: Path) -> None:
    keys = webdriver.Keys
    page = Page(browser, finished)
    first, second, third, fourth, fifth, _ = page.order
    page.chord(keys.CONTROL, "s")
    assert "nothing to save yet" in page.text("told") and not list(tmp_path.glob("*.json"))

    page.press("grass", keys.ENTER)
    page.press("Grass", keys.ENTER)  # the same in capitals
    page.press("gr", keys.ENTER)  # begins so
    page.press("gr")
    page.chord(keys.SHIFT, keys.ENTER)  # exactly this
    given = page.given()
    assert [given[i] for i in (first, second, third, fourth)] == ["grass", "grass", "grass", "gr"]

    blue = page.driver.execute_script("return [...colours].map(([name, rgb]) => String(rgb))")
    page.chord(keys.CONTROL, "z")
    page.press("sand", keys.ENTER)  # an undone name lets go of its colour
    again = page.driver.execute_script("return [...colours].map(([name, rgb]) => String(rgb))")
    assert again == blue and len(set(blue)) == 2

    saving = """
        window.written = [];
        window.showSaveFilePicker = async () => ({ name: "mine.json", createWritable: async () => ({
            write: async (text) => window.written.push(text), close: async () => {} }) });
    """
    page.driver.execute_script(saving)
    assert "•" in page.text("save")
    page.chord(keys.CONTROL, "s")
    until(lambda: "Saved in the file mine.json." in page.text("told"))
    page.chord(keys.CONTROL, "s")  # the same file, not asked for again
    written = until(lambda: page.driver.execute_script("return written.length == 2 && written"))
    assert json.loads(written[0])["classes"] == ["grass", "sand"] and "•" not in page.text("save")
    assert not list(tmp_path.glob("*.json"))

    own = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(page.path.as_uri())
    assert page.given()[first] == "grass"
    page.driver.execute_script(f"show({fifth})")
    page.press("rock", keys.ENTER)
    page.driver.switch_to.window(own)
    until(lambda: page.given()[fifth] == "rock")  # seen here too
    page.driver.execute_script(f"go({first})")
    page.press("meadow", keys.ENTER)
    page.driver.refresh()
    assert [page.given()[i] for i in (first, second, fifth)] == ["meadow", "grass", "rock"]


def test_a_region_is_corrected_a_cluster_split_a_class_renamed(
    finished: Path, browser: Any, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = webdriver.Keys
    page = Page(browser, finished)
    page.press("sky", keys.ENTER)
    page.driver.execute_script("order().forEach((unit) => give([[unit, 'meadow']]))")
    shares = "return Object.fromEntries(shares())"
    before = page.driver.execute_script(shares)
    assert before == {"meadow": pytest.approx(1, abs=1e-3)}

    button = until(lambda: page.driver.find_element("css selector", "#photos button"))
    until(lambda: pixels(page, "#photos canvas"))
    webdriver.ActionChains(page.driver).move_to_element(button).click().perform()
    until(lambda: page.driver.find_element("id", "zoom").get_attribute("open"))
    text = until(lambda: page.text("region"))
    unit = page.driver.execute_script("return current")
    assert f"cluster {unit}, meadow" in text  # the click chose the cluster too
    picture = page.driver.find_element("id", "picture")
    size = picture.size
    move = webdriver.ActionChains(page.driver).move_to_element_with_offset
    move(picture, 0, 6 - size["height"] // 2).click().perform()  # the sky
    page.press("cloud", keys.ENTER)
    until(lambda: "corrected: cloud" in page.text("region"))
    after = page.driver.execute_script(shares)
    assert 0 < after["cloud"] < 0.1 and sum(after.values()) == pytest.approx(1, abs=1e-3)
    page.press(keys.ARROW_DOWN)
    assert "cloud" not in page.text("region")
    page.press(keys.ESCAPE)
    until(lambda: "1 corrected region" in page.text("told"))

    page.driver.execute_script("go(data.clusters.find(({ parts }) => parts.length > 1).id)")
    page.click("split")
    page.press("one part", keys.ENTER)
    split = [one for one in page.given() if isinstance(one, list)]
    assert len(split) == 1 and split[0][0] == "one part" and set(split[0][1:]) == {"meadow"}
    page.driver.find_element("xpath", "//ul[@id='legend']//button[contains(., 'meadow')]").click()
    page.press("grass", keys.ENTER)
    until(lambda: "meadow is called grass now" in page.text("told"))
    assert "meadow" not in str(page.given())

    page.chord(keys.CONTROL, "s")
    saved = until(lambda: list(tmp_path.glob("names.json")))[0]
    value = json.loads(until(saved.read_text))
    (correction,), (parted,) = value["corrections"], value["splits"]
    assert value["classes"][correction["code"]] == "cloud"
    assert value["classes"][parted["codes"][0]] == "one part"

    monkeypatch.chdir(finished)
    project = Project(finished, weights)
    project.set("segment.names", str(saved))
    result = project.run("name", "--out", str(tmp_path / "named"))
    assert result.exit_code == 0, result.output
    found = np.asarray(Image.open(tmp_path / f"named/labels/{correction['photo']}.png"))
    cloud = (found == correction["code"]).mean()
    cells = sum(correction["runs"][1::2]) / (correction["height"] * correction["width"])
    assert cloud == pytest.approx(cells, abs=0.02)

    names = read_names(saved, page.data["head"], 6)  # as the page and as Python count them
    photo = next(one for one in page.data["photos"] if one["name"] == correction["photo"])
    assert names.corrections[0].cells.shape == (photo["height"], photo["width"])
    page.driver.execute_script("localStorage.clear()")
    page.driver.refresh()
    page.load(saved)
    until(lambda: "one part" in str(page.given()))
    assert page.driver.execute_script(shares)["cloud"] == pytest.approx(after["cloud"])

    given, out = page.given(), tmp_path / "report"  # the project's names are there to begin with
    result = project.run("report", "--named", str(tmp_path / "named"), "--out", str(out))
    assert result.exit_code == 0, result.output
    page.driver.execute_script("localStorage.clear()")
    page.driver.get((out / "clusters.html").as_uri())
    assert page.given() == given
    assert page.driver.execute_script(shares)["cloud"] == pytest.approx(after["cloud"])


def test_names_pass_on_to_another_head(finished: Path, browser: Any, tmp_path: Path) -> None:
    page = Page(browser, finished)
    page.click("suggest")
    page.chord(webdriver.Keys.CONTROL, "s")
    saved = until(lambda: list(tmp_path.glob("names.json")))[0]
    value = json.loads(until(saved.read_text))
    given = page.given()
    # The same clusters in another order stand for another head.
    other = [*range(3, 6), *range(3)]
    value |= {"head": "b", "clusters": [value["clusters"][i] for i in other]}
    (tmp_path / "other.json").write_text(json.dumps(value))
    page.driver.execute_script("localStorage.clear()")
    page.driver.refresh()
    page.load(tmp_path / "other.json")
    until(lambda: "clusters got names that were given to another head" in page.text("told"))
    assert page.given() == given
    assert "% sure" in page.text("facts")


@pytest.mark.parametrize("name", ["clusters.html", "index.html"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_serious(finished: Path, browser: Any, name: str, width: int) -> None:
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    program = Path(package.origin).with_name("axe.min.js").read_text()
    page = Page(browser, finished, width)
    page.driver.get((finished / "results/report" / name).as_uri())
    if name == "clusters.html":
        page.click("suggest")
    check = "axe.run().then((found) => arguments[0](found.violations))"
    page.driver.execute_script(program)
    found = page.driver.execute_async_script(check)
    if name == "clusters.html":
        page.chord(webdriver.Keys.ALT, "1")
        until(lambda: page.driver.find_element("id", "zoom").get_attribute("open"))
        found += page.driver.execute_async_script(check)
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not grave, [(one["id"], one["nodes"][0]["html"]) for one in grave]


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_and_examples_open(finished: Path, browser: Any, width: int) -> None:
    page = Page(browser, finished, width)
    measure = "return [document.documentElement.scrollWidth, innerWidth]"
    shown, room = page.driver.execute_script(measure)
    assert shown <= room
    place = "return element('clusters').getBoundingClientRect().top"
    assert page.driver.execute_script(place) < 600  # the list stands above
    until(lambda: pixels(page, "#sample canvas"))
    page.chord(webdriver.Keys.ALT, "1")
    until(lambda: page.driver.find_element("id", "zoom").get_attribute("open"))
    assert f"cluster {page.order[0]}, no name yet" in until(lambda: page.text("region"))
    page.chord(webdriver.Keys.ESCAPE)
    until(lambda: not page.driver.find_element("id", "zoom").get_attribute("open"))
    assert page.driver.switch_to.active_element.get_attribute("id") == "name"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_shows_scores_first_opens_pictures_and_leads_on(
    finished: Path, browser: Any, width: int
) -> None:
    page = Page(browser, finished, width)
    page.driver.find_element("link text", "Report").click()
    until(lambda: page.driver.current_url.endswith("index.html"))
    shown, room = page.driver.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert shown <= room
    box = page.driver.execute_script(
        "return document.querySelector('td.first').getBoundingClientRect().toJSON()"
    )
    assert box["right"] <= width and box["bottom"] <= 860  # a score, without scrolling
    picture = page.driver.find_element("css selector", ".large")
    picture.send_keys(webdriver.Keys.ENTER)
    large = page.driver.find_element("css selector", "#large img")
    until(lambda: large.size["width"] > 0.8 * min(width, 600))
    page.press(webdriver.Keys.ESCAPE)
    page.driver.find_element("partial link text", "Atlas").click()
    until(lambda: page.driver.current_url.endswith("clusters.html"))
