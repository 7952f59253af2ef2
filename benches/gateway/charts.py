#!/usr/bin/env python3
"""Draws the results of scripts/bench as SVG: benches/gateway/charts.py RESULTS.json [DIRECTORY].

Needs matplotlib; if this Python has none, one that has it is made.
"""

import json
import os
import sys
from pathlib import Path

import install

try:
    import matplotlib as mpl
except ImportError:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    python = str(install.python_with("matplotlib"))
    os.execv(python, [python, "-B", *sys.argv])

mpl.use("svg")
# Before pyplot is imported. The same results make the same bytes.
mpl.rcParams.update({"svg.hashsalt": "tcp-over-http", "font.size": 9, "font.family": "sans-serif"})

import matplotlib.pyplot as plt  # noqa: E402

COLORS = {"limit": "#b8b8b8", "ours": "#d1495b", "kernel": "#30638e", "tun": "#6aa5c9"}
LEGEND = {
    "limit": "without a gateway",
    "ours": "tcp-over-http",
    "kernel": "peers, kernel redirect or tproxy",
    "tun": "peers, TUN",
}


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    directory = Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent
    directory.mkdir(parents=True, exist_ok=True)
    found = json.loads(source.read_text())
    most_idle = max(found["plan"]["idle"])
    bars(
        found,
        directory / f"{source.stem}-throughput.svg",
        "Throughput, Gb/s",
        [
            (title, lambda m, cell=cell: m[cell]["gbps"])
            for cell, title in (
                ("up1", "1 stream up"),
                ("down1", "1 stream down"),
                ("up4", "4 streams up"),
                ("down4", "4 streams down"),
            )
        ],
    )
    bars(
        found,
        directory / f"{source.stem}-cpu.svg",
        "CPU seconds of the gateway for a gigabyte",
        [("up", lambda m: m["up1"]["gateway_s_per_gb"]), ("down", lambda m: m["down1"]["gateway_s_per_gb"])],
    )
    bars(
        found,
        directory / f"{source.stem}-connections.svg",
        "New connections a second, closed after the first byte",
        [
            ("1 at a time", lambda m: m["connect1"]["per_second"]),
            ("8 at a time", lambda m: m["connect8"]["per_second"]),
        ],
    )
    bars(
        found,
        directory / f"{source.stem}-memory.svg",
        "Resident memory, MB",
        [
            ("started", lambda m: m["rss_idle"] / 1e6),
            (f"{most_idle:,} idle connections", lambda m: idle_rss(m, most_idle)),
        ],
    )


def bars(found: dict, path: Path, title: str, panels: list):
    """A panel for each figure, a bar for each gateway that has it."""
    shown = [gateway for gateway in found["gateways"] if any(figure(get, gateway) for _, get in panels)]
    columns = 2
    rows = (len(panels) + 1) // columns
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(9, 0.8 + rows * (0.5 + 0.24 * len(shown))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, get) in zip(axes.flat, panels, strict=True):
        values = [figure(get, gateway) for gateway in shown]
        places = range(len(shown))
        axis.barh(
            places, [value or 0 for value in values], color=[COLORS[gateway["kind"]] for gateway in shown]
        )
        for place, value in zip(places, values, strict=True):
            text = " -" if value is None else f" {value:,.0f}" if value >= 100 else f" {value:,.3g}"
            axis.text(value or 0, place, text, va="center", fontsize=8)
        axis.set_yticks(places, [gateway["note"] for gateway in shown])
        axis.set_title(name, fontsize=9)
        axis.margins(x=0.16)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()  # shared by all
    kinds = dict.fromkeys(gateway["kind"] for gateway in shown)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[kind]) for kind in kinds]
    fig.legend(
        handles, [LEGEND[kind] for kind in kinds], loc="outside lower center", ncols=len(kinds), frameon=False
    )
    fig.suptitle(title, fontsize=11)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
    print(path)


def figure(get, gateway: dict):
    """A gateway's figure; None if it has none."""
    try:
        return get(gateway["medians"])
    except (KeyError, TypeError):
        return None


def idle_rss(medians: dict, count: int):
    """Memory with so many idle connections, if they all worked."""
    for idle in medians["idle"]:
        if idle["wanted"] == count and idle.get("alive") == count:
            return idle["rss"] / 1e6
    return None


if __name__ == "__main__":
    main()
