"""Our own state between runs: JSON with its own digest, so that a fallen bit does not read as another version."""

from __future__ import annotations

import json
from typing import Any

from lrms_vm.errors import LrmsVmError, SiteError
from lrms_vm.trust import digests, strict_json

_FORMAT = 1
# What reading a state that is not as it was written raises; whoever reads it says `damaged`.
UNREADABLE = (LrmsVmError, ValueError, TypeError, KeyError, AttributeError)


def write(state: dict[str, Any]) -> bytes:
    """The file's bytes."""
    text = json.dumps(state, sort_keys=True)
    digest = digests.of("sha256", text.encode()).hex()
    return json.dumps({"format": _FORMAT, "sha256": digest, "state": text}).encode()


def read(data: bytes, *, source: str) -> Any:
    """Read back what `write` wrote. Raises one of `UNREADABLE`."""
    outer = strict_json.parse(data, source=source)
    text = outer["state"].encode()
    if outer["format"] != _FORMAT or outer["sha256"] != digests.of("sha256", text).hex():
        raise ValueError("its digest does not match")
    return strict_json.parse(text, source=source)


def damaged(source: str, error: Exception, code: str) -> SiteError:
    """What such a file is refused with."""
    return SiteError(
        f"{source}: not as it was written: {error}"[:500],
        hint="an administrator must look at it, and then set it anew",
        code=code,
    )
