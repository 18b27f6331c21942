"""Reads an IGTF CA directory into `TrustAnchors`: HASH.0, HASH.r0, HASH.namespaces, HASH.signing_policy.

The trust core decides about bytes; here it is only made sure that nobody but root wrote them, and how many there are.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from lrms_vm.errors import ConfigError
from lrms_vm.trust.verify import TrustAnchors

# A full IGTF distribution has some hundred CAs; its largest CRLs have a few megabytes.
MAX_FILES = 4096
MAX_BYTES = {"certificate": 256 << 10, "crl": 16 << 20, "names": 64 << 10}
MAX_TOTAL_BYTES = 256 << 20
_KINDS = (
    (re.compile(r"[0-9a-f]{8}\.[0-9]{1,2}", re.ASCII), "certificate"),
    (re.compile(r"[0-9a-f]{8}\.r[0-9]{1,2}", re.ASCII), "crl"),
    (re.compile(r"[0-9a-f]{8}\.(?:namespaces|signing_policy)", re.ASCII), "names"),
)


def read_anchors(directory: Path, *, must_be_root_owned: bool = True) -> TrustAnchors:
    """Read what is there; other names are ignored. Raises `ConfigError` for what root may not believe.

    HASH.0 is often a symbolic link to NAME.pem beside it, so links are followed as long as they stay inside.
    """
    try:
        resolved = directory.resolve(strict=True)
        names = sorted(os.listdir(resolved))
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot read the CA directory: {error.strerror}",
            hint="it is ca_dir in trust.toml",
            code="ca-dir-missing",
        ) from error
    if must_be_root_owned:
        for above in (resolved, *resolved.parents):
            _require_root(above, os.stat(above), sticky_is_fine=above != resolved)
    wanted = [(name, kind) for name in names for grammar, kind in _KINDS if grammar.fullmatch(name)]
    if len(wanted) > MAX_FILES:
        raise ConfigError(f"{directory}: {len(wanted)} files; at most {MAX_FILES}", code="ca-dir-unsafe")
    found: dict[str, list[tuple[str, bytes]]] = {"certificate": [], "crl": [], "names": []}
    total = 0
    place = os.open(resolved, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, kind in wanted:
            content = _read(resolved, place, name, MAX_BYTES[kind], must_be_root_owned)
            total += len(content)
            if total > MAX_TOTAL_BYTES:
                raise ConfigError(f"{directory}: more than {MAX_TOTAL_BYTES} bytes", code="ca-dir-unsafe")
            found[kind].append((name, content))
    finally:
        os.close(place)
    return TrustAnchors(
        certificates=tuple(content for _, content in found["certificate"]),
        crls=tuple(content for _, content in found["crl"]),
        namespaces=tuple((name[:8], content) for name, content in found["names"] if name.endswith(".namespaces")),
        signing_policies=tuple(
            (name[:8], content) for name, content in found["names"] if name.endswith(".signing_policy")
        ),
        source=str(directory),
    )


def _read(directory: Path, place: int, name: str, max_bytes: int, must_be_root_owned: bool) -> bytes:
    """One of a few hundred files, in as few system calls as will do."""
    try:
        fd = _opened(directory, place, name)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                raise ConfigError(
                    f"{directory}/{name}: not a regular file of at most {max_bytes} bytes", code="ca-dir-unsafe"
                )
            if must_be_root_owned:
                _require_root(f"{directory}/{name}", status, sticky_is_fine=False)
            content = os.read(fd, status.st_size)  # one that grows meanwhile is read whole the next time
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{directory}/{name}: cannot read: {error.strerror}", code="ca-dir-unsafe") from error
    return content


def _opened(directory: Path, place: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=place)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    target = os.path.realpath(directory / name)
    if os.path.dirname(target) != str(directory):
        raise ConfigError(f"{directory}/{name}: a link that leaves the directory", code="ca-dir-unsafe")
    return os.open(os.path.basename(target), flags, dir_fd=place)


def _require_root(path: Path | str, status: os.stat_result, *, sticky_is_fine: bool) -> None:
    sticky = sticky_is_fine and status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
        raise ConfigError(
            f"{path}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}; not only root can write it",
            hint="chown root and chmod go-w",
            code="ca-dir-unsafe",
        )
