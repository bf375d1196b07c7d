"""The three layers, kept: imports only downwards, labels only in evaluation, deps complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import stages
from cache.exports import FORMATS
from cache.segments import PREDICTORS, SEMI_SUPERVISED
from pipeline.evaluation import MATCHINGS
from pipeline.maps.crf import CRFS
from stages import commands
from stages.settings.params import Params
from tests.conftest import REPOSITORY

LAYERS = ("cache", "eigenseg", "pipeline", "stages")
BELOW = {"cache": (), "pipeline": (), "eigenseg": ("cache", "pipeline")}
STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "name", "eval", "report")
COMMANDS = (*STAGES, "predict")
# They check, tell, schedule and report; no artefact's content depends on them, so that a new
# parameter or a better message does not make DVC run the ViT again.
NEUTRAL = {
    f"stages/{name}.py"
    for name in (
        "__init__",
        "running/ahead",
        "running/estimates",
        "running/hardware",
        "running/jobs",
        "running/progress",
        "settings/params",
        "settings/sections",
        "showing/score_table",
    )
}
NEUTRAL.add("cache/store/errors.py")
MODULES = sorted(p for layer in LAYERS for p in (REPOSITORY / layer).rglob("*.py"))


def name(path: Path) -> str:
    relative = path.relative_to(REPOSITORY)
    return relative.as_posix()


def layer_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0]


def packages(path: Path) -> set[Path]:
    """The __init__.py of every package that a module lies in: importing it runs them."""
    above = path.relative_to(REPOSITORY).parents
    return {REPOSITORY / folder / "__init__.py" for folder in above if folder.parts}


def imported(path: Path) -> set[Path]:
    """Files of this project that a module imports, anywhere in it; packages' own files too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            file = REPOSITORY / (module.replace(".", "/") + ".py")
            package = REPOSITORY / module.replace(".", "/") / "__init__.py"
            if module.split(".")[0] in LAYERS:
                found |= {p for p in (file, package) if p.is_file()}
    return found.union(*map(packages, found))


def closure(path: Path) -> set[Path]:
    """The module, all that it imports, and so on."""
    found: set[Path] = set()
    waiting = [path, *packages(path)]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imported(module)
    return found


