"""The texts of the demo's Grid Engine: bootstrap(5), sge_conf(5), sched_conf(5), queue_conf(5). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

CELL = "demo"
QUEUE = "all.q"
PORTS = {"SGE_QMASTER_PORT": "16444", "SGE_EXECD_PORT": "16445"}
HOST_GROUP = "group_name @allhosts\nhostlist {host}\n"
# Users of the demo are system users; a failing prolog writes a mail to the administrator, and there is none.
GLOBAL = {
    "min_uid": "100",
    "min_gid": "100",
    "mailer": "/bin/true",
    "execd_params": "INHERIT_ENV=false",
    "load_report_time": "00:00:10",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
    "joblog=false sharelog=00:00:00",
}
SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "job_load_adjustments": "NONE",
}
_QUEUE = {
    "qname": QUEUE, "hostlist": "@allhosts", "seq_no": "0", "load_thresholds": "NONE", "suspend_thresholds": "NONE",
    "nsuspend": "1", "suspend_interval": "00:05:00", "priority": "0", "min_cpu_interval": "00:05:00",
    "processors": "UNDEFINED", "qtype": "BATCH INTERACTIVE", "ckpt_list": "NONE", "pe_list": "NONE", "rerun": "FALSE",
    "slots": "4", "tmpdir": "/tmp", "shell": "/bin/sh", "prolog": "NONE", "epilog": "NONE",
    "shell_start_mode": "unix_behavior", "starter_method": "NONE", "suspend_method": "NONE", "resume_method": "NONE",
    "terminate_method": "NONE", "notify": "00:00:05", "owner_list": "NONE", "user_lists": "NONE",
    "xuser_lists": "NONE", "subordinate_list": "NONE", "complex_values": "NONE", "projects": "NONE",
    "xprojects": "NONE", "calendar": "NONE", "initial_state": "default",
}  # fmt: skip
_LIMITS = ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem")


def queue_text() -> str:
    """The queue, with no hook in it yet."""
    limits = {f"{kind}_{name}": "INFINITY" for name in _LIMITS for kind in ("s", "h")}
    return "".join(f"{key} {value}\n" for key, value in {**_QUEUE, **limits}.items())


def edited(text: str, values: Mapping[str, str]) -> str:
    """The same lines with other values for some keys, no comments. Raises `KeyError` for a key that is not there."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    there = {line.split()[0] for line in lines}
    for key in values:
        if key not in there:
            raise KeyError(key)
    made = [f"{line.split()[0]} {values[line.split()[0]]}" if line.split()[0] in values else line for line in lines]
    return re.sub(r"\\\n\s*", "", "\n".join(made)) + "\n"
