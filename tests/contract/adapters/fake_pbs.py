"""A small `pbs` module for the hook file: what the OpenPBS hooks guide (chapter 6) promises, and what was seen on 23.06.06.

`accept` and `reject` end the hook (SystemExit). Lists of resources and variables answer `keys()` and `[]`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXECJOB = [f"EXECJOB_{name}" for name in ("BEGIN", "PROLOGUE", "LAUNCH", "EPILOGUE", "END")]
EVENTS = ["QUEUEJOB", *_EXECJOB, "EXECHOST_STARTUP", "RUNJOB"]


class Values:
    """pbs.pbs_resource, pbs.pbs_env: no dict."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = dict(values)

    def keys(self) -> list[str]:
        return list(self._values)

    def __getitem__(self, name: str) -> object:
        return self._values.get(name)


class Vnode:
    def __init__(self) -> None:
        self.state: object = "free"
        self.comment: str | None = None


class Job:
    """pbs.job, as execjob events see it."""

    def __init__(
        self, job_id: str, resources: Mapping[str, object], variables: Mapping[str, object], user: str
    ) -> None:
        self.id = job_id
        self.euser = user
        self.queue = "workq"
        self.exec_vnode = "(n1:ncpus=2:mem=1048576kb)+(n2:ncpus=1)"
        self.Resource_List = Values(resources)
        self.Variable_List = Values(variables)
        self.run_count = 1
        self.Hold_Types: object = None
        self.reruns = 0

    def rerun(self) -> None:
        self.reruns += 1


class Event:
    def __init__(self, kind: str, job: Job | None, vnodes: Mapping[str, Vnode]) -> None:
        self.type = kind
        self.job = job
        self.vnode_list = vnodes
        self.progname = "/bin/bash"
        self.argv: list[str] = []
        self.env: dict[str, str] = {}
        self.accepted: bool | None = None
        self.said = ""

    def accept(self) -> None:
        self.accepted = True
        raise SystemExit(0)

    def reject(self, said: str = "") -> None:
        self.accepted, self.said = False, said
        raise SystemExit(1)


def module(event: Event, home: Path, log: list[str]) -> Any:
    """What `import pbs` gives the hook."""
    pbs = types.ModuleType("pbs")
    values: dict[str, object] = {name: name for name in EVENTS}
    values |= {"LOG_ERROR": 1, "LOG_WARNING": 2, "ND_OFFLINE": "offline", "pbs_conf": {"PBS_HOME": str(home)}}
    values |= {"event": lambda: event, "get_local_nodename": lambda: "n1", "hold_types": lambda text: f"hold {text}"}
    values |= {"logmsg": lambda level, text: log.append(text)}
    for name, value in values.items():
        setattr(pbs, name, value)
    return pbs
