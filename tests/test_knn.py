from __future__ import annotations

import faiss
import numpy as np
import pytest

from pipeline.graph import knn
from pipeline.graph.knn import nearest, neighbour_count, not_self, recall, top_in_blocks


def unit_rows(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    rows = rng.normal(size=(n, c)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosine = features.astype(np.float64) @ features.astype(np.float64).T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1)[:, :k]
    return order, np.take_along_axis(cosine, order, axis=1)


def test_nearest_is_brute_force() -> None:
    features = unit_rows(np.random.default_rng(0), 200, 12)
    indices, similarities = nearest(features, 17)
    expected, cosines = brute_force(features, 17)
    assert indices.dtype == np.int32
    assert similarities.dtype == np.float32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, cosines, atol=1e-6)


def test_all_other_rows_can_be_neighbours() -> None:
    features = unit_rows(np.random.default_rng(1), 30, 5)
    indices, _ = nearest(features, 29)
    for row, found in enumerate(indices):
        assert set(found) == set(range(30)) - {row}


def test_duplicates_are_neighbours_but_self_never_is() -> None:
    distinct = unit_rows(np.random.default_rng(2), 10, 6)
    features = np.repeat(distinct, 8, axis=0)  # k + 1 = 4 < 8: self is crowded out of many rows
    indices, similarities = nearest(features, 3)
    rows = np.arange(80)[:, None]
    assert indices.shape == (80, 3)
    assert not (indices == rows).any()
    np.testing.assert_array_equal(indices // 8, np.broadcast_to(rows // 8, (80, 3)))
    np.testing.assert_allclose(similarities, 1, atol=1e-6)
    assert all(len(set(found)) == 3 for found in indices)


def test_not_self_keeps_k_wherever_self_stands() -> None:
    found = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [4, -1, -1]])
    masks = not_self(found, np.arange(5))
    kept = [row[mask].tolist() for row, mask in zip(found, masks, strict=True)]
    assert kept == [[1, 2], [0, 2], [0, 1], [0, 1], [-1, -1]]


def test_nearest_leaves_its_argument_alone() -> None:
    features = np.asfortranarray(unit_rows(np.random.default_rng(3), 20, 4))
    before = features.copy()
    first = nearest(features, 5)
    np.testing.assert_array_equal(features, before)
    np.testing.assert_array_equal(first[0], nearest(features, 5)[0])


@pytest.mark.parametrize("k", [10, 11, 256])
def test_k_must_be_below_n(k: int) -> None:
    text = rf"k = {k} for n = 10 patches"
    with pytest.raises(ValueError, match=text):
        nearest(unit_rows(np.random.default_rng(0), 10, 3), k)
    with pytest.raises(ValueError, match=text):
        neighbour_count(k, 10)


def test_non_finite_features_are_refused() -> None:
    features = unit_rows(np.random.default_rng(0), 10, 3)
    features[7, 1] = np.nan
    with pytest.raises(ValueError, match="must be finite, found NaN or infinity in row 7 of 10"):
        nearest(features, 2)


def test_unnormalised_features_are_refused() -> None:
    features = unit_rows(np.random.default_rng(0), 10, 3)
    features[4] *= 2
    with pytest.raises(ValueError, match="unit L2 norm, found norm 2 in row 4 of 10: divide"):
        nearest(features, 2)


def test_the_gpu_is_used_where_faiss_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def knn_gpu(resources, queries, base, k, metric):
        calls.append(k)
        return faiss.knn(queries, base, k, metric=metric)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    features = unit_rows(np.random.default_rng(0), 2100, 4)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    on_cpu = nearest(features, 5)
    assert calls == []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    on_gpu = nearest(features, 5)
    assert calls == [6]
    np.testing.assert_array_equal(on_cpu[0], on_gpu[0])
    nearest(features, 5, gpu=False)
    assert calls == [6]


def test_more_neighbours_than_faiss_finds_on_a_gpu_stay_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = unit_rows(np.random.default_rng(0), 2100, 4)
    expected = nearest(features, 2048, gpu=False)
    devices = []

    def on_cpu(queries, rows, k, device):
        devices.append(device)
        return top_in_blocks(queries, rows, k, "cpu")

    monkeypatch.setattr(knn, "top_in_blocks", on_cpu)
    monkeypatch.setattr(knn, "gpu_count", lambda: 1)
    monkeypatch.setattr(knn, "BLOCK_PRODUCTS", 2100 * 1000)  # three blocks
    indices, cosines = nearest(features, 2048)
    assert devices == ["cuda"]
    np.testing.assert_allclose(cosines, expected[1], atol=1e-6)
    same = indices == expected[0]  # float32 and float64 order nearly equal ones differently
    assert same.mean() > 0.99
    assert (indices != np.arange(2100)[:, None]).all()


def test_neighbour_count_takes_counts_and_fractions() -> None:
    assert neighbour_count(256, 14_400) == 256
    assert neighbour_count(0.018, 14_400) == 259
    assert neighbour_count(0.001, 20) == 1


@pytest.mark.parametrize("k", [0, -3, 0.0, 1.0, 256.0, True])
def test_neighbour_count_refuses(k: float) -> None:
    with pytest.raises(ValueError, match=rf"neighbours must be a count .* found {k!r}"):
        neighbour_count(k, 1000)


def test_recall_is_the_share_of_exact_neighbours() -> None:
    exact = np.array([[1, 2], [0, 2], [0, 1]])
    assert recall(exact[:, ::-1], exact) == 1
    assert recall(np.array([[1, 9], [8, 9], [1, 0]]), exact) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="found 2 rows for 3 exact ones"):
        recall(exact[:2], exact)
