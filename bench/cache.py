"""What a warm image costs a job, with a crowded cache around it; and what a herd costs that all want a cold one."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.herd import server, together_s
from bench.measure import Result, paired_medians_s
from demo.ca import BUILDER_DN, CA_DN, make_demo_ca
from demo.layout import USER
from demo.progress import step
from lrms_vm import cache, store
from lrms_vm.anchors import CaDirectory
from lrms_vm.decision import Decision
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.trust.policy import parse_policy

GIB = 1 << 30
CROWD = 10_000
TIMES = 200
HERD = 64
HERDS = 3
BLOCK_BYTES = 16 << 20
POLICY = f"""
version = 1
[[builder]]
name = "builder"
issuer = "{CA_DN}"
subject = "{BUILDER_DN}"
images = ["*"]
[[runner]]
name = "users"
users = ["{USER}"]
images = ["*"]
"""


def measure(directory: Path) -> list[Result]:
    """`directory` has room for 6 GiB, on a disk; ordinary users can reach it."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-cache-") as work:
        root = Path(work)
        root.chmod(0o755)
        make_demo_ca(root / "ca")
        decision = Decision(parse_policy(POLICY.encode(), source="bench"), CaDirectory(root / "ca" / "certificates"))
        (root / "www").mkdir()
        return [*_warm(root, decision), _herd(root, decision)]


def _warm(root: Path, decision: Decision) -> list[Result]:
    """One image of 20 GiB, all hole, in a cache of its own; one of a few bytes among the crowd."""
    alone, crowded = _places(root, "alone"), _places(root, "crowded")
    large, small = _image(root, "large", 20 * GIB, dense=False), _image(root, "small", 1 << 20, dense=True)
    with step("warm images, one of 20 GiB, one among 10,000"):
        _acquire(alone, large, decision, 0)
        _acquire(crowded, small, decision, 0)
        _crowd(crowded)
        os.sync()  # 30,000 new files are not what an acquire is measured by
        jobs = itertools.count(1)  # each with a lease of its own: ext4 is slow where a file has just been removed
        with_crowd, without = paired_medians_s(
            lambda: _acquire(crowded, small, decision, next(jobs)),
            lambda: _acquire(alone, large, decision, next(jobs)),
            times=TIMES,
        )
    what = "lease, stamp and trust verdict of a warm image, "
    return [
        Result("warm-acquire", with_crowd * 1e3, "ms", 2.0, what + f"among {CROWD} others and as many leases"),
        Result("warm-acquire-20GiB", without * 1e3, "ms", 2.0, what + "20 GiB, nothing else there"),
    ]


def _herd(root: Path, decision: Decision) -> Result:
    """Cold, over http from this machine; interpreters are started and modules loaded before the clock is."""
    image = _image(root, "herd", 2 * GIB, dense=True)
    _acquire(_places(root, "loads"), _image(root, "loads", 1 << 20, dense=True), decision, 0)  # what is loaded late
    ratios = []
    with step("64 processes, one cold image of 2 GiB"), server(root / "www", root / "log") as url:
        entry = ImageEntry("herd", f"{url}/{Path(image.url).name}")
        for turn in range(HERDS + 1):
            times = [_together(root, f"{turn}-{count}", entry, decision, count) for count in (1, HERD)]
            ratios.append(times[1] / times[0])
    asked = (root / "log").read_text().split().count(f"/{Path(image.url).name}")
    if asked != 2 * (HERDS + 1):
        raise RuntimeError(f"{asked} downloads, expected {2 * (HERDS + 1)}")
    ratio = sorted(ratios[1:])[HERDS // 2]  # the first does not count
    return Result("herd-64", ratio, "ratio", 1.2, "64 processes that want one cold image of 2 GiB / one process")


def _together(root: Path, name: str, entry: ImageEntry, decision: Decision, count: int) -> float:
    places = _places(root, name)
    took_s = together_s(count, lambda number: _acquire(places, entry, decision, number))
    for number in range(count):
        cache.release(places, f"local-{number}.bench")
    cache.evict(places, 0)
    os.sync()  # what one has left to write is not what the next is measured by
    return took_s


def _places(root: Path, name: str) -> Places:
    return Places(root / name / "state", root / name / "run")


def _acquire(places: Places, entry: ImageEntry, decision: Decision, number: int) -> None:
    cache.acquire(
        entry,
        places=places,
        lease=f"local-{number}.bench",
        decide=decision.for_job(user=USER),
        fetch=Fetch(),
        max_image_bytes=decision.max_image_bytes,
        deadline=time.monotonic() + 300,
    )


def _image(root: Path, name: str, size_bytes: int, *, dense: bool) -> ImageEntry:
    path = root / "www" / f"{name}.raw"
    with path.open("wb") as file:
        for _ in range(-(-size_bytes // BLOCK_BYTES) if dense else 1):
            file.write(os.urandom(min(BLOCK_BYTES, size_bytes)))
        file.truncate(size_bytes)
    argv = ["openssl", "cms", "-sign", "-binary", "-nosmimecap", "-cades", "-md", "sha256", "-outform", "DER"]
    who = ["-signer", root / "ca" / "builder.crt", "-inkey", root / "ca" / "builder.key"]
    subprocess.run([*argv, *who, "-in", path, "-out", f"{path}.p7s"], check=True)
    return ImageEntry(name, str(path))


def _crowd(places: Places) -> None:
    """Entries and leases as they are, but for the bytes of the images."""
    held = next(store.stored(places))
    lease = (places.leases / "local-0.bench").read_bytes()
    meta = (store.entry_dir(places, held) / "meta.json").read_bytes()
    for number in range(CROWD):
        directory = store.entry_dir(places, hashlib.sha256(number.to_bytes(4, "big")).hexdigest())
        directory.mkdir(parents=True)
        (directory / "meta.json").write_bytes(meta)
        (directory / "image").write_bytes(b"x")
        (places.leases / f"local-{number + 1000}.crowd").write_bytes(lease)
