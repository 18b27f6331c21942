#!/usr/bin/env python3
"""Draw the jet-pT spectra of two results of jets.py, one over the other, and their ratio bin by bin.

python3 plot.py guest/jets.json outside/jets.json jets.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

GUEST, OUTSIDE, QUIET = "#c8102e", "#1f4e79", "#555555"
BINS_PER_DECADE = 14
PT_MIN_GEV = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guest", type=Path, help="jets.json of the run in the guest")
    parser.add_argument("outside", type=Path, help="jets.json of the run outside")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    args = parser.parse_args()
    guest, outside = (json.loads(path.read_text()) for path in (args.guest, args.outside))
    draw(guest, outside, args.picture)
    return 0


def draw(guest: dict[str, Any], outside: dict[str, Any], picture: Path) -> None:
    """Jets per event and GeV with their statistical errors above, guest over outside below."""
    inside_gev, outside_gev = ([float.fromhex(pt) for pt in result["pt_gev"]] for result in (guest, outside))
    edges = bin_edges(max(inside_gev + outside_gev, default=100.0))
    inside_counts, outside_counts = counts(inside_gev, edges), counts(outside_gev, edges)
    widths = [high - low for low, high in pairwise(edges)]
    centres = [math.sqrt(low * high) for low, high in pairwise(edges)]

    pyplot.rcParams.update({"font.size": 11, "axes.linewidth": 0.9, "font.family": "DejaVu Sans"})
    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8.0, 7.0), height_ratios=(3, 1), gridspec_kw={"hspace": 0.06}
    )
    density = [n / outside["events"] / w for n, w in zip(outside_counts, widths, strict=True)]
    top.stairs(density, edges, color=OUTSIDE, alpha=0.22, fill=True)
    top.stairs(density, edges, color=OUTSIDE, linewidth=1.6, label=f"outside, on the host: {outside['jets']} jets")
    filled = [(c, n, w) for c, n, w in zip(centres, inside_counts, widths, strict=True) if n]
    top.errorbar(
        [c for c, _, _ in filled],
        [n / guest["events"] / w for _, n, w in filled],
        yerr=[math.sqrt(n) / guest["events"] / w for _, n, w in filled],
        fmt="o",
        color=GUEST,
        markersize=4.5,
        capsize=2,
        linewidth=1.1,
        label=f"in the guest: {guest['jets']} jets",
    )
    top.set_yscale("log")
    top.set_ylim(top=20 * max(density, default=1.0))  # room for the legend above the data
    top.set_ylabel(r"jets per event and GeV")
    same = all(guest[key] == outside[key] for key in ("events", "seed", "jets", "fingerprint", "pt_gev"))
    verdict = "identical, bit for bit" if same else "DIFFERENT"
    top.set_title("Jets in the guest and outside: " + verdict, loc="left", fontsize=13, fontweight="bold", pad=10)
    top.legend(
        frameon=False,
        loc="upper right",
        title=f"Pythia 8 hard QCD, pp at 14 TeV, {guest['events']} events\n"
        rf"FastJet anti-$k_t$, $R = 0.4$, $p_T > {PT_MIN_GEV:.0f}$ GeV",
        alignment="left",
    )

    bottom.axhline(1.0, color=QUIET, linewidth=0.8)
    both = [(c, n / m, math.sqrt(m) / m) for c, n, m in zip(centres, inside_counts, outside_counts, strict=True) if m]
    # The two runs are of the same events: the band is how far two independent runs would be apart, the points are ours.
    bottom.fill_between(
        [c for c, _, _ in both],
        [1 - error for _, _, error in both],
        [1 + error for _, _, error in both],
        color=OUTSIDE,
        alpha=0.18,
        linewidth=0,
        label="statistical error",
    )
    bottom.plot([c for c, _, _ in both], [ratio for _, ratio, _ in both], "o", color=GUEST, markersize=4.5)
    bottom.set_ylim(0.4, 1.6)
    bottom.set_ylabel("guest / outside")
    bottom.set_xlabel(r"jet transverse momentum $p_T$ [GeV]")
    bottom.legend(frameon=False, loc="upper left", fontsize=9)
    bottom.set_xscale("log")
    bottom.set_xlim(edges[0], edges[-1])
    bottom.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5)))
    bottom.xaxis.set_major_formatter(ScalarFormatter())
    bottom.xaxis.set_minor_formatter(NullFormatter())
    for axes in (top, bottom):
        axes.tick_params(direction="in", which="both", top=True, right=True)
        axes.grid(visible=True, which="major", alpha=0.18)
    figure.align_ylabels()
    figure.savefig(picture, dpi=150, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def bin_edges(highest_gev: float) -> list[float]:
    """Bins of equal width in the logarithm, from the threshold to just above the hardest jet."""
    number = max(4, math.ceil(BINS_PER_DECADE * math.log10(highest_gev * 1.02 / PT_MIN_GEV)))
    step = math.log10(highest_gev * 1.02 / PT_MIN_GEV) / number
    return [PT_MIN_GEV * 10 ** (step * n) for n in range(number + 1)]


def counts(values: list[float], edges: list[float]) -> list[int]:
    """How many values lie in each bin."""
    return [sum(low <= v < high for v in values) for low, high in pairwise(edges)]


if __name__ == "__main__":
    sys.exit(main())
