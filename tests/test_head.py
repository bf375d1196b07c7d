from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.features.whitening import unit_rows
from pipeline.head.head import Head, initialise, linear_attention
from pipeline.head.kmeans import centres
from pipeline.head.start import start_at


def made_head(seed: int = 0, clusters: int = 12, width: int | None = None) -> Head:
    head = Head([8, 4, 12], clusters, width, 2, 8, 20, level_norm=True)
    initialise(head, torch.Generator().manual_seed(seed))
    return head


def random_tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))


def gram_error(head: Head) -> float:
    weight = head.last.weight.detach()
    small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return float((small - torch.eye(len(small))).abs().max())


def test_linear_attention_is_the_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 7, 4, generator=generator, dtype=torch.float64)
    out = linear_attention(q, k, v)
    for head in range(2):
        queries = [[math.exp(x) for x in row] for row in q[head].tolist()]
        keys = [[math.exp(x) for x in row] for row in k[head].tolist()]
        for i in range(7):
            for d in range(4):
                expected = 0.0
                for j in range(7):
                    for c in range(4):
                        key = keys[j][c] / sum(keys[m][c] for m in range(7))
                        query = queries[i][c] / sum(queries[i]) / math.sqrt(4)
                        expected += query * key * float(v[head, j, d])
                assert float(out[head, i, d]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("width", [None, 16])
def test_the_head_is_its_description(width: int | None) -> None:
    head = made_head(width=width)
    for parameter in head.parameters():  # biases and norms away from their initial 0 and 1
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    p = {name: value.detach() for name, value in head.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        unit = centred / (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        return unit * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    tokens = random_tokens(9)
    levels = [tokens[:, :8], tokens[:, 8:12], tokens[:, 12:]]
    x = torch.cat([norm(level, f"level_norms.{i}") for i, level in enumerate(levels)], dim=1)
    if width:
        x = linear(x, "projection")
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm_attention"), f"{block}.qkv").chunk(3, dim=1)
        heads = [
            linear_attention(*qkv) for qkv in zip(*(m.split(8, 1) for m in (q, k, v)), strict=True)
        ]
        x = x + linear(torch.cat(heads, dim=1), f"{block}.out")
        hidden = linear(norm(x, f"{block}.norm_mlp"), f"{block}.mlp.0")
        x = x + linear(torch.nn.functional.gelu(hidden), f"{block}.mlp.2")
    torch.testing.assert_close(head.features(tokens, [9]), norm(x, "norm"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [None, 16])
def test_shapes(width: int | None) -> None:
    head = made_head(width=width)
    features, logits = head(random_tokens(30), [10, 10, 10])
    assert features.shape == (30, width or 24)
    assert logits.shape == (30, 12)
    assert features.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(head.features(random_tokens(30), [10, 10, 10]), features)
    torch.testing.assert_close(features @ head.last.weight.T, logits)
    # The paper's 3C has no projection; features leave a LayerNorm that is still the identity.
    assert (sum("projection" in name for name, _ in head.named_parameters()) == 0) == (not width)
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(30), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[9, 4, 1, 16], [10, 10, 10]])
def test_tiles_do_not_see_each_other(sizes: list[int]) -> None:
    head = made_head()
    for block in head.blocks:  # attention far from its faint initial state
        torch.nn.init.normal_(block.qkv.weight)
        torch.nn.init.normal_(block.out.weight)
    tokens = random_tokens(sum(sizes))
    together = head(tokens, sizes)[1]
    alone = [head(tile, [len(tile)])[1] for tile in tokens.split(sizes)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    as_one = head(tokens, [sum(sizes)])[1]
    assert (as_one - together).abs().max() > 1e-2


def test_patches_of_a_tile_see_each_other_and_order_does_not_count() -> None:
    head = made_head()
    tokens = random_tokens(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(tokens[order], [12])[1], head(tokens, [12])[1][order])
    changed = torch.cat([tokens[:-1], -tokens[-1:]])
    assert not torch.equal(head(changed, [12])[1][0], head(tokens, [12])[1][0])


def test_level_norm_makes_levels_indifferent_to_scale() -> None:
    tokens = random_tokens(10)
    scaled = tokens * torch.cat([torch.full((8,), 50.0), torch.ones(16)])
    head = made_head()
    torch.testing.assert_close(head(scaled, [10])[1], head(tokens, [10])[1], atol=1e-3, rtol=1e-3)
    plain = Head([8, 4, 12], 12, None, 2, 8, 20, level_norm=False)
    initialise(plain, torch.Generator().manual_seed(0))
    assert (plain(scaled, [10])[1] - plain(tokens, [10])[1]).abs().max() > 0.1


@pytest.mark.parametrize("clusters", [12, 24, 40])  # below, at and above the width of 24
def test_the_last_layer_stays_orthogonal(clusters: int) -> None:
    head = made_head(clusters=clusters)
    assert gram_error(head) < 1e-5
    start = head.last.weight.detach().clone()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    target = random_tokens(20, seed=5)[:, :1]
    for _ in range(30):
        optimiser.zero_grad()
        (head(random_tokens(20), [20])[1] - target).square().mean().backward()
        optimiser.step()
    assert (head.last.weight - start).abs().max() > 0.1
    assert gram_error(head) < 1e-4


@pytest.mark.parametrize("clusters", [12, 40])
def test_state_survives_saving(clusters: int) -> None:
    head = made_head(clusters=clusters)
    with torch.no_grad():
        head.last.parametrizations.weight.original.add_(0.1)  # away from its base point
    loaded = Head([8, 4, 12], clusters, None, 2, 8, 20, level_norm=True)
    loaded.load_state_dict(head.state_dict())
    assert torch.equal(loaded(random_tokens(9), [9])[1], head(random_tokens(9), [9])[1])


@pytest.mark.parametrize("clusters", [12, 24, 40])
def test_the_generator_alone_decides_the_head(clusters: int) -> None:
    torch.manual_seed(1)
    first = made_head(seed=7, clusters=clusters)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = Head([8, 4, 12], clusters, None, 2, 8, 20, level_norm=True)
    after_building = torch.get_rng_state()
    initialise(second, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), after_building)
    assert not torch.equal(state, after_building)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = made_head(seed=8, clusters=clusters)
    assert not torch.equal(first.last.weight, other.last.weight)


def free_head(clusters: int = 6, channels: int = 24) -> Head:
    head = Head([channels], clusters, None, 2, 8, 20, level_norm=False, orthogonal=False)
    initialise(head, torch.Generator().manual_seed(0))
    return head


def test_a_free_last_layer_is_a_plain_one() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    head = free_head(clusters=40)
    torch.manual_seed(1)
    other = free_head(clusters=40)
    assert "last.weight" in head.state_dict() and torch.equal(head.last.weight, other.last.weight)
    assert float(head.last.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert gram_error(head) > 0.9
    torch.set_rng_state(state)
    initialise(head, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(head.last.weight, other.last.weight)


def unit_tokens(channels: int, centred: bool) -> np.ndarray:
    """Unit rows around eight centres, as K-means gets them; centred: without mean each."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, channels)).repeat(20, axis=0)
    rows += 0.3 * rng.normal(size=rows.shape)
    return unit_rows((rows - centred * rows.mean(axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("scale", [20.0, 5.0])
def test_a_head_starts_as_spherical_kmeans(scale: float) -> None:
    rows = unit_tokens(24, centred=True)
    found = centres(rows, 6, spherical=True, seed=0, gpu=False)
    head = free_head()
    before = head(torch.from_numpy(rows), [100, 60])[1]
    start_at(head, found, scale)
    features, logits = head(torch.from_numpy(rows), [100, 60])
    cosines = rows @ found.T
    np.testing.assert_allclose(logits.detach().numpy(), scale * cosines, atol=1e-3 * scale)
    assert np.array_equal(logits.argmax(dim=1).numpy(), cosines.argmax(axis=1))
    assert (before - logits).abs().max() > 1
    assert torch.equal(features, head.norm(torch.from_numpy(rows)))  # blocks pass tokens on
    logits.square().mean().backward()
    for block in head.blocks:  # but learn from the first step on
        assert block.out.weight.grad.abs().max() > 0
        assert block.mlp[-1].weight.grad.abs().max() > 0


def test_the_mean_of_a_token_over_many_channels_is_next_to_nothing() -> None:
    rows = unit_tokens(512, centred=False)
    found = centres(rows, 6, spherical=True, seed=0, gpu=False)
    head = free_head(channels=512)
    start_at(head, found, 20.0)
    logits = head(torch.from_numpy(rows), [160])[1].detach().numpy()
    np.testing.assert_allclose(logits, 20 * rows @ found.T, atol=0.5)
    assert np.array_equal(logits.argmax(axis=1), (rows @ found.T).argmax(axis=1))


@pytest.mark.parametrize(
    "choices", [{"width": 16}, {"level_norm": True}, {"orthogonal": True}], ids=str
)
def test_a_head_that_changes_its_tokens_cannot_start_from_kmeans(choices: dict) -> None:
    settings = {"width": None, "level_norm": False, "orthogonal": False, **choices}
    head = Head([24], 6, depth=1, head_dim=8, mlp_hidden=20, **settings)
    text = r"must take its tokens unchanged, or .* found another projection, norms of levels or"
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        start_at(head, np.eye(6, head.width, dtype=np.float32), 20.0)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_initial_values() -> None:
    head = Head([96, 96, 96], 32, None, 1, 32, 64, level_norm=False)
    initialise(head, torch.Generator().manual_seed(0))
    weight = head.blocks[0].qkv.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    for name, value in head.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name


def test_width_must_be_a_multiple_of_head_dim() -> None:
    text = r"found width 100 and 64 channels"
    with pytest.raises(ValueError, match=text):
        Head([384, 384], 16, 100, 2, 64, 32, level_norm=True)
    with pytest.raises(ValueError, match="found width 24 and 64 channels"):
        Head([8, 16], 16, None, 2, 64, 32, level_norm=True)


def test_padded_attention_is_that_of_each_tile() -> None:
    block, sizes = made_head().blocks[0], [9, 4, 1, 16]
    qkv = torch.randn(30, 3 * 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = [way(qkv, sizes) for way in (block._attend, block._attend_padded)]
    torch.testing.assert_close(found[1], found[0])
    gradients = [torch.autograd.grad(values.square().sum(), qkv)[0] for values in found]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].abs().max() > 0.01


@pytest.mark.parametrize(("shape", "sizes"), [((10, 23), [10]), ((10, 24), [5, 4])])
def test_tokens_must_fit(shape: tuple[int, int], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"tokens must be .* levels of \[8, 4, 12\] channels"):
        made_head()(torch.zeros(shape), sizes)


def test_the_programs_head_has_its_parameters_and_no_others() -> None:
    channels, width, inner, hidden, clusters = [384] * 3, 1152, 18 * 64, 576, 256
    program = {"heads": 18, "qkv_bias": False, "last_bias": True, "orthogonal": False}
    block = 2 * 2 * width + width * 3 * inner + inner * width + width
    block += width * hidden + hidden + hidden * width + width
    expected = 2 * block + 2 * width + width * clusters + clusters
    head = Head(channels, clusters, None, 2, 64, hidden, False, **program)
    assert sum(p.numel() for p in head.parameters()) == expected
    # ViT-B: 3C = 2304 channels, and the heads are still 18 of 64.
    wide = Head([768] * 3, clusters, None, 2, 64, hidden, False, **program)
    assert wide.blocks[0].qkv.weight.shape == (3 * 1152, 2304)
    assert wide.blocks[0].out.weight.shape == (2304, 1152)
    names = {name for name, _ in head.named_parameters()}
    assert "last.bias" in names and not any("qkv.bias" in name for name in names)


def test_heads_of_any_number_attend_and_biases_begin_at_zero() -> None:
    head = Head([8, 4, 12], 6, None, 2, 8, 20, False, heads=5, qkv_bias=False, last_bias=True)
    initialise(head, torch.Generator().manual_seed(0))
    assert head.last.bias is not None and not head.last.bias.any()
    torch.nn.init.normal_(head.last.bias)
    tokens = random_tokens(30)
    features, logits = head(tokens, [10, 8, 12])
    assert features.shape == (30, 24)
    torch.testing.assert_close(features @ head.last.weight.T + head.last.bias, logits)
    x, block = tokens[:10], head.blocks[0]
    q, k, v = (block.norm_attention(x) @ block.qkv.weight.T).chunk(3, dim=1)
    parts = zip(*(m.split(8, 1) for m in (q, k, v)), strict=True)
    wanted = x + block.out(torch.cat([linear_attention(*qkv) for qkv in parts], dim=1))
    torch.testing.assert_close(block.attention(tokens, [10, 8, 12])[:10], wanted)
    Head([100], 6, None, 1, 64, 20, False, heads=3)  # the width is no multiple of 64
