"""What brings the request to root's hook: each system and way, and never over what the user says."""

from __future__ import annotations

import pytest

from lrms_vm.errors import UsageError
from lrms_vm.lrms import slurm as slurm_hook
from lrms_vm.submit.carry import Way, carry, comment
from lrms_vm.submit.description import SYSTEMS, JobDescription, Vm, vm_options

WAYS = list(Way)
HOSTILE = [
    "a b",
    "a,b",
    "a=b",
    "a;b",
    "a'b",
    'a"b',
    "a\nb",
    "",
    "-a",
    "../a",
    "a$(x)",
    "a`x`",
    "ä",
    "a" * 2000,
    "$HOME",
]


def job(image: str | None = "hep/jets@1.2", vm: Vm | None = None, **attributes: str) -> JobDescription:
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return JobDescription("true", image=image, vm=vm or Vm(), custom_attributes=named)


def carried(description: JobDescription, system: str, way: Way) -> tuple[dict[str, str], dict[str, str]]:
    made = carry(description, system, way)
    return dict(made.options), dict(made.variables)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_ordinary_job_carries_nothing(system: str, way: Way) -> None:
    made = carry(job(None), system, way)
    assert (made.options, made.variables, made.in_guest) == ((), (), False)


@pytest.mark.parametrize(
    ("system", "way", "options", "variables"),
    [
        ("slurm", Way.PLUGIN, {"vm-image": "hep/jets@1.2", "vm-cpus": "2"}, {}),
        ("slurm", Way.COMMANDS, {"comment": "lrms_vm:hep/jets@1.2,lrms_vm-cpus:2"}, {}),
        ("slurm", Way.LIBRARY, {"comment": "lrms_vm:hep/jets@1.2,lrms_vm-cpus:2"}, {}),
        ("gridengine", Way.COMMANDS, {"l": "vm_capable=TRUE"}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
        ("gridengine", Way.LIBRARY, {"l": "vm_capable=TRUE"}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
        ("torque", Way.COMMANDS, {"l": "other=vm:hep/jets@1.2"}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
        ("torque", Way.LIBRARY, {}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
        ("openpbs", Way.COMMANDS, {"l": "vm_image=hep/jets@1.2"}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
        ("openpbs", Way.LIBRARY, {}, {"VM_IMAGE": "hep/jets@1.2", "VM_CPUS": "2"}),
    ],
)
def test_the_carrier_of_each_way(system: str, way: Way, options: dict[str, str], variables: dict[str, str]) -> None:
    assert carried(job(vm=Vm(cpus="2")), system, way) == (options, variables)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_does_not_get_as_far_as_a_carrier(name: str) -> None:
    with pytest.raises(UsageError):
        job(name)
    with pytest.raises(UsageError):
        JobDescription("true", environment={"VM_IMAGE": name})


def test_the_environments_image_counts_and_may_not_contradict() -> None:
    asked = JobDescription("true", environment={"VM_IMAGE": "a", "VM_MEMORY": "2G"})
    assert vm_options(asked) == {"vm-image": "a", "vm-memory": "2G"}
    assert carried(asked, "slurm", Way.COMMANDS)[0] == {"comment": "lrms_vm:a,lrms_vm-memory:2G"}
    with pytest.raises(UsageError):
        JobDescription("true", image="b", environment={"VM_IMAGE": "a"})


# -- Slurm's comment


def test_the_users_comment_is_continued() -> None:
    assert carried(job(slurm__comment="run 7; night"), "slurm", Way.COMMANDS)[0] == {
        "comment": "run 7; night,lrms_vm:hep/jets@1.2"
    }


def test_a_comment_that_names_the_same_image_is_left() -> None:
    own = "x lrms_vm:hep/jets@1.2 y"
    assert carried(job(slurm__comment=own), "slurm", Way.COMMANDS)[0] == {"comment": own}


@pytest.mark.parametrize("way", WAYS)
def test_a_comment_that_names_another_image_is_refused(way: Way) -> None:
    with pytest.raises(UsageError) as caught:
        carry(job(slurm__comment="lrms_vm:other"), "slurm", way)
    assert caught.value.code == "image-twice"


def test_with_the_plugin_the_comment_is_the_users_alone() -> None:
    options, _ = carried(job(slurm__comment="mine"), "slurm", Way.PLUGIN)
    assert options == {"comment": "mine", "vm-image": "hep/jets@1.2"}
    with pytest.raises(UsageError):
        carry(job(**{"slurm__vm-image": "other"}), "slurm", Way.PLUGIN)


@pytest.mark.parametrize("own", ["two words", "a=b", "it's", "tab\there"])
def test_what_a_library_would_mangle_is_refused(own: str) -> None:
    """slurm-drmaa splits the native specification at blanks and cuts a value at its second "="."""
    with pytest.raises(UsageError) as caught:
        carry(job(slurm__comment=own), "slurm", Way.LIBRARY)
    assert caught.value.code == "carrier-unfit"


def test_lists_are_words_of_their_own() -> None:
    request = {"vm-image": "a", "vm-share": "/data,/more", "vm-env": "A,B"}
    assert comment("", request) == "lrms_vm:a,lrms_vm-share:/data,lrms_vm-share:/more,lrms_vm-env:A,lrms_vm-env:B"


@pytest.mark.parametrize("share", ["/with blank", "/a;b", "/a=b"])
def test_a_share_that_does_not_fit_into_a_comment_is_refused(share: str) -> None:
    with pytest.raises(UsageError) as caught:
        carry(job(vm=Vm(share=share)), "slurm", Way.COMMANDS)
    assert caught.value.code == "carrier-unfit"
    assert carried(job(vm=Vm(share=share)), "slurm", Way.PLUGIN)[0]["vm-share"] == share


def test_the_hook_reads_what_the_comment_says() -> None:
    request = {"vm-image": "a/b@1", "vm-share": "/data,/more", "vm-cpus": "2", "vm-network": "bridge:br0"}
    options, _ = slurm_hook.parse_options({"SLURM_JOB_COMMENT": comment("my own, words", request)})
    assert options == request


# -- resources and variables


@pytest.mark.parametrize(
    ("system", "own", "merged"),
    [
        ("gridengine", "h_vmem=2G", "h_vmem=2G,vm_capable=TRUE"),
        ("gridengine", "vm_capable=true", "vm_capable=true"),
        ("torque", "nodes=1:ppn=2,mem=2gb", "nodes=1:ppn=2,mem=2gb,other=vm:hep/jets@1.2"),
        ("torque", "other=vm:hep/jets@1.2", "other=vm:hep/jets@1.2"),
        ("openpbs", "select=1", "select=1,vm_image=hep/jets@1.2"),
    ],
)
def test_resources_of_the_user_stay(system: str, own: str, merged: str) -> None:
    assert carried(job(**{f"{system}__l": own}), system, Way.COMMANDS)[0]["l"] == merged


@pytest.mark.parametrize(
    ("system", "own"),
    [("gridengine", "vm_capable=FALSE"), ("torque", "other=gpu"), ("torque", "other=vm:x"), ("openpbs", "vm_image=x")],
)
def test_a_resource_that_contradicts_is_refused(system: str, own: str) -> None:
    with pytest.raises(UsageError):
        carry(job(**{f"{system}__l": own}), system, Way.COMMANDS)


@pytest.mark.parametrize("system", ["gridengine", "torque", "openpbs"])
def test_variables_of_the_user_stay(system: str) -> None:
    _, variables = carried(job(**{f"{system}__v": "SEED=7"}), system, Way.COMMANDS)
    assert variables == {"SEED": "7", "VM_IMAGE": "hep/jets@1.2"}
    with pytest.raises(UsageError):
        carry(job(**{f"{system}__v": "VM_IMAGE=other"}), system, Way.COMMANDS)


@pytest.mark.parametrize(
    ("system", "way", "fits"),
    [
        ("gridengine", Way.COMMANDS, True),  # -v NAME takes the value from qsub's environment
        ("gridengine", Way.LIBRARY, True),
        ("torque", Way.COMMANDS, False),
        ("torque", Way.LIBRARY, False),
        ("openpbs", Way.COMMANDS, False),
        ("openpbs", Way.LIBRARY, False),
    ],
)
def test_a_comma_travels_or_is_refused(system: str, way: Way, fits: bool) -> None:
    asked = job(vm=Vm(share="/data,/more"))
    if fits:
        assert carried(asked, system, way)[1]["VM_SHARE"] == "/data,/more"
    else:
        with pytest.raises(UsageError) as caught:
            carry(asked, system, way)
        assert caught.value.code == "carrier-unfit"


def test_grid_engines_library_loses_what_follows_a_second_equals_sign() -> None:
    asked = job(vm=Vm(share="/a=b"))
    assert carried(asked, "gridengine", Way.COMMANDS)[1]["VM_SHARE"] == "/a=b"
    with pytest.raises(UsageError):
        carry(asked, "gridengine", Way.LIBRARY)


@pytest.mark.parametrize("system", SYSTEMS)
def test_attributes_of_other_systems_are_left_alone(system: str) -> None:
    attributes = {f"{other}__A": "x" for other in SYSTEMS if other != system}
    assert carry(job(None, **attributes), system, Way.COMMANDS).options == ()
