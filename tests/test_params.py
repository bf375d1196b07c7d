"""params.yaml: strict, all faults at once, dotted keys, valid values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cache.store.errors import InputError
from docs.parameters import commented, described, page
from stages.settings.params import Params, is_parameter, parse
from stages.settings.params import load as load_params
from tests.conftest import REPOSITORY


@pytest.fixture
def tree() -> dict:
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(folder: Path, tree: dict) -> Params:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_params(path)


def test_the_shipped_file_is_valid_and_names_every_key(tree: dict) -> None:
    chosen = load_params(REPOSITORY / "params.yaml")
    assert chosen.model_dump(exclude_unset=True) == tree
    assert chosen.data == chosen.datasets[chosen.dataset]


@pytest.mark.parametrize("text", ["1e-05", "2.5e-07", "0.00001", "1e3", "-3E2"])
def test_numbers_are_read_as_dvc_writes_them(text: str) -> None:
    assert parse(f"lr: {text}") == {"lr": float(text)}


@pytest.mark.parametrize("text", ["1e", "e5", "1e-5x", "12", "v1e3"])
def test_what_looks_like_a_number_stays_what_it_is(text: str) -> None:
    assert parse(f"key: {text}") == {"key": 12 if text == "12" else text}


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
    assert "graph.alhpa: unknown key; valid here: level, scope, group_patches" in text
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


def test_window_and_stride_must_fit_together(tmp_path: Path, tree: dict) -> None:
    tree["extract"]["train"].update(window=100, stride=200)
    with pytest.raises(InputError, match=r"extract.train: stride \(200\) must not exceed window"):
        load(tmp_path, tree)
    tree["extract"]["train"].update(stride=None)
    with pytest.raises(InputError, match="window and stride are set together or both null"):
        load(tmp_path, tree)


@pytest.mark.parametrize(
    ("start", "key", "value", "text"),
    [
        ("kmeans", "width", 192, "set head.width to null"),
        *(
            (start, key, True, "set head.level_norm and head.orthogonal to false")
            for start in ("kmeans", "discriminant")
            for key in ("level_norm", "orthogonal")
        ),
    ],
)
def test_a_start_from_kmeans_needs_a_head_that_fits(
    tmp_path: Path, tree: dict, start: str, key: str, value: object, text: str
) -> None:
    tree["train"]["start"] = start
    tree["head"][key] = value
    with pytest.raises(InputError, match=rf"  train.start: .*{text}.* random$"):
        load(tmp_path, tree)
    tree["train"]["start"] = "random"
    assert getattr(load(tmp_path, tree).head, key) == value


def test_discriminants_may_be_fewer_than_channels(tmp_path: Path, tree: dict) -> None:
    tree["train"]["start"] = "discriminant"
    tree["head"]["width"] = 192
    assert load(tmp_path, tree).head.width == 192


def test_levels_of_the_context_are_stored_ones_with_a_weight(tmp_path: Path, tree: dict) -> None:
    tree["backbones"]["demo"]["context"] = {"late": 0.0, "context": 1.0}
    with pytest.raises(InputError) as caught:
        load(tmp_path, tree)
    text = str(caught.value)
    assert "backbones.demo.context" in text and "greater than 0, found 0.0" in text
    assert "found 'context'" in text


def test_neighbours_in_other_images_need_the_whole_split(tmp_path: Path, tree: dict) -> None:
    tree["graph"]["other_images"] = True
    with pytest.raises(InputError, match=r"graph: other_images needs scope dataset"):
        load(tmp_path, tree)
    tree["graph"].update(scope="dataset", k=32)
    assert load(tmp_path, tree).graph.other_images


def test_paths_may_hold_environment_variables(
    tmp_path: Path, tree: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["datasets"]["scenes"]["root"] = "$SOME_FOLDER/camvid"
    tree["backbones"]["demo"]["weights"] = "${SOME_FOLDER}/vit.safetensors"
    monkeypatch.setenv("SOME_FOLDER", "/elsewhere")
    params = load(tmp_path, tree)
    assert params.data.root == "/elsewhere/camvid"
    assert params.vit.weights == "/elsewhere/vit.safetensors"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(InputError, match=r"SOME_FOLDER/camvid names an environment variable"):
        load(tmp_path, tree)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "seed", -1),
        (None, "seed", 2**32),
        ("graph", "seed", -1),
        ("train", "lr", 1e6),
        ("train", "lr", float("inf")),
        ("train", "beta", float("nan")),
        ("graph", "alpha", float("inf")),
    ],
)
def test_numbers_that_cannot_work_are_refused(
    tmp_path: Path, tree: dict, section: str | None, key: str, value: float
) -> None:
    (tree[section] if section else tree)[key] = value
    name = f"{section}.{key}" if section else key
    with pytest.raises(InputError, match=rf"  {name}: Input should be .*, found"):
        load(tmp_path, tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\nseed: 1\n", "found twice: seed"),
        ("graph: {k: 1, alpha: 0.1, k: 2}\n", "found twice: k"),
        ("a: " + "[" * 20000, "nested too deeply|not valid YAML"),
        ("a: {b: [1, {c: 2, c: 3}]}", "found twice: c"),
    ],
)
def test_files_that_say_two_things_or_too_much(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_params(tmp_path / "params.yaml")


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing: run the command in the project's folder"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


def leaves(tree: object, key: str = "") -> dict[str, object]:
    """Dotted keys of the file and their values; the names of entries become <name>."""
    if not isinstance(tree, dict):
        return {key: tree}
    found: dict[str, object] = {}
    for name, value in tree.items():
        if key == "backbones.<name>.context":
            return {key: tree}
        name = "<name>" if key in ("datasets", "backbones", "protocols") else name
        found |= leaves(value, f"{key}.{name}" if key else name)
    return found


def test_every_parameter_is_documented_with_its_default(tree: dict) -> None:
    """The reference page, which is made of params.yaml and of the schema."""
    keys = [*commented((REPOSITORY / "params.yaml").read_text()), *described()]
    documented = {key.name: key for key in keys}
    shipped = leaves(tree)
    assert set(shipped) <= set(documented)
    optional = set(documented) - set(shipped)  # keys of an entry that the shipped ones leave out
    assert all(
        "<name>" in key and is_parameter(key.replace("<name>", "scenes")) for key in optional
    )
    for name, key in documented.items():
        assert len(key.meaning) > 2, f"{name} needs a comment"
        if "<name>" not in name:
            assert yaml.safe_load(key.default) == shipped[name], name
    text = page((REPOSITORY / "params.yaml").read_text())
    assert "| `graph.scope` | `group` | `group`, `dataset`, `batch` | " in text
    assert "| `clusters` | `64` | integer from 2 to 65536 | " in text
