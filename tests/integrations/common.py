"""What the tests of the integrations share."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import run_command

ROOT = Path(__file__).parents[2]


def run_with_torchrun(module: str, folder: Path, count: int = 2, *more: str) -> None:
    """Runs ``python -m module folder *more`` in ``count`` processes. Their output is shown if one of them fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = run_command([*command, "-m", module, str(folder), *more], 600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
