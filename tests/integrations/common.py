"""What the tests of the integrations share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_with_torchrun(module: str, folder: Path, count: int = 2, *more: str) -> None:
    """Runs ``python -m module folder *more`` in ``count`` processes. Their output is shown if one of them fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, "-m", module, str(folder), *more], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
