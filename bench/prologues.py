"""The prologue against the hypervisor alone, and the way to the first line of a payload against qemu by hand."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.images import Images
from bench.measure import Result, wall_s
from demo import site
from demo.cluster import Cluster
from demo.layout import NODES, USER, Layout
from demo.programs import DemoError
from demo.progress import step
from lrms_vm import config as configuration
from lrms_vm import guest, teardown

TIMES = 11
BOOTS = 3
ONCE = Path(__file__).with_name("prologue_once.py")
GOAL_S = 0.3
BY_HAND_TIMEOUT_S = 300


def warm(cluster: Cluster, images: Images) -> list[Result]:
    """A warm prologue, its interpreter's start included, beyond `virsh create` of the same XML; by image size."""
    layout = cluster.layout
    site.configure(layout)
    beyond_s: dict[str, list[float]] = {name: [] for name, _ in images.names}
    whole_s: dict[str, list[float]] = {name: [] for name, _ in images.names}
    for name, what in images.names:
        with step(f"{what}: into the cache"):
            _one(layout, name)
    os.sync()  # what the images' making left to write is not what is measured
    for _ in range(TIMES):
        for name, _ in images.names:
            ours, theirs = _one(layout, name)
            beyond_s[name].append(ours - theirs)
            whole_s[name].append(ours)
    medians = {name: statistics.median(values) for name, values in beyond_s.items()}
    small = medians["bench-1GiB"]
    whole = {name: statistics.median(values) for name, values in whole_s.items()}
    spread = max(whole.values()) / whole["bench-1GiB"]
    return [
        Result("warm-prologue-1GiB", small, "s", GOAL_S, "warm prologue beyond virsh create of the same XML"),
        Result(
            "warm-prologue-20GiB", medians["bench-20GiB"], "s", GOAL_S, f"the same, {dict(images.names)['bench-20GiB']}"
        ),
        Result("warm-prologue-20GiB-sparse", medians["bench-20GiB-sparse"], "s", GOAL_S, "the same, 20 GiB sparse"),
        Result("size-independence", spread, "ratio", 1.1, "whole warm prologue: slowest size / 1 GiB"),
    ]


def _one(layout: Layout, image: str) -> tuple[float, float]:
    """One prologue, then `virsh create` of what it rendered; nothing stays. Return both times in seconds."""
    config = configuration.load(layout.config(NODES[0]))
    key = f"slurm-{time.monotonic_ns() % 10**9}.bench"
    job_id = key.removeprefix("slurm-").removesuffix(".bench")
    argv = [layout.python, "-I", ONCE, layout.config(NODES[0]), image, layout.home(USER), job_id]
    hypervisor = guest.Libvirt(config.libvirt_uri)
    xml = layout.base / "bench.xml"
    try:
        ours = wall_s(lambda: _run([str(word) for word in argv]))
        xml.write_bytes(config.places.job(key).domain_xml.read_bytes())
        hypervisor.destroy(f"lrms_vm-{key}", deadline=time.monotonic() + 30)
        config.places.job(key).channel.unlink(missing_ok=True)
        theirs = wall_s(lambda: _run(["virsh", "-q", "-c", config.libvirt_uri, "create", str(xml)]))
    finally:
        xml.unlink(missing_ok=True)
        with teardown.locked(config.places, key, deadline=time.monotonic() + 10):
            left = teardown.teardown(key, places=config.places, hypervisor=hypervisor, deadline=time.monotonic() + 30)
    if left:
        raise DemoError("; ".join(map(str, left)))
    return ours, theirs


def start_to_payload(cluster: Cluster) -> list[Result]:
    """`lrms-vm run -- echo`, up to its first line, against the same image booted by hand up to its login prompt."""
    layout = cluster.layout
    pairs = [(_ours_s(layout), _by_hand_s(layout)) for _ in range(BOOTS)]
    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    what = f"prologue to first line ({ours:.1f} s) / qemu by hand to login ({theirs:.1f} s)"
    return [Result("start-to-payload", ours / theirs, "ratio", 1.15, what)]


def _ours_s(layout: Layout) -> float:
    argv = [layout.command, "--config", layout.config(NODES[0]), "run", "--vm-image=minimal", f"--user={USER}"]
    start = time.perf_counter()
    with subprocess.Popen(
        [*map(str, argv), "--", "echo", "first line"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=layout.home(USER),
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
    if line != b"first line\n" or process.returncode != 0:
        raise DemoError(f"lrms-vm run: {line!r}, exit {process.returncode}")
    return seconds


def _by_hand_s(layout: Layout) -> float:
    """What one would type: the same machine, kernel, memory and an overlay on the same image."""
    kernel = site.site_kernel(layout)
    with tempfile.TemporaryDirectory() as name:
        overlay = str(Path(name) / "overlay.qcow2")
        base = str(site.image_path(layout, "minimal"))
        _run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay])
        argv = [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg,tb-size=128",
                "-cpu",
                "max",
                "-m",
                "832",
                "-smp",
                "1",
                "-display",
                "none",
            ),
            *("-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", str(kernel.vmlinuz)),
            *("-initrd", str(kernel.initrd), "-append", kernel.cmdline),
            *("-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            return _seconds_to(b"login:", process, start)
        finally:
            process.kill()
            process.wait()


def _seconds_to(text: bytes, process: subprocess.Popen[bytes], start: float) -> float:
    assert process.stdout is not None
    seen = b""
    while text not in seen:
        chunk = process.stdout.read1(4096)  # type: ignore[attr-defined]
        if not chunk or time.perf_counter() - start > BY_HAND_TIMEOUT_S:
            raise DemoError(f"qemu by hand never said {text!r}: {seen[-300:]!r}")
        seen += chunk
    return time.perf_counter() - start


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace")
        raise DemoError(f"exit {done.returncode} from {json.dumps(argv)}: {said[-600:]}")


if __name__ == "__main__":
    sys.exit("run `make bench`")
