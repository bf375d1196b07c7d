"""A campaign of faults, drawn from a seed: what is damaged or killed ends right, or is told.

Every trial copies a small finished project, injures the copy, runs a stage that reads what was
injured, and compares what it wrote with the project's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.fault_kinds import KINDS, quiet
from bench.fault_lab import Lab

OUTCOMES = (
    "right", "clear error", "unclear error", "traceback", "silently wrong", "hang", "crash",
)  # fmt: skip


def campaign(
    lab: Lab, kinds: dict[str, Any], trials: int, seed: int, show: Callable[[str], None]
) -> dict[str, Counter]:
    """Run trials of every kind in turn, by their shares; outcomes by kind.

    Args:
        kinds: function and share of each kind.
        show: told each trial that did not end well, with what repeats it.
    """
    table: dict[str, Counter] = {name: Counter() for name in kinds}
    total = sum(share for _, share in kinds.values())
    for name, (function, share) in kinds.items():
        for number in range(max(1, round(trials * share / total))):
            generator = np.random.default_rng([seed, *name.encode(), number])
            with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
                found, story = function(lab, Path(folder) / "project", generator)
            table[name][found] += 1
            if found not in ("right", "clear error", "skipped"):
                show(f"{found}: {name} {seed}/{number}: {story}")
    return table


def as_markdown(table: dict[str, Counter]) -> str:
    """Kinds x outcomes, with sums."""
    lines = [f"| fault | trials | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * (len(OUTCOMES) + 1)}"]
    total = sum(table.values(), Counter())
    for name, found in {**table, "all": total}.items():
        trials = sum(found[outcome] for outcome in OUTCOMES)
        cells = (str(found[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {name} | {trials} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--trials", default=2000, show_default=True, help="In all, by the kinds' shares.")
@click.option("--seed", default=0, show_default=True, help="Of every draw.")
@click.option("--only", multiple=True, help="Kinds to try; all without it.")
def main(trials: int, seed: int, only: tuple[str, ...]) -> None:
    """Injure small projects in many ways; print trials x outcome, and every trial that ended ill.

    Each line of an ill end names kind, seed and number, and what was done; then it exits with 1. As
    root a full disk is tried too. Stages write to copies in the temporary folder.
    """
    quiet()
    kinds = {name: kind for name, kind in KINDS.items() if not only or name in only}
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        lab = Lab(Path(folder))
        table = campaign(lab, kinds, trials, seed, lambda text: click.echo(text, err=True))
    click.echo(as_markdown(table))
    click.echo(json.dumps({"seed": seed, "seconds": round(time.monotonic() - began), **table}))
    ill = set(OUTCOMES) - {"right", "clear error"}
    sys.exit(int(any(found[outcome] for found in table.values() for outcome in ill)))


if __name__ == "__main__":
    # BLAS and OpenMP read their number of threads when they are loaded; the bytes depend on it.
    if os.environ.get("OMP_NUM_THREADS") != "1":
        command = [sys.executable, "-m", "bench.faults", *sys.argv[1:]]
        sys.exit(subprocess.call(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    main()
