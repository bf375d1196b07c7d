"""The commands and their options. Each imports its work when it runs: torch takes seconds."""

from __future__ import annotations

import click

from stages import Stage

PARAMS = click.option("--params", default="params.yaml", help="Choices.")
FEATURES = click.option("--features", default="data/features.zarr", help="Feature cache.")
CONTEXT = click.option(
    "--context", default="data/context.zarr", help="Cache of the level `context`."
)
HEAD = click.option("--head", default="data/head", help="Folder of the trained head.")
INDEX = click.option("--index", default="data/index.csv", help="Index of images.")
LABELS = click.option("--labels", default="data/labels.csv", help="Index of labels.")
SEGMENTS = click.option("--segments", default="data/segments.h5", help="Label maps.")
# Names of what lies in modules that import torch, SciPy or HDF5. The first matching, the default,
# gives a cluster the likeliest class of its pixels; papers print scores by majority_iou.
MATCHINGS = ("majority_count", "majority_iou", "hungarian")
CRFS = ("none", "ours", "program", "program_constant_guide")
FORMATS = ("coco", "label_studio")
PREDICTORS = ("ours", "ours_kmeans", "kmeans", "semi_supervised")


@click.command(cls=Stage)
@PARAMS
@click.option("--out", default="data/index.csv", help="Index of images to write.")
@click.option("--labels", default="data/labels.csv", help="Index of labels to write.")
def prepare() -> None:
    """Check images and labels and write their index.

    Reads every image of the splits in use: the training split of `train_on` and the evaluation
    splits of `eval_on`. It checks labels too, though only eval and report use them. Files that have
    not changed since they were found good are not read again (data/.checked.csv). Writes path,
    size, content hash and split of every image to data/index.csv, and of every label to
    data/labels.csv. Names all bad files at once.
    """


@click.command(cls=Stage)
@PARAMS
@INDEX
@click.option("--out", default="data/features.zarr", help="Feature cache to write.")
def extract() -> None:
    """Run the frozen ViT once over every image into the Zarr cache.

    Reads data/index.csv and its images, writes data/features.zarr: tokens of some blocks (and
    keys), and the colours at the patch grid, of every tile. Interrupted, it goes on where it was.
    """


@click.command(cls=Stage)
@PARAMS
@FEATURES
@click.option("--out", default="data/context.zarr", help="Cache of the level `context` to write.")
def context() -> None:
    """Make the level `context` of every patch.

    Reads data/features.zarr, fits the whitening to the training split and writes data/context.zarr
    in the same layout. The file holds no level unless params.yaml uses the level `context`. An
    interrupted run goes on where it was.
    """


@click.command(cls=Stage)
@PARAMS
@FEATURES
@CONTEXT
@click.option("--out", default="data/graph.h5", help="Graph file to write.")
def graph() -> None:
    """Build the kNN graphs and pixel graphs from the cache.

    Reads data/features.zarr and data/context.zarr, writes data/graph.h5: the k nearest neighbours
    of each training patch (Eq. 2), in its group of images or in the whole split, the groups, and
    the pixel graph of each tile (Eq. 3); or, with scope batch, only how training makes its own.
    Interrupted, it goes on where it was.
    """


@click.command(cls=Stage)
@PARAMS
@FEATURES
@CONTEXT
@click.option("--graph", default="data/graph.h5", help="Graph file.")
@INDEX
@LABELS
@click.option("--out", default="data/head", help="Folder of the head to write.")
@click.option("--curve", default="results/curve.csv", help="Training curve to write.")
def train() -> None:
    """Train the eigenfunction head and fit both K-means on the cache.

    Reads data/features.zarr, data/context.zarr and data/graph.h5 (no image, no ViT), writes
    data/head (the head, the K-means on the features F and on the head's features, a manifest) and
    results/curve.csv. With `train.labelled` it also reads those labels, by data/index.csv and
    data/labels.csv, and fits the predictor `semi_supervised`, which says classes. Interrupted, it
    goes on from the last finished epoch.
    """


@click.command(cls=Stage)
@PARAMS
@FEATURES
@CONTEXT
@HEAD
@INDEX
@click.option("--out", default="data/segments.h5", help="Label maps to write.")
def segment() -> None:
    """Turn cached features into label maps at the images' resolution.

    Reads data/features.zarr, data/context.zarr, data/head and data/index.csv (no ViT, and images
    only for a CRF), writes data/segments.h5: for every image of the training and the evaluation
    split the ids of every predictor and the first eigenfunctions. Interrupted, it
    goes on where it was.
    """


