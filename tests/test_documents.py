"""Documents name what exists: files, commands, modules, keys; their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import stages
from stages.settings.params import is_parameter
from tests.conftest import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
DOCUMENTS.append(REPOSITORY / "demo/backbone/README.md")
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
        if module != "venv":
            file = REPOSITORY / module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.name)
def test_keys_that_are_set_exist(path: Path) -> None:
    for key in re.findall(r"-S '?([\w.]+)=", path.read_text()):
        assert is_parameter(key) or key == "key", key


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
