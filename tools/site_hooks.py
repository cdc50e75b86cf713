"""What MkDocs and Griffe are told beyond mkdocs.yml, so that nothing is written twice.

The site's start page is README.md, and the other pages of the repository that it and
the guides link to are pages of the site; every other file they link to goes with them,
and of docs/ nothing else. Links are those of the repository. Refuses one that points to
no file.
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
# [text](target) and ![text](target#anchor), but no URL and no anchor alone.
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and, page after page, what is linked to; drop what is not."""
    docs = Path(config.docs_dir)
    there = {Path(file.abs_src_path): file for file in files.documentation_pages()}
    todo, wanted = [ROOT / "README.md", *there], set()
    while todo:
        path = todo.pop()
        if path not in wanted:
            wanted.add(path)
            if not path.is_relative_to(docs):
                _add(files, path, config)
            if path.suffix == ".md":
                todo += _targets(path)
    wanted |= {docs / name for name in config.extra_css}
    for path, file in [(Path(file.abs_src_path or ""), file) for file in files]:
        if path.is_relative_to(docs) and path not in wanted:
            files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the repository's links into the site's."""
    here = _source(page.file, config)
    folder = os.path.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = _place((here.parent / match[1]).resolve())
        return os.path.relpath(target, folder or ".") + (match[2] or "")

    # Markdown inside of raw HTML is Markdown only where that says so.
    markdown = markdown.replace("<details>", "<details markdown>")
    markdown = markdown.replace("<summary>", '<summary markdown="span">')
    return _outside_code(lambda text: LINK.sub(link, text), markdown)


def _add(files: Files, path: Path, config: Any) -> None:
    inclusion = InclusionLevel.INCLUDED
    place, source = _place(path), str(path)
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
        file = File.generated(config, place, content=text, inclusion=inclusion)
    else:
        file = File.generated(config, place, abs_src_path=source, inclusion=inclusion)
    files.append(file)


def _place(path: Path) -> str:
    """Where a file of the repository is in the site."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    return path.relative_to(ROOT).as_posix().replace("README.md", "index.md")


def _source(file: File, config: Any) -> Path:
    """Where a page of the site is in the repository."""
    for folder in (Path(config.docs_dir), ROOT):
        name = file.src_uri
        if folder == ROOT:
            name = re.sub(r"index\.md$", "README.md", name)
        if (folder / name).is_file():
            return folder / name
    raise PluginError(f"{file.src_uri}: not a file of the repository")


def _targets(path: Path) -> Iterator[Path]:
    found: list[str] = []
    _outside_code(
        lambda text: found.extend(m[1] for m in LINK.finditer(text)) or text,
        path.read_text(encoding="utf-8"),
    )
    for name in found:
        target = (path.parent / name).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            raise PluginError(f"{path.relative_to(ROOT)} links to {name}: no such file")
        yield target


def _outside_code(change: Any, text: str) -> str:
    """The text with `change` made everywhere but in fenced code."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


class Docstrings(griffe.Extension):
    """Reads docstrings as this package writes them.

    `Example:` is a section of examples and `References:` a paragraph; the comments
    behind a NamedTuple's fields describe them; a default mask is shown by its name.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object, before its docstring is parsed."""
        del kwargs
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                if str(parameter.default) == "BY_ROLE":
                    parameter.default = '"exclude_bias_and_norm"'
        if obj.docstring:
            obj.docstring.value = _rewritten(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Add the fields of a NamedTuple to its docstring."""
        del kwargs
        if cls.docstring and "NamedTuple" in map(str, cls.bases):
            lines = [f"  {x.name}: {x.lines[0].rpartition('  # ')[2]}"
                     for x in cls.attributes.values()]  # fmt: skip
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def _rewritten(docstring: str) -> str:
    text = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    text = re.sub(r"^Example::$", "**Example:**", text, flags=re.MULTILINE)
    # `Args: as ...` has no list of arguments.
    text = re.sub(r"^Args: (.*)$", r"Arguments \1", text, flags=re.MULTILINE)
    return re.sub(
        r"^References:\n((?:    .*\n?|\n)*)", _references, text, flags=re.MULTILINE
    )


def _references(match: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in match[1].splitlines()]
    return "**References:**\n\n" + "\n".join(lines)
