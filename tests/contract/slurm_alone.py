"""A slurmctld and a slurmd of their own, without munge, guests or accounting: for what only a real Slurm can tell."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CONF = """\
ClusterName=alone
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=3
JobSubmitPlugins={submit_plugins}
PlugStackConfig=/dev/null
NodeName=a1 NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} CPUs=8 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@dataclass(frozen=True)
class SlurmAlone:
    base: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.base / "slurm.conf")}

    def call(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], **self.environ, **(env or {})}
        return subprocess.run(words, env=environ, cwd=self.base, capture_output=True, text=True, timeout=60)

    def log(self) -> str:
        return (self.base / "slurmctld.log").read_text(errors="replace")


@contextmanager
def slurm_alone(base: Path, *, job_submit_lua: Path | None = None) -> Iterator[SlurmAlone]:
    """Up within about two seconds; stopped by the process ids of its own."""
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(2)
    (base / "state").mkdir()
    if job_submit_lua is not None:
        shutil.copy(job_submit_lua, base / "job_submit.lua")
    plugins = "lua" if job_submit_lua else "defaults"
    text = CONF.format(host=host, port=ports[0], node_port=ports[1], base=base, submit_plugins=plugins)
    (base / "slurm.conf").write_text(text)
    slurm = SlurmAlone(base)
    daemons = []
    try:
        for words in (["/usr/sbin/slurmctld", "-D"], ["/usr/sbin/slurmd", "-D", "-N", "a1"]):
            command = [*words, "-f", str(base / "slurm.conf")]
            daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _until("the node is idle", lambda: slurm.call("sinfo", "-h", "-o", "%T").stdout.strip() == "idle")
        yield slurm
    finally:
        if daemons:
            slurm.call("scancel", "--state=RUNNING")
            slurm.call("scancel", "--state=PENDING")
            with suppress(TimeoutError):
                _until("no job", lambda: not slurm.call("squeue", "-h").stdout.strip(), timeout_s=10)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()


def _until(what: str, holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports
