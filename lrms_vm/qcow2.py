"""A strict reader of qcow2: what it accepts is one disk, whole, and refers to nothing outside itself. Pure.

The format is qemu's docs/interop/qcow2.txt. We take less than it allows: no backing file, no data file, no encryption,
no internal snapshots, no incompatible feature, no header extension but the table of feature names, and a reference
count of one for every cluster (several only where compressed data share one). So no two places of the disk are the
same bytes of the file, no table is data, and no table is another: there are no loops to follow. What `qemu-img
create`, `convert` and `convert -c` write passes; an image that was used for a while may need `qemu-img convert` first.
Nothing is read but the header and the tables; `check` takes about a second for each million clusters in use.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator

from lrms_vm.errors import RequestError
from lrms_vm.values import dataclass

Read = Callable[[int, int], bytes]  # offset, size -> exactly these bytes; fewer only at the file's end

MAX_CLUSTERS = 16 << 20  # in the file; each takes 4 bytes of memory here
MAX_ENTRIES = 16 << 20  # in all second level tables that are read
MAX_L1_BYTES = 32 << 20  # qemu's own limits, block/qcow2.h
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_EXTENSIONS = 16
_BASE = struct.Struct(">4sIQIIQIIQQIIQ")  # versions 2 and 3
_MORE = struct.Struct(">QQQII")  # version 3 only
_OFFSET = 0x00FFFFFFFFFFFE00  # of a cluster, in any table
_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_ZERO = 1  # version 3
_FEATURE_NAMES = 0x6803F857
# Header extensions that say what a field of the header should have said.
_EXTENSIONS = {
    0xE2792ACA: ("qcow2-backing-file", "names the format of a backing file"),
    0x44415441: ("qcow2-data-file", "names an external data file"),
    0x0537BE77: ("qcow2-encrypted", "has an encryption header"),
}
_INCOMPATIBLE = {
    0: ("qcow2-dirty", "was not closed properly", "qemu-img check -r all, then sign it again"),
    1: ("qcow2-corrupt", "is marked as corrupt", "qemu-img check -r all, then sign it again"),
    2: ("qcow2-data-file", "keeps its data in another file", ""),
    3: ("qcow2-feature", "is compressed by another method than zlib", ""),
    4: ("qcow2-feature", "has extended L2 entries", ""),
}
_HINT = "make it anew with `qemu-img convert -O qcow2`, or better raw, and sign the result"


@dataclass(frozen=True)
class Header:
    """What the first cluster says. Offsets and sizes are bytes in the file."""

    version: int
    cluster_bits: int
    virtual_size_bytes: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def check(read: Read, size_bytes: int, *, max_virtual_bytes: int, max_ratio: int, source: str) -> Header:
    """Read all tables of a qcow2 of `size_bytes`. Raises `RequestError`: see docs/images.md for the codes."""
    header = read_header(read, size_bytes, source=source)
    if header.virtual_size_bytes > max_virtual_bytes:
        raise _Refusal(source)(
            "image-virtual-too-large",
            f"has a disk of {header.virtual_size_bytes} bytes; expected at most {max_virtual_bytes}",
            "the limit is max_virtual in trust.toml",
        )
    if header.virtual_size_bytes > max_ratio * size_bytes:
        raise _Refusal(source)(
            "image-ratio",
            f"of {size_bytes} bytes has a disk of {header.virtual_size_bytes}; expected at most {max_ratio} times",
            "the limit is max_ratio in trust.toml",
        )
    _Tables(header, read, size_bytes, source).check()
    return header


def read_header(read: Read, size_bytes: int, *, source: str) -> Header:
    """The header alone: what makes an image refuse to be opened, or refer to another file. Raises `RequestError`."""
    refuse = _Refusal(source)
    base = read(0, _BASE.size)
    if len(base) < _BASE.size or base[:4] != b"QFI\xfb":
        raise refuse("qcow2-malformed", "is too short for a header, or none")
    _, version, backing_offset, backing_bytes, cluster_bits, virtual_bytes, encryption, *tables = _BASE.unpack(base)
    l1_entries, l1_offset, table_offset, table_clusters, snapshots, snapshots_offset = tables
    if version not in (2, 3):
        raise refuse("qcow2-version", f"is of version {version}; expected 2 or 3")
    if backing_offset or backing_bytes:
        raise refuse("qcow2-backing-file", "has a backing file")
    if encryption:
        raise refuse("qcow2-encrypted", "is encrypted", "decrypt it: a guest's secrets are not the site's to keep")
    if snapshots or snapshots_offset:
        raise refuse("qcow2-snapshots", f"has {snapshots} internal snapshots")
    header_bytes = _BASE.size
    if version == 3:
        header_bytes = _check_features(read(_BASE.size, _MORE.size + 8), refuse)
    if not 9 <= cluster_bits <= 21:
        raise refuse("qcow2-malformed", f"has clusters of 2^{cluster_bits} bytes; expected 2^9 to 2^21")
    if not virtual_bytes or virtual_bytes % 512:
        raise refuse("qcow2-size", f"has a disk of {virtual_bytes} bytes; expected a multiple of 512, and not none")
    header = Header(version, cluster_bits, virtual_bytes, l1_entries, l1_offset, table_offset, table_clusters)
    _check_extensions(read(0, min(header.cluster_bytes, size_bytes)), header_bytes, refuse)
    return header


class _Refusal:
    """Makes the refusals of one file."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __call__(self, code: str, what: str, hint: str = "") -> RequestError:
        return RequestError(f"{self._source}: the qcow2 {what}", hint=hint or _HINT, code=code)


