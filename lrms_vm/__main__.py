"""`python -I -m lrms_vm VERB ...`, as the hooks call it."""

from __future__ import annotations

import sys

from lrms_vm.cli import main

if __name__ == "__main__":
    sys.exit(main())
