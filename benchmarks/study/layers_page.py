"""Makes the tables of layer norms in docs/study.md from the results."""

import numpy as np

from benchmarks.results import STUDY, Record, Table, markdown

# ‖w‖, ‖∇w‖ and their ratio as Table 4 prints them, by its columns.
PAPER = {
    "conv1.1": (1.86, 0.22, 8.48),
    "conv1.0": (0.098, 0.017, 5.76),
    "conv2.1": (5.546, 0.165, 33.6),
    "conv2.0": (0.16, 0.002, 83.5),
    "conv3.1": (9.40, 0.135, 69.9),
    "conv3.0": (0.196, 0.0015, 127),
    "conv4.0": (8.15, 0.109, 74.6),
    "conv4.1": (0.196, 0.0013, 148),
    "conv5.1": (6.65, 0.09, 73.6),
    "conv5.0": (0.16, 0.0002, 69),
    "fc6.1": (30.7, 0.26, 117),
    "fc6.0": (6.4, 0.005, 1345),
    "fc7.1": (20.5, 0.30, 68),
    "fc7.0": (6.4, 0.013, 489),
    "fc8.1": (20.2, 0.22, 93),
    "fc8.0": (0.316, 0.016, 19),
}
# The fillers: standard deviation and number of weights, value and number of biases.
FILLERS = {
    "conv1": (0.01, 11 * 11 * 3 * 96, 0.01, 96),
    "conv2": (0.01, 5 * 5 * 48 * 256, 0.01, 256),
    "conv3": (0.01, 3 * 3 * 256 * 384, 0.01, 384),
    "conv4": (0.01, 3 * 3 * 192 * 384, 0.01, 384),
    "conv5": (0.01, 3 * 3 * 192 * 256, 0.01, 256),
    "fc6": (0.005, 9216 * 4096, 0.1, 4096),
    "fc7": (0.005, 4096 * 4096, 0.1, 4096),
    "fc8": (0.01, 4096 * 1000, 0.01, 1000),
}


def printed_leaf(column: str) -> tuple[str, float]:
    """Returns the leaf in a column of the paper's Table 4, and the leaf's initial norm.

    By the Caffe fillers it is std · √n for n weights and value · √n for n biases.
    """
    layer, _, end = column.partition(".")
    std, weights, value, biases = FILLERS[layer]
    # The caption is right for conv4 alone; elsewhere weights and biases are swapped.
    if (end == "1") != (layer == "conv4"):
        return f"{layer}/kernel", std * np.sqrt(weights)
    return f"{layer}/bias", value * np.sqrt(biases)


def short(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def table4(record: Record) -> str:
    """Returns Markdown tables of norms and their ratios, the paper's and those here."""
    norms, ratios = [], []
    for column, (w, g, paper) in PAPER.items():
        name, expected = printed_leaf(column)
        first = {"Table 4": column, "leaf": f"`{name}`"}
        ours = {title: found[name] for title, found in record["leaves"].items()}
        drawn = next(iter(ours.values()))["param_norm"]
        known = {"‖w‖": f"{w:g}", "fillers": f"{expected:.4g}", "drawn": f"{drawn:.4g}"}
        known["‖∇w‖"] = f"{g:g}"
        norms.append(
            first | known | {k: short(x["grad_norm"]) for k, x in ours.items()}
        )
        own = {k: short(ratio(x)) for k, x in ours.items()}
        ratios.append(first | {"‖w‖/‖∇w‖": f"{paper:g}"} | own)
    return f"{markdown(norms)}\n{markdown(ratios)}"


def ratio(norms: Record) -> float:
    """Returns the ratio ‖w‖/‖∇w‖ of one leaf's recorded norms."""
    found: float = norms["param_norm"] / norms["grad_norm"]
    return found


def spread(record: Record) -> str:
    """Returns a Markdown table of the smallest and largest ratio ‖w‖/‖∇w‖.

    One row is over the weights and one over all leaves. One column is the paper's.
    """
    ratios = {"paper": {printed_leaf(c)[0]: row[2] for c, row in PAPER.items()}}
    for name, leaves in record["leaves"].items():
        ratios[name] = {leaf: ratio(x) for leaf, x in leaves.items()}
    rows = []
    for title, end in (("weights", "kernel"), ("all leaves", "")):
        row = {"‖w‖/‖∇w‖ over": title}
        for name, found in ratios.items():
            some = [(x, leaf) for leaf, x in found.items() if leaf.endswith(end)]
            (low, lowest), (high, highest) = min(some), max(some)
            ends = f"{short(low)} ({lowest}) … {short(high)} ({highest})"
            row[name] = f"{ends}: {high / low:.0f}×"
        rows.append(row)
    return markdown(rows)


def along(record: Record) -> str:
    """Returns Markdown tables of the layers' norms at four times of each training."""
    text = ""
    for network, found in record["networks"].items():
        tables = found["tables"]
        some = [tables[i] for i in (0, len(tables) // 6, len(tables) // 2, -1)]
        text += f"\n`{network}`, γ = {found['learning_rate']:g}, seed {found['seed']},"
        text += f" {found['updates']} updates, {found['accuracy']:.1%}:"
        text += " ‖w‖ / ‖∇w‖ = ratio\n\n"
        rows = []
        for name in tables[0]["layers"]:
            row = {"leaf": f"`{name}`"}
            for table in some:
                x = table["layers"][name]
                norms = f"{short(x['param_norm'])} / {short(x['grad_norm'])}"
                row[f"update {table['step']}"] = f"{norms} = {short(ratio(x))}"
            rows.append(row)
        text += markdown(rows)
        text += f"\n![Norms and rates of the layers](layers-{network}.png)\n"
    return text


TABLES = (
    Table(STUDY, "table 4", "table4.json", table4),
    Table(STUDY, "spread", "table4.json", spread),
    Table(STUDY, "along training", "layers.json", along),
)
