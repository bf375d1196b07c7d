"""The search over a whole data set: against brute force, and its way into graphs and batches."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from cache import search_index
from cache.features import Features
from cache.graphs import Graphs
from pipeline.features.whitening import unit_rows
from pipeline.graph import search as numerics
from pipeline.graph.kernel import feature_graph, inside
from pipeline.graph.knn import recall
from pipeline.graph.search import ExactTop, cell_count, choose_probes, empty_index, search
from stages import graph as stage
from stages.running.batches import open_source
from stages.settings.params import load
from tests.conftest import Project, kill_when, tree_bytes

K = 5


def clustered(n: int = 3000, seed: int = 0) -> np.ndarray:
    """Unit rows float32 (n, 16) around 40 directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 16))
    return unit_rows(centres[rng.integers(40, size=n)] + 0.4 * rng.normal(size=(n, 16))).astype(
        np.float32
    )


def ranges(n: int, width: int) -> np.ndarray:
    """Own ids of n patches, ``width`` of which make an image."""
    first = np.arange(n) // width * width
    return np.stack([first, first + width], axis=1)


def brute_force(rows: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    cosines = rows.astype(np.float64) @ rows.T
    ids = np.arange(len(rows))
    cosines[(ids >= own[:, :1]) & (ids < own[:, 1:])] = -np.inf
    return np.argsort(-cosines, axis=1)[:, :k]


def filled(rows: np.ndarray, cells: int, folder: Path):
    """An index of these rows, written in blocks of 700 and opened again."""
    blocks = ((i, rows[i : i + 700]) for i in range(0, len(rows), 700))
    search_index.write_index(folder, empty_index(rows, cells, 0), blocks)
    return search_index.open_index(folder)


@pytest.mark.parametrize("width", [1, 60], ids=["self", "image"])
def test_looking_into_all_cells_is_brute_force(tmp_path: Path, width: int) -> None:
    rows = clustered()
    own = ranges(len(rows), width)
    ids, cosines = search(filled(rows, 30, tmp_path), rows, own, K, probes=30)
    assert recall(ids, brute_force(rows, own, K)) > 0.999  # float16 may swap equals
    assert not ((ids >= own[:, :1]) & (ids < own[:, 1:])).any()
    assert (np.diff(cosines, axis=1) <= 0).all()
    exact = np.einsum("nkc,nc->nk", rows[ids], rows)
    np.testing.assert_allclose(cosines, exact, atol=2e-3)


def test_the_exact_neighbours_come_block_by_block() -> None:
    rows = clustered(900)
    picked = np.array([0, 13, 450, 899])
    own = ranges(900, 90)[picked]
    exact = ExactTop(rows[picked], own, K)
    for first in range(0, 900, 100):
        exact.add(first, rows[first : first + 100])
    expected = brute_force(rows, ranges(900, 90), K)[picked]
    assert np.array_equal(np.sort(exact.indices, axis=1), np.sort(expected, axis=1))


@pytest.mark.parametrize("width", [1, 60], ids=["self", "image"])
def test_the_probes_reach_the_recall_on_other_queries(tmp_path: Path, width: int) -> None:
    rows = clustered(8000)
    own = ranges(len(rows), width)
    index = filled(rows, cell_count(60_000), tmp_path)
    sample, others = np.arange(0, 8000, 20), np.arange(7, 8000, 20)
    exact = brute_force(rows, own, K)
    few, measured = choose_probes(index, rows[sample], own[sample], exact[sample], 0.9)
    assert 0.9 <= measured <= 1 and few < index.nlist
    held_out = recall(search(index, rows[others], own[others], K, few)[0], exact[others])
    assert abs(held_out - measured) < 0.05
    if few > 1:
        less = recall(search(index, rows[sample], own[sample], K, few // 2)[0], exact[sample])
        assert less < 0.9
    assert choose_probes(index, rows[sample], own[sample], exact[sample], 1.0)[0] == index.nlist


def test_duplicates_are_neighbours_and_self_is_not(tmp_path: Path) -> None:
    rows = np.repeat(clustered(20), 10, axis=0)
    own = ranges(200, 1)
    ids, _ = search(filled(rows, 1, tmp_path), rows, own, 9, probes=1)
    assert np.array_equal(np.sort(ids // 10, axis=1), np.tile(np.arange(200)[:, None] // 10, 9))
    assert (ids != np.arange(200)[:, None]).all()


def test_too_few_candidates_leave_no_neighbour(tmp_path: Path) -> None:
    rows = clustered(30)
    own = ranges(30, 28)
    ids, _ = search(filled(rows, 1, tmp_path), rows, own, K, probes=1)
    assert (np.sort(ids[:28], axis=1) == [-1, -1, -1, 28, 29]).all()


def test_an_index_larger_than_memory_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clustered()
    own, found = ranges(len(rows), 1), []
    for name, in_memory in (("whole", 1 << 30), ("pieces", 1000 * 32)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(search_index, "IN_MEMORY", in_memory)
        index = filled(rows, 30, tmp_path / name)
        found.append(search(index, rows, own, K, probes=4))
    assert (tmp_path / "pieces/lists.faiss").exists()
    assert not list((tmp_path / "pieces").glob("piece-*"))
    for whole, pieces in zip(*found, strict=True):
        assert np.array_equal(whole, pieces)


@pytest.fixture
def whole(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose graph is searched over the whole split, in several blocks."""
    monkeypatch.setattr(stage, "BLOCK_PATCHES", 100)
    project.set("graph.scope", "dataset")
    project.set("graph.k", 4)
    project.ok("prepare", "extract", "context")
    return project


@pytest.mark.parametrize("other", [False, True], ids=["all", "other images"])
def test_the_stage_finds_the_neighbours_of_the_whole_split(whole: Project, other: bool) -> None:
    whole.set("graph.other_images", other)
    result = whole.run("graph")
    assert result.exit_code == 0, result.output
    # The index holds float16: two neighbours as near as it tells apart may change places.
    assert re.search(r"recall (0\.99[5-9]|1\.000) on a sample", result.output), result.output
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    tiles = cache.tiles_of("train")
    rows = unit_rows(cache.batch(["context"], tiles).astype(np.float32))
    expected = brute_force(rows, ranges(len(rows), 48 if other else 1), 4)
    with Graphs("data/graph.h5") as graphs:
        assert graphs.manifest["measured"] > 0.99 and graphs.manifest["cells"] == 1
        for group in range(graphs.manifest["groups"]):
            ids, neighbours, firsts = graphs.group(0, group)
            for tile, first in zip(ids, firsts, strict=True):
                assert first == 48 * list(tiles).index(tile)
            own = np.concatenate([np.arange(first, first + 48) for first in firsts])
            assert recall(neighbours.indices, expected[own]) > 0.99


def test_a_batch_has_the_edges_that_stay_inside(whole: Project) -> None:
    whole.ok("graph")
    params = load()
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    with Graphs("data/graph.h5") as graphs:
        (ids, (indices_, cosines), firsts) = graphs.group(0, 0)
        runs = [(int(first), 48) for first in firsts]
        batch = open_source(cache, graphs, params.head.levels, 0.05, 0, gpu=False).load((0, 0))
    own = np.concatenate([np.arange(first, first + 48) for first in firsts])
    dense = np.zeros((len(own), len(own)))
    place = {int(patch): row for row, patch in enumerate(own)}
    for row, (neighbours, weights) in enumerate(zip(indices_, cosines, strict=True)):
        for patch, weight in zip(neighbours.tolist(), weights, strict=True):
            if patch in place:
                dense[row, place[patch]] = max(weight, 0)
    found = feature_graph(inside(indices_, runs), cosines).toarray()
    np.testing.assert_allclose(found, (dense + dense.T) / 2, atol=1e-6)
    assert batch.kappa.shape == (len(own), len(own)) and batch.sizes == [48] * len(ids)


def test_groups_follow_the_edges(whole: Project) -> None:
    whole.ok("graph")
    tiles = Features.open("data/features.zarr").tiles_of("train")
    with Graphs("data/graph.h5") as graphs:
        for round_ in range(2):
            ids = [graphs.group(round_, g).tiles for g in range(graphs.manifest["groups"])]
            assert sorted(np.concatenate(ids)) == sorted(tiles)
        assert 0 < graphs.manifest["edges_seen"] <= 1
    whole.ok("train", "segment", "eval")


def test_a_killed_search_goes_on_and_ends_the_same(whole: Project) -> None:
    whole.ok("graph")
    expected = tree_bytes(Path("data/graph.h5"))
    Path("data/graph.h5").unlink()
    blocks = "s.BLOCK_PATCHES = 100"
    kill_when("graph", "*/part-neighbours-*.h5", 1, "write_neighbours", blocks)
    result = whole.run("graph")
    assert result.exit_code == 0 and "resumed" in result.output, result.output
    assert tree_bytes(Path("data/graph.h5")) == expected


def test_threads_write_the_same_bytes(whole: Project) -> None:
    whole.set("compute.threads", 1)
    whole.ok("graph")
    expected = tree_bytes(Path("data/graph.h5"))
    whole.set("compute.scheduler", "threads")
    whole.ok("graph")
    assert tree_bytes(Path("data/graph.h5")) == expected


def test_a_damaged_index_is_made_anew(whole: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole.ok("graph")
    expected = tree_bytes(Path("data/graph.h5"))
    Path("data/graph.h5").unlink()

    def stop(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "fill_neighbours", stop)
        whole.fails("graph", "stopped")
    (index,) = Path("data/.work").glob("graph.h5-*/index.faiss")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    calls = []
    build = stage.build_index
    monkeypatch.setattr(stage, "build_index", lambda *given: calls.append(1) or build(*given))
    whole.ok("graph")
    assert calls == [1]
    assert tree_bytes(Path("data/graph.h5")) == expected


def test_a_gpu_that_cannot_search_so_many_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        """An index that is no IndexIVF, as FAISS's copies on a GPU are."""

    rows = clustered(10)
    with pytest.raises(ValueError, match=r"at most 2048 neighbours at once, found 3005"):
        search(OnGpu(), rows, ranges(10, 3000), K, probes=1)  # type: ignore[arg-type]


class Faked:
    """An index that is no IndexIVF, as FAISS's copies on a GPU are; it tells overlapping calls."""

    def __init__(self, index: faiss.IndexIVF) -> None:
        self.index, self.busy, self.overlapped, self.searched = index, 0, False, 0

    def search(self, *arguments: Any, **options: Any) -> Any:
        self.busy += 1
        self.searched += 1
        self.overlapped |= self.busy > 1
        time.sleep(0.02)
        found = self.index.search(*arguments, **options)
        self.busy -= 1
        return found


def test_threads_search_an_index_on_a_gpu_one_at_a_time() -> None:
    rows = clustered(200)
    index = empty_index(rows, 4, 0)
    index.add_with_ids(rows, np.arange(200))
    expected = search(index, rows, ranges(200, 1), K, probes=4)
    on_gpu: Any = Faked(index)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(search, on_gpu, rows, ranges(200, 1), K, 4) for _ in range(6)]
        for call in calls:
            np.testing.assert_array_equal(call.result()[0], expected[0])
    assert on_gpu.searched == 6 and not on_gpu.overlapped


def test_more_cells_than_a_gpu_looks_into_are_searched_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index: Any = "index"
    assert numerics.to_gpu(index, 1) == "index"
    monkeypatch.setattr(numerics, "gpu_count", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda *_: "on the GPU", raising=False)
    assert numerics.to_gpu(index, 2048) == "on the GPU"
    assert cell_count(1_100_000) > 2048  # what a recall of 1 looks into
    assert numerics.to_gpu(index, cell_count(1_100_000)) == "index"
