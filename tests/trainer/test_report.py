"""What is said of runs from their logs alone; the logs are made by hand."""

import io
import json
import re

import logs
import numpy as np
import pytest
from cases import assert_line, assert_usage, cases
from logs import config, epoch, layers, run, speed, step, write

from examples.imagenet.report import __main__ as report
from examples.imagenet.report import page
from examples.imagenet.report import speed as speeds
from examples.imagenet.report.runs import labels, read_runs
from examples.imagenet.run import progress
from examples.imagenet.terminal import Terminal

CONFIG = json.dumps(config()) + "\n"


def test_without_a_terminal_a_line_a_minute_says_when_it_will_end(monkeypatch, capsys):
    """Steps of 1 s: nothing for 60 s, then at 70, and again 60 s later."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said = {"images_per_second_per_device": 1234.5, "data_wait": 0.25}
    console = Terminal(force_terminal=False, width=200)
    with progress.progress("lars", 600, console) as show:
        for number in range(10, 151, 10):
            now[0] = float(number)
            show({"kind": "speed", "step": number} | said)
    first, second = capsys.readouterr().out.splitlines()
    speed = "1,234 img/s/device, 25% waiting for data"
    assert first == f"lars: step 70, {speed}, 9 min left"
    assert second == f"lars: step 140, {speed}, 8 min left"


@pytest.mark.parametrize("steps", [600, 225_000])
@pytest.mark.parametrize("width", [40, 50, 80, 120])
def test_a_narrow_terminal_cuts_the_end_of_the_text_alone(width, steps):
    console = Terminal(force_terminal=True, width=width, file=io.StringIO())
    with progress.progress("lars", steps, console) as show:
        show(step(299) | {"loss": 0.25})
        show({"kind": "epoch", "accuracy": 0.5})
        show({"kind": "speed", "images_per_second_per_device": 1e3, "data_wait": 0.25})
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    last = lines.splitlines()[-1]
    count = f"{300:{len(str(steps))}}/{steps}"
    assert re.match(rf"lars [━╸╺]{{10,40}} {count} (0:00:00|-:--:--) ", last)
    text = "loss 0.250, accuracy 50.00%, 1,000 img/s/device, 25% waiting for data"
    shown = last.split(":", 2)[2].split(" ", 1)[1].rstrip()
    assert shown == text or (shown[-1] == "…" and text.startswith(shown[:-1]))
    assert len(last.rstrip()) <= width


@pytest.mark.parametrize("width", [20, 40, 41, 42, 43, 44, 80])
def test_a_narrow_terminal_loses_no_cell_and_no_word(width):
    rows = [("SGD, large batch", "1,600", "91.0 ± 3.0 %"), ("LARS", "32", "97.0 %")]
    caption = "Accuracies are means over 3 seeds ± their standard deviation."
    console = Terminal(force_terminal=True, width=width, file=io.StringIO())
    table = page.Table(
        "A title of several words", ("method", "batch", "acc."), rows, caption
    )
    page.show([table], console)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    for text in (*table.head, "1,600", "91.0 ± 3.0 %", "97.0 %", "LARS"):
        assert text in shown
    assert " ".join(shown.split()).endswith(caption)
    assert " ".join(shown.split()).startswith(table.title)


def test_tables_8_and_9_come_back_from_logs_of_the_papers_speeds():
    """AlexNet-BN; in each log the median is the paper's speed, the first an outlier."""
    paper = {(512, 4): 6627, (512, 8): 5771, (4096, 4): 6585, (4096, 8): 15379}

    def of(batch, n, median):
        first = [speed(each, n) for each in (1, median - 900, median, median + 1)]
        then = [{"kind": "resume", "step": 9}, speed(1, n), step(10, batch)]
        return run(config(batch, n), *first, *then)

    found = speeds.cells([of(*cell, median) for cell, median in paper.items()])
    assert {(c.batch, c.devices): c.speed for c in found} == paper
    assert {(c.records, c.data_wait, c.warm) for c in found} == {(3, 0.25, True)}
    assert found[0].seconds == 100 * logs.IMAGES / 6627
    (row,) = speeds.ratios(found)
    assert row[:4] == ("alexnet_bn, LARS, gpu", 512, 4096, 4)
    np.testing.assert_allclose(row[4:], (1, 2.7, 0.87, 2.3), rtol=0.02)  # as printed
    assert speeds.ratios(found[1:]) == []


