"""Mean and spread of metrics.json files of several seeds, as a Markdown table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click

from bench.scoring import spread

ORIGINS = ("oracle", "train")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Print mIoU and accuracy of metrics.json FILES: the mean, and max - min in brackets."""
    runs = [json.loads(path.read_text()) for path in files]
    click.echo(
        "| predictor | K (used) | matching | oracle mIoU | acc. | train mIoU | acc. | classes |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for predictor, entry in runs[0].items():
        used = statistics.fmean(run[predictor]["clusters_used"] for run in runs)
        for matching in (key for key, value in entry.items() if isinstance(value, dict)):
            cells = [predictor, f"{entry['k']} ({used:.1f})", matching]
            for origin in ORIGINS:
                for metric in ("miou", "accuracy"):
                    cells.append(
                        _cell([run[predictor][matching].get(origin) for run in runs], metric)
                    )
            cells.append(
                _cell([run[predictor][matching]["oracle"] for run in runs], "classes_covered")
            )
            click.echo(f"| {' | '.join(cells)} |")


def _cell(scores: list[dict | None], metric: str) -> str:
    values = [score[metric] for score in scores if score]
    return spread(values) if values else ""


if __name__ == "__main__":
    main()
