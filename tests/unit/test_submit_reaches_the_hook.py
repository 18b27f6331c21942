"""What `lrms-vm submit` sends is what root's hook reads: each system, each way, fed from the one into the other.

Between the two stands the batch system, here as a few lines that do what it was seen to do (docs/<system>.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrms_vm.errors import UsageError
from lrms_vm.lrms import gridengine, openpbs, slurm, torque
from lrms_vm.lrms.base import Call
from lrms_vm.request import parse_request
from lrms_vm.submit import drmaa_words, pbs
from lrms_vm.submit import gridengine as gridengine_words
from lrms_vm.submit import slurm as slurm_words
from lrms_vm.submit.carry import Carried, Way, carry
from lrms_vm.submit.description import SYSTEMS, JobDescription, Vm, vm_options

FULL = JobDescription(
    "true",
    image="atlas/sim@13.0+x",
    vm=Vm(memory="2G", cpus="2", network="bridge:br0", share="/data", kernel="k5", env="HTTP_PROXY"),
)
PLAIN = JobDescription("true", image="hep-jets")
MORE = JobDescription(
    "true",
    image="hep-jets",
    custom_attributes={
        "slurm.comment": "run 7",
        "gridengine.l": "h_vmem=2G",
        "gridengine.v": "A=1",
        "torque.l": "mem=2gb",
        "torque.v": "A=1",
        "openpbs.l": "place=excl",
        "openpbs.v": "A=1",
    },
)
NATIVE = JobDescription("true", image="hep-jets", custom_attributes={"slurm.comment": "run7"})


def read(system: str, way: Way, carried: Carried) -> tuple[dict[str, str], str]:
    """Submit by this way's own words; what the hook of this system then reads."""
    if way is Way.LIBRARY:
        [template] = drmaa_words.templates(carried, system, {}, None)
        words = template.get("nativeSpecification", "").split()
        environment = template.get("jobEnvironment", {})
    else:
        words, environment = submitted(system, carried)
    return {"slurm": by_slurm, "gridengine": by_gridengine, "torque": by_torque, "openpbs": by_openpbs}[system](
        words, environment
    )


def submitted(system: str, carried: Carried) -> tuple[list[str], Mapping[str, str]]:
    """The command line, and the environment that goes with it."""
    if system == "slurm":
        return slurm_words.submit_argv("sbatch", carried, None), {}
    if system == "gridengine":
        return gridengine_words.submit_argv("qsub", carried, None), dict(carried.variables)
    return pbs.submit_argv("qsub", carried, None, openpbs=system == "openpbs"), {}


def after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def by_slurm(words: list[str], environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The plugin's option becomes SPANK_VM_IMAGE, --comment is SLURM_JOB_COMMENT; jobEnvironment does not come by."""
    given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    hook = {f"SPANK_{name.upper().replace('-', '_')}": text for name, text in given.items() if name.startswith("vm-")}
    if "comment" in given:
        hook["SLURM_JOB_COMMENT"] = given["comment"]
    return slurm.parse_options(hook)


def by_gridengine(words: list[str], environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """`-v NAME` takes qsub's own variable; all of them stand in the spooled environment."""
    names = [name for listed in after(words, "-v") for name in listed.split(",")]
    spooled = environment if not names else {name: environment[name] for name in names}
    assert "vm_capable=TRUE" in ",".join(after(words, "-l"))
    text = "".join(f"{name}={value}\n" for name, value in spooled.items())
    return gridengine.parse_options(Call(files={gridengine.ENVIRONMENT: text.encode()}))


def by_torque(words: list[str], environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The resources are the hook's fifth argument; qstat says the variables, of which the last -v is left.

    pbs-drmaa writes jobEnvironment as a -v list, and its -l takes no `other`.
    """
    resources = ",".join(after(words, "-l"))
    variables = after(words, "-v")[-1:] or [",".join(f"{name}={value}" for name, value in environment.items())]
    if environment:
        assert "other=" not in resources
    argv = ("42.head", "alice", "users", "job", resources, "batch", "", "/var/spool/torque/mom_priv/jobs/42.head.SC")
    qstat = f"Job Id: 42.head\n    Variable_List = {variables[0]},PBS_O_HOME=/home/alice\n"
    return torque.parse_options(Call(argv, {}, {torque.HOST: b"n1", torque.QSTAT: qstat.encode()}))


def by_openpbs(words: list[str], environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The hook sees Resource_List and Variable_List as lists of their own."""
    resources = dict(part.split("=", 1) for listed in after(words, "-l") for part in listed.split(","))
    variables = dict(part.split("=", 1) for listed in after(words, "-v") for part in listed.split(","))
    if environment:
        assert "vm_image" not in resources
    facts = {
        "id": "42.head", "node": "n1", "euser": "alice", "queue": "workq", "exec_vnode": "(n1:ncpus=1)", "run_count": 1,
        "vnodes": ["n1"], "jobs": [], "resources": resources, "variables": {**environment, **variables},
    }  # fmt: skip
    return openpbs.parse_options(Call(("300",), {}, {openpbs.FACTS: json.dumps(facts).encode()}))


WAYS = [(system, way) for system in SYSTEMS for way in Way if way is not Way.PLUGIN or system == "slurm"]


@pytest.mark.parametrize(("system", "way"), WAYS)
@pytest.mark.parametrize("job", [PLAIN, FULL], ids=["image", "all options"])
def test_the_hook_reads_the_request(system: str, way: Way, job: JobDescription) -> None:
    options, source = read(system, way, carry(job, system, way))
    assert options == vm_options(job)
    assert parse_request(options, source=source) == parse_request(vm_options(job), source="here")


@pytest.mark.parametrize(("system", "way"), WAYS)
def test_it_reads_it_beside_what_the_user_says(system: str, way: Way) -> None:
    job = NATIVE if (system, way) == ("slurm", Way.LIBRARY) else MORE
    assert read(system, way, carry(job, system, way))[0] == {"vm-image": "hep-jets"}


def test_a_job_of_the_wrapper_is_carried_by_the_resource_where_there_is_one() -> None:
    """The first in the hook's order: it needs nobody to be asked, on Torque not even a server."""
    assert read("torque", Way.COMMANDS, carry(PLAIN, "torque", Way.COMMANDS))[1] == "-l other=vm:"
    assert read("torque", Way.LIBRARY, carry(PLAIN, "torque", Way.LIBRARY))[1] == "VM_IMAGE"
    assert read("openpbs", Way.COMMANDS, carry(PLAIN, "openpbs", Way.COMMANDS))[1] == "-l vm_image"
    assert read("openpbs", Way.LIBRARY, carry(PLAIN, "openpbs", Way.LIBRARY))[1] == "VM_IMAGE"


@given(
    way=st.sampled_from(WAYS),
    image=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,30}", fullmatch=True),
    memory=st.none() | st.from_regex(r"[1-9][0-9]{0,3}[MG]", fullmatch=True),
    share=st.none()
    | st.lists(st.from_regex(r"/[A-Za-z0-9._/-]{1,12}", fullmatch=True), min_size=1, max_size=2, unique=True),
)
def test_any_request_arrives_or_is_refused(
    way: tuple[str, Way], image: str, memory: str | None, share: list[str] | None
) -> None:
    try:
        job = JobDescription("true", image=image, vm=Vm(memory=memory, share=",".join(share) if share else None))
    except UsageError:
        assume(False)
    try:
        carried = carry(job, *way)
    except UsageError:
        return
    assert read(*way, carried)[0] == vm_options(job)
