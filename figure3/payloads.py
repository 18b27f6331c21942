"""What is run in every machine, and the texts that go into it. Pure.

The talk's figure 3 had a compile, an I/O benchmark and system calls; the application is ours (examples/jets).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

INSIDE = "/run/inside"
PROGRAM = f"{INSIDE}/figure3"
TURNS = 2  # the first one fills the page cache; the last one counts
EVENTS = 10
FUNCTIONS = 40  # of the C file that is compiled


@dataclass(frozen=True)
class Payload:
    """A command, and the row of the table that it is a part of."""

    name: str
    row: str
    argv: tuple[str, ...]


ROWS = {
    "jets": f"Pythia 8 and FastJet, {EVENTS} events",
    "compile": f"gcc -O2 of {FUNCTIONS} functions",
    "io": "4 KiB writes with fsync, 4 KiB reads",
    "syscalls": "getpid, stat, pipe, fork",
}

PAYLOADS = (
    Payload(
        "jets",
        "jets",
        ("/usr/bin/python3", f"{INSIDE}/jets.py", "--events", str(EVENTS), "--out", "/mnt/jets.json"),
    ),
    Payload("compile", "compile", ("/usr/bin/gcc", "-O2", "-c", "-o", "/mnt/generated.o", f"{INSIDE}/generated.c")),
    Payload("write", "io", (PROGRAM, "write", "/mnt/file", "16")),
    Payload("read", "io", (PROGRAM, "read", "/mnt/file", "16")),
    Payload("getpid", "syscalls", (PROGRAM, "getpid", "300000")),
    Payload("stat", "syscalls", (PROGRAM, "stat", "60000")),
    Payload("pipe", "syscalls", (PROGRAM, "pipe", "10000")),
    Payload("fork", "syscalls", (PROGRAM, "fork", "1000")),
)


def script(payloads: Sequence[Payload] = PAYLOADS, turns: int = TURNS) -> str:
    """The shell script that runs them all, in turns. No word of a payload needs quoting."""
    lines = [
        "#!/bin/sh",
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONHASHSEED=0 TMPDIR=/tmp",
        "clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)",
        """memory=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)""",
        'echo "figure3: kernel $(uname -r), clock $clock, $memory KiB"',
    ]
    for turn in range(1, turns + 1):
        for payload in payloads:
            lines.append(f"{PROGRAM} time {payload.name} {turn} {' '.join(payload.argv)} 2>/run/said || cat /run/said")
        lines += ['echo "figure3: jets $(sed -n \'s/.*fingerprint": "\\(.*\\)".*/\\1/p\' /mnt/jets.json)"']
    return "\n".join(lines) + "\n"


def generated_c(functions: int = FUNCTIONS, seed: int = 2007) -> str:
    """A C file as a compiler meets them: loops, branches, structures, calls. The same seed, the same bytes."""
    dice = random.Random(seed)  # nothing secret
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>", "#include <math.h>", ""]
    lines += ["struct hit { double x, y, z, energy; int layer; struct hit *next; };", ""]
    for number in range(functions):
        earlier = dice.randrange(number) if number else None
        call = f"sum += f{earlier}(hits, n - 1, table);" if earlier is not None else "sum += 1.0;"
        a, b, c = (dice.randrange(2, 97) for _ in range(3))
        lines += [
            f"double f{number}(struct hit *hits, int n, int *table)",
            "{",
            "    double sum = 0.0;",
            "    for (int i = 0; i < n; i++) {",
            f"        struct hit *hit = &hits[(i * {a} + {b}) % n];",
            f"        table[i % {c}] += hit->layer ^ {a};",
            f"        switch ((hit->layer + {b}) % {dice.randrange(3, 7)}) {{",
            "        case 0: sum += sqrt(hit->x * hit->x + hit->y * hit->y); break;",
            f"        case 1: sum -= hit->z * {a}.{b} / (1.0 + hit->energy); break;",
            f"        case 2: while (hit->next && hit->energy < {c}.0) hit = hit->next; sum += hit->energy; break;",
            f"        default: table[(i + {a}) % {c}] = (int)(sum / {b}.0); break;",
            "        }",
            "    }",
            f"    if (n > {a}) {{",
            f"        {call}",
            "    }",
            f"    return sum * {c}.0 / (n + {a});",
            "}",
            "",
        ]
    return "\n".join(lines)
