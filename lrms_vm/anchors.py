"""Reads an IGTF CA directory into `TrustAnchors`: HASH.0, HASH.r0, HASH.namespaces, HASH.signing_policy.

The trust core decides about bytes; here it is only made sure that nobody but root wrote them, and how many there are.
"""

from __future__ import annotations

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
        for place in (resolved, *resolved.parents):
            _require_root(place, os.stat(place), directory_is_fine_when_sticky=place != resolved)
    wanted = [(name, kind) for name in names for grammar, kind in _KINDS if grammar.fullmatch(name)]
    if len(wanted) > MAX_FILES:
        raise ConfigError(f"{directory}: {len(wanted)} files; at most {MAX_FILES}", code="ca-dir-unsafe")
    found: dict[str, list[tuple[str, bytes]]] = {"certificate": [], "crl": [], "names": []}
    total = 0
    for name, kind in wanted:
        content = _read(resolved, name, MAX_BYTES[kind], must_be_root_owned)
        total += len(content)
        if total > MAX_TOTAL_BYTES:
            raise ConfigError(f"{directory}: more than {MAX_TOTAL_BYTES} bytes", code="ca-dir-unsafe")
        found[kind].append((name, content))
    return TrustAnchors(
        certificates=tuple(content for _, content in found["certificate"]),
        crls=tuple(content for _, content in found["crl"]),
        namespaces=tuple((name[:8], content) for name, content in found["names"] if name.endswith(".namespaces")),
        signing_policies=tuple(
            (name[:8], content) for name, content in found["names"] if name.endswith(".signing_policy")
        ),
        source=str(directory),
    )


def _read(directory: Path, name: str, max_bytes: int, must_be_root_owned: bool) -> bytes:
    path = directory / name
    try:
        if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != str(directory):
            raise ConfigError(f"{path}: a link that leaves the directory", code="ca-dir-unsafe")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                raise ConfigError(f"{path}: not a regular file of at most {max_bytes} bytes", code="ca-dir-unsafe")
            if must_be_root_owned:
                _require_root(path, status, directory_is_fine_when_sticky=False)
            return file.read(max_bytes)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}", code="ca-dir-unsafe") from error


def _require_root(path: Path, status: os.stat_result, *, directory_is_fine_when_sticky: bool) -> None:
    sticky = directory_is_fine_when_sticky and status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
        raise ConfigError(
            f"{path}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}; not only root can write it",
            hint="chown root and chmod go-w",
            code="ca-dir-unsafe",
        )
