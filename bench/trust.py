"""An image checked by a signed list's chunk tree, against what the seed's users do: one openssl, on one core."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import FASTER, Result, paired_medians_s, program
from demo.progress import step
from lrms_vm import signing
from lrms_vm.trust import tree
from lrms_vm.trust.verify import Claim
from lrms_vm.trust.verify_list import claim_listed, open_list
from tests import lists

GIB = 1 << 30
DATA_EVERY_BYTES = 320 << 20  # in the sparse disk: as far apart as files are in one
DATA_BYTES = 16 << 20
TIMES = {"dense": 7, "sparse": 2}  # the sparse one takes openssl a quarter of a minute


def measure(directory: Path) -> list[Result]:
    """`directory` has room for 3 GiB."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-trust-") as work:
        key = Path(work) / "key.pem"
        key.write_bytes(lists.ALICE.key_pem)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", f"{work}/pub.pem"], check=True)
        with step("bytes of a dense 2 GiB image"):
            dense = _ratio(Path(work) / "dense.raw", 2 * GIB, _fill_dense, TIMES["dense"])
        with step("bytes of a sparse 20 GiB image"):
            sparse = _ratio(Path(work) / "sparse.raw", 20 * GIB, _fill_sparse, TIMES["sparse"])
    what = f"openssl dgst -sha256 -verify / chunk tree on {len(os.sched_getaffinity(0))} cores, "
    return [
        Result("verify-dense-2GiB", dense, FASTER, 1.8, what + "all of it data"),
        Result("verify-sparse-20GiB", sparse, FASTER, 20.0, what + "1 GiB of it data"),
    ]


def _ratio(path: Path, size_bytes: int, fill: Callable[[Path, int], None], times: int) -> float:
    fill(path, size_bytes)
    digests, _ = signing.hash_image(path, {"sha256"})
    signature = path.with_suffix(".sha256")
    signature.write_bytes(signing.bare_signature(lists.ALICE.signer(), digests["sha256"], "sha256"))
    claim = _listed(path, size_bytes, digests["sha256"])
    theirs = program(
        ["openssl", "dgst", "-sha256", "-verify", path.with_name("pub.pem"), "-signature", signature, path]
    )
    ours_s, theirs_s = paired_medians_s(lambda: signing.check_image(path, claim), theirs, times=times)
    path.unlink()
    return theirs_s / ours_s


def _listed(path: Path, size_bytes: int, sha256: bytes) -> Claim:
    """What a signed list claims of the file."""
    root = signing.tree_of_image(path, tree.CHUNK_BYTES)[0].root
    entry = {
        "hv:size": size_bytes,
        "lv:checksum:sha256": sha256.hex(),
        "sl:checksum:sha512": lists.GONE,
        "lv:tree": {"alg": "sha256", "chunk": tree.CHUNK_BYTES, "root": root.hex()},
    }
    site = {"anchors": lists.ANCHORS, "policy": lists.policy(), "at": lists.NOW}
    signed = open_list(lists.sign(lists.payload([lists.image(**entry)])), **site)
    return claim_listed(signed, signed.content.images[0], user="atlas001", partition="", **site)


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
