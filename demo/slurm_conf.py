"""The text of the demo's slurm.conf. Pure. Facts behind the choices: slurm.conf(5), docs/slurm.md."""

from __future__ import annotations

from demo.layout import NODES, Layout

CONTROLLER_PORT = 26817
NODE_PORTS = {name: CONTROLLER_PORT + 1 + index for index, name in enumerate(NODES)}
NODE_CPUS = 2
NODE_MEMORY_MB = 4000
# How long a job waits after its node failed it: Slurm requeues no earlier than the credential's life (default 120 s).
CREDENTIAL_LIFE_S = 15
KILL_WAIT_S = 10
# By cgroups or without, each with its lines for slurm.conf
TRACKING = {
    False: ("ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none"),
    True: (
        "ProctrackType=proctrack/cgroup",
        "TaskPlugin=task/cgroup,task/affinity",
        "JobAcctGatherType=jobacct_gather/cgroup",
    ),
}
CGROUP_CONF = """\
CgroupPlugin=autodetect
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=yes
ConstrainRAMSpace=yes
ConstrainDevices=no
"""
NODE_GUESTS = 2
# What has nothing to do with where the daemons run.
BEHAVIOUR = (
    "SlurmctldDebug=verbose",
    "SlurmdDebug=verbose",
    "DebugFlags=NO_CONF_HASH",
    "SlurmdParameters=config_overrides",
    "AccountingStorageType=accounting_storage/none",
    "MpiDefault=none",
    "SelectType=select/cons_tres",
    "SelectTypeParameters=CR_CPU_Memory",
    "DefMemPerCPU=1024",
    "SchedulerType=sched/backfill",
    "SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,nohold_on_prolog_fail",
    "PrologFlags=Alloc,DeferBatch",
    "BatchStartTimeout=600",
    "JobRequeue=1",
    "ReturnToService=2",
    "InactiveLimit=0",
    f"KillWait={KILL_WAIT_S}",
    "MinJobAge=3600",
    "SlurmctldTimeout=30",
    "SlurmdTimeout=60",
    "MessageTimeout=20",
    "RebootProgram=/bin/false",
)


def slurm_conf(
    layout: Layout,
    *,
    host: str,
    node: str | None,
    plugstack: bool = True,
    cgroups: bool = False,
    hypervisor: str = "qemu",
) -> str:
    """One configuration for everybody but for the paths of a node's own hooks (hence NO_CONF_HASH).

    `node`: whose slurmd reads it; None for the controller and users. `cgroups`: Slurm holds its jobs in cgroups, which
    the demo does not rely on.
    """
    own = layout.etc / node if node else layout.etc
    lines = [
        "ClusterName=lrms-vm-demo",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={CONTROLLER_PORT}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket},cred_expire={CREDENTIAL_LIFE_S}",
        "CredType=cred/munge",
        f"StateSaveLocation={layout.state / 'slurmctld'}",
        f"SlurmdSpoolDir={layout.state / 'slurmd.%n'}",
        f"SlurmctldPidFile={layout.run / 'slurmctld.pid'}",
        f"SlurmdPidFile={layout.run / 'slurmd.%n.pid'}",
        f"SlurmctldLogFile={layout.log / 'slurmctld.log'}",
        f"SlurmdLogFile={layout.log / 'slurmd.%n.log'}",
        *BEHAVIOUR,
        *TRACKING[cgroups],
        "GresTypes=vm",
    ]
    # said in either case: left out, Slurm takes the plugstack.conf beside the file
    lines.append(f"PlugStackConfig={own / 'plugstack.conf' if plugstack else '/dev/null'}")
    hooks = layout.prefix(node or NODES[0]) / "libexec"  # the controller only wants to know that there is a prolog
    lines += [f"Prolog={hooks / 'slurm.prolog'}", f"Epilog={hooks / 'slurm.epilog'}"]
    lines += [
        f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={NODE_PORTS[name]} "
        f"CPUs={NODE_CPUS} RealMemory={NODE_MEMORY_MB} Features=vm,vm_{hypervisor} Gres=vm:{NODE_GUESTS}"
        for name in NODES
    ]
    lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=60 State=UP OverSubscribe=NO")
    return "\n".join(lines) + "\n"
