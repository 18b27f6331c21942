"""One line per event to the node's system log, from where journald has it too: `lrms_vm[pid]: level=... job=... ...`.

The form is logfmt.py's, so that whatever text a user, a list or a server brought stays inside its own quotes.
docs/admin.md says which words there are.
"""

from __future__ import annotations

import re
import syslog
from collections.abc import Mapping

from lrms_vm import logfmt

_LEVELS = {"info": syslog.LOG_INFO, "warning": syslog.LOG_WARNING, "error": syslog.LOG_ERR}
_KEY = re.compile(r"[a-z]+-[A-Za-z0-9_.\[\]-]+\.[A-Za-z0-9_.\[\]-]+", re.ASCII)  # Allocation.key


def say(level: str, key: str, text: str) -> None:
    """A sentence. `key` is the job's, or where there is no one job the word for what it is about."""
    if _KEY.fullmatch(key):
        write(level, "job", {"job": key, "text": text})
        return
    event, _, about = key.partition(" ")
    write(level, event, {**({"about": about} if about else {}), "text": text})


def write(level: str, event: str, words: Mapping[str, object]) -> None:
    """An event with its facts, the job's key among them as `job` where it is about one."""
    syslog.openlog("lrms_vm", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(_LEVELS[level], line(level, event, words))


def line(level: str, event: str, words: Mapping[str, object]) -> str:
    """What `write` writes.

    >>> line("info", "started", {"job": "slurm-7.n1", "seconds": 0.31})
    'level=info event=started job=slurm-7.n1 seconds=0.31'
    """
    return logfmt.line({"level": level, "event": event, **words})
