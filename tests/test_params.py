"""params.yaml: strict, all faults at once, dotted keys, valid values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cache.store.errors import InputError
from stages import params
from tests.conftest import REPOSITORY


@pytest.fixture
def tree() -> dict:
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(folder: Path, tree: dict) -> params.Params:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return params.load(path)


def test_the_shipped_file_is_valid_and_names_every_key(tree: dict) -> None:
    chosen = params.load(REPOSITORY / "params.yaml")
    assert chosen.model_dump() == tree
    assert chosen.data == chosen.datasets[chosen.dataset]


@pytest.mark.parametrize("text", ["1e-05", "2.5e-07", "0.00001", "1e3", "-3E2"])
def test_numbers_are_read_as_dvc_writes_them(text: str) -> None:
    assert params.parse(f"lr: {text}") == {"lr": float(text)}


@pytest.mark.parametrize("text", ["1e", "e5", "1e-5x", "12", "v1e3"])
def test_what_looks_like_a_number_stays_what_it_is(text: str) -> None:
    assert params.parse(f"key: {text}") == {"key": 12 if text == "12" else text}


def test_all_faults_are_reported_with_their_dotted_keys(tmp_path: Path, tree: dict) -> None:
    tree["graph"]["alhpa"] = 0.1
    tree["graph"]["pixel"][0]["width"] = 2.0
    tree["train"]["lr"] = -1.0
    tree["extract"]["precision"] = "float8"
    tree["head"]["width"] = 3.5
    del tree["seed"]
    with pytest.raises(InputError) as caught:
        load(tmp_path, tree)
    text = str(caught.value)
    assert "graph.alhpa: unknown key; valid here: level, scope, group_images" in text
    assert "graph.pixel.0.width: unknown key; valid here: k, weight" in text
    assert "train.lr: Input should be greater than 0, found -1.0" in text
    assert "extract.precision: Input should be 'auto', 'float32' or 'bfloat16'" in text
    assert "head.width: Input should be a valid integer, found 3.5" in text
    assert "seed: missing" in text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dataset", "camvd", "dataset: 'camvd' is not one of scenes, own, camvid"),
        ("backbone", "dino", "backbone: 'dino' is not one of demo, dinov2_s14"),
        ("clusters", 1, "clusters: Input should be greater than or equal to 2, found 1"),
        ("clusters", "256", "clusters: Input should be a valid integer, found '256'"),
    ],
)
def test_names_and_ranges(tmp_path: Path, tree: dict, key: str, value: object, text: str) -> None:
    tree[key] = value
    with pytest.raises(InputError) as caught:
        load(tmp_path, tree)
    assert text in str(caught.value)


def test_windows_and_shards_must_fit_together(tmp_path: Path, tree: dict) -> None:
    tree["extract"].update(window=100, stride=200)
    with pytest.raises(InputError, match=r"extract: stride \(200\) must not exceed window"):
        load(tmp_path, tree)
    tree["extract"].update(stride=None)
    with pytest.raises(InputError, match="window and stride are set together or both null"):
        load(tmp_path, tree)
    tree["extract"].update(window=None, shard_tokens=10)
    with pytest.raises(InputError, match="must hold at least one tile"):
        load(tmp_path, tree)


@pytest.mark.parametrize(
    ("key", "value"), [("width", 192), ("level_norm", True), ("orthogonal", True)]
)
def test_a_start_from_kmeans_needs_a_head_that_fits(
    tmp_path: Path, tree: dict, key: str, value: object
) -> None:
    tree["train"]["start"] = "kmeans"
    tree["head"][key] = value
    with pytest.raises(InputError, match=r"  train.start: .*: set head.width to null, .* random$"):
        load(tmp_path, tree)
    tree["train"]["start"] = "random"
    assert getattr(load(tmp_path, tree).head, key) == value


def test_every_level_of_the_context_has_its_weight(tmp_path: Path, tree: dict) -> None:
    tree["context"]["weights"] = [1.0]
    with pytest.raises(InputError, match=r"context: weights \(1\) must be as many as levels \(2\)"):
        load(tmp_path, tree)
    tree["context"].update(levels=["late", "context"], weights=[1.0, 0.0])
    with pytest.raises(InputError) as caught:
        load(tmp_path, tree)
    text = str(caught.value)
    assert "context.weights.1: Input should be greater than 0, found 0.0" in text
    assert "context.levels.1: Input should be" in text and "found 'context'" in text


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing: run the command in the project's folder"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is not valid YAML"):
        params.load(tmp_path / "params.yaml")


def leaves(tree: object, key: str = "") -> dict[str, object]:
    """Dotted keys of the file and their values; the names of entries become <name>."""
    if not isinstance(tree, dict):
        return {key: tree}
    found: dict[str, object] = {}
    for name, value in tree.items():
        name = "<name>" if key in ("datasets", "backbones") else name
        found |= leaves(value, f"{key}.{name}" if key else name)
    return found


def test_every_parameter_is_documented_with_its_default(tree: dict) -> None:
    text = (REPOSITORY / "docs/parameters.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("| `"): row[1] for row in rows}
    shipped = leaves(tree)
    assert list(documented) and set(documented) == set(shipped)
    for key, default in documented.items():
        if "<name>" not in key:
            assert yaml.safe_load(default) == shipped[key], key