def _check_features(fields: bytes, refuse: _Refusal) -> int:
    """The part that only version 3 has; returns the header's length in bytes."""
    if len(fields) < _MORE.size:
        raise refuse("qcow2-malformed", "is too short for a header")
    incompatible, _, autoclear, refcount_order, header_bytes = _MORE.unpack_from(fields)
    for bit in range(64):
        if incompatible >> bit & 1:
            code, what, hint = _INCOMPATIBLE.get(
                bit, ("qcow2-feature", f"needs feature {bit}, which we do not know", "")
            )
            raise refuse(code, what, hint)
    if autoclear & 2:
        raise refuse("qcow2-data-file", "says that its data file is raw")
    if autoclear & 1:
        raise refuse("qcow2-feature", "has dirty bitmaps")
    if refcount_order != 4:
        raise refuse("qcow2-feature", f"has reference counts of 2^{refcount_order} bits; expected 16")
    if header_bytes not in (104, 112):
        raise refuse("qcow2-malformed", f"has a header of {header_bytes} bytes; expected 104 or 112")
    if header_bytes == 112 and any(fields[_MORE.size : _MORE.size + 8]):
        raise refuse("qcow2-feature", "is compressed by another method than zlib")
    return int(header_bytes)


def _check_extensions(cluster: bytes, at: int, refuse: _Refusal) -> None:
    for _ in range(MAX_EXTENSIONS):
        if len(cluster) < at + 8:
            break
        kind, size = struct.unpack_from(">II", cluster, at)
        if kind == 0:
            if size:
                break
            return
        if kind in _EXTENSIONS:
            raise refuse(*_EXTENSIONS[kind])
        if kind != _FEATURE_NAMES:
            raise refuse("qcow2-feature", f"has a header extension {kind:#010x}, which we do not know")
        at += 8 + (size + 7) // 8 * 8
    raise refuse("qcow2-malformed", "has header extensions without an end")


