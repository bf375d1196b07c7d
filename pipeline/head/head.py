"""The head psi: a small transformer from cached tokens to cluster logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pad_sequence

INIT_STD = 0.02


class Head(nn.Module):
    """Eigenfunctions psi: patches attend to the patches of their own tile, logits have K columns.

    Parameters come from torch's global generator until `initialise` draws them.

    Args:
        channels: of each cached level, in the order in which the tokens hold them.
        clusters: K.
        width: channels of the blocks. None takes sum(channels), the paper's 3C; a number adds a
            linear projection to it.
        depth: blocks.
        head_dim: channels per attention head.
        mlp_hidden: hidden units of the MLP.
        level_norm: give every level its own LayerNorm first.
        orthogonal: constrain the rows of the last layer's weight to be orthonormal (the paper).
        heads: attention heads of a block; None = as many as fill the width.
        qkv_bias: give queries, keys and values a bias (the program: none).
        last_bias: give the logits a bias (the program: one).

    Raises:
        ValueError: the width is not a multiple of ``head_dim`` where the heads shall fill it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        clusters: int,
        width: int | None,
        depth: int,
        head_dim: int,
        mlp_hidden: int,
        level_norm: bool,
        orthogonal: bool = True,
        heads: int | None = None,
        qkv_bias: bool = True,
        last_bias: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.clusters = list(channels), clusters
        total = sum(self.channels)
        self.width = total if width is None else width
        if heads is None and self.width % head_dim:
            raise ValueError(
                f"the head's width must be a multiple of its attention heads' channels, found "
                f"width {self.width} and {head_dim} channels (all levels have {total} together)"
            )
        self.level_norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels if level_norm)
        self.projection = nn.Identity() if width is None else nn.Linear(total, self.width)
        inner = self.width if heads is None else heads * head_dim
        self.blocks = nn.ModuleList(
            Block(self.width, head_dim, inner, mlp_hidden, qkv_bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(self.width)
        # Cayley is 6 to 17 times faster than the other two maps at widths 384 and 1152, and as
        # exact. Without a bias of its own it still has that of the final LayerNorm.
        self.last = nn.Linear(self.width, clusters, bias=last_bias)
        if orthogonal:
            parametrizations.orthogonal(self.last, orthogonal_map="cayley")

    def features(self, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Compute the features ``(N, width)`` after the final LayerNorm, before the linear layer.

        Args:
            tokens: float32 ``(N, sum of channels)``, tile after tile.
            sizes: patches of each tile.

        Raises:
            ValueError: the tokens' shape does not follow from the channels and the sizes.
        """
        expected = (sum(sizes), sum(self.channels))
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"tokens must be (patches, channels) = {expected} for {len(sizes)} tiles and "
                f"levels of {self.channels} channels, found {tuple(tokens.shape)}: "
                "give the levels and tiles that the head was built for"
            )
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, sizes)
        return self.norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Compute the blocks' input ``(N, width)``: the levels' LayerNorms, then the projection."""
        if not self.level_norms:
            return self.projection(tokens)
        levels = tokens.split(self.channels, dim=1)
        tokens = torch.cat([F.layer_norm(x, x.shape[1:]) for x in levels], dim=1)
        gain = torch.cat([norm.get_parameter("weight") for norm in self.level_norms])
        bias = torch.cat([norm.get_parameter("bias") for norm in self.level_norms])
        if isinstance(self.projection, nn.Identity):
            return tokens * gain + bias
        # The norms' gains and biases act through the projection's weight: the same function, and
        # nothing is differentiated with respect to the (N, 3C) tokens.
        weight = self.projection.weight
        return F.linear(tokens, weight * gain, self.projection.bias + weight @ bias)

    def forward(self, tokens: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Compute features ``(N, width)`` and logits ``(N, K)``; arguments as of `features`."""
        features = self.features(tokens, sizes)
        return features, self.last(features)


class Block(nn.Module):
    """Pre-norm transformer block: linear attention within each tile, then an MLP.

    Args:
        inner: channels of all attention heads together.
    """

    def __init__(
        self, width: int, head_dim: int, inner: int, mlp_hidden: int, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=qkv_bias)
        self.out = nn.Linear(inner, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_hidden), nn.GELU(), nn.Linear(mlp_hidden, width)
        )

    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Map x ``(N, width)``, tile after tile of so many patches, to the same shape."""
        x = self.attention(x, sizes)
        return x + self.mlp(self.norm_mlp(x))

    def attention(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Compute the first half of the block: ``(N, width)``."""
        return x + self.out(self._attend(self.qkv(self.norm_attention(x)), sizes))

    def _attend(self, qkv: Tensor, sizes: list[int]) -> Tensor:
        if len(set(sizes)) == 1:
            return self._attend_batch(qkv, sizes[0])
        if qkv.is_cuda:  # where a call costs more than the products of padding
            return self._attend_padded(qkv, sizes)
        return torch.cat([self._attend_batch(tile, len(tile)) for tile in qkv.split(sizes)])

    def _attend_padded(self, qkv: Tensor, sizes: list[int]) -> Tensor:
        """Attend in all tiles at once, padded to the largest; padding weighs nothing."""
        tiles = pad_sequence(qkv.split(sizes), batch_first=True)
        length = tiles.shape[1]
        counts = torch.tensor(sizes, device=qkv.device)
        absent = torch.arange(length, device=qkv.device) >= counts[:, None]
        inner = tiles.shape[2] // 3
        keys = tiles[..., inner : 2 * inner].masked_fill(absent[..., None], -torch.inf)
        tiles = torch.cat([tiles[..., :inner], keys, tiles[..., 2 * inner :]], dim=2)
        found = self._attend_batch(tiles.flatten(0, 1), length).unflatten(0, (-1, length))
        return torch.cat([tile[:size] for tile, size in zip(found, sizes, strict=True)])

    def _attend_batch(self, qkv: Tensor, length: int) -> Tensor:
        # (tiles * length, 3 * inner) -> q, k, v of (tiles, heads, length, head_dim) and back.
        shape = (len(qkv) // length, length, 3, -1, self.head_dim)
        q, k, v = qkv.reshape(shape).permute(2, 0, 3, 1, 4)
        return linear_attention(q, k, v).transpose(1, 2).reshape(len(qkv), -1)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in time linear in the patches: out = q' (k'^T v).

    q' is the softmax of q over its channels, scaled by head_dim^-1/2; k' the softmax of k over the
    patches. All arguments and the result: ``(..., patches, head_dim)``.
    """
    q = torch.softmax(q, dim=-1) * q.shape[-1] ** -0.5
    return q @ (torch.softmax(k, dim=-2).transpose(-2, -1) @ v)


def initialise(head: Head, generator: torch.Generator) -> None:
    """Draw the parameters of a head on the CPU: truncated normal weights (0.02), biases 0.

    A constrained last layer becomes orthogonal. The head follows from the CPU generator alone, not
    from torch's global one.
    """
    for module in head.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear) and module is not head.last:
            nn.init.trunc_normal_(module.weight, std=INIT_STD, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    weight = torch.empty_like(head.last.weight)
    nn.init.trunc_normal_(weight, std=INIT_STD, generator=generator)
    # Assigning completes the rows to a square basis with draws from the global generator.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        if parametrize.is_parametrized(head.last):
            head.last.weight = weight  # type: ignore[assignment]
        else:
            head.last.weight.copy_(weight)
