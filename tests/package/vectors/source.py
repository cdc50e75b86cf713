"""A published file, which is executed as it was published.

Placeholders replace the modules that it imports and the rule does not use.
"""

import ast
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Source(NamedTuple):
    """A file of a repository at a commit, or of an unpacked wheel of that version."""

    repository: str
    commit: str
    path: str

    def read(self, sources):
        """The text of the file, from the folder that holds all repositories."""
        unpacked = sources / f"{self.repository.split('/')[-1]}-{self.commit}"
        if unpacked.is_dir():
            return (unpacked / self.path).read_text()
        file = f"{self.commit}:{self.path}"
        git = ["git", "-C", sources / self.repository, "show", file]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout

    def load(self, sources, *unused, **given):
        """The file as a module, with `given` modules and placeholders for `unused`."""
        module = types.ModuleType(Path(self.path).stem)
        # A MagicMock has attributes whose name begins with "assert" only if it is
        # unsafe, and one file imports `assert_allclose`.
        modules = {name: mock.MagicMock(unsafe=True) for name in unused} | given
        with mock.patch.dict(sys.modules, modules):
            exec(compile(self.read(sources), self.path, "exec"), module.__dict__)
        return module

    def function(self, sources, name, **names):
        """One function of a script, executed without the imports of the script.

        `names` are the imported names that it needs, besides `math`.
        """
        tree = ast.parse(self.read(sources))
        tree.body = [node for node in tree.body if getattr(node, "name", None) == name]
        namespace = {"math": math} | names
        exec(compile(tree, self.path, "exec"), namespace)
        return namespace[name]
