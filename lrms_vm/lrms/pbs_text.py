"""The texts of Torque and OpenPBS: job ids, resource lists, variables, who runs where, `qstat -f -1`, job files. Pure.

Names, accounts, arguments and variables in them are the user's. A field that is there twice is believed in neither
place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

from lrms_vm.errors import RequestError, SiteError, UsageError
from lrms_vm.request import OPTIONS
from lrms_vm.units import parse_memory_mib
from lrms_vm.values import dataclass

VARIABLES = {word: word.upper().replace("-", "_") for word in OPTIONS}  # qsub -v VM_IMAGE=...
MAX_BYTES = 4 << 20

_JOB_ID = re.compile(r"([0-9]{1,12})(?:\[([0-9]{1,9})\])?(\.[A-Za-z0-9._-]{1,255})?", re.ASCII)
_FIELD = re.compile(r" {4}([A-Za-z_]{1,40}(?:\.[A-Za-z0-9_]{1,60})?) = (.*)", re.ASCII | re.DOTALL)
_RECORD = re.compile(r"Job Id: ?(\S{1,300}) *", re.ASCII)
_SLOTS = re.compile(r"([A-Za-z0-9._-]{1,255})/([0-9]{1,6}(?:-[0-9]{1,6})?(?:,[0-9]{1,6}(?:-[0-9]{1,6})?)*)", re.ASCII)
_PPN = re.compile(r"ppn=([1-9][0-9]{0,4})", re.ASCII)
_COUNT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_CHUNK = re.compile(r"[A-Za-z0-9._\[\]-]{1,255}(?::[a-z_A-Z0-9]{1,60}=[A-Za-z0-9._-]{1,60})*", re.ASCII)
_DECLARATION = re.compile(r"<!(?!--)")  # no DOCTYPE, no entity


@dataclass(frozen=True)
class JobId:
    """ "42[1].tqa": job 42, its array's task 1, of the server tqa."""

    number: str
    task: str = ""
    server: str = ""

    @property
    def name(self) -> str:
        """For our own key: without the server, since a job id in it has no dot."""
        return f"{self.number}-{self.task}" if self.task else self.number

    @property
    def file_prefix(self) -> str:
        """What Torque calls the job's files."""
        return self.name + self.server


def parse_job_id(text: str) -> JobId:
    """Raises `SiteError`: the batch system says it.

    >>> parse_job_id("42[1].tqa").file_prefix, parse_job_id("77.tqa").name
    ('42-1.tqa', '77')
    """
    found = _JOB_ID.fullmatch(text)
    if found is None:
        raise SiteError(f"{text[:80]!r} is not the id of a job", code="hook-environment")
    return JobId(found[1], found[2] or "", found[3] or "")


def parse_resources(text: str) -> dict[str, str]:
    """ "nodes=1:ppn=2,walltime=00:01:40,other=vm:NAME" by name. A part without "=" belongs to the value before it.

    Raises `RequestError` for a name that comes twice.
    """
    found: dict[str, str] = {}
    last = ""
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            if last:
                found[last] += f",{part}"
            continue
        if name in found:
            raise muddled(f"resource {name[:40]}")
        last, found[name] = name, value
    return found


def parse_variables(text: str) -> dict[str, str]:
    """A Variable_List. Torque cuts values at commas; a part without "=" is what it left of one.

    Raises `UsageError` for a variable of ours that comes twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals and name in found and name in VARIABLES.values():
            raise UsageError(f"{name} is among the job's variables twice", code="option-unreadable")
        if equals:
            found[name] = value
    return found


def vm_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The option texts by their words. Hostile, unread."""
    return {word: variables[name] for word, name in VARIABLES.items() if name in variables}


def parse_qstat(text: str) -> dict[str, dict[str, str]]:
    """`qstat -f -1`: fields by job id. A line that is no field belongs to the value before it.

    Raises `RequestError` for a field or a job that comes twice.
    """
    jobs: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        if start := _RECORD.fullmatch(line):
            if start[1] in jobs:
                raise muddled("Job Id")
            fields, last = jobs.setdefault(start[1], {}), ""
        elif jobs and (field := _FIELD.fullmatch(line)):
            last = field[1]
            if last in fields:
                raise muddled(last)
            fields[last] = field[2]
        elif last and line:
            fields[last] += line.removeprefix("\t")
    return jobs


def parse_job_file(data: bytes) -> dict[str, str]:
    """Torque's mom_priv/jobs/ID.JB, XML, as the fields of `qstat -f -1`. Raises `SiteError`, `RequestError`."""
    if len(data) > MAX_BYTES:
        raise SiteError(f"job file: more than {MAX_BYTES} bytes", code="job-file-unreadable")
    try:
        text = data.decode("utf-8")
        if _DECLARATION.search(text):
            raise SiteError("job file: declares entities, which pbs_mom never does", code="job-file-unreadable")
        root = ElementTree.fromstring(text)  # noqa: S314 - what entities could do is refused above
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as error:
        raise SiteError(f"job file: not as pbs_mom writes it: {error}", code="job-file-unreadable") from error
    groups = root.findall("attributes")
    if root.tag != "job" or len(groups) != 1:
        raise SiteError("job file: expected one <attributes> in <job>", code="job-file-unreadable")
    fields = _texts(("jobid", element) for element in root.findall("jobid"))
    for group in groups[0]:
        inner = [(f"{group.tag}.{element.tag}", element) for element in group]
        for name, value in _texts(inner or [(group.tag, group)]).items():
            if name in fields:
                raise muddled(name)
            fields[name] = value
    return fields


