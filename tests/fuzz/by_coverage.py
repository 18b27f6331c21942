"""One target in a process of its own, led by coverage: libFuzzer never returns. Run by `python -m tests.fuzz`.

python -m tests.fuzz.by_coverage TARGET CORPUS SECONDS FINDS
"""

from __future__ import annotations

import sys


def main(target: str, corpus: str, seconds: str, finds: str) -> None:
    import atheris  # not needed by the tests: `make fuzz` installs it

    with atheris.instrument_imports(include=["lrms_vm"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    longest = max(map(len, SEEDS[target])) + 512
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={longest}",
        f"-artifact_prefix={finds}/{target}-",
        "-timeout=10",
    ]
    atheris.Setup([sys.argv[0], corpus, *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
