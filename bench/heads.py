"""Scores of trained heads on the evaluation split alone: as segment and eval, in less time."""

from __future__ import annotations

import json
from functools import partial

import click
import numpy as np
import torch

from bench.scoring import Labelled, count_table, labelled, matched, pixels
from cache import heads
from cache.features import Features
from cache.labels import read_labels
from pipeline.maps.crf import Crf, choose_crf
from pipeline.maps.predictors import Inputs, Predictors, restore, score_maps, window
from stages import params


@click.command()
@click.argument("folders", nargs=-1, required=True)
@click.option("--predictor", default="ours", type=click.Choice(["ours", "ours_kmeans", "kmeans"]))
def main(folders: tuple[str, ...], predictor: str) -> None:
    """Score the trained heads in FOLDERS, with the oracle mapping.

    Needs a cache of whole images; the CRF is that of params.yaml. Prints mIoU and accuracy by
    matching as a line of JSON each.
    """
    chosen = params.load()
    crf = choose_crf(**chosen.segment.crf.model_dump())
    features = Features.open("data/features.zarr")
    classes, _ = read_labels("data/labels.csv")
    for folder in folders:
        state, fitted, manifest = heads.load_head(folder)
        found = restore(manifest, state, fitted, torch.device("cpu"))
        levels = sorted(found[0].stored, key=str)
        clusters, temperature = manifest["head"]["clusters"], chosen.segment.temperature
        predict = partial(_ids, *found, levels, features, predictor, temperature, crf)
        items = labelled(chosen, features, levels, chosen.data.eval)
        table = count_table(items, predict, clusters, len(classes))
        facts = {"head": folder, "predictor": predictor, "crf": bool(crf), "clusters": clusters}
        click.echo(json.dumps({**facts, "used": int(table.any(axis=1).sum()), **matched(table)}))


def _ids(
    inputs: Inputs,
    predictors: Predictors,
    levels: list[int | str],
    features: Features,
    predictor: str,
    temperature: float | None,
    crf: Crf | None,
    item: Labelled,
) -> np.ndarray:
    """Cluster ids of one image: integers ``(height, width)``."""
    ends = np.cumsum([features.channels(level) for level in levels])[:-1]
    tokens = dict(zip(levels, np.split(item.tokens, ends, axis=1), strict=True))
    tile = window(tokens, inputs, (0, 0), item.grid, False, torch.device("cpu"))
    maps = score_maps(predictors, [tile], *item.grid, temperature=temperature, eigenfunctions=1)
    return pixels(getattr(maps, predictor), item, crf)


if __name__ == "__main__":
    main()