class _Tables:
    """Follows every table once, counting who refers to which cluster; then the file's own counts must be the same."""

    def __init__(self, header: Header, read: Read, size_bytes: int, source: str) -> None:
        self._header = header
        self._read = read
        self._size_bytes = size_bytes
        self._refuse = _Refusal(source)
        self._clusters = -(-size_bytes // header.cluster_bytes)
        if self._clusters > MAX_CLUSTERS:
            raise self._refuse("qcow2-too-large", f"has {self._clusters} clusters; expected at most {MAX_CLUSTERS}")
        self._used = array("H", bytes(2 * self._clusters))  # how often
        self._alone = bytearray(self._clusters)  # 1: by a table or plain data, so by nothing else

    def check(self) -> None:
        header = self._header
        self._use(0, header.cluster_bytes, "header", whole=False)
        recorded = self._refcounts()
        entries_per_table = header.cluster_bytes // 8
        needed = -(-header.virtual_size_bytes // (header.cluster_bytes * entries_per_table))
        if header.l1_entries < needed:
            raise self._malformed(f"its L1 table has {header.l1_entries} entries; its disk needs {needed}")
        if header.l1_entries * 8 > MAX_L1_BYTES:
            raise self._malformed(f"its L1 table has {header.l1_entries} entries")
        left = MAX_ENTRIES
        for offset in self._l1():
            left -= entries_per_table
            if left < 0:
                raise self._refuse("qcow2-too-large", f"has more than {MAX_ENTRIES} L2 entries")
            self._l2(offset)
        self._compare(recorded)

    def _refcounts(self) -> array[int]:
        """The file's own reference counts, one for each cluster."""
        header = self._header
        size = header.refcount_table_clusters << header.cluster_bits
        if not 0 < size <= MAX_REFCOUNT_TABLE_BYTES:
            raise self._malformed(f"its refcount table has {header.refcount_table_clusters} clusters")
        self._use(header.refcount_table_offset, size, "refcount table")
        recorded = array("H")
        per_block = header.cluster_bytes // 2
        for offset in self._words("Q", header.refcount_table_offset, size):
            if len(recorded) >= self._clusters:
                if offset:
                    raise self._malformed("its refcount table goes on behind the end of the file")
                continue
            if offset:
                self._use(offset, header.cluster_bytes, "refcount block")
                recorded += self._words("H", offset, header.cluster_bytes)
            else:
                recorded += array("H", bytes(2 * per_block))
        if any(recorded[self._clusters :]):
            raise self._malformed("its refcounts go on behind the end of the file")
        recorded += array("H", bytes(2 * max(0, self._clusters - len(recorded))))
        return recorded[: self._clusters]

    def _l1(self) -> Iterator[int]:
        """The offsets of all L2 tables."""
        header = self._header
        self._use(header.l1_offset, header.l1_entries * 8, "L1 table")
        for entry in self._words("Q", header.l1_offset, header.l1_entries * 8):
            if entry:
                if entry & ~(_OFFSET | _COPIED) or not entry & _COPIED:
                    raise self._malformed(f"its L1 table has an entry {entry:#x}")
                self._use(entry & _OFFSET, header.cluster_bytes, "L2 table")
                yield entry & _OFFSET

    def _l2(self, offset: int) -> None:
        header, used, alone, bits = self._header, self._used, self._alone, self._header.cluster_bits
        within = header.cluster_bytes - 1
        known = _OFFSET | _COPIED | (_ZERO if header.version == 3 else 0)
        for entry in filter(None, self._words("Q", offset, header.cluster_bytes)):
            if entry & _COMPRESSED:
                self._compressed(entry)
                continue
            data = entry & _OFFSET
            cluster = data >> bits
            if entry & ~known or data & within or bool(data) != bool(entry & _COPIED) or not (data or entry == _ZERO):
                raise self._malformed(f"its L2 table has an entry {entry:#x}")
            if data:
                if data >= self._size_bytes:
                    raise self._malformed("its L2 table leads out of the file")
                if used[cluster]:
                    raise self._malformed(f"cluster {cluster} is used twice")
                used[cluster] = alone[cluster] = 1

    def _compressed(self, entry: int) -> None:
        """Compressed data: bytes that need not begin or end with a cluster."""
        shift = 62 - (self._header.cluster_bits - 8)
        start = (entry & ((1 << shift) - 1)) & ~511
        end = start + (((entry & (_COMPRESSED - 1)) >> shift) + 1) * 512
        first, last = start >> self._header.cluster_bits, (end - 1) >> self._header.cluster_bits
        if entry & _COPIED or first == 0 or start >= self._size_bytes or last >= self._clusters:
            raise self._malformed(f"its L2 table has a compressed entry {entry:#x}")
        for cluster in range(first, last + 1):
            if self._alone[cluster] or self._used[cluster] == 0xFFFF:
                raise self._malformed(f"cluster {cluster} is used twice")
            self._used[cluster] += 1

    def _use(self, offset: int, size: int, what: str, *, whole: bool = True) -> None:
        """A table is there: in the file, on a cluster's boundary, and nothing else is."""
        clusters = range(offset >> self._header.cluster_bits, -(-(offset + size) // self._header.cluster_bytes))
        if offset % self._header.cluster_bytes or (whole and offset + size > self._size_bytes):
            raise self._malformed(f"its {what} at {offset} is not on a cluster's boundary, or not in the file")
        for cluster in clusters:
            if self._used[cluster]:
                raise self._malformed(f"its {what} at {offset} is over another table")
            self._used[cluster] = self._alone[cluster] = 1

    def _compare(self, recorded: array[int]) -> None:
        if recorded == self._used:
            return
        where = next(n for n, (told, found) in enumerate(zip(recorded, self._used, strict=True)) if told != found)
        raise self._refuse(
            "qcow2-refcount",
            f"says that cluster {where} is used {recorded[where]} times; it is used {self._used[where]} times",
        )

    def _words(self, kind: str, offset: int, size: int) -> array[int]:
        """A table of big-endian integers."""
        data = self._read(offset, size)
        if len(data) != size:
            raise self._malformed(f"the table at {offset} is cut short")
        words = array(kind, data)
        if sys.byteorder == "little":
            words.byteswap()
        return words

    def _malformed(self, what: str) -> RequestError:
        return self._refuse("qcow2-malformed", f"is broken: {what}")
