"""Our hooks and plugin in the demo's Slurm, put there as an administrator does: by `lrms-vm install` on each node."""

from __future__ import annotations

from demo.layout import NODES, Layout
from demo.programs import run


def write(layout: Layout) -> None:
    """Put each node's hooks, plugin and plugstack.conf in place, and the login node's plugin.

    The two programs were compiled by `make prerequisites`, so that this takes no compiler's time.
    """
    plugin, guest = layout.opt / "lrms_vm.so", layout.opt / "lrms-vm-guest"
    (layout.etc / "plugstack.conf").write_text(f"optional {plugin}\n" if plugin.exists() else "")
    for node in NODES:
        own = layout.etc / node
        if plugin.exists():
            ready_made = ("--plugin", plugin, "--guest", guest)
            where = ("--prefix", layout.prefix(node), "--slurm-conf-dir", own)
            run([layout.command, "--config", layout.config(node), "install", "--lrms=slurm", *where, *ready_made])
        (own / "plugstack.conf").write_text(f"include {own}/plugstack.conf.d/*.conf\n" if plugin.exists() else "")
