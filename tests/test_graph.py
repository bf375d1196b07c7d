from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from pipeline.graph.kernel import (
    block_diagonal,
    feature_graph,
    kernel,
    kernel_on_device,
    normalise,
    pixel_edges,
    to_torch,
)
from pipeline.graph.knn import nearest


def random_features(seed: int, n: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def as_dense(edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    indptr, indices = edges
    dense = np.zeros((len(indptr) - 1, len(indptr) - 1))
    for row in range(len(dense)):
        dense[row, indices[indptr[row] : indptr[row + 1]]] += 1
    return dense


def dense_pixel_graph(rgb, height, width, settings) -> np.ndarray:
    n = height * width
    union = np.zeros((n, n), dtype=bool)
    for k, weight in settings:
        points = []
        for row in range(height):
            for column in range(width):
                x = column / max(width - 1, 1)
                y = row / max(height - 1, 1)
                points.append([*rgb[row * width + column], weight * x, weight * y])
        gap = np.linalg.norm(np.array(points)[:, None] - np.array(points)[None], axis=2)
        np.fill_diagonal(gap, np.inf)
        for u in range(n):
            union[u, np.argsort(gap[u])[:k]] = True
    return (union | union.T).astype(float)


def dense_normalised(graph: np.ndarray) -> np.ndarray:
    degrees = graph.sum(axis=1)
    root = np.array([0 if d == 0 else d**-0.5 for d in degrees])
    return np.diag(root) @ graph @ np.diag(root)


def test_feature_graph_is_eq_2() -> None:
    features = random_features(0, 60)
    k = 40  # reaches dissimilar patches, so some cosines are negative
    indices, similarities = nearest(features, k)
    assert (similarities < 0).any()
    dense = np.zeros((60, 60))
    for u in range(60):
        for v in indices[u]:
            dense[u, v] = max(0, features[u] @ features[v])
    graph = feature_graph(indices, similarities)
    assert graph.dtype == np.float32
    assert graph.indices.dtype == np.int32
    assert graph.has_canonical_format
    assert (graph.data > 0).all()
    np.testing.assert_allclose(graph.toarray(), (dense + dense.T) / 2, atol=1e-6)


def test_feature_graph_drops_missing_neighbours() -> None:
    indices = np.array([[1, -1], [0, 2], [1, 0]], dtype=np.int32)
    similarities = np.array([[0.5, np.finfo(np.float32).min], [0.5, 1], [1, -0.2]], np.float32)
    expected = [[0, 0.5, 0], [0.5, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(feature_graph(indices, similarities).toarray(), expected)


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (12, 1)])
def test_pixel_edges_are_eq_3(shape: tuple[int, int]) -> None:
    height, width = shape
    rgb = np.random.default_rng(1).random((height * width, 3), dtype=np.float32)
    settings = [(4, 2.0), (3, 0.1)]
    indptr, indices = pixel_edges(rgb, height, width, settings)
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
    dense = as_dense((indptr, indices))
    np.testing.assert_array_equal(dense, dense_pixel_graph(rgb, height, width, settings))


def test_the_distance_weight_pulls_neighbours_together() -> None:
    rgb = np.random.default_rng(2).random((64, 3), dtype=np.float32)
    near = as_dense(pixel_edges(rgb, 8, 8, [(2, 1000.0)]))
    u, v = np.nonzero(near)
    assert (np.abs(u // 8 - v // 8) + np.abs(u % 8 - v % 8) <= 2).all()
    flat = as_dense(pixel_edges(np.ones_like(rgb), 8, 8, [(5, 0.0)]))  # 64 duplicates
    assert (flat.sum(axis=1) >= 5).all()
    assert np.trace(flat) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 2)])
def test_tiny_tiles_lower_k(height: int, width: int) -> None:
    n = height * width
    rgb = np.random.default_rng(3).random((n, 3), dtype=np.float32)
    dense = as_dense(pixel_edges(rgb, height, width, [(10, 2.0), (5, 0.1)]))
    np.testing.assert_array_equal(dense, np.ones((n, n)) - np.eye(n))


def test_pixel_edges_need_the_whole_grid() -> None:
    with pytest.raises(ValueError, match=r"\(12, 3\) for a 3 x 4 grid, found \(11, 3\)"):
        pixel_edges(np.zeros((11, 3), dtype=np.float32), 3, 4, [(2, 1.0)])


def test_block_diagonal_keeps_tiles_apart() -> None:
    rng = np.random.default_rng(4)
    tiles = [
        pixel_edges(rng.random((h * w, 3), dtype=np.float32), h, w, [(3, 1.0)])
        for h, w in [(3, 4), (1, 1), (5, 2)]
    ]
    joined = block_diagonal(tiles)
    assert joined.dtype == np.float32
    assert joined.indices.dtype == np.int32
    expected = np.zeros((23, 23))
    expected[:12, :12] = as_dense(tiles[0])
    expected[13:, 13:] = as_dense(tiles[2])
    np.testing.assert_array_equal(joined.toarray(), expected)


def test_normalise_matches_dense_and_leaves_isolated_nodes_empty() -> None:
    dense = np.random.default_rng(5).random((20, 20)) * (
        np.random.default_rng(6).random((20, 20)) < 0.3
    )
    dense = dense + dense.T
    dense[[2, 11]] = 0
    dense[:, [2, 11]] = 0
    graph = csr_array(dense.astype(np.float32))
    before = graph.data.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = normalise(graph)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.toarray(), dense_normalised(dense), atol=1e-6)
    assert not result.toarray()[2].any()
    np.testing.assert_array_equal(graph.data, before)
    assert np.linalg.eigvalsh(result.toarray()).max() == pytest.approx(1, abs=1e-5)