@click.command(cls=Stage)
@PARAMS
@INDEX
@SEGMENTS
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="Further files for other tools; may be given twice.",
)
@click.option("--out", default="data/named", help="Folder to write.")
def name() -> None:
    """Write label maps by the names of the clusters.

    Reads the file of `segment.names`, data/segments.h5, data/index.csv and the photos. Writes
    labels/ (index PNG, 255 = none), overlays/, classes.txt, legend.png, areas.csv and names.json to
    data/named/. If `segment.names` is null, it writes a note of that and nothing else. Names of
    another head are carried over by the photos of both, and names.json is then of this head.
    --format coco adds coco/instances.json and panoptic.json, --format label_studio predictions for
    Label Studio.
    """


@click.command("eval", cls=Stage)
@PARAMS
@INDEX
@LABELS
@SEGMENTS
@click.option("--out", default="results", help="Folder for the results.")
def evaluate() -> None:
    """Count clusters against classes and score every matching.

    Reads the label maps and, if there are labels, the ground truth of the training and the
    evaluation splits. Writes metrics.json, miou.json, accuracy.json, counts.json, mapping.json and
    per_class.csv to results/, and prints the scores of each data set. `oracle` mappings are fitted
    on the labels that are scored, `train` mappings on those of the training split. If
    `eval.labelled` is a number, the latter see so many images: the most typical, the most
    different, and 5 draws. A data set that the head was not trained on has oracle mappings alone.
    Without labels it counts the clusters in use.
    """


@click.command(cls=Stage)
@PARAMS
@INDEX
@LABELS
@SEGMENTS
@click.option("--results", default="results", help="Folder of the results.")
@click.option("--named", default="data/named", help="Label maps by name, if any.")
@click.option("--sweep", help="CSV of `dvc exp show --csv`: draw its experiments and nothing else.")
@click.option("--out", default="results/report", help="Folder to write.")
def report() -> None:
    """Draw scores, curves and gallery as one HTML page, and the atlas.

    Reads the results of eval, the training curve, label maps (also those by name), photos and
    labels. Writes to results/report/: index.html, clusters.html (the atlas, on which you name the
    clusters) and every picture as PNG. Neither page needs a network. Prints a
    verdict and which pages to open.
    """


@click.command(cls=Stage)
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder to write.")
@HEAD
@click.option("--mapping", default="results/mapping.json", help="Classes of clusters, or `none`.")
@click.option("--names", help="names.json of the atlas, in place of a mapping.")
@click.option("--export", help="Folder of a data set to write: images, labels, classes.txt.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="Further files in --out for other tools; may be given twice.",
)
@click.option(
    "--predictor",
    type=click.Choice(PREDICTORS),
    help="Whose label maps; without it semi_supervised of a head that learned labels (and no "
    "--names), else ours.",
)
@click.option(
    "--matching",
    default=MATCHINGS[0],
    type=click.Choice(MATCHINGS),
    help="How clusters take classes: the likeliest class of a pixel (majority_count), or as in "
    "papers (majority_iou).",
)
@click.option("--weights", help="The backbone's weights, if they have moved.")
@click.option(
    "--device", default="auto", type=click.Choice(("auto", "cpu", "cuda")), help="GPU or CPU."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="As `segment.temperature`; by default logits are interpolated.",
)
@click.option("--crf", default="none", type=click.Choice(CRFS), help="As `segment.crf`.")
@click.option(
    "--protocol", help="One of the head's protocols; by default whole photos, as in training."
)
@click.option("--merge-to", type=click.IntRange(min=2), help="As `segment.merge_to`.")
def predict() -> None:
    """Segment new IMAGES (files, and folders with all below them) with a trained head.

    Reads the images, data/head and the names of the classes: results/mapping.json, or the file of
    --names. Writes to the folder --out: labels/<name>.png with class indices (255 = none), or with
    cluster ids if there are no names; overlays/<name>.jpg, classes.txt, legend.png and areas.csv
    (pixels of each class in each photo). --format coco adds coco/instances.json and panoptic.json,
    --format label_studio predictions for Label Studio.
    """
