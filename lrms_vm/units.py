"""Sizes and durations from text. Units live in names everywhere else; text becomes a number only here."""

from __future__ import annotations

import re

from lrms_vm.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,3}))?\s?([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)", re.ASCII)
_BYTES_PER = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS_PER = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size_bytes(text: str, *, bare: str, source: str) -> int:
    """Read a size; return bytes, rounded up.

    Batch systems write KB, MB, GB and mean powers of 1024 (sbatch(1) --mem; pbs_resources(7));
    `KiB` spellings mean the same here. `bare` is the unit of a number without one: "M" for Slurm,
    "" for bytes. `source` says where the text came from and opens the message. Raises `UsageError`.

    >>> parse_size_bytes("64GiB", bare="", source="max_image")
    68719476736
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{source}: cannot read {text[:40]!r} as a size", hint="write e.g. 4G or 4096M", code="size-unreadable"
        )
    whole, fraction, letter, suffix = match.groups()
    unit = letter.upper() if letter else ("" if suffix else bare)
    scale = _BYTES_PER[unit]
    size_bytes = int(whole) * scale
    if fraction:
        size_bytes += -(-int(fraction) * scale // 10 ** len(fraction))
    return size_bytes


def parse_memory_mib(text: str, *, bare: str, source: str) -> int:
    """Read a batch system's memory size; return whole MiB, rounded up. Raises `UsageError`.

    >>> parse_memory_mib("4G", bare="M", source="--vm-memory")
    4096
    >>> parse_memory_mib("1500K", bare="M", source="--vm-memory")
    2
    """
    return -(-parse_size_bytes(text, bare=bare, source=source) // (1 << 20))


def parse_duration_s(text: str, *, source: str) -> int:
    """Read "30s", "5m", "12h" or "35d"; return seconds. Raises `UsageError`.

    >>> parse_duration_s("35d", source="max_list_age")
    3024000
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{source}: cannot read {text[:40]!r} as a duration",
            hint="write e.g. 90s, 5m, 12h, 35d",
            code="duration-unreadable",
        )
    return int(match[1]) * _SECONDS_PER[match[2]]


def size_text(size_bytes: int) -> str:
    """For people: in the largest binary unit that is not below 1.

    >>> size_text(21474836480), size_text(1023)
    ('20.0 GiB', '1023 B')
    """
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit in ("GiB", "TiB") else f"{value:.0f} {unit}"