def test_kernel_is_eq_4() -> None:
    features = random_features(7, 30)
    graph = feature_graph(*nearest(features, 6))
    rgb = np.random.default_rng(8).random((30, 3), dtype=np.float32)
    pixels = block_diagonal([pixel_edges(rgb, 5, 6, [(4, 2.0), (2, 0.1)])])
    result = kernel(graph, pixels, 0.3)
    expected = dense_normalised(graph.toarray()) + 0.3 * dense_normalised(pixels.toarray())
    assert result.dtype == np.float32
    assert result.indices.dtype == np.int32
    np.testing.assert_allclose(result.toarray(), expected, atol=1e-6)
    np.testing.assert_array_equal(result.toarray(), result.toarray().T)


def test_kernel_refuses_graphs_of_different_patches() -> None:
    small, large = (csr_array((n, n), dtype=np.float32) for n in (4, 5))
    with pytest.raises(ValueError, match="must cover the same patches, found 4 and 5"):
        kernel(small, large, 0.3)


def test_to_torch_is_equal_and_silent() -> None:
    matrix = normalise(feature_graph(*nearest(random_features(9, 25), 5)))
    torch.set_warn_always(True)  # torch gives the beta notice once per process otherwise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = to_torch(matrix, "cpu")
    finally:
        torch.set_warn_always(False)
    assert tensor.layout == torch.sparse_csr
    vectors = torch.randn(25, 3, generator=torch.Generator().manual_seed(0))
    expected = matrix.toarray() @ vectors.numpy()
    np.testing.assert_allclose((tensor @ vectors).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_kernel_of_a_device_is_that_of_scipy(alpha: float) -> None:
    rng = np.random.default_rng(0)
    grids = [(5, 8), (6, 6)]
    sizes = [h * w for h, w in grids]
    indices, cosines = nearest(random_features(1, sum(sizes)), 60)
    indices[rng.random(indices.shape) < 0.2] = -1
    indices[7] = -1  # and nobody's neighbour: an isolated patch
    indices[indices == 7] = -1
    near = block_diagonal([
        pixel_edges(rng.random((h * w, 3)).astype(np.float32), h, w, [(4, 2.0), (3, 0.1)])
        for h, w in grids
    ])  # fmt: skip
    expected = kernel(feature_graph(indices, cosines), near, alpha)
    found = kernel_on_device(indices, cosines, near, alpha, "cpu")
    assert found.layout == torch.sparse_csr and found.col_indices().dtype == torch.int32
    np.testing.assert_allclose(found.to_dense().numpy(), expected.toarray(), rtol=2e-6)
    assert (cosines < 0).any() and np.abs(expected.toarray()).sum() > 10
