"""The segmenter: tokens of the tiles of an image -> scores -> label maps, for a trained head.

`segment` gives it cached tokens, `eigenseg.Segmenter` gives it those of the ViT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pipeline.features import context
from pipeline.geometry import Plan
from pipeline.head import kmeans, semi_supervised
from pipeline.head.head import Head
from pipeline.head.semi_supervised import NAME as SEMI_SUPERVISED
from pipeline.head.semi_supervised import Classifier
from pipeline.maps import crf
from pipeline.maps.merging import merge, merge_scores
from pipeline.maps.upsampling import at_grid

Level = int | str
Scores = dict[str, list[Tensor]]
"""By predictor, and of the ``eigenfunctions``: float32 ``(K, rows, columns)`` of each tile."""

LOGITS = ("ours", SEMI_SUPERVISED)  # predictors whose scores are logits
CONTEXT = "context"  # the level that is worked out from others
EIGENFUNCTIONS = 6  # logits that are kept as maps: the first ones


class Segmenter:
    """A trained head and its baselines.

    Attributes:
        head: the eigenfunctions.
        levels: cached levels that the head joins as its input.
        kmeans: both K-means: ``ours_kmeans`` on the head's features, ``kmeans`` on one level.
        used: all levels that the predictors look at.
        segment_of: for each predictor the segment of each of its clusters, int64 ``(K,)``; empty
            where every cluster is a segment.

    Args:
        manifest: of the head: ``head`` (``levels``, and the arguments of `Head`), ``kmeans`` (its
            ``level``), ``context`` (the levels that the level `context` is made of).
        state: the head's ``state_dict``.
        fitted: by name the fields of each `KMeans`, of ``context``, the mean features of the
            head's own clusters (``ours``), and perhaps those of a `Classifier`
            (``semi_supervised``).
        device: where the head computes.
        temperature: ``ours`` scores softmax(logits / temperature); None scores the logits.
        refiner: one of `crf.CRFS`; None is no CRF.
        merge_to: number of segments that the clusters of each predictor are merged to; None merges
            nothing.

    Raises:
        ValueError: there are fewer clusters than segments wanted.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        state: Mapping[str, Tensor],
        fitted: Mapping[str, Mapping[str, Any]],
        device: torch.device,
        *,
        temperature: float | None = None,
        refiner: crf.Refiner | None = None,
        merge_to: int | None = None,
    ) -> None:
        self.levels: list[Level] = manifest["head"]["levels"]
        self.head = _restored(manifest["head"], state).to(device)
        self.kmeans = {n: kmeans.KMeans(**fitted[n]) for n in ("ours_kmeans", "kmeans")}
        self.used = tuple(dict.fromkeys([*self.levels, manifest["kmeans"]["level"]]))
        self._kmeans_level: Level = manifest["kmeans"]["level"]
        self._around: list[Level] = manifest["context"]
        self._context = context.Context(**fitted["context"]) if "context" in fitted else None
        learned = fitted.get(SEMI_SUPERVISED, {})
        arrays = {name: torch.from_numpy(value).to(device) for name, value in learned.items()}
        self._classifier = Classifier(**arrays) if arrays else None
        self._device, self._temperature, self._refine = device, temperature, refiner
        names = () if merge_to is None else ("ours", *self.kmeans)
        self.segment_of = {n: merge(fitted[n]["centroids"], merge_to or 0) for n in names}

    def scores(self, tiles: Iterable[Mapping[Level, np.ndarray]], plan: Plan) -> Scores:
        """Score every patch of every tile with all predictors; higher is better.

        Clusters that are merged score as one segment, with the best of their scores.

        Args:
            tiles: of each tile of the plan, in its order, float16 ``(patches, C)`` by level, row
                after row of its grid. The level `context` is worked out where it is missing.

        Raises:
            ValueError: the tokens do not fit the head or the grids.
        """
        found: Scores = {}
        for tokens, grid in zip(tiles, plan.grids(), strict=True):
            for name, values in self._score(tokens, grid).items():
                found.setdefault(name, []).append(values.T.reshape(-1, *grid))
        for name, segment_of in self.segment_of.items():
            found[name] = [merge_scores(maps, segment_of) for maps in found[name]]
        return found

    @property
    def clusters(self) -> dict[str, int]:
        """The number of clusters, of the segments that they are merged to, or of classes."""
        own = {"ours": self.head.last.out_features}
        own |= {name: len(model.centroids) for name, model in self.kmeans.items()}
        if self._classifier:
            own[SEMI_SUPERVISED] = len(self._classifier.bias)
        return own | {name: int(ids.max()) + 1 for name, ids in self.segment_of.items()}

    @torch.inference_mode()
    def _score(
        self, tokens: Mapping[Level, np.ndarray], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the scores ``(patches, K)`` of one tile by predictor."""
        if CONTEXT in self.used and CONTEXT not in tokens and self._context:
            around = [tokens[level] for level in self._around]
            tokens = {**tokens, CONTEXT: context.apply(self._context, around, *grid, self._device)}
        joined = np.concatenate([tokens[level] for level in self.levels], axis=1)
        rows = torch.from_numpy(joined).to(self._device).float()
        features, logits = self.head(rows, [grid[0] * grid[1]])
        soft, learned = self._temperature, {}
        if self._classifier:
            learned[SEMI_SUPERVISED] = self._classifier.scores(
                semi_supervised.joined(rows, features)
            )
        plain = tokens[self._kmeans_level].astype(np.float32)
        return {
            "ours": logits if soft is None else torch.softmax(logits / soft, dim=1),
            "ours_kmeans": self._nearness("ours_kmeans", features.cpu().numpy()),
            "kmeans": self._nearness("kmeans", plain),
            **learned,
            "eigenfunctions": logits[:, :EIGENFUNCTIONS],
        }

    def _nearness(self, name: str, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(kmeans.scores(self.kmeans[name], tokens)).to(self._device)

    def label_map(
        self, scores: Scores, predictor: str, plan: Plan, image: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the cluster of every pixel, refined by the CRF if there is one.

        Args:
            image: the photo, uint8 ``(H, W, 3)``, that a CRF looks at; None leaves the CRF out.

        Returns:
            uint16 ``plan.size``.
        """
        temperature: float | None = crf.TEMPERATURE
        if predictor == SEMI_SUPERVISED:  # its scores are logarithms of probabilities
            temperature = 1.0
        if predictor in self.kmeans:  # Euclidean scores are minus squared distances, up to |x|^2
            temperature = None if self.kmeans[predictor].spherical else 1.0
        return crf.refined_map(
            plan, scores[predictor], image, self._refine, temperature=temperature
        )

    def confidence(self, scores: Scores, predictor: str, plan: Plan) -> Tensor:
        """Return the greatest softmax probability at the patch grid: float32 ``(rows, columns)``.

        It ranks patches of one predictor; it is not calibrated.
        """
        maps = at_grid(plan, scores[predictor])
        if predictor == "ours" and self._temperature is not None:
            return maps.amax(dim=0)
        logits = maps if predictor in LOGITS else crf.as_logits(maps)
        return torch.softmax(logits, dim=0).amax(dim=0)


def runner_up(scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Find which cluster comes second at every patch of score maps ``(K, h, w)``, and by how much.

    Returns:
        Ids int64 ``(h, w)``, and the greatest score less the second, float32 ``(h, w)``.
    """
    best = scores.topk(2, dim=0)
    margins = best.values[0] - best.values[1]
    return best.indices[1].cpu().numpy(), margins.cpu().numpy()


def _restored(shape: Mapping[str, Any], state: Mapping[str, Tensor]) -> Head:
    head = Head(**{name: value for name, value in shape.items() if name != "levels"})
    head.load_state_dict(state)
    if parametrize.is_parametrized(head.last):
        # The orthogonal weight is computed once instead of in every forward pass.
        parametrize.remove_parametrizations(head.last, "weight")
    return head.eval()