def test_equal_runs_share_a_cell_and_unlike_ones_do_not():
    base, first, later = run(config(), speed(1), speed(8)), speed(2), speed(10)

    def beside(*other):
        return speeds.cells([base, run(*other)])

    (cell,) = beside(config(rate=2.0), first, later, speed(12))
    assert (cell.speed, cell.records) == (10, 3)
    assert len(beside(config(engine="pmap"), first, later)) == 1  # the other: unknown
    engines = [run(config(engine=name), later) for name in ("pmap", "shard_map")]
    assert len(speeds.cells(engines)) == 2
    assert len(beside(config(algorithm="sgd"), first, later)) == 2
    assert len(beside(config(), first, speed(10, 8))) == 2  # went on with others


def test_a_lone_first_record_of_speed_counts_and_is_marked():
    (cell,) = speeds.cells([run(config(), speed(50))], epochs=2)
    assert (cell.speed, cell.warm, cell.epochs) == (50, False, 2)
    assert (cell.images, cell.seconds) == (None, None)


@pytest.mark.parametrize("batch", [32, 4096, 32_768])
def test_training_images_follow_from_any_later_update(batch):
    assert run(config(batch), step(0), step(7, batch)).images == logs.IMAGES
    assert run(config(batch), step(0)).images is None
    assert run(config(batch) | {"images": 5}, step(7, batch)).images == 5


def test_a_label_tells_what_differs_but_for_seeds():
    done, base = [step(0), logs.RESULT], "alexnet_bn, LARS, batch 512, learning-rate"
    found = [
        (run(config(), *done), f"{base} 1"),
        (run(config(seed=1, out="b"), *done), f"{base} 1"),
        (run(config(rate=2.5), *done), f"{base} 2.5"),
        (run(config(), *done, logs.LOST), f"{base} 1, diverged"),
        (run(config(), step(0)), f"{base} 1, unfinished"),
        (run(config(nesterov=True), *done), f"{base} 1"),  # the others do not say
        (run(config(8192), *done), "alexnet_bn, LARS, batch 8,192"),
    ]
    assert labels([run for run, _ in found]) == [label for _, label in found]


def test_a_report_holds_what_the_logs_hold_and_says_what_they_do_not(tmp_path, capsys):
    broken = {"kind": "broken", "step": 2, "path": "x.jpg", "reason": "cut"}
    start = [config(), step(0), layers(0), step(1), layers(1)]
    start += [broken, broken]
    end = [speed(9), speed(10), epoch(1, 0.5, 2), logs.RESULT]
    whole = write(tmp_path / "whole run", *start, *end)
    resumed = {"kind": "resume", "step": 2, "changes": ["other moments"]}
    end = [resumed, logs.LOST, epoch(0.5, 0.1, 2)]
    lost = write(tmp_path / "lost", *start[:3], *end)
    young = write(tmp_path / "young", config() | {"platform": "cpu"}, speed(20))
    out = tmp_path / "out"
    report.main([whole, lost, young, whole, "--out", str(out)])
    text = (out / "report.md").read_text()
    for line in (
        "| whole-run | finished | 2 | 1 | 50.00% | 90.00% | test | 1m 00s |",
        "| conv1/kernel | 1.86 | 0.22 | 8.45 |",
        "| conv1/bias | 0 | 0 | – |",
        "| 512 | 4 | 10 | 2 | 25% | 1 | 100 | 1,281,167 | 3558h 47m 50s |",
        "images that could not be read: 1",
        "diverged at step 2: the output of fc8; resumed after update 2; other moments",
        "lost: no other norms in the log, so no picture of them.",
        "unfinished; read from",
        "evaluation not in the log; norms not in the log\n",
        "## Speed: alexnet_bn, LARS, cpu\n",
        r"| 512 | 4 | 20 | 5 | 25% | 1\* | 100 | ? | ? |",
    ):
        assert line in text, line
    cpu, gpu = text.split("## Speed: ")[1:]
    starred, virtual = "*: only first records", "On a CPU, devices are virtual"
    for note in (starred, virtual, "?: not in the log"):
        assert note in cpu
        assert note not in gpu
    for picture in ("curves.png", "layers-whole-run.png"):
        assert f"]({picture})" in text
        assert (out / picture).read_bytes().startswith(logs.PNG_MAGIC)
    assert len(list(out.iterdir())) == 4
    numbers = json.loads((out / "report.json").read_text())
    statuses = [r["status"] for r in numbers["runs"]]
    assert statuses == ["finished", "diverged", "unfinished"]
    curve = {"epoch": [1], "accuracy": [0.5], "loss": [1.0]}
    assert numbers["runs"][0]["curve"] == curve
    assert "images that could not be read" in capsys.readouterr().out


