"""Runs in the Xen node's dom0, by its own Python: one start of ours and one by hand, as seconds in JSON.

    python3 - USER HOME IMAGE SHA256

Ours: `lrms-vm run -- echo`, from its start to the payload's first line. By hand: an overlay on the same image as the
cache has it, `xl create` of a guest with the same kernel, memory and cpus, and its console up to the login prompt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LRMS_VM = "/opt/lrms_vm/bin/lrms-vm"
STORE = Path("/var/lib/lrms_vm/store/sha256")
WORK = Path("/var/tmp/bench-xen")  # dom0's own disk, root only
NAME = "bench-by-hand"
LIMIT_S = 300


def main() -> int:
    user, home, image, sha256 = sys.argv[1:]
    ours_s = _ours_s(user, home, image)
    theirs_s = _by_hand_s(image, STORE / sha256[:2] / sha256 / "image")
    print(json.dumps({"ours_s": ours_s, "theirs_s": theirs_s}))
    return 0


def _ours_s(user: str, home: str, image: str) -> float:
    argv = [LRMS_VM, "run", f"--vm-image={image}", f"--user={user}", "--", "echo", "first line"]
    start = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=home) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
    if line != b"first line\n" or process.returncode != 0:
        raise SystemExit(f"lrms-vm run: {line!r}, exit {process.returncode}")
    return seconds


def _by_hand_s(image: str, base: Path) -> float:
    """What one would type. The values are those of our own guest."""
    said = subprocess.run([LRMS_VM, "render", f"--vm-image={image}", "--json"], capture_output=True, check=True).stdout
    domain = json.loads(said)["domain"]
    WORK.mkdir(mode=0o700, exist_ok=True)
    overlay, config = WORK / "overlay.qcow2", WORK / "guest.cfg"
    values = {
        "name": NAME,
        "type": "pv",
        "kernel": domain["kernel_path"],
        "ramdisk": domain["initrd_path"],
        "extra": domain["cmdline"],
        "memory": domain["memory_mib"],
        "vcpus": domain["vcpus"],
        "disk": [f"format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target={overlay}"],
    }
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    start = time.perf_counter()
    overlaying = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(overlay)]
    subprocess.run(overlaying, check=True)
    try:
        subprocess.run(["xl", "create", "-q", str(config)], check=True, stdin=subprocess.DEVNULL)
        console = subprocess.Popen(["xl", "console", NAME], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            return _seconds_to(b"login:", console, start)
        finally:
            console.kill()
            console.wait()
    finally:
        subprocess.run(["xl", "destroy", NAME], check=False, capture_output=True)
        overlay.unlink(missing_ok=True)


def _seconds_to(text: bytes, console: subprocess.Popen[bytes], start: float) -> float:
    assert console.stdout is not None
    seen = b""
    while text not in seen:
        chunk = os.read(console.stdout.fileno(), 4096)
        if not chunk or time.perf_counter() - start > LIMIT_S:
            raise SystemExit(f"the guest by hand never said {text!r}: {seen[-300:]!r}")
        seen += chunk
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
