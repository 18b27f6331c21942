"""Targets for what batch systems hand to root's hooks, and what their programs answer `lrms-vm submit`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lrms_vm.errors import LrmsVmError, RequestError, SiteError, UsageError
from lrms_vm.lrms import gridengine, openpbs, pbs_text, torque, torque_filter
from lrms_vm.lrms.base import Call
from lrms_vm.lrms.command import Command
from lrms_vm.request import Allocation, parse_request
from lrms_vm.submit import gridengine as gridengine_words
from lrms_vm.submit import pbs as pbs_words
from lrms_vm.submit import slurm as slurm_words

DATA = Path(__file__).parent.parent / "data" / "torque"
PLACES = set("/[]\0\n ")  # what a name that becomes a file's never holds


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def read_pbs_job_id(data: bytes) -> None:
    with contextlib.suppress(SiteError):
        found = pbs_text.parse_job_id(text_of(data))
        assert found.name and not PLACES & set(found.file_prefix) and "." not in found.name


def read_pbs_resources(data: bytes) -> None:
    """Resource_List, exec_host, the node file, chunks of OpenPBS: one text each."""
    text = text_of(data)
    with contextlib.suppress(RequestError):
        found = pbs_text.parse_resources(text)
        assert all(f"{name}={value}" in text for name, value in found.items())
        pbs_text.ppn(found.get("nodes", ""))
        memory = pbs_text.memory_mib(found, (1, 2))
        assert memory is None or memory > 0
    for cpus in (pbs_text.slots_on(text, "n1"), pbs_text.lines_on(text, "n1"), pbs_text.ppn(text)):
        assert cpus is None or 0 < cpus[0] <= cpus[1]
    chunks = pbs_text.chunks_on(text, ("n1",))
    assert chunks is None or chunks[0] > 0
    with contextlib.suppress(UsageError):
        pbs_text.vm_variables(pbs_text.parse_variables(text))


def read_qstat(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(RequestError):
        pbs_text.parse_qstat(text)
    with contextlib.suppress(SiteError):
        assert all(name and not PLACES & set(name) for name in torque.parse_active(text))


def read_job_file(data: bytes) -> None:
    with contextlib.suppress(SiteError, RequestError):
        pbs_text.parse_job_file(data)


def read_torque_call(data: bytes) -> None:
    """A hook's arguments, NUL between them; its qstat says what the last of them is."""
    words = text_of(data).split("\0")
    for argv in (words[: torque.PROLOGUE_WORDS], words[: torque.EPILOGUE_WORDS]):
        _judge(
            Call(tuple(argv), {}, {torque.HOST: b"n1", torque.QSTAT: data}),
            lambda call: torque.identify(call, uid=1, gid=1),
            torque.parse_options,
        )


def read_torque_start(data: bytes) -> None:
    """The job starter's arguments and, behind an empty one, the line on its stdin."""
    words, _, line = data.partition(b"\0\0")
    for given in (line, None):
        with contextlib.suppress(UsageError):
            _check(torque.command(text_of(words).split("\0"), {"PBS_JOBID": "42[1].head"}, given))


def read_torque_script(data: bytes) -> None:
    """The submit filter: what it lets through is not changed when it comes by once more."""
    with contextlib.suppress(RequestError):
        after = torque_filter.filtered(data, ["-N", "x"])
        assert torque_filter.filtered(after, ["-N", "x"]) == after


def read_openpbs_facts(data: bytes) -> None:
    call = Call(("300",), {}, {openpbs.FACTS: data})
    _judge(call, lambda call: openpbs.identify(call, uid=1, gid=1), openpbs.parse_options)
    with contextlib.suppress(SiteError):
        openpbs.keys(openpbs.jobs_here(call), "n1")


def read_gridengine_files(data: bytes) -> None:
    """`config`, then `environment`, a NUL between them."""
    config, _, environment = data.partition(b"\0")
    call = Call(files={"config": config, "environment": environment, "directory": b"42.1"})
    _judge(call, lambda call: gridengine.identify(call, uid=1, gid=1), gridengine.parse_options)
    for read in (gridengine.refuse_interactive, gridengine.starter_method):
        with contextlib.suppress(LrmsVmError):
            read(call)


