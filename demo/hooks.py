"""Our hooks and plugin in the demo's Slurm, put there by the product's own `install`: a prefix for each node."""

from __future__ import annotations

from pathlib import Path

from demo.layout import CHECKOUT, NODES, Layout
from demo.programs import DemoError, run

PLUGIN = CHECKOUT / "spank" / "lrms_vm.so"
GUEST = CHECKOUT / "guest" / "lrms-vm-guest"


def install(layout: Layout) -> bool:
    """For both nodes, and the options for users; return whether a running slurmd would have to be started again."""
    for program in (PLUGIN, GUEST):
        if not program.exists():
            raise DemoError(f"{program} is not built: run `make prerequisites`")
    changed = False
    for node in NODES:
        own = layout.etc / node
        where: tuple[str | Path, ...] = ("--prefix", layout.prefix(node), "--slurm-conf-dir", own)
        argv = (layout.command, "--config", layout.config(node), "install", "--lrms=slurm", *where)
        said = run([*argv, "--plugin", PLUGIN, "--guest", GUEST], timeout_s=120)
        changed = changed or any(line.startswith(("new ", "change ")) for line in said.splitlines())
        (own / "plugstack.conf").write_text(f"include {own / 'plugstack.conf.d'}/*.conf\n")
    (layout.etc / "plugstack.conf").write_text(f"required {layout.plugin(NODES[0])}\n")
    return changed
