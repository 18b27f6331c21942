"""Draw the figure: relative performance of each row, native and under Xen, as the talk's figure 3 was drawn.

python3 -m figure3.plot build/figure3/results.json figure3.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from figure3.boots import BOOTS
from figure3.payloads import PAYLOADS, ROWS

COLOURS = {"native": "#1f4e79", "dom0": "#8a8a8a", "xen": "#c8102e"}
LETTERS = {"native": "L", "dom0": "0", "xen": "X"}
WIDTH = 0.29


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    args = parser.parse_args()
    draw(json.loads(args.results.read_text()), args.picture)
    return 0


def draw(said: dict[str, Any], picture: Path) -> None:
    """The four rows on the left, the single payloads of the mixes on the right."""
    relative = {(cell["name"], cell["boot"]): float(cell["relative"]) for cell in said["cells"]}
    singles = [payload.name for payload in PAYLOADS if payload.name not in ROWS]
    pyplot.rcParams.update({"font.size": 10, "axes.linewidth": 0.9, "font.family": "DejaVu Sans"})
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(13.0, 4.6), width_ratios=(len(ROWS), len(singles)), gridspec_kw={"wspace": 0.05}
    )
    for axes, names in ((left, list(ROWS)), (right, singles)):
        for number, boot in enumerate(BOOTS):
            places = [n + (number - 1) * WIDTH for n in range(len(names))]
            heights = [relative[name, boot] for name in names]
            label = f"{BOOTS[boot].where} ({LETTERS[boot]})"
            axes.bar(places, heights, WIDTH * 0.92, color=COLOURS[boot], label=label)
            for place, height in zip(places, heights, strict=True):
                axes.text(place, height + 0.015, f"{height:.2f}", ha="center", fontsize=7.5)
                axes.text(place, 0.02, LETTERS[boot], ha="center", fontsize=8, color="white")
        axes.set_xticks(range(len(names)), names)
        axes.axhline(1.0, color="#555555", linewidth=0.8, linestyle=":")
        axes.tick_params(direction="in", right=True)
    left.set_ylim(0, max(1.12, 1.1 * max(relative.values())))
    left.set_ylabel("relative performance (native time / time)")
    left.set_title("Payloads", loc="left", fontsize=11)
    right.set_title("What the two mixes are made of", loc="left", fontsize=11)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.05), fontsize=9, ncols=3)
    figure.suptitle(
        "Instructions that the same payloads take natively and under Xen, on the same emulated machine",
        x=0.09,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    figure.text(
        0.09,
        -0.1,
        f"{said['software']['xen']}, Linux {said['software']['kernel']}; {said['emulator']} -icount. "
        "A count of instructions is not a time: see docs/figure3.md.",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(picture, dpi=150, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