def read_answers(data: bytes) -> None:
    """squeue, qstat -xml, qacct, qstat -j, qstat -f, and what each qsub prints."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(SiteError):
        slurm_words.parse_look(text)
    with contextlib.suppress(SiteError):
        gridengine_words.parse_list(text)
    with contextlib.suppress(SiteError):
        for look, _ in pbs_words.parse_look(text).values():
            assert look.state.ended == (look.result is not None)
    ended = gridengine_words.parse_ended(text, "42")
    assert ended is None or ended.result is not None
    gridengine_words.parse_reason(text, "42.1")
    for parse in (slurm_words.parse_submitted, gridengine_words.parse_submitted, pbs_words.parse_submitted):
        with contextlib.suppress(SiteError):
            assert all("\n" not in job_id for job_id in parse(text, None))


def _judge(
    call: Call, identify: Callable[[Call], Allocation], parse_options: Callable[[Call], tuple[dict[str, str], str]]
) -> None:
    """What is let through names one job on this node, and a request that is checked again."""
    with contextlib.suppress(SiteError, RequestError):
        found = identify(call)
        assert not set("/\0\n ") & set(found.key) and not found.key.startswith(".")
        assert found.user != "root" and found.cpus > 0
    with contextlib.suppress(SiteError, RequestError):
        options, source = parse_options(call)
        parse_request(options, source=source)


def _check(found: Command) -> None:
    assert found.words
    assert found.script_at is None or found.words[found.script_at].startswith("/")


_ARGUMENTS = [
    b"\0".join(
        [
            b"42[1].head",
            b"alice",
            b"users",
            b"run7",
            b"nodes=1:ppn=2,other=vm:hep-jets",
            b"batch",
            b"",
            b"/p/jobs/42.SC",
        ]
    ),
    b"\0".join(
        [*b"42.head alice users run7 17135 nodes=1,mem=1gb cput=0 batch x 0".split(), b"/p/mom_priv/jobs/42.head.SC"]
    ),
]
_FACTS = {
    "id": "42[3].head", "node": "n1.x.org", "euser": "alice", "queue": "workq", "run_count": 1, "vnodes": ["n1"],
    "exec_vnode": "(n1:ncpus=2:mem=1gb)+(n2:ncpus=1)", "jobs": ["41.head"], "resources": {"vm_image": "hep-jets"},
    "variables": {"VM_MEMORY": "2G", "PBS_O_WORKDIR": "/home/alice"},
}  # fmt: skip
_CONFIG = b"""h_vmem=1G
h_vmem_is_consumable_job=0
h_rss=INFINITY
job_owner=alice
cwd=/home/alice
host_slots=2
queue=vm.q
host=n1
job_id=42
ja_task_id=0
script_file=job.sh
starter_method=/opt/starter
"""
_QSTAT_XML = b"""<?xml version='1.0'?><job_info><queue_info><job_list state="running"><JB_job_number>42</JB_job_number>
<state>Eqw</state><tasks>3</tasks></job_list></queue_info><job_info></job_info></job_info>"""
_QACCT = b"==============\njobnumber    42\ntaskid       undefined\nfailed       100 : assumedly after job\nexit_status  137\n"

TARGETS: dict[str, Callable[[bytes], None]] = {
    "pbs-job-id": read_pbs_job_id,
    "pbs-resources": read_pbs_resources,
    "qstat": read_qstat,
    "job-file": read_job_file,
    "torque-call": read_torque_call,
    "torque-start": read_torque_start,
    "torque-script": read_torque_script,
    "openpbs-facts": read_openpbs_facts,
    "gridengine-files": read_gridengine_files,
    "answers": read_answers,
}
SEEDS: dict[str, Sequence[bytes]] = {
    "pbs-job-id": [b"42[1].head.example.org", b"7.t", b"42[].t"],
    "pbs-resources": [
        b"nodes=1:ppn=2,walltime=00:01:40,mem=2gb,pmem=500mb,other=vm:hep-jets",
        b"n1/0-1+n2/0,3+n1/7",
        b"(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=1+n1[1]:ncpus=1)",
        b"PBS_O_HOME=/home/a,VM_IMAGE=hep-jets,VM_MEMORY=2G",
        b"n1\nn1\nn2\n",
    ],
    "qstat": [(DATA / "qstat.txt").read_bytes(), b"Job Id: 42[1].t\n    job_state = R\n    exec_host = n1/0\n"],
    "job-file": [(DATA / "job.JB.xml").read_bytes()],
    "torque-call": _ARGUMENTS,
    "torque-start": [
        b"/bin/bash\0\0/p/mom_priv/jobs/42-1.head.SC a 'b  c'\n",
        b"/bin/echo\0a\0b",
        b"/bin/csh\0\0/p/1.SC x",
    ],
    "torque-script": [
        b"#!/bin/sh\n#PBS -N x -v A=1\n#VM --vm-image=hep-jets\n\nhostname\n",
        b"#PBS -q a --vm-cpus 1\n",
    ],
    "openpbs-facts": [json.dumps(_FACTS).encode()],
    "gridengine-files": [_CONFIG + b"\0A=1\nVM_IMAGE=hep-jets\nVM_MEMORY=2G\nB=x=y\n"],
    "answers": [
        b"42                  3                   FAILED                  33280           NonZeroExitCode\n",
        _QSTAT_XML,
        _QACCT,
        (DATA / "qstat.txt").read_bytes(),
        b"error reason    1:          10/10/2026 10:00:00 [0:1]: exit_status of prolog = 100\n",
        b"Your job\n42.1-8:1\n",
    ],
}
