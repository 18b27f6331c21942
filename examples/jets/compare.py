#!/usr/bin/env python3
"""Compare two results of jets.py bit for bit: exit 0 if they are the same, 1 if not, 2 if one cannot be read.

python3 compare.py guest/jets.json outside/jets.json [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

COMPARED = ("events", "seed", "jets", "fingerprint", "pt_gev")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guest", type=Path, help="jets.json of the run in the guest")
    parser.add_argument("outside", type=Path, help="jets.json of the run outside")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    args = parser.parse_args()
    try:
        guest, outside = (json.loads(path.read_text()) for path in (args.guest, args.outside))
        differences = differing(guest, outside)
        jets, events = int(guest["jets"]), int(guest["events"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"compare: cannot read: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"identical": not differences, "jets": jets, "events": events, "differences": differences}))
    elif differences:
        print("\n".join(differences))
    else:
        print(f"identical, bit for bit: {jets} jets in {events} events, sum of pT {guest['fingerprint']}")
    return 1 if differences else 0


def differing(guest: dict[str, Any], outside: dict[str, Any]) -> list[str]:
    """A line for each value that is not the same. Hexadecimal floats are compared as text: every bit counts."""
    lines = [
        f"{key}: {guest[key]} in the guest, {outside[key]} outside"
        for key in COMPARED
        if key != "pt_gev" and guest[key] != outside[key]
    ]
    pairs = list(zip(guest["pt_gev"], outside["pt_gev"], strict=False))
    wrong = [n for n, (a, b) in enumerate(pairs) if a != b]
    if wrong:
        first = wrong[0]
        lines.append(
            f"pt_gev: {len(wrong)} of {len(pairs)} differ, the first is jet {first}: {' and '.join(pairs[first])}"
        )
    if len(guest["pt_gev"]) != len(outside["pt_gev"]):
        lines.append(f"pt_gev: {len(guest['pt_gev'])} in the guest, {len(outside['pt_gev'])} outside")
    return lines


if __name__ == "__main__":
    sys.exit(main())
