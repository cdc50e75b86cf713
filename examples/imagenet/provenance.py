"""Where and with what a result was made."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Of Python and of the packages a result may depend on."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    found = {package: version(package) for package in packages}
    return {"python": platform.python_version()} | found


def provenance() -> dict[str, Any]:
    """Commit, machine and versions, to stand beside every number that is kept."""
    return {
        "commit": _commit(),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "versions": versions(),
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        run = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        head = git("rev-parse", "--verify", "HEAD")
        # Of several results the first ones kept are no change to the next.
        but = (":(top)", ":(top,exclude)benchmarks/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *but)
    except OSError:  # no git here
        return "uncommitted"
    return (head or "uncommitted") + (" + changes" if head and changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
