"""The command line: one click command per stage, whose work is imported when it is called."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cache.store.errors import InputError

STAGES = (
    "prepare", "extract", "context", "graph", "train", "segment", "name", "eval", "report",
    "predict",
)  # fmt: skip
# Read when torch is imported. Threads that spin while they wait hold up a machine on which others
# work: training beside one busy core takes 1.2 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_KEPT = "Finished parts are kept: run the same command again to go on."


class Stage(click.Command):
    """Runs ``command`` of the module `stages.<name>`, which is imported only then.

    Where its input breaks a rule it ends in one clear line; ``EIGENSEG_TRACEBACK=1`` shows the
    whole traceback instead.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": {"show_default": True}, **kwargs})

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stopped_in_words():
                return importlib.import_module(f"stages.{self.name}").command(**ctx.params)
        except (ValueError, ArithmeticError, OSError, MemoryError, RuntimeError) as error:
            bug = isinstance(error, RuntimeError) and not _for_lack_of_memory(error)
            if bug or os.environ.get("EIGENSEG_TRACEBACK"):
                raise
            # A name that is no UTF-8 cannot be printed as it is.
            text = _explain(error).encode("utf-8", "backslashreplace").decode()
            raise click.ClickException(text) from error


@contextmanager
def _stopped_in_words() -> Iterator[None]:
    """End a command on SIGTERM and Ctrl-C as on errors: locks and helpers are let go."""

    def stop(number: int, _: object) -> None:
        click.echo(f"stopped by SIGTERM. {_KEPT}", err=True)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        click.echo(f"stopped by Ctrl-C. {_KEPT}", err=True)
        raise SystemExit(128 + signal.SIGINT) from error
    finally:
        signal.signal(signal.SIGTERM, former)


def _for_lack_of_memory(error: Exception) -> bool:
    """Tell whether Python, or torch (whose error is a RuntimeError), could not get memory."""
    return isinstance(error, MemoryError) or (
        "memory" in str(error) and isinstance(error, RuntimeError)
    )


def _explain(error: Exception) -> str:
    if _for_lack_of_memory(error):
        return (
            f"the memory is too small ({str(error)[:200]}): lower `extract.batch`, "
            "`graph.group_patches`, `clusters` or the sizes of the head."
        )
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):  # HDF5 gives its own text
        return (
            f"the disk is full ({error}). Finished parts are kept: make room and run the same "
            "command again, it goes on where it stopped."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename or 'a file'} cannot be written or read ({error.strerror}): give "
            "yourself the right (`chmod u+rw`, or `u+rwx` of its folder), or work in a folder of "
            "your own."
        )
    return f"{error}"


@contextmanager
def way_out(text: str) -> Iterator[None]:
    """Add what the user can do to an error of the numerics, which know no parameters."""
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{error}: {text}") from error


class _Stages(click.Group):
    """Lists the stages in their order, and suggests what a misspelt one may have meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(STAGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in STAGES and not ctx.resilient_parsing:  # as in completion
            near = difflib.get_close_matches(cmd_name, STAGES, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"no command is called {cmd_name!r}.{meant} There are {', '.join(STAGES)}.")
        found = vars(importlib.import_module("stages.commands")).values()
        stages = {one.name: one for one in found if isinstance(one, Stage)}
        return stages.get(cmd_name)


@click.command(cls=_Stages)
@click.version_option(package_name="eigenseg")
def main() -> None:
    """Unsupervised semantic segmentation with neural eigenfunctions on cached ViT features.

    Every stage reads params.yaml and the files of the stages before it; `dvc repro` runs them all.
    """


def program(name: str) -> None:
    """Run one command with the arguments of the process, as ``python -m stages.<name>``."""
    main([name, *sys.argv[1:]], prog_name="eigenseg")
