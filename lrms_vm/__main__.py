"""`python -I -m lrms_vm VERB ...`, as the hooks call it."""

from __future__ import annotations

import gc
import os
import sys

gc.disable()  # a hook ends before there is garbage; collecting while importing is a fifth of its start (measured)

from lrms_vm.cli import main  # noqa: E402

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing to tidy up in memory, while the new guest already wants the cpu
