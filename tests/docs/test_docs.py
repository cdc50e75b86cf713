"""Law: what the pages and examples show runs and prints what they say; links work."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"
LINKING = [README, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]
INDENTED = re.compile(r"^    (python -m (?:.*\\\n)*.*)$", re.MULTILINE)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)|<img[^>]+src=\"(?!\w+:)([^\"]+)\"")
IMAGENET = 1_281_167


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """(language, text, line) of each fenced block, and of each indented command."""
    text = page.read_text()
    found = [(block[1], block[2], block.start()) for block in FENCED.finditer(text)]
    found += [("bash", code[1], code.start()) for code in INDENTED.finditer(text)]
    return [(kind, code, text.count("\n", 0, at) + 1) for kind, code, at in found]


def commands():
    for page in [*PAGES, *LINKING]:
        for language, text, line in blocks(page):
            for command in text.replace("\\\n", " ").splitlines():
                if language == "bash":
                    yield pytest.param(command, id=f"{name(page)}:{line}")


def prose(page):
    return FENCED.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_runs_and_prints_what_is_shown(page, capsys):
    namespace, printed = {"__name__": "a_page"}, None
    for language, text, line in blocks(page):
        if language == "python":
            # As many lines before it as in the page, for tracebacks.
            code = compile("\n" * line + text, name(page), "exec")
            exec(code, namespace)
            printed = capsys.readouterr().out
        elif language == "text" and printed is not None:
            assert printed.split() == text.split(), f"{name(page)}:{line}"


@pytest.mark.parametrize("command", list(commands()))
def test_commands_name_modules_and_flags_that_exist(command):
    words = shlex.split(command.removeprefix("$ "))
    assert words[:2] == ["python", "-m"], command
    path = ROOT / words[2].replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    if words[2] != "examples.imagenet":
        return
    # They need the trainer's extra.
    main = pytest.importorskip("examples.imagenet.cli")
    from examples.imagenet.plan import make_plan
    from examples.imagenet.recipe import to_recipe

    config = main.parse(words[3:])
    to_recipe(config)  # refuses what a recipe leaves open
    devices, processes = config.batching.devices or 1, config.cluster.processes or 1
    make_plan(config.batching, devices, IMAGENET, processes)


@pytest.mark.parametrize("page", [*LINKING, *PAGES], ids=name)
def test_links_and_pictures_are_there(page):
    for link in LINK.finditer(prose(page)):
        target, _, anchor = (link[1] or link[2]).partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), f"{name(page)} links to {target}"
        assert found.is_relative_to(ROOT)
        if anchor and found.suffix == ".md" and found.name != "api.md":
            assert anchor in anchors(found), f"{name(page)} links to {target}#{anchor}"


def anchors(page):
    """Of the headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference():
    import lars_optax

    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(ROOT / "docs")) in navigation
    reference = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^::: lars_optax\.(\w+)", reference, re.MULTILINE))
    assert shown == {n for n in vars(lars_optax) if not n.startswith("_")}


def test_code_blocks_of_the_readme_run(capsys):
    first, mask = [text for kind, text, _ in blocks(README) if kind == "python"]
    shown = [text for kind, text, _ in blocks(README) if kind == "text"]
    names = {}
    exec(first, names)
    assert names["loss"](names["params"]) < 1e-5  # 2.4e-6 when written
    capsys.readouterr()
    exec(mask, names)
    assert capsys.readouterr().out.split() == shown[0].split()


def test_quickstart_learns(capsys):
    from examples import quickstart

    assert quickstart.main() > 0.95  # 98.7 % when written; chance is 10 %
    assert "dense2/kernel" in capsys.readouterr().out


def test_weights_kept_in_bfloat16_stand_still_and_master_weights_do_not():
    from examples import mixed_precision

    results = mixed_precision.main()
    full = results["float32", "float32"]
    master, half = results["float32", "bfloat16"], results["bfloat16", "bfloat16"]
    # Losses were 0.0495, 0.0500 and 0.0670 when written.
    assert master.loss < 1.05 * full.loss
    assert half.loss > 1.2 * full.loss
    assert min(full.moved[-10:]) > 0.9
    assert max(half.moved[-10:]) < 0.1


def test_tables_are_those_of_the_committed_results(monkeypatch):
    from benchmarks import report

    monkeypatch.chdir(ROOT)
    pages = report.pages()
    assert {str(page) for page in pages} >= {"README.md", "benchmarks/README.md"}
    for page, text in pages.items():
        assert page.read_text() == text, f"{page} is not of the results: make report"


def test_picture_of_imports_is_that_of_the_code():
    script = runpy.run_path(str(ROOT / "tools/draw_imports.py"))
    kept = script["PICTURE"].read_text(encoding="utf-8")
    assert kept == script["drawing"](), "the imports have changed: make report"


def test_gallery_has_every_picture():
    shown = {link[1] for link in LINK.finditer((ROOT / "docs/gallery.md").read_text())}
    assert {path.name for path in (ROOT / "docs").glob("*.png")} <= shown


def test_demo_used_the_rates_of_the_committed_sweep():
    run = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    sweep = json.loads((ROOT / "benchmarks/results/demo_sweep.json").read_text())
    best = {name: method["best"] for name, method in sweep["methods"].items()}
    assert best == {row["method"]: row["learning_rate"] for row in run["rows"]}
