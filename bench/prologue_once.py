"""One prologue in a fresh interpreter, as slurmd would start it, but with no batch system: prints its phases as JSON.

    python -I bench/prologue_once.py CONFIG IMAGE WORK_DIR JOB_ID [--paused]

The whole process is what `bench` times; `create` inside it is the hypervisor's own part. `--paused`: the domain is
created and its cpus are not started.
"""

from __future__ import annotations

import gc
import json
import os
import pwd
import sys
import time
from dataclasses import replace
from pathlib import Path

gc.disable()  # as lrms_vm/__main__.py does


def main(config_path: str, image: str, work_dir: str, job_id: str, paused: str = "") -> int:
    started_at, start = time.time(), time.monotonic()
    from lrms_vm import config as configuration
    from lrms_vm import lifecycle, node, record, teardown
    from lrms_vm.request import Allocation, parse_request

    config = configuration.load(Path(config_path))
    entry = pwd.getpwnam("physicist")
    allocation = Allocation(
        lrms="slurm",
        job_id=job_id,
        node="bench",
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        user=entry.pw_name,
        work_dir=work_dir,
        cpus=1,
        memory_mib=1000,
    )
    actors = node.actors(config)
    if paused:
        actors = replace(actors, hypervisor=_never_started(config.libvirt_uri))
    deadline = start + (300 if paused else 60)  # 32 at once on two processors
    with teardown.locked(config.places, allocation.key, deadline=deadline):
        lifecycle.prologue(
            parse_request({"vm-image": image}, source="bench"),
            allocation,
            config=config,
            actors=actors,
            started_at=started_at,
            deadline=deadline,
        )
    print(json.dumps(record.read(config.places.job(allocation.key).record).phases_ms))
    return 0


def _never_started(uri: str) -> object:
    """libvirt, but for one flag."""
    import libvirt

    from lrms_vm.guest import Libvirt

    class Paused(Libvirt):
        def create(self, xml: str, *, deadline: float, confine: object = None) -> None:
            flags = libvirt.VIR_DOMAIN_START_PAUSED
            self._call("start the domain", "domain-create-failed", deadline, lambda c: c.createXML(xml, flags))

    return Paused(uri)


if __name__ == "__main__":
    code = main(*sys.argv[1:6])
    sys.stdout.flush()
    os._exit(code)  # likewise
