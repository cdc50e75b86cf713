"""Runs lars_tour.ipynb in a Jupyter kernel and stores its outputs in the file.

    pip install nbclient ipykernel
    python examples/notebooks/execute.py

Times, versions and texts that describe a picture are removed, because they differ from
one run or machine to another.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "lars_tour.ipynb"


def strip(notebook: dict[str, Any]) -> None:
    """Removes from a notebook all that differs between two runs of the same code."""
    notebook["metadata"] = {
        "kernelspec": notebook["metadata"]["kernelspec"],
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"] = {"image/png": output["data"]["image/png"]}
                output["metadata"] = {}


def main() -> None:
    """Runs the notebook and writes it with its new outputs."""
    execute = "from nbclient.cli import main; main()"
    command = [sys.executable, "-c", execute, "--inplace", str(NOTEBOOK)]
    subprocess.run(command, check=True)
    notebook = json.loads(NOTEBOOK.read_text())
    strip(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
