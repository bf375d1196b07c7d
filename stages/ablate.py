"""The ablate command: the scores of one setting and seed, from the pipeline's own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cache import ablations, changes, params, results
from cache.artefact import fingerprint, work_folder
from cache.errors import InputError
from cache.features import Features
from cache.graphs import Graphs
from stages import Stage
from stages import main as eigenseg

DEFAULTS = "defaults"


@click.command(cls=Stage)
@click.option("--set", "setting", default=DEFAULTS, help="One key=value, or `defaults`.")
@click.option("--seed", type=int, required=True, help="Instead of that of params.yaml.")
@click.option("--params", "params_path", default="params.yaml", help="All other choices.")
@click.option("--features", default="data/features.zarr", help="Feature cache.")
@click.option("--graph", default="data/graph.h5", help="Graph file, used where it fits.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--labels", default="data/labels.csv", help="Index of labels.")
@click.option("--out", required=True, help="JSON file to write.")
def main(setting: str, seed: int, params_path: str, out: str, **inputs: str) -> None:
    """Score params.yaml with one key set to another value, and with another seed.

    Reads data/features.zarr, data/graph.h5 (where the setting leaves the graph as it is; otherwise
    it makes its own), data/index.csv and data/labels.csv. Runs the stages graph, train, segment and
    eval below data/.work, writes the scores and the setting to --out and keeps nothing else.
    """
    defaults = params.load(params_path)
    change = {} if setting == DEFAULTS else changes.parse_setting(setting)
    chosen = changes.apply(defaults, {**_checked(change), "seed": seed})
    features = Features.open(inputs["features"])
    mark = fingerprint("ablation", chosen.model_dump(), features.manifest["fingerprint"])
    with work_folder(Path(inputs["features"]).with_name("ablation"), mark) as work:
        changes.write_params(work / "params.yaml", chosen)
        metrics = run_stages(work, inputs, make_graph=not fits(inputs["graph"], chosen, features))
    if not any(isinstance(value, dict) for value in metrics["ours"].values()):
        raise InputError(
            f"an ablation compares scores, found no labels of split {chosen.data.eval} in "
            f"{inputs['labels']}: add them, or choose a `dataset` that has them."
        )
    key, value = next(iter(change.items()), (None, None))
    default = changes.look_up(defaults, key) if key else None
    base = ablations.base_of(defaults)
    ablations.write_cell(out, ablations.Cell(key, value, default, seed, base, metrics))


def _checked(change: changes.Changes) -> changes.Changes:
    for key in change:
        if key.split(".")[0] not in ablations.VARIED:
            raise InputError(
                f"an ablation varies {', '.join(ablations.VARIED)}, for its cells share the images "
                f"and features, found {key}: compare that with `dvc exp run -S {key}=...`."
            )
    return change


def fits(path: str, chosen: params.Params, features: Features) -> bool:
    """Whether the pipeline's graph is the one that these choices ask for.

    Its manifest holds what it depends on, under the names of params.yaml: keys of `graph`, though
    not `graph.alpha`, and whole sections.
    """
    try:
        with Graphs(path) as graphs:
            manifest = graphs.manifest
    except InputError:
        return False
    wanted = {
        **chosen.model_dump(),
        **chosen.graph.model_dump(),
        "context": chosen.context.model_dump(),
        "features": features.manifest["fingerprint"],
        "split": chosen.data.train,
    }
    return all(wanted[key] == value for key, value in manifest.items() if key in wanted)


def run_stages(work: Path, inputs: dict[str, str], *, make_graph: bool) -> dict[str, Any]:
    """Run the stages from the graph on in a folder that holds its params.yaml; their metrics."""
    chosen = ["--params", str(work / "params.yaml")]
    features = ["--features", inputs["features"]]
    index = ["--index", inputs["index"]]
    graph = str(work / "graph.h5") if make_graph else inputs["graph"]
    head, maps = str(work / "head"), str(work / "segments.h5")
    curve = ["--curve", str(work / "curve.csv")]
    if make_graph:
        _run("graph", *chosen, *features, "--out", graph)
    _run("train", *chosen, *features, "--graph", graph, "--out", head, *curve)
    _run("segment", *chosen, *features, *index, "--head", head, "--out", maps)
    labels = ["--labels", inputs["labels"]]
    _run("eval", *chosen, *index, *labels, "--segments", maps, "--out", str(work / "results"))
    return results.read_metrics(work / "results" / "metrics.json")


def _run(*command: str) -> None:
    eigenseg.main(command, prog_name="eigenseg", standalone_mode=False)


if __name__ == "__main__":
    main()
