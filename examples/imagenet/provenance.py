"""The commit, machine and package versions with which a result was made."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results may depend on."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    found = {package: version(package) for package in packages}
    return {"python": platform.python_version()} | found


def provenance() -> dict[str, Any]:
    """Returns the commit, machine and versions, to save beside a result."""
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
    """Returns the commit's hash, with " + changes" if tracked files differ from it."""
    head = _git("rev-parse", "--verify", "HEAD")
    if not head:
        return "uncommitted"
    # A benchmark that writes several results must not see the first ones as changes.
    files = (":(top)", ":(top,exclude)benchmarks/results")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *files)
    return head + (" + changes" if changed else "")


def _git(*arguments: str) -> str:
    """Runs git and returns what it prints, or "" if it fails or is not installed."""
    command, folder = ["git", *arguments], Path(__file__).parent
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def _processor() -> str:
    """Returns the processor's model, from Linux's /proc where there is one."""
    path = Path("/proc/cpuinfo")
    model = path.exists() and re.search(r"model name\s*: (.*)", path.read_text())
    return model[1].strip() if model else platform.processor()
