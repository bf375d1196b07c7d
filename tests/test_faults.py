"""A short seed of the campaign of faults: nothing ends wrong without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.fault_kinds import KINDS
from bench.faults import OUTCOMES
from tests.conftest import REPOSITORY

LONG = ("a cluster's worker, scheduler, version", "started twice")


def test_a_short_campaign_ends_right_or_in_a_clear_error() -> None:
    kinds = [name for name in KINDS if name not in LONG]
    chosen = [option for name in kinds for option in ("--only", name)]
    command = [sys.executable, "-m", "bench.faults", "--trials", "14", "--seed", "7", *chosen]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert all(set(found[name]) <= {*OUTCOMES[:2], "skipped"} for name in kinds), ended.stderr
    assert sum(found[name].get("clear error", 0) for name in kinds) > 5  # faults are felt
    assert sum(found[name].get("right", 0) for name in kinds) > 3
