"""The commit of a project, as Git knows it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit(folder: str | Path = ".") -> str | None:
    """Describe the commit that a folder is at, such as "1a2b3c4 of 2026-03-01, with changes".

    Returns:
        None outside a repository, or without Git.
    """
    try:
        found = _git(folder, "log", "-1", "--format=%h of %cs")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ", with changes" * bool(changed)


def _git(folder: str | Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
