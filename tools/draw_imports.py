"""Draws docs/imports.svg, a picture of the modules and of which imports which.

    PYTHONPATH=. python tools/draw_imports.py    (a part of make report)

The rows of the picture are the layers of import-linter in pyproject.toml. An arrow is
an import in the code and points down. It is left out where other arrows lead from its
one end to the other. A subpackage is drawn as one module.
"""

import itertools
import tomllib
from pathlib import Path
from statistics import fmean
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "imports.svg"
TITLES = {  # of the parts, from the top to the bottom of the picture
    "benchmarks": "benchmarks",
    "examples.imagenet": "the trainer, examples/imagenet",
    "lars_optax": "the package, lars_optax",
}
ROW, BOX, HEAD = 52, 26, 46  # heights: from row to row, of a box, of a frame's title
LETTER, GAP, MARGIN = 7.3, 22, 24  # widths: of a letter, between boxes, around frames
PLAIN, IMPORTS_PACKAGE, IS_PUBLIC = "#fff", "#cfe2ff", "#d3f0d3"
STYLE = """\
<style>
text { font: 12px monospace; text-anchor: middle; fill: #111 }
.title { font: bold 14px sans-serif; text-anchor: start }
rect { stroke: #555 }
.frame { fill: #f6f6f6; stroke: #999 }
path { fill: none; stroke: #777 }
.wide { stroke: #333; stroke-width: 3 }
marker path { fill: #444; stroke: none }
</style>
<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"
 markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z"/></marker>
<marker id="wide" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="4"
 markerHeight="4" orient="auto"><path d="M0 0 10 5 0 10z"/></marker>"""

Rows = list[list[Any]]  # of names of modules, and of bends of arrows
Edges = set[tuple[Any, Any]]


def imports(part: str) -> tuple[Rows, Edges, dict[str, str]]:
    """Returns the layers of a part, its imports, and the colours of its modules."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c.get("containers") == [part])
    rows = [layer.split(" | ") for layer in layers]
    graph = grimp.build_graph("benchmarks", "examples", "lars_optax", cache_dir=None)
    public = graph.find_modules_directly_imported_by("lars_optax")
    names = {f"{part}.{name}": name for row in rows for name in row}
    edges, colours = set(), dict.fromkeys(names.values(), PLAIN)
    for module in names:
        if graph.find_children(module):
            graph.squash_module(module)
    for module, name in names.items():
        found = graph.find_modules_directly_imported_by(module)
        edges |= {(name, names[x]) for x in found & names.keys() - {module}}
        if module in public:
            colours[name] = IS_PUBLIC
        elif part != "lars_optax" and any(x.startswith("lars_optax") for x in found):
            colours[name] = IMPORTS_PACKAGE
    return rows, edges, colours


def without_detours(edges: Edges) -> Edges:
    """Returns the edges whose ends no path of other edges joins."""

    def reached(node: Any) -> set[Any]:
        below = {b for a, b in edges if a == node}
        return below.union(*map(reached, below))

    return {
        (a, b)
        for a, b in edges
        if not any(b in reached(x) for start, x in edges if start == a)
    }


def with_bends(rows: Rows, edges: Edges) -> tuple[Rows, Edges]:
    """Returns rows and edges in which every edge leads to the next row.

    A longer edge gets a bend in each row that it passes.
    """
    row_of = {node: i for i, row in enumerate(rows) for node in row}
    rows, short = [list(row) for row in rows], set()
    for edge in sorted(edges):
        passed = range(row_of[edge[0]] + 1, row_of[edge[1]])
        bends = [(edge, i) for i in passed]
        for bend in bends:
            rows[bend[1]].append(bend)
        short |= set(itertools.pairwise([edge[0], *bends, edge[1]]))
    return rows, short


def crossings(rows: Rows, edges: Edges) -> int:
    """Returns the number of pairs of edges that cross each other."""
    place = {node: (i, k) for i, row in enumerate(rows) for k, node in enumerate(row)}
    ends = [(*place[a], place[b][1]) for a, b in edges]
    return sum(
        i == j and (a - c) * (b - d) < 0
        for (i, a, b), (j, c, d) in itertools.combinations(ends, 2)
    )


def untangled(rows: Rows, edges: Edges) -> Rows:
    """Returns the rows in an order in which few edges cross."""
    best, rows = rows, [list(row) for row in rows]
    for sweep in range(40):
        pairs = list(itertools.pairwise(rows))
        for fixed, row in pairs if sweep % 2 else [pair[::-1] for pair in pairs[::-1]]:
            place = {node: i for i, node in enumerate(fixed)}

            def middle(node: Any, place: dict[Any, int] = place) -> float:
                found = [place[x] for x in neighbours(node, edges) if x in place]
                return fmean(found) if found else len(place) / 2

            row.sort(key=middle)
        if crossings(rows, edges) < crossings(best, edges):
            best = [list(row) for row in rows]
    return best


def neighbours(node: Any, edges: Edges) -> list[Any]:
    """Returns the other ends of a node's edges."""
    return [b if a == node else a for a, b in sorted(edges, key=str) if node in (a, b)]


