"""Every error says whose fault it is; one property turns it into an exit code.

    LrmsVmError
    +-- RequestError      77  the job must change; the node stays up
    |   +-- UsageError    64  an option or a command line that cannot be read
    +-- SiteError         75  something all nodes share is down; try again later
    |   +-- ConfigError   78  the site's own configuration is wrong
    +-- NodeError         69  this node could not do its part; another may
    +-- GuestLost         70  the guest died under the payload or never came up

Ask of each new error: would taking this node away help? Only `NodeError` answers yes.
The numbers are those of sysexits.h; docs/exit-codes.md is the one table users see.
"""

from __future__ import annotations

import os

EXIT_USAGE = os.EX_USAGE  # 64
EXIT_UNAVAILABLE = os.EX_UNAVAILABLE  # 69
EXIT_GUEST_LOST = os.EX_SOFTWARE  # 70
EXIT_TRY_AGAIN = os.EX_TEMPFAIL  # 75
EXIT_REFUSED = os.EX_NOPERM  # 77
EXIT_CONFIG = os.EX_CONFIG  # 78


class LrmsVmError(Exception):
    """Base of everything we raise on purpose.

    `message` says where it came from, what was found and what was expected; `hint` says what to do.
    `code` is a stable word for machines and tests ("image-unknown"); it never changes once released.
    """

    exit_code = EXIT_GUEST_LOST
    blame = "lrms_vm"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RequestError(LrmsVmError):
    """The job asked for something we refuse. The node is healthy: fail the job, keep the node."""

    exit_code = EXIT_REFUSED
    blame = "request"


class UsageError(RequestError):
    """An option or argument that cannot be read at all."""

    exit_code = EXIT_USAGE


class SiteError(LrmsVmError):
    """Something every node shares is down. Keep the node; the job may be tried again later."""

    exit_code = EXIT_TRY_AGAIN
    blame = "site"


class ConfigError(SiteError):
    """The site's configuration is wrong or unsafe: nothing gets better by trying again."""

    exit_code = EXIT_CONFIG


class NodeError(LrmsVmError):
    """This node could not do its part. Another may succeed: requeue, take this one out of service."""

    exit_code = EXIT_UNAVAILABLE
    blame = "node"


class GuestLost(LrmsVmError):
    """The guest died under the payload or never came up. The payload's own exit code is unknown."""

    exit_code = EXIT_GUEST_LOST
    blame = "guest"
