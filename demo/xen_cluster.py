"""A Slurm with one node, and that a Xen host: slurmd in the dom0 of an emulated machine. See machine_cluster.py.

Also a command: `python -m demo.xen_cluster start|stop|status|remove`, or `... run COMMAND` in dom0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from demo import machine_cluster, xen_conf, xen_image
from demo.layout import Layout
from demo.layout import default_base as demo_base
from demo.machine_cluster import MachineCluster
from demo.machine_conf import Own
from demo.machine_image import Recipe
from demo.xen_layout import XenLayout, default_base
from demo.xen_node import Node


@dataclass(frozen=True)
class XenCluster(MachineCluster):
    """See above."""

    @classmethod
    def default(cls) -> XenCluster:
        return cls(XenLayout(default_base(), site=Layout(demo_base())))

    @property
    def node(self) -> Node:
        return Node(self.layout)

    @property
    def recipe(self) -> Recipe:
        return xen_image.RECIPE

    @property
    def own(self) -> Own:
        return xen_conf.OWN


if __name__ == "__main__":
    sys.exit(machine_cluster.main(XenCluster.default(), "demo.xen_cluster", sys.argv[1:]))