def width(node: Any) -> float:
    """Returns the width of the box of a module. A bend has almost none."""
    return len(node) * LETTER + 16 if isinstance(node, str) else 2


def centres(rows: Rows, edges: Edges) -> dict[Any, float]:
    """Returns the horizontal centre of each node, close to those of its neighbours."""
    x = {node: 0.0 for row in rows for node in row}
    for row in 60 * rows:
        apart = [(width(a) + width(b)) / 2 + GAP for a, b in itertools.pairwise(row)]
        ends = [[x[n] for n in neighbours(node, edges)] or [x[node]] for node in row]
        wanted = [fmean(xs) for xs in ends]
        right, left = wanted[:1], wanted[-1:]
        for at, gap in zip(wanted[1:], apart, strict=True):
            right.append(max(at, right[-1] + gap))
        for at, gap in zip(wanted[-2::-1], apart[::-1], strict=True):
            left.insert(0, min(at, left[0] - gap))
        x |= {node: (a + b) / 2 for node, a, b in zip(row, right, left, strict=True)}
    start = min(x[node] - width(node) / 2 for node in x)
    return {node: at - start for node, at in x.items()}


def frame(part: str) -> tuple[list[str], float, int]:
    """Returns the SVG elements of a part, and their width and height."""
    rows, edges, colours = imports(part)
    rows, edges = with_bends(rows, without_detours(edges))
    rows = untangled(rows, edges)
    x = centres(rows, edges)
    y = {node: HEAD + ROW * i for i, row in enumerate(rows) for node in row}
    elements = []
    for a, b in sorted(edges, key=str):
        (x0, y0), (x1, y1) = (x[a], y[a] + BOX), (x[b], y[b])
        half = (y0 + y1) // 2
        curve = f"M{x0:.0f},{y0} C{x0:.0f},{half} {x1:.0f},{half} {x1:.0f},{y1}"
        end = '" marker-end="url(#arrow)"' if b in colours else f' v{BOX}"'
        elements.append(f'<path d="{curve}{end}/>')
    for name, colour in colours.items():
        left = round(x[name] - width(name) / 2)
        size = f'width="{width(name):.0f}" height="{BOX}" rx="4"'
        elements += [
            f'<rect x="{left}" y="{y[name]}" {size} fill="{colour}"/>',
            f'<text x="{x[name]:.0f}" y="{y[name] + 17}">{name}</text>',
        ]
    return elements, max(x[n] + width(n) / 2 for n in x), HEAD + ROW * len(rows)


def drawing() -> str:
    """Returns the text of the picture."""
    frames = {part: frame(part) for part in TITLES}
    wide = max(w for _, w, _ in frames.values()) + 2 * MARGIN
    body: list[str] = []
    tops, top = [], MARGIN
    for part, (elements, inner, high) in frames.items():
        place = f'x="{MARGIN}" y="{top}" width="{wide:.0f}" height="{high}"'
        body.append(f'<rect class="frame" rx="8" {place}/>')
        title = f'<text class="title" x="{2 * MARGIN}" y="{top + 26}">'
        body.append(f"{title}{TITLES[part]}</text>")
        shift = MARGIN + (wide - inner) / 2
        body += [f'<g transform="translate({shift:.0f} {top})">', *elements, "</g>"]
        tops.append(top)
        top += high + 2 * MARGIN
    middle, right = MARGIN + wide / 2, MARGIN + wide
    ways = [f"M{middle:.0f},{y - 2 * MARGIN} V{y - 4}" for y in tops[1:]]
    # The benchmarks import the package too, past the trainer.
    ways.append(f"M{right:.0f},{tops[0] + HEAD} h36 V{tops[-1] + HEAD} h-32")
    body += [f'<path class="wide" d="{way}" marker-end="url(#wide)"/>' for way in ways]
    across, down = f"{wide + 4 * MARGIN:.0f}", top - MARGIN
    size = f'width="{across}" height="{down}"'
    seen = f'viewBox="0 0 {across} {down}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {seen}>\n{STYLE}'
    back = f'<rect {size} style="fill: #fff; stroke: none"/>'
    return "\n".join([start, back, *body, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