def roots_of(path: Path) -> set[str]:
    """The packages that a module imports from, anywhere in it."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_downwards_only(path: Path) -> None:
    for other in imported(path):
        layers = (layer_of(path), layer_of(other))
        if layers == ("stages", "stages"):  # what stages share may be imported, stages may not
            assert name(other) not in {f"stages/{one}.py" for one in COMMANDS}, (
                f"{name(path)} must not import {name(other)}"
            )
        else:
            allowed = layers[0] in (layers[1], "stages") or layers[1] in BELOW[layers[0]]
            assert allowed, f"{name(path)} must not import {name(other)}"
        if name(path).startswith("cache/store/"):
            assert name(other).startswith("cache/store/") or other.name == "__init__.py"


def test_no_import_goes_in_a_circle() -> None:
    graph = {path: imported(path) - packages(path) - {path} for path in MODULES}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_needs_the_demonstration_or_the_benches(path: Path) -> None:
    assert not roots_of(path) & {"bench", "demo", "tests"}


def test_numerics_name_no_parameter() -> None:
    """The stage says which key to change: `stages.way_out`."""
    sections = [
        key
        for key, field in Params.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    ]
    keys = re.compile(
        "|".join(
            rf"\b{section}\.({'|'.join(Params.model_fields[section].annotation.model_fields)})\b"
            for section in sections
        )
    )
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not keys.search(node.value), f"{name(path)}: {node.value}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_numerics_touch_no_disk_and_no_configuration(path: Path) -> None:
    roots = roots_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open" or layer_of(path) == "cache"
    if layer_of(path) == "pipeline":
        assert not roots & {"click", "h5py", "os", "pathlib", "pydantic", "yaml", "zarr"}
    if layer_of(path) == "cache":
        assert not roots & {"click", "matplotlib", "pydantic", "rich", "yaml"}
    if layer_of(path) == "stages":
        assert not roots & {"h5py", "shutil", "zarr"}
        assert path.name in ("params.py", "sections.py") or not roots & {"yaml", "pydantic"}


@pytest.mark.parametrize("stage", ["extract", "context", "graph", "segment", "name", "predict"])
def test_labels_are_out_of_reach_before_evaluation(stage: str) -> None:
    files = {name(path) for path in closure(REPOSITORY / f"stages/{stage}.py")}
    assert "cache/labels.py" not in files and "pipeline/evaluation.py" not in files


def test_only_the_labels_module_opens_labels() -> None:
    users = {name(path) for path in MODULES if REPOSITORY / "cache/labels.py" in imported(path)}
    # Training opens them where train.labelled asks for it: tests/test_semi_supervised.py.
    learning = "stages/running/labelled.py"
    assert users == {"stages/prepare.py", learning, "stages/eval.py", "stages/report.py"}
    # prepare may check label files; it must not see what is in them.
    assert "read_label(" not in (REPOSITORY / "stages/prepare.py").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_in_dvc_cover_the_import_closure(stage: str) -> None:
    declared = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = [path for path in declared if path.split("/")[0] in LAYERS]
    needed = {name(path) for path in closure(REPOSITORY / f"stages/{stage}.py")} - NEUTRAL
    needed = {path for path in needed if not path.endswith("__init__.py")}  # docstrings alone
    uncovered = {path for path in needed if not any(covers(dep, path) for dep in code)}
    assert not uncovered
    unused = {dep for dep in code if not any(covers(dep, path) for path in needed)}
    assert unused <= {"stages/showing/templates", "cache/classes"}  # read, not imported
    assert "stages/showing/templates" in code or stage != "report"


def covers(dependency: str, path: str) -> bool:
    return path == dependency or path.startswith(dependency + "/")


def test_cache_holds_only_code_and_tables() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "cache"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed and {Path(path).suffix for path in listed} == {".py", ".tsv"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = [child for child in node.body if not isinstance(child, ast.Expr)]
            start = body[0].lineno if body else node.lineno
            assert (node.end_lineno or 0) - start < 42, f"{name(path)}: {node.name} is long"


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["prepare", "--help"]])
def test_the_command_line_answers(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "stages", *command], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_help_and_completion_import_nothing_heavy() -> None:
    words = '{"COMP_WORDS": "eigenseg train --gr", "COMP_CWORD": "2"}'
    code = (
        "import os, sys, stages; from click.testing import CliRunner; "
        "ask = lambda *words: CliRunner().invoke(stages.main, words).output; "
        "assert 'extract' in ask('--help') and '--curve' in ask('train', '--help'); "
        f"os.environ |= {words}; from click.shell_completion import BashComplete; "
        "shell = BashComplete(stages.main, {}, 'eigenseg', '_EIGENSEG_COMPLETE'); "
        "assert shell.complete() == 'plain,--graph'; "
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not {"torch", "zarr", "timm", "faiss", "numpy", "pydantic"} & set(run.stdout.split())


def test_options_offer_what_there_is() -> None:
    assert set(commands.CRFS) == set(CRFS) and set(commands.FORMATS) == set(FORMATS)
    assert (*PREDICTORS, SEMI_SUPERVISED) == commands.PREDICTORS
    assert set(commands.MATCHINGS) == set(MATCHINGS)
    declared = {one.name for one in vars(commands).values() if isinstance(one, stages.Stage)}
    assert declared == set(stages.STAGES) == set(COMMANDS)


def test_every_stage_says_what_it_reads_and_writes() -> None:
    for stage in COMMANDS:
        text = CliRunner().invoke(stages.main, [stage, "--help"]).output
        assert "Reads" in text and "rites" in text and "data/" in text, stage


def test_every_stage_is_a_program_of_its_own() -> None:
    for stage in COMMANDS:
        module = ast.parse((REPOSITORY / f"stages/{stage}.py").read_text())
        last = f"if __name__ == '__main__':\n    program('{stage}')"
        assert ast.unparse(module.body[-1]) == last
