"""The emulated hosts' tests, one host after the other: a part of tests/everything.py.

The emulator of the one with systemd is at fault now and then, and the machine stands still or ends by itself
(docs/confinement.md, No nested paging). Its tests then begin anew on a new machine, once; a test that fails while the machine
answers has failed.
"""

from __future__ import annotations

import sys

from tests.everything import here
from tests.integration.systemd.conftest import STOOD_STILL

# the cache of the part beside which this one runs would be overwritten
XEN = ("tests/integration/xen", "-p", "no:cacheprovider")
SYSTEMD = ("tests/integration/systemd", "-p", "no:cacheprovider")


def main() -> int:
    xen, systemd = here("xen", XEN), here("systemd", SYSTEMD)
    if systemd.exit_code == STOOD_STILL:
        print("the machine with systemd stood still, or ended: its tests begin anew, this once", flush=True)
        systemd = here("systemd", SYSTEMD)
    print(f"{xen.line()}\n{systemd.line()}", flush=True)
    return xen.exit_code or systemd.exit_code


if __name__ == "__main__":
    sys.exit(main())
