"""Presets: valid changes of params.yaml that come through the shell and through DVC unharmed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dvc.utils.hydra import apply_overrides

import stages
from cache import changes, params
from cache.errors import InputError
from stages.preset import flow
from tests.conftest import REPOSITORY

PRESETS = sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml"))


def preset(name: str, folder: Path = REPOSITORY / "presets") -> Result:
    options = ["--params", str(REPOSITORY / "params.yaml"), "--presets", str(folder)]
    return CliRunner().invoke(stages.main, ["preset", name, *options])


def options(text: str) -> list[str]:
    """The values of ``-S`` as a shell passes them on from an unquoted ``$(...)``."""
    run = subprocess.run(
        ["bash", "-c", 'printf "%s\\n" $(cat)'], input=text, capture_output=True, text=True
    )
    words = run.stdout.splitlines()
    assert set(words[::2]) == {"-S"}
    return words[1::2]


@pytest.mark.parametrize("name", PRESETS)
def test_what_dvc_makes_of_a_preset_is_valid_and_as_written(name: str, tmp_path: Path) -> None:
    result = preset(name)
    assert result.exit_code == 0 and len(result.output.splitlines()) == 1
    written = shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    apply_overrides(written, options(result.output))
    found = params.load(written)
    wanted = changes.read_preset(REPOSITORY / "presets", name)
    shipped = params.load(REPOSITORY / "params.yaml")
    assert found == changes.apply(shipped, wanted) != shipped


def test_the_paper_as_its_numbers_are() -> None:
    shipped = params.load(REPOSITORY / "params.yaml")
    paper = changes.apply(shipped, changes.read_preset(REPOSITORY / "presets", "paper"))
    assert (paper.dataset, paper.datasets) == (shipped.dataset, shipped.datasets)
    assert paper.backbones[paper.backbone].model.startswith("vit_small_patch16_384.augreg")
    patches = (paper.extract.short_side // 16) ** 2 * paper.graph.group_images
    assert isinstance(paper.graph.k, float) and round(paper.graph.k * patches, -1) == 170
    assert (paper.clusters, paper.graph.alpha, paper.graph.scope) == (256, 0.3, "group")
    blocks = ["first", "middle", "last"]
    assert (paper.extract.blocks, paper.extract.final_norm) == (blocks, ["last"])
    assert set(map(str, paper.context.levels)) <= set(blocks)
    assert (paper.graph.level, paper.kmeans.level, paper.train.beta) == ("last", "last", None)
    assert paper.head.levels == blocks
    assert (paper.head.width, paper.head.depth, paper.head.mlp_hidden) == (None, 2, 576)
    assert (paper.head.level_norm, paper.head.orthogonal) == (False, True)
    assert (paper.train.start, paper.train.epochs, paper.train.lr) == ("random", 40, 0.001)
    assert paper.segment.temperature == 0.3


@pytest.mark.parametrize(
    "value",
    [None, True, 0.00001, 2.5e-7, 0.0, 12, "last", "local-dir:backbones/demo", ["first", 8, "last"],
     [{"k": 10, "weight": 2.0}, {"k": 5, "weight": 0.1}]],
)  # fmt: skip
def test_values_of_every_kind_come_through(value: object, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 0}\n")
    apply_overrides(path, options(f"-S a.b={flow(value)}"))
    assert params.parse(path.read_text()) == {"a": {"b": value}}


@pytest.mark.parametrize("value", ["two words", "a*", "$(x)", "", ["a", "b c"], 1e30])
def test_what_would_not_come_through_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"through a shell and DVC, .* found .*by hand"):
        flow(value)


def test_an_unknown_preset_names_those_there_are() -> None:
    result = preset("papr")
    assert result.exit_code == 1
    assert f"must be one of {', '.join(PRESETS)} (files *.yaml in" in result.output
    assert "found 'papr'" in result.output


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("graph: {alhpa: 1.0}", ["graph.alhpa: unknown key", "valid here: level, scope"]),
        ("seed: {of: 1}", ["seed.of: unknown key of params.yaml, found 'of'"]),
        ("graph: {alpha: -1.0}", ["graph.alpha", "greater than or equal to 0, found -1.0"]),
        ("backbone: dino", ["backbone: 'dino' is not one of demo"]),
        ("- graph", ["must hold keys of params.yaml", "found ['graph']"]),
        ("a: [", ["wrong.yaml is not valid YAML"]),
    ],
)
def test_a_wrong_preset_prints_no_options(content: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(content)
    result = preset("wrong", tmp_path)
    assert result.exit_code == 1 and "-S" not in result.output
    for text in texts:
        assert text in result.output
