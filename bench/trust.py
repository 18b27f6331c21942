"""An image checked by a signed list's chunk tree, against what the seed's users do: one openssl, on one core."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import FASTER, Result, paired_medians_s, program
from demo.progress import step
from tests.certs.make_certs import Authority, name, person, rsa_key

GIB = 1 << 30
DATA_EVERY_BYTES = 320 << 20  # in the sparse disk: as far apart as files are in one
DATA_BYTES = 16 << 20
TIMES = {"dense": 9, "sparse": 2}  # the sparse one takes openssl the better part of a minute
POLICY = """version = 1
[defaults]
ca_dir = "{ca_dir}"
namespaces = "ignore"
[[builder]]
name = "alice"
issuer = "CN=Bench CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
"""


def measure(directory: Path) -> list[Result]:
    """`directory` has room for 3 GiB, and only root can write it."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-trust-") as base:
        work = Path(base)
        _make_site(work)
        with step("verify a dense 2 GiB image"):
            dense = _ratio(work, "dense", 2 * GIB, _fill_dense)
        with step("verify a sparse 20 GiB image"):
            sparse = _ratio(work, "sparse", 20 * GIB, _fill_sparse)
    what = f"openssl dgst -sha256 -verify / lrms-vm image verify --list on {len(os.sched_getaffinity(0))} cores, "
    return [
        Result("verify-dense-2GiB", dense, FASTER, 1.8, what + "all of it data"),
        Result("verify-sparse-20GiB", sparse, FASTER, 20.0, what + "1 GiB of it data"),
    ]


def _make_site(work: Path) -> None:
    """An authority, a builder and a policy, for a day."""
    ca = Authority.root(name("Bench CA"), at=datetime.now(UTC), key=rsa_key(number=7))
    alice = ca.issue(person("Alice Example"), key=rsa_key())
    directory = work / "certificates"
    directory.mkdir()
    (directory / f"{ca.subject_hash}.0").write_bytes(ca.pem)
    (directory / f"{ca.subject_hash}.r0").write_bytes(ca.crl())
    (work / "alice.crt").write_bytes(alice.pem)
    (work / "alice.key").write_bytes(alice.key_pem)
    (work / "trust.toml").write_text(POLICY.format(ca_dir=directory))
    subprocess.run(["openssl", "pkey", "-in", work / "alice.key", "-pubout", "-out", work / "alice.pub"], check=True)


def _ratio(work: Path, what: str, size_bytes: int, fill: Callable[[Path, int], None]) -> float:
    """Theirs / ours: whole commands, each from its start to its end."""
    image, signature, listed = (work / f"{what}.{suffix}" for suffix in ("raw", "sha256", "image_list"))
    fill(image, size_bytes)
    verb = [sys.executable, "-m", "lrms_vm", "image"]
    keys = ["--cert", work / "alice.crt", "--key", work / "alice.key"]
    quiet = {"check": True, "stderr": subprocess.DEVNULL}
    entry = ["--image", f"{what}@1={image}", "--url", "https://images.example.org"]
    subprocess.run([*verb, "sign", "--list", listed, *entry, *keys], **quiet)  # type: ignore[call-overload]
    subprocess.run(["openssl", "dgst", "-sha256", "-sign", work / "alice.key", "-out", signature, image], check=True)
    openssl = ["openssl", "dgst", "-sha256", "-verify", work / "alice.pub", "-signature", signature, image]
    ours = [*verb, "verify", image, "--list", listed, "--policy", work / "trust.toml"]

    def verify() -> None:
        subprocess.run(ours, **quiet)  # type: ignore[call-overload]

    ours_s, theirs_s = paired_medians_s(verify, program([str(word) for word in openssl]), times=TIMES[what])
    image.unlink()
    return theirs_s / ours_s


def _fill_dense(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes // DATA_BYTES):
            file.write(os.urandom(DATA_BYTES))


def _fill_sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for at in range(0, size_bytes, DATA_EVERY_BYTES):
            file.seek(at)
            file.write(os.urandom(DATA_BYTES))
        file.truncate(size_bytes)