def _texts(pairs: Iterable[tuple[str, ElementTree.Element]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, element in pairs:
        if name in found:
            raise muddled(name)
        found[name] = element.text or ""
    return found


def slots_on(exec_host: str, node: str) -> tuple[int, int] | None:
    """Cpus on the node and in all, from "tqa/0-1+tqb/0,3". None: it is no such text, or the node is not in it.

    >>> slots_on("tqa/0-1+tqb/0,3+tqa/7", "tqa"), slots_on("n1/0+n1/1", "n1.example.org"), slots_on("?", "n1")
    ((3, 5), (2, 2), None)
    """
    here = total = 0
    for part in exec_host.split("+"):
        found = _SLOTS.fullmatch(part)
        if found is None:
            return None
        count = sum(_span(one) for one in found[2].split(","))
        total += count
        here += count if same_host(found[1], node) else 0
    return (here, total) if here > 0 else None


def lines_on(node_file: str, node: str) -> tuple[int, int] | None:
    """The same from $PBS_NODEFILE: one line a cpu."""
    names = node_file.split()
    here = sum(1 for name in names if same_host(name, node))
    return (here, len(names)) if here else None


def ppn(nodes: str) -> tuple[int, int] | None:
    """Cpus of a node and in all where the request makes them equal everywhere: "2:ppn=4", "tqa:ppn=2".

    >>> ppn("2:ppn=4"), ppn("tqa:ppn=2"), ppn("3"), ppn("1:ppn=1+2:ppn=2"), ppn("")
    ((4, 8), (2, 2), (1, 3), None, None)
    """
    if "+" in nodes or not nodes:
        return None
    first, *rest = nodes.split(":")
    count = int(first) if _COUNT.fullmatch(first) else 1
    found = [match for part in rest if (match := _PPN.fullmatch(part))]
    if len(found) > 1:
        return None
    here = int(found[0][1]) if found else 1
    return here, here * count


def chunks_on(exec_vnode: str, vnodes: tuple[str, ...]) -> tuple[int, int | None] | None:
    """OpenPBS: cpus and MiB on these vnodes, from "(n1:ncpus=2:mem=1gb)+(n2:ncpus=1+n2[1]:ncpus=1)".

    None: it is no such text, or they are not in it. No memory anywhere: it is not counted.

    >>> chunks_on("(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=1)", ("n1",)), chunks_on("(n1:ncpus=2)", ("n2",))
    ((2, 1024), None)
    """
    cpus, memory_mib, there, counted = 0, 0, False, False
    for chunk in exec_vnode.replace("(", "").replace(")", "").split("+"):
        if _CHUNK.fullmatch(chunk) is None:
            return None
        name, *pairs = chunk.split(":")
        if name not in vnodes:
            continue
        there = True
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key == "ncpus" and _COUNT.fullmatch(value):
                cpus += int(value)
            elif key == "mem":
                counted = True
                memory_mib += _mib_or_none(value) or 0
    return (max(cpus, 1), memory_mib if counted and memory_mib else None) if there else None


def memory_mib(resources: Mapping[str, str], cpus: tuple[int, int]) -> int | None:
    """What a node may use, from pbs_resources(7B): mem is the whole job's, pmem each process's. The smaller of both."""
    here, total = cpus
    limits = []
    if (whole := _mib_or_none(resources.get("mem", ""))) is not None:
        limits.append(whole * here // total)
    if (each := _mib_or_none(resources.get("pmem", ""))) is not None:
        limits.append(each * here)
    return max(min(limits), 1) if limits else None


def same_host(one: str, other: str) -> bool:
    """Host names with and without their domain are one; two different domains are two."""
    one, other = one.lower(), other.lower()
    return one == other or (one.split(".")[0] == other.split(".")[0] and ("." not in one or "." not in other))


def muddled(field: str) -> RequestError:
    return RequestError(
        f"something that the job was given looks like the batch system's own {field}, so that it cannot be read",
        hint="choose plain words for names, arguments and variables",
        code="job-text-muddled",
    )


def plain(text: str, most: int) -> str:
    """One line without what qalter, pbsnodes and qmgr would read as their own: `,="'\\` and what cannot be printed."""
    clean = "".join(letter if letter.isascii() and letter.isprintable() else " " for letter in text)
    return " ".join(re.sub(r"[,=\"'\\`$]", " ", clean).split())[:most].rstrip()


def _mib_or_none(text: str) -> int | None:
    try:
        return parse_memory_mib(text.removesuffix("w"), bare="", source="mem") if text else None
    except UsageError:
        return None


def _span(text: str) -> int:
    first, dash, last = text.partition("-")
    return max(int(last) - int(first) + 1, 0) if dash else 1
