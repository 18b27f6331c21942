"""Which batch system this is, from what a submit host has. Pure: the caller looked.

`qsub` belongs to Grid Engine, Torque, OpenPBS and to Slurm's own wrapper, so what stands beside it decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lrms_vm.errors import UsageError
from lrms_vm.submit.description import SYSTEMS
from lrms_vm.values import dataclass

_PROGRAMS = """
    sbatch squeue scancel scontrol
    qsub qstat qdel qhold qrls qsig qmod qacct qconf qmgr momctl trqauthd pbs_rstat pbs_hostattach
"""
PROGRAMS = _PROGRAMS.split()

# A variable that a site's profile sets for one system only.
VARIABLES = {"SLURM_CONF": "slurm", "SGE_ROOT": "gridengine", "PBS_CONF_FILE": "openpbs", "PBSCLIENTROOT": "torque"}
# Programs that one system only has.
_MARKS = (
    ("slurm", ("sbatch",)),
    ("gridengine", ("qsub", "qconf")),
    ("openpbs", ("qsub", "pbs_rstat")),
    ("torque", ("qsub", "momctl")),
    ("torque", ("qsub", "trqauthd")),
)


@dataclass(frozen=True)
class Detected:
    system: str
    why: str


def detect(programs: Collection[str], environ: Mapping[str, str], *, asked: str | None = None) -> Detected:
    """The system of this host. `programs`: those of `PROGRAMS` that are on PATH. Raises `UsageError`.

    >>> detect({"sbatch", "squeue"}, {})
    Detected(system='slurm', why='sbatch is on PATH')
    """
    if asked is not None:
        if asked not in SYSTEMS:
            raise UsageError(f"--lrms: {asked[:40]!r} is not one of {', '.join(SYSTEMS)}", code="lrms-unknown")
        return Detected(asked, "asked for")
    found: dict[str, str] = {}
    for system, marks in _MARKS:
        if all(mark in programs for mark in marks):
            found.setdefault(system, f"{' and '.join(marks)} {'are' if len(marks) > 1 else 'is'} on PATH")
    if not found and {"qsub", "qmgr"} <= set(programs):
        system = "openpbs" if "pbs_hostattach" in programs else "torque"
        found[system] = "qsub and qmgr are on PATH"
    told = {system: name for name, system in VARIABLES.items() if environ.get(name) and system in found}
    if len(told) == 1:
        [(system, name)] = told.items()
        return Detected(system, f"{found[system]}, {name} is set")
    if len(found) == 1:
        [(system, why)] = found.items()
        return Detected(system, why)
    if not found:
        raise UsageError(
            "no batch system found: neither sbatch nor a qsub that we know is on PATH",
            hint="set PATH as your site says; --lrms names the system",
            code="lrms-unknown",
        )
    raise UsageError(
        f"more than one batch system found: {', '.join(found)}", hint="say which: --lrms", code="lrms-ambiguous"
    )
