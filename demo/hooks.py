"""Our hooks and plugin in the demo's Slurm. (A stand-in until lrms_vm/install.py is there.)"""

from __future__ import annotations

from demo.layout import NODES, Layout


def write(layout: Layout) -> None:
    """Put prolog, epilog and plugstack.conf of each node in place."""
    (layout.etc / "plugstack.conf").write_text("")
    for node in NODES:
        own = layout.etc / node
        (own / "plugstack.conf").write_text("")
        for name in ("prolog", "epilog"):
            (own / name).write_text("#!/bin/sh\nexit 0\n")
            (own / name).chmod(0o755)
