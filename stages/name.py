"""The name stage: label maps and the names that a person gave -> semantic label maps."""

from __future__ import annotations

from pathlib import Path

import click

from cache import predictions
from cache.index import read_index
from cache.names import PREDICTOR, read_names
from cache.segments import Segments
from cache.store.artefact import fingerprint, publish, work_folder
from pipeline.drawing.naming import class_naming
from stages import Stage
from stages.label_maps import areas_of, write_label_map, write_legend
from stages.params import Params, load
from stages.planned import read_planned
from stages.progress import track


def name_maps(params: Params, index: str, segments: str, out: str) -> None:
    """Write the label maps of `ours` by name; without a file of names a folder that says so.

    Args:
        index, segments: paths of what `prepare` and `segment` wrote.
        out: folder to write.
    """
    path = params.segment.names
    with Segments(segments) as maps, work_folder(out, fingerprint("named", path)) as work:
        folder = work / "named"
        head, n_maps = maps.manifest["head"], 0
        names = read_names(path, head, maps.clusters[PREDICTOR]) if path else None
        classes = names.classes if names else []
        facts = {"head": head, "classes": classes}
        predictions.start(folder, facts, predictions.outputs(folder))
        if names:
            naming, areas = class_naming(names.values, names.classes), {}
            rows = maps.stored(read_index(index))
            write_legend(folder, naming)
            for row in track(rows, "naming"):
                labels = names.values[maps.read(PREDICTOR, row.id)]
                name = f"{row.split}/{row.stem}"
                image = read_planned(maps, row)
                write_label_map(folder, name, image, labels, naming, with_legend=True)
                areas[name] = areas_of(labels, naming)
            predictions.write_areas(folder, classes, areas)
            n_maps = len(rows)
        publish(folder, out)
    said = f"{n_maps} images, {len(classes)} names" if path else "segment.names is null: no maps"
    click.echo(f"{Path(out)}: {said}")


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--segments", default="data/segments.h5", help="Label maps.")
@click.option("--out", default="data/named", help="Folder to write.")
def main(params: str, index: str, segments: str, out: str) -> None:
    """Write the label maps by the names that were given to the clusters on the atlas.

    Reads the file that `segment.names` gives, data/segments.h5, data/index.csv and the photos.
    Writes to data/named/ labels/ (index PNG, 255 = none), overlays/ with legends, classes.txt,
    legend.png and areas.csv; where `segment.names` is null, only that.
    """
    name_maps(load(params), index, segments, out)


if __name__ == "__main__":
    main()