@cases(
    "text, message",
    none=(None, "there is no log there; give"),
    empty=("", "the log is empty; wait until"),
    begun=('{"kind": "config"', "the log is empty; wait until"),
    cut=(CONFIG + '{"kin\n{}\n', r"line 2 is not JSON: '\{\"kin'; delete the line"),
    number=("1\n", "line 1 has 1, which must be an object; delete the line"),
    no_config=(
        json.dumps(step(0)) + "\n",
        "not begin with the record .* give the whole log",
    ),
)
def test_a_log_that_is_none_ends_with_one_line_that_names_it(text, message, tmp_path):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    arguments = [str(tmp_path), "--out", str(tmp_path / "out")]
    assert_line(f"RUN: '{tmp_path}': .*{message}", arguments, report.main)
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_get_files_of_their_own(tmp_path):
    (tmp_path / "b").mkdir()
    folders = [write(tmp_path / name, config()) for name in ("a", "b/a")]
    file = f"{folders[0]}/log.jsonl"
    assert [found.name for found in read_runs([*folders, file])] == ["a", "a-2"]


def test_text_of_a_log_is_no_markup_in_a_report(tmp_path, capsys):
    """Nor HTML, a formula in a picture, another line or a control character."""
    odd = "<b>x</b> & `c` [l](u) | *i* _i_ a_b\n# h \x1b[31m $\\frac$ \ud800"
    settings = config(odd=odd) | {"platform": odd}
    settings["model"]["network"] = settings["optimizer"]["algorithm"] = odd
    done = epoch(1, 0.5, 1) | {"split": odd}
    resumed = {"kind": "resume", "step": 2, "changes": [odd]}
    names = [layers(n, {odd: logs.LEAVES["conv1/kernel"]}) for n in (0, 1)]
    where = logs.LOST | {"where": odd}
    log = [settings, step(0), names[0], step(1), names[1], speed(5), done, resumed]
    out = tmp_path / "out"
    report.main([write(tmp_path / "a", *log, where), "--out", str(out)])
    text = (out / "report.md").read_text("utf-8")
    shown = r"&lt;b&gt;x&lt;/b&gt; &amp; \`c\` \[l\](u) \| \*i\* \_i\_ a_b\\n# h"
    shown += r" \\x1b\[31m \$\\frac\$"
    assert text.count(shown) >= 5
    assert "<" not in text
    assert "\n# " not in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("name", ["report.md", "report.json", "curves.png"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, name):
    log = write(tmp_path / "a", config(), step(0), epoch(1, 0.5, 1))
    path = tmp_path / "out" / name
    path.mkdir(parents=True)
    message = f"--out: '{path}' cannot be written .Is a directory.; give another folder"
    assert_line(message, [log, "--out", str(path.parent)], report.main)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    log = write(tmp_path / "a", config())
    message = "--out: '.*jsonl' cannot be written .File exists.; give another folder"
    assert_line(message, [log, "--out", f"{log}/log.jsonl"], report.main)


@cases("epochs, got", zero=("0", "got 0.0; "), huge=("1e300", "got 1e+300; "))
def test_epochs_of_a_report_are_within_bounds(tmp_path, epochs, got, capsys):
    log = write(tmp_path / "a", config(), speed(5))
    message = f"--epochs: {got}give "
    assert_usage(message, [log, "--epochs", epochs], capsys, report.main)


def test_speeds_after_a_changed_flag_are_those_of_another_setting(tmp_path):
    first = config() | {"batching": config()["batching"] | {"accumulate": 1}}
    again = {"kind": "resume", "step": 2, "settings": {"accumulate": 8, "workers": 3}}
    warm = [speed(100.0), speed(10.0, done=2), speed(11.0, done=3)]
    log = [first, *warm, again, speed(90.0), speed(5.0, done=4), speed(6.0, done=5)]
    # As before, and once more without a change.
    back = {"kind": "resume", "step": 5, "settings": {"accumulate": 1}}
    log += [back, speed(80.0), speed(12.0, done=6), back, speed(70.0), speed(13.0)]
    rows = speeds.cells(read_runs([write(tmp_path / "run", *log)]))
    found = {row.group: row.speed for row in rows}
    name = "alexnet_bn, LARS, gpu"
    assert found == {f"{name}, accumulate 1": 11.5, f"{name}, accumulate 8": 5.5}
