"""A few labels: spreading, the classifier, what training may open, and what becomes of names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache import heads
from cache.features import TILE_FIELDS, Features
from cache.graphs import Graphs
from cache.index import read_index
from cache.names import Correction, Names, write_names
from cache.segments import SEMI_SUPERVISED, Segments
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import block_diagonal, kernel, to_torch
from pipeline.head import semi_supervised
from pipeline.head.semi_supervised import Rows
from pipeline.maps.patches import patch_labels
from stages.running import labelled
from stages.running.labelled import Patches, split_graphs
from stages.train import build_head
from tests.conftest import Project, metrics_of, tree_bytes

BEFORE = ("prepare", "extract", "context", "graph")


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1)


def ring(n: int) -> np.ndarray:
    """A dense symmetric graph, normalised: each node joined to the next."""
    return (np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1)) / 2


def test_votes_are_a_softmax_over_cosines() -> None:
    rows, voters, targets = unit(50, 8, seed=0), unit(20, 8, seed=1), torch.rand(20, 3)
    weights = np.exp((rows @ voters.T).double().numpy() / semi_supervised.TEMPERATURE)
    expected = weights @ targets.double().numpy()
    found = semi_supervised.votes(rows, Rows(voters, targets)).numpy()
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-3)


def test_spreading_ends_where_the_equation_has_its_solution() -> None:
    graph, share = ring(30), semi_supervised.SHARE
    seeds = np.zeros((30, 2))
    seeds[3, 0] = seeds[20, 1] = 1
    exact = np.linalg.solve(np.eye(30) - share * graph, (1 - share) * seeds)
    sparse = to_torch(_sparse(graph), "cpu")
    found = semi_supervised.spread(sparse, torch.from_numpy(seeds).float()).numpy()
    reached = exact.sum(1) > 1e-3
    shares = exact / exact.sum(1, keepdims=True)
    np.testing.assert_allclose(found[reached], shares[reached], atol=5e-3)
    alone = semi_supervised.spread(None, torch.from_numpy(seeds).float()).numpy()
    assert np.array_equal(alone, seeds)


def test_the_linear_head_is_at_the_minimum_of_its_loss() -> None:
    rows, targets = 3 * unit(200, 6, seed=2), torch.rand(200, 4)
    weight, bias = semi_supervised.fit_linear(rows, targets, penalty=0.01)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> float:
        fit = torch.log_softmax(rows @ weight.T + bias, dim=1)
        own = -(targets / targets.sum() * fit).sum() + 0.01 * weight.square().sum()
        return float(own)

    least = loss(weight, bias)
    for seed in range(5):
        step = 0.05 * unit(4, 6, seed=10 + seed)
        assert loss(weight + step, bias) > least and loss(weight - step, bias) > least


def test_labelled_patches_weigh_as_much_as_all_others() -> None:
    labelled_rows = Rows(unit(10, 12, seed=3), torch.eye(2)[torch.arange(10) % 2])
    others = Rows(unit(5000, 12, seed=4), torch.rand(5000, 2))
    found = semi_supervised.fit(labelled_rows, others, width=6, images=1)
    own = found.targets[:10].sum()
    certain = others.targets.amax(1).square()
    expected = 0.5 * (certain / certain.sum()) @ others.targets.sum(1)
    assert float(own) == pytest.approx(0.5)
    # Thinned voters keep the weight of all, up to the draw.
    assert float(found.targets[10:].sum()) == pytest.approx(float(expected), rel=0.05)
    assert len(found.rows) == 10 + semi_supervised.VOTERS


def test_where_most_patches_are_labelled_the_mass_of_classes_is_theirs() -> None:
    labelled_rows = Rows(unit(200, 12, seed=3), torch.eye(2)[torch.arange(200) % 2])
    edges = Rows(unit(20, 12, seed=5), torch.tensor([[0.02, 0.98]]).repeat(20, 1))
    found = semi_supervised.fit(labelled_rows, edges, width=6, images=9, share=200 / 220)
    flat = found._replace(log_mass=torch.zeros(2))
    mass = torch.softmax(flat.scores(labelled_rows.rows), dim=1).mean(0)
    expected = semi_supervised.MASS * torch.log(mass)
    torch.testing.assert_close(found.log_mass, expected)
    assert float(found.targets[:200].sum()) == pytest.approx(200 / 220)


def test_a_patch_has_the_most_frequent_value_of_its_pixels() -> None:
    label = np.full((40, 60), 255, np.uint8)
    label[:, :30], label[:20, 30:] = 1, 2
    tile = np.zeros(1, TILE_FIELDS)[0]
    for name, value in {"resized_h": 80, "resized_w": 120, "top": 0, "left": 40, "height": 80,
                        "width": 80, "grid_h": 4, "grid_w": 4}.items():  # fmt: skip
        tile[name] = value
    expected = np.array([[1, 2, 2, 2]] * 2 + [[1, 255, 255, 255]] * 2)
    assert np.array_equal(patch_labels(label, tile).reshape(4, 4), expected)
    tile["flip"] = True
    assert np.array_equal(patch_labels(label, tile).reshape(4, 4), expected[:, ::-1])


def open_patches(project: Project) -> Patches:
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    shape = {**project.tree["head"], "channels": [cache.channels("context")], "clusters": 6}
    head = build_head({key: value for key, value in shape.items() if key != "levels"}, seed=0)
    return Patches(cache, "train", head.eval(), ["context"])


def test_the_graph_of_the_split_has_the_nearest_neighbours_of_all_patches(project: Project) -> None:
    project.set("graph.scope", "dataset")
    project.set("graph.k", 4)
    project.set("graph.recall", 1.0)
    project.ok(*BEFORE)
    patches = open_patches(project)
    with Graphs("data/graph.h5") as graphs:
        ((numbers, graph),) = split_graphs(graphs, patches, 0.5)
        pixels = block_diagonal([graphs.pixel_graph(int(tile)) for tile in patches.tiles])
    found = graph.to_dense().numpy()
    assert np.array_equal(numbers, np.arange(patches.firsts[-1]))
    tokens = np.concatenate([patches.cache.tokens("context", tile) for tile in patches.tiles])
    cosines = unit_rows(tokens.astype(np.float32)) @ unit_rows(tokens.astype(np.float32)).T
    np.fill_diagonal(cosines, -2)
    directed = np.where(cosines >= np.sort(cosines, axis=1)[:, -4:-3], cosines, 0)
    expected = kernel(_sparse((directed + directed.T) / 2), pixels, 0.5).toarray() / 1.5
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(np.linalg.eigvalsh(found)).max() <= 1 + 1e-3


def test_groups_spread_alone_what_all_would_spread_together(project: Project) -> None:
    project.set("graph.group_patches", 60)
    project.ok(*BEFORE)
    patches = open_patches(project)
    n = int(patches.firsts[-1])
    seeds, found = torch.rand(n, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(n, 3)
    dense = np.zeros((n, n), np.float32)
    with Graphs("data/graph.h5") as graphs:
        for numbers, graph in split_graphs(graphs, patches, 0.5):
            found[numbers] = semi_supervised.spread(graph, seeds[numbers])
        assert graphs.manifest["groups"] > 1
        for number in range(graphs.manifest["groups"]):
            tiles, near, _ = graphs.group(0, number)
            places = [int(np.flatnonzero(patches.tiles == tile)[0]) for tile in tiles]
            own = np.concatenate([np.arange(*patches.firsts[p : p + 2]) for p in places])
            k = min(labelled.NEIGHBOURS, near.indices.shape[1])
            for row, columns, weights in zip(own, near.indices, near.cosines, strict=True):
                dense[row, own[columns[:k]]] = np.maximum(weights[:k], 0)
        joined = block_diagonal([graphs.pixel_graph(int(tile)) for tile in patches.tiles])
    whole = kernel(_sparse((dense + dense.T) / 2), joined, 0.5).toarray() / 1.5
    expected = semi_supervised.spread(torch.from_numpy(whole), seeds)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def _sparse(values: np.ndarray):  # type: ignore[no-untyped-def]
    from scipy.sparse import csr_array

    return csr_array(values.astype(np.float32))


def test_training_without_labels_opens_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.ok(*BEFORE)
    for name in ("read_label", "read_labels", "read_index", "read_names"):
        monkeypatch.setattr(labelled, name, lambda *_: pytest.fail("training opened labels"))
    Path("photos/labels").rename("elsewhere")
    Path("data/labels.csv").unlink()
    project.ok("train", "segment")
    _, fitted, manifest = heads.load_head("data/head")
    assert manifest["labelled"] is None and SEMI_SUPERVISED not in fitted
    result = project.run("predict", "photos/images/val", "--out", "out", "--predictor",
                         "semi_supervised")  # fmt: skip
    assert result.exit_code == 1 and "set train.labelled" in result.output


def test_two_labelled_images_teach_classes(project: Project) -> None:
    project.set("train.labelled", 2)
    project.ok(*BEFORE)
    for path in Path("photos/labels/val").iterdir():  # the scored labels are out of reach
        path.rename(path.with_suffix(".moved"))
    project.ok("train", "segment")
    for path in Path("photos/labels/val").iterdir():
        path.rename(path.with_suffix(".png"))
    project.ok("eval", "report")
    said = heads.load_head("data/head")[2]["labelled"]["said"]
    assert said == "the labels of 2 of 6 images of train, different"
    found = metrics_of()
    assert set(found[SEMI_SUPERVISED]) == {"k", "clusters_used", "direct"}
    score = found[SEMI_SUPERVISED]["direct"]["labels"]
    assert score["miou"] > found["ours"]["majority_iou"]["train"]["miou"]
    assert score["accuracy"] > 80
    page = Path("results/report/index.html").read_text()
    assert said in page and "learned from labels of train" in page
    classes = Path("photos/classes.txt").read_text().split()
    atlas = Path("results/report/clusters.html").read_text()
    assert json.dumps(classes)[1:-1] in atlas
    result = project.run("predict", "photos/images/val", "--out", "out")
    assert "classes of semi_supervised" in result.output
    with Segments("data/segments.h5") as maps:
        for row in (row for row in read_index("data/index.csv") if row.split == "val"):
            label = np.array(Image.open(f"out/labels/{row.stem}.png"))
            assert (label == maps.read(SEMI_SUPERVISED, row.id)).mean() > 0.99


def test_other_labels_teach_otherwise_and_leave_the_clusters_alone(project: Project) -> None:
    project.set("train.labelled", 1)
    project.set("train.choose", "random")
    project.ok(*BEFORE, "train")
    one = tree_bytes(Path("data/head"))
    project.ok("train")
    assert tree_bytes(Path("data/head")) == one
    project.set("train.labelled", "all")
    project.ok("train")
    every, manifest = tree_bytes(Path("data/head")), heads.load_head("data/head")[2]
    assert manifest["labelled"]["said"] == "the labels of 6 of 6 images of train"
    assert every["head.safetensors"] == one["head.safetensors"]
    assert every["kmeans.safetensors"] != one["kmeans.safetensors"]
    project.ok("segment", "eval")
    found = metrics_of()
    clusters = found["ours"]["majority_iou"]["train"]["miou"]
    assert found[SEMI_SUPERVISED]["direct"]["labels"]["miou"] > clusters


def test_names_are_labels_and_corrections_weigh_more(project: Project) -> None:
    project.ok(*BEFORE, "train", "segment", "eval")
    head = heads.load_head("data/head")[2]["fingerprint"]
    mapping = json.loads(Path("results/mapping.json").read_text())["datasets"]["tiny"]
    codes = np.array(mapping["clusters"]["ours"]["majority_count"])
    # A person's names come in another order than the labels' classes.
    order = np.roll(np.arange(len(mapping["classes"])), 1)
    classes = [mapping["classes"][i] for i in order]
    codes = np.where(codes < 0, codes, np.argsort(order)[codes])
    names = Names(head, classes, None, codes, {}, [], {})
    write_names("names.json", names)
    project.set("train.labelled", "names.json")
    project.ok("prepare", "train", "segment", "eval")
    named = metrics_of()
    clusters = named["ours"]["majority_count"]["train"]["accuracy"]
    assert named[SEMI_SUPERVISED]["direct"]["labels"]["accuracy"] > clusters - 3
    row = next(row for row in read_index("data/index.csv") if row.split == "train")
    cells = np.zeros((12, 16), bool)
    cells[:6] = True
    wrong = Correction(f"{row.split}/{row.stem}", row.sha256, cells, None, 3)
    write_names("names.json", names._replace(corrections=[wrong]))
    project.ok("prepare", "train", "segment")
    said = heads.load_head("data/head")[2]["labelled"]["said"]
    assert said.endswith(f"{np.count_nonzero(codes >= 0)} named clusters, 1 corrected regions")
    with Segments("data/segments.h5") as maps:
        found = maps.read(SEMI_SUPERVISED, row.id)
    assert (found[: found.shape[0] // 3] == 3).mean() > 0.5


def test_dvc_sees_that_a_file_of_names_has_changed(project: Project) -> None:
    Path("names.json").write_text("{}")
    project.set("train.labelled", "names.json")
    project.fails("prepare", "names.json is no file of names")
    names = Names("a1", ["a", "b"], None, np.array([0, 1]), {}, [], {})
    write_names("names.json", names)
    project.ok("prepare")
    former = Path("data/labels.csv").read_bytes()
    write_names("names.json", names._replace(codes=np.array([1, 0])))
    project.ok("prepare")
    assert Path("data/labels.csv").read_bytes() != former


@pytest.mark.parametrize(
    ("key", "value", "texts"),
    [
        ("train.labelled", "names.txt", ["train.labelled", "the names.json of an atlas"]),
        ("train.labelled", 0, ["train.labelled"]),
        ("train.choose", "best", ["train.choose"]),
        ("datasets.tiny.eval", "train", ["must not learn from the labels that are scored"]),
    ],
)
def test_labels_that_cannot_be_are_told_before_work(
    project: Project, key: str, value: object, texts: list[str]
) -> None:
    project.set("train.labelled", 2)
    project.set(key, value)
    project.fails("prepare", *texts)


def test_a_split_without_labels_or_with_one_class_is_told(project: Project) -> None:
    project.set("train.labelled", 2)
    project.ok(*BEFORE)
    for path in Path("photos/labels/train").iterdir():
        Image.fromarray(np.zeros((96, 128), np.uint8)).save(path)
    project.ok("prepare")
    project.fails("train", "must show two classes at least, found", "train.choose")
    Path("photos/labels/train").rename("elsewhere")
    project.ok("prepare")
    project.fails("train", "needs labels of split train, found none", "train.labelled to null")


def test_some_photos_of_the_training_split_may_lack_a_label(project: Project) -> None:
    Path("photos/labels/train/000.png").unlink()
    result = project.run("prepare")
    assert result.exit_code == 0 and "5 of 6 images have a label" in result.output
    Path("photos/labels/train/001.png").rename("photos/labels/train/001x.png")
    project.fails("prepare", "2 lack theirs", "001x")
