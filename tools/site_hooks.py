"""Hooks for MkDocs and Griffe that build the site from the repository's own files.

README.md is the start page. Every file of the repository that it or a guide links to
becomes a page or a file of the site, and all other files of docs/ are left out. Links
are written as they work in the repository. A link to a file that does not exist, or
that lies outside of the repository, is an error.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
# Either a fenced block of code, or the target of [text](target) and of
# ![text](target#anchor), unless it is a URL or an anchor alone.
LINK = re.compile(
    r"^(?P<fence>```|~~~).*?^(?P=fence)\s*$"
    r"|(?<=\]\()(?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))",
    re.MULTILINE | re.DOTALL,
)


def on_files(files: Files, config: Any) -> Files:
    """Adds README.md and all files that the pages link to; drops all others."""
    docs = Path(config.docs_dir)
    pages = [Path(file.abs_src_path or "") for file in files.documentation_pages()]
    todo, wanted = [ROOT / "README.md", *pages], set()
    while todo:
        path = todo.pop()
        if path not in wanted:
            wanted.add(path)
            if not path.is_relative_to(docs):
                new = {"abs_src_path": str(path), "inclusion": InclusionLevel.INCLUDED}
                files.append(File.generated(config, _place(path), **new))
            if path.suffix == ".md":
                todo += _targets(path)
    wanted |= {docs / name for name in config.extra_css}
    for path, file in [(Path(file.abs_src_path or ""), file) for file in files]:
        if path.is_relative_to(docs) and path not in wanted:
            files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of a page, which work in the repository, into the site's."""
    here = Path(page.file.abs_src_path).parent
    folder = os.path.dirname(page.file.src_uri) or "."

    def link(match: re.Match[str]) -> str:
        if match["fence"]:
            return match[0]
        target = _place((here / match["target"]).resolve())
        return os.path.relpath(target, folder) + (match["anchor"] or "")

    # Markdown inside raw HTML is rendered only in elements with this attribute.
    markdown = markdown.replace("<details>", "<details markdown>")
    markdown = markdown.replace("<summary>", '<summary markdown="span">')
    return LINK.sub(link, markdown)


def _place(path: Path) -> str:
    """Returns the path within the site of a file of the repository."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    return path.relative_to(ROOT).as_posix().replace("README.md", "index.md")


def _targets(path: Path) -> Iterator[Path]:
    """Yields the files that a page links to; raises PluginError if one is missing."""
    for match in LINK.finditer(path.read_text(encoding="utf-8")):
        if match["fence"]:
            continue
        target = (path.parent / match["target"]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise PluginError(
                f"{path.relative_to(ROOT)} links to {match['target']}, which is no file"
                " of the repository; correct the link"
            )
        yield target


class Docstrings(griffe.Extension):
    """Adapts the docstrings of this package to what the site's theme expects.

    `Example:` becomes a section of examples and `References:` a paragraph. The comments
    after the fields of a NamedTuple become their descriptions. A default mask is shown
    by its name.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object before it is parsed."""
        del kwargs
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                if str(parameter.default) == "BY_ROLE":
                    parameter.default = '"exclude_bias_and_norm"'
        if obj.docstring:
            obj.docstring.value = _rewritten(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Adds the fields of a NamedTuple to its docstring."""
        del kwargs
        if cls.docstring and "NamedTuple" in map(str, cls.bases):
            lines = [f"  {x.name}: {x.lines[0].rpartition('  # ')[2]}"
                     for x in cls.attributes.values()]  # fmt: skip
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def _rewritten(docstring: str) -> str:
    """Returns a docstring whose section headings are those that Griffe parses."""
    text = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    text = re.sub(r"^Example::$", "**Example:**", text, flags=re.MULTILINE)
    # `Args: as ...` refers to other arguments and lists none.
    text = re.sub(r"^Args: (.*)$", r"Arguments \1", text, flags=re.MULTILINE)
    return re.sub(
        r"^References:\n((?:    .*\n?|\n)*)", _references, text, flags=re.MULTILINE
    )


def _references(match: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in match[1].splitlines()]
    return "**References:**\n\n" + "\n".join(lines)
