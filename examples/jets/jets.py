#!/usr/bin/env python3
"""Jets of hard QCD collisions at 14 TeV, by Pythia 8 and FastJet (anti-kt, R = 0.4, pT > 20 GeV).

    python3 jets.py --events 100 --out jets.json

Prints the number of jets and a fingerprint, the sum of all jet pT as a hexadecimal float: the same to the last bit
on every x86-64 machine with the same C library and the same wheels (requirements.txt), in a guest or outside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

# The C library picks sin, exp, log and pow by what the processor can do, and those with fused multiply-add round
# differently in the last bit. A guest's processor is not its host's, so ask for the plain ones in both. The C library
# reads this before main(), hence the exec.
PLAIN_MATHS = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-FMA,-FMA4"

SEED = 20070905
RADIUS = 0.4
PT_MIN_GEV = 20.0  # of a jet
PT_HAT_MIN_GEV = 60.0  # of the hard collision itself
ETA_MAX = 4.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100, help="collisions to generate (100)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of Pythia's random numbers ({SEED})")
    parser.add_argument("--out", type=Path, default=Path("jets.json"), metavar="FILE", help="the result (jets.json)")
    args = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != PLAIN_MATHS:
        environment = {**os.environ, "GLIBC_TUNABLES": PLAIN_MATHS}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # no shell is the point

    started = time.monotonic()
    jets_gev = find_jets(args.events, args.seed)
    result = {
        "events": args.events,
        "seed": args.seed,
        "jets": len(jets_gev),
        "fingerprint": math.fsum(jets_gev).hex(),
        "pt_gev": [pt.hex() for pt in jets_gev],
    }
    args.out.write_text(json.dumps(result, indent=0) + "\n")
    print(f"{result['jets']} jets in {args.events} events, sum of pT {result['fingerprint']}")
    print(f"hardest jet {max(jets_gev, default=0.0):.1f} GeV; {time.monotonic() - started:.1f} s")
    return 0


def find_jets(events: int, seed: int) -> list[float]:
    """The transverse momentum of every jet in GeV, in order of events and within one of falling pT."""
    # Here and not above: they take seconds to load, and --help should not.
    import fastjet
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    for setting in (
        "Print:quiet = on",
        "Beams:eCM = 14000.",
        "HardQCD:all = on",
        f"PhaseSpace:pTHatMin = {PT_HAT_MIN_GEV}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
    ):
        if not pythia.readString(setting):
            raise SystemExit(f"jets: Pythia refuses {setting!r}")
    if not pythia.init():
        raise SystemExit("jets: Pythia cannot start")

    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    jets_gev: list[float] = []
    done = 0
    while done < events:
        if not pythia.next():
            continue
        done += 1
        particles = [
            fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e())
            for p in pythia.event
            if p.isFinal() and p.isVisible() and abs(p.eta()) < ETA_MAX
        ]
        clusters = fastjet.ClusterSequence(particles, definition)
        jets_gev += [jet.pt() for jet in fastjet.sorted_by_pt(clusters.inclusive_jets(PT_MIN_GEV))]
        if done % 25 == 0:
            print(f"{done} of {events} events, {len(jets_gev)} jets", flush=True)
    return jets_gev


if __name__ == "__main__":
    sys.exit(main())
