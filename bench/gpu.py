"""All that is to be measured on a GPU, in one command and in less than nine minutes."""

from __future__ import annotations

import io
import sys
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import click
import torch

from bench import agreement, extraction, pascal, training
from bench.timing import machine, show
from pipeline.device import choose_device

COMMANDS: dict[str, click.Command] = {
    "extraction": extraction.main,
    "step": training.main,
    "pascal": pascal.main,
    "agreement": agreement.main,
}
FULL = {
    "extraction": "--batch 64 --count 512 --short-side 420",
    "step": "--repeats 10 --steps 200 --batches 8",
    "pascal": "--seconds 100",
    "agreement": "--steps 20",
}
TINY = {
    "extraction": "--model test_vit --batch 2 --count 4 --short-side 96 --repeats 1",
    "step": "--model test_vit --side 96 --images 2 --clusters 4 --repeats 1 --steps 2",
    "pascal": "--model test_vit --side 96 --images 2 --clusters 4 --batches 2 --steps 3",
    "agreement": "--model test_vit --side 96 --images 2 --clusters 4 --steps 3",
}


class Tee(io.StringIO):
    """Text that is kept and shown at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = sys.stdout

    def write(self, text: str) -> int:
        """Keep the text and show it."""
        self.shown.write(text)
        self.shown.flush()
        return super().write(text)


@click.command()
@click.option("--only", default=",".join(COMMANDS), show_default=True, help="Parts, by commas.")
@click.option("--steps", type=int, help="Of the run of Pascal Context's size.")
@click.option("--seconds", type=float, help="After which either of its heads stops.")
@click.option("--tiny", is_flag=True, help="Everything small, to see whether it runs.")
@click.option("--device", default="cuda", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--out", help="File to append the lines of JSON to.")
def main(
    only: str, steps: int | None, seconds: float | None, tiny: bool, device: str, out: str | None
) -> None:
    """Measure extraction, the training step, a whole training and the agreement with the CPU.

    Each part is a command of its own (bench.extraction, .training, .pascal, .agreement), called
    with sizes for one large GPU. A part that fails is told, and the others are done.
    """
    if device == "cuda" and not torch.cuda.is_available():
        click.echo("no GPU: not measured")
        return
    rows = []
    for name in only.split(","):
        arguments = [*(TINY if tiny else FULL)[name].split(), "--device", device]
        if name == "pascal":
            arguments += ["--steps", str(steps)] if steps else []
            arguments += ["--seconds", str(seconds)] if seconds else []
        rows.append({"part": name, **_measure(COMMANDS[name], arguments, out)})
    show("gpu", machine(choose_device(device)), rows)
    if failed := [str(row["part"]) for row in rows if "error" in row]:
        raise click.ClickException(f"not measured: {', '.join(failed)}")


def _measure(
    command: click.Command, arguments: list[str], out: str | None
) -> dict[str, float | str]:
    """Run one command; what it took. Its lines of JSON go to the file at once."""
    torch.cuda.empty_cache()
    start = time.perf_counter()
    found: dict[str, float | str] = {}
    with redirect_stdout(Tee()) as text:
        try:
            command.main(arguments, standalone_mode=False)
        except Exception as error:  # the other parts are still worth their time
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = time.perf_counter() - start
    if out:
        lines = [line for line in text.getvalue().splitlines() if line.startswith('{"bench"')]
        with Path(out).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
    return found


if __name__ == "__main__":
    main()
