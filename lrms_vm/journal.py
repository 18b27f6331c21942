"""One line per event to the node's system log, the job's key in each. Values are quoted: they may come from users."""

from __future__ import annotations

import syslog

_LEVELS = {"info": syslog.LOG_INFO, "warning": syslog.LOG_WARNING, "error": syslog.LOG_ERR}


def say(level: str, key: str, text: str) -> None:
    """Write `lrms_vm[pid]: KEY: text`."""
    syslog.openlog("lrms_vm", syslog.LOG_PID, syslog.LOG_DAEMON)
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    syslog.syslog(_LEVELS[level], f"{key}: {line[:1800]}")
