"""Documents name what exists: files, commands, modules, keys; their links lead somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import stages
from docs import charts
from stages.settings.params import is_parameter
from tests.conftest import REPOSITORY

READ = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
WORDS = {"README.md": 700, "LOG.md": 3_500, "all": 14_000}  # that people have the time to read
LINE = 100
ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "demo/backbone/README.md")
DOCUMENTS = [*READ, *(REPOSITORY / name for name in ROOT)]
SITE = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
MADE = {"parameters.md", "contributing.md", "changelog.md"}  # by docs/hooks.py
OTHERS = ("venv", "mkdocs", "build")  # modules that are not ours
PRESENT = [path for path in DOCUMENTS if path.name != "LOG.md"]  # the log names what is gone
FOLDERS = ("eigenseg", "pipeline", "cache", "stages", "demo", "presets", "bench", "tests", "docs")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.name)
def test_what_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", text):
        assert any((at / name.rstrip(".")).exists() for at in (REPOSITORY, path.parent)), name
    for command in re.findall(r"(?:`|&& |^)eigenseg (?!turns)([a-z]+)", text, re.M):
        assert command in stages.STAGES, command
    for module in re.findall(r"python -m ([\w.]+)", text):
        if module not in OTHERS:
            file = REPOSITORY / module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.name)
def test_keys_that_are_set_exist(path: Path) -> None:
    for key in re.findall(r"-S '?([\w.]+)=", path.read_text()):
        assert is_parameter(key) or key == "key", key


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit_a_screen(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > LINE]
    assert not long, f"{path}: lines {long} must have at most {LINE} characters"


def test_documents_are_short_enough_to_be_read() -> None:
    words = {path.name: len(path.read_text().split()) for path in READ}
    words["all"] = sum(words.values())
    assert {name: words[name] for name, most in WORDS.items() if words[name] > most} == {}


def pages_of(tree: object) -> list[str]:
    """The files that a navigation of mkdocs names."""
    if isinstance(tree, str):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [page for part in parts for page in pages_of(part)]  # type: ignore[attr-defined]


def test_the_site_shows_every_document_once() -> None:
    notebooks = {f"tutorials/{p.stem}.md" for p in (REPOSITORY / "docs/tutorials").glob("*.ipynb")}
    written = {path.name for path in READ[1:]}
    assert sorted(pages_of(SITE["nav"])) == sorted(written | notebooks | MADE)


def test_notebooks_are_kept_without_outputs() -> None:
    for path in (REPOSITORY / "docs/tutorials").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") for cell in cells), path


def test_charts_are_drawn_from_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DATA", tmp_path)
    for table in (REPOSITORY / "docs/data").glob("*.csv"):
        shutil.copy(table, tmp_path)
    rows = [f"scenes,{m},{n},0,0,{y},0" for m, n, y in (("knn", 1, 9), ("knn", "all", 11))]
    head = "dataset,method,n,draw,seed,miou,accuracy"
    (tmp_path / "few_labels.csv").write_text("\n".join([head, *rows]))
    charts.main(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {f"{name}.svg" for name in (*charts.CHARTS, "few_labels")}
    text = "".join(path.read_text() for path in READ)
    for name in charts.CHARTS:
        assert f"images/{name}.svg" in text
        assert (REPOSITORY / f"docs/images/{name}.svg").stat().st_size < 60_000
    assert "44.1" in (REPOSITORY / "docs/data/ladder.csv").read_text()


def test_the_version_is_said_alike() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert f"## [{project['version']}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_readme_has_a_line_for_every_folder() -> None:
    command = ["git", "ls-files", "*/*"]
    files = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    folders = {name.split("/")[0] for name in files.stdout.splitlines() if name[0] != "."}
    tree = re.findall(r"^(\w+)/ {2,}\S", (REPOSITORY / "README.md").read_text(), re.M)
    assert sorted(tree) == sorted(folders) == sorted(FOLDERS)


def test_the_card_sets_what_it_distils_from() -> None:
    """The card's sed finds the lines of params.yaml that it changes."""
    card = (REPOSITORY / "demo/backbone/README.md").read_text()
    changes = re.search(r"^sed .*?(?= params\.yaml)", card, re.M | re.S)
    assert changes
    command = f"{changes.group()} '{REPOSITORY / 'params.yaml'}'"
    made = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    tree = yaml.safe_load(made.stdout)
    assert (tree["dataset"], tree["backbone"]) == ("photos", "dinov2_s14_file")
    changed = {key: tree["extract"][key] for key in ("blocks", "final_norm")}
    assert tree["extract"]["train"]["short_side"] == 420
    assert changed == {"blocks": [8], "final_norm": [8]}
