"""Reads an IGTF CA directory into `TrustAnchors`: HASH.0, HASH.r0, HASH.namespaces, HASH.signing_policy.

The trust core decides about bytes; here it is only made sure that nobody but root wrote them, and how many there are.
For a job only the files of its signer's CAs are read: a hundred CAs and their CRLs have tens of megabytes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lrms_vm.errors import ConfigError
from lrms_vm.trust import x509
from lrms_vm.trust.x509 import TrustAnchors
from lrms_vm.values import dataclass

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

# A full IGTF distribution has some hundred CAs; its largest CRLs have a few megabytes.
MAX_FILES = 4096
MAX_BYTES = {"certificate": 256 << 10, "crl": 16 << 20, "names": 64 << 10}
MAX_TOTAL_BYTES = 256 << 20
_KINDS = (
    (re.compile(r"[0-9a-f]{8}\.[0-9]{1,2}", re.ASCII), "certificate"),
    (re.compile(r"[0-9a-f]{8}\.r[0-9]{1,2}", re.ASCII), "crl"),
    (re.compile(r"[0-9a-f]{8}\.(?:namespaces|signing_policy)", re.ASCII), "names"),
)
# OpenSSL counts from 0 and stops at the first that is not there; nobody has more than a few of one name.
_SUFFIXES = (
    *((f".{number}", "certificate") for number in range(10)),
    *((f".r{number}", "crl") for number in range(10)),
    (".namespaces", "names"),
    (".signing_policy", "names"),
)


@dataclass(frozen=True)
class CaDirectory:
    """The directory as it stands when it is asked: fetch-crl may write to it at any time."""

    path: Path
    must_be_root_owned: bool = True

    def everything(self) -> TrustAnchors:
        """Raises `ConfigError` for what root may not believe."""
        return read_anchors(self.path, must_be_root_owned=self.must_be_root_owned)

    def above(self, certificates: Iterable[Certificate]) -> TrustAnchors:
        """What is there about the CAs of these certificates, and those above. Raises `ConfigError`, as `everything`.

        Found by the hashes of the issuers' names, as OpenSSL does (X509_LOOKUP_hash_dir(3)): links to one file by
        several hashes, or files of other CAs that cannot be read, change nothing.
        """
        with _Reader(self.path, self.must_be_root_owned) as reader:
            wanted, seen = x509.issuer_hashes(certificates), set[str]()
            while wanted - seen and len(seen) < x509.MAX_CHAIN * 4:
                new = wanted - seen
                seen |= new
                wanted |= x509.issuer_hashes_of_pem(reader.take(new))
            return reader.anchors()


def read_anchors(directory: Path, *, must_be_root_owned: bool = True) -> TrustAnchors:
    """Read all that is there; other names are ignored. Raises `ConfigError` for what root may not believe."""
    with _Reader(directory, must_be_root_owned) as reader:
        reader.take(None)
        return reader.anchors()


class _Reader:
    """Reads files of one directory, each once."""

    def __init__(self, directory: Path, must_be_root_owned: bool) -> None:
        self._shown, self._must_be_root_owned = directory, must_be_root_owned
        self._believed: set[str] = set()  # directories that links lead to
        self._found: dict[str, list[tuple[str, bytes]]] = {"certificate": [], "crl": [], "names": []}
        self._seen: set[tuple[int, int]] = set()  # files, by device and inode
        self._total = 0
        try:
            self._resolved = directory.resolve(strict=True)
            self._place = os.open(self._resolved, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _missing(directory, error) from error

    def __enter__(self) -> _Reader:
        try:
            self._believe(str(self._resolved))
        except OSError as error:
            os.close(self._place)
            raise _missing(self._shown, error) from error
        except ConfigError:
            os.close(self._place)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._place)

    def take(self, hashes: set[str] | None) -> list[bytes]:
        """Read the files with these hashes, or all; return the certificates among them.

        Those with a hash are tried by name: to list a directory of a thousand files takes longer than all the rest.
        """
        wanted = (
            self._listed() if hashes is None else [(h + suffix, kind) for h in hashes for suffix, kind in _SUFFIXES]
        )
        if len(wanted) > MAX_FILES:
            raise ConfigError(f"{self._shown}: {len(wanted)} files; at most {MAX_FILES}", code="ca-dir-unsafe")
        certificates = []
        for name, kind in wanted:
            content = self._read(name, kind)
            if content is None:
                continue
            self._total += len(content)
            if self._total > MAX_TOTAL_BYTES:
                raise ConfigError(f"{self._shown}: more than {MAX_TOTAL_BYTES} bytes", code="ca-dir-unsafe")
            self._found[kind].append((name, content))
            if kind == "certificate":
                certificates.append(content)
        return certificates

    def _listed(self) -> list[tuple[str, str]]:
        names = sorted(os.listdir(self._place))
        return [(name, kind) for name in names for grammar, kind in _KINDS if grammar.fullmatch(name)]

    def anchors(self) -> TrustAnchors:
        by_suffix = {
            suffix: tuple((name[:8], content) for name, content in self._found["names"] if name.endswith(suffix))
            for suffix in (".namespaces", ".signing_policy")
        }
        return TrustAnchors(
            certificates=tuple(content for _, content in self._found["certificate"]),
            crls=tuple(content for _, content in self._found["crl"]),
            namespaces=by_suffix[".namespaces"],
            signing_policies=by_suffix[".signing_policy"],
            source=str(self._shown),
        )

    def _read(self, name: str, kind: str) -> bytes | None:
        """None where there is no such file, or where it was read by another name and names do not matter."""
        shown = f"{self._shown}/{name}"
        try:
            fd = self._opened(name)
            if fd is None:
                return None
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES[kind]:
                    raise ConfigError(
                        f"{shown}: not a regular file of at most {MAX_BYTES[kind]} bytes", code="ca-dir-unsafe"
                    )
                if self._must_be_root_owned:
                    _require_root(shown, status, sticky_is_fine=False)
                inode = (status.st_dev, status.st_ino)
                if kind != "names" and inode in self._seen:
                    return None
                self._seen.add(inode)
                return os.read(fd, status.st_size)  # one that grows meanwhile is read whole the next time
            finally:
                os.close(fd)
        except OSError as error:
            raise ConfigError(f"{shown}: cannot read: {error.strerror}", code="ca-dir-unsafe") from error

    def _opened(self, name: str) -> int | None:
        """HASH.0 is often a link to NAME.pem beside it, or in /usr/share/igtf-policy (Debian's packages of IGTF)."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            return os.open(name, flags, dir_fd=self._place)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        target = os.path.realpath(self._resolved / name, strict=True)
        self._believe(os.path.dirname(target))
        return os.open(target, flags)

    def _believe(self, directory: str) -> None:
        """Only root can write what is in this directory, or could have put another in its place."""
        if not self._must_be_root_owned or directory in self._believed:
            return
        for above in (Path(directory), *Path(directory).parents):
            _require_root(above, os.stat(above), sticky_is_fine=str(above) != directory)
        self._believed.add(directory)


def _missing(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{directory}: cannot read the CA directory: {error.strerror}",
        hint="it is ca_dir in trust.toml",
        code="ca-dir-missing",
    )


def _require_root(path: Path | str, status: os.stat_result, *, sticky_is_fine: bool) -> None:
    sticky = sticky_is_fine and status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
        raise ConfigError(
            f"{path}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}; not only root can write it",
            hint="chown root and chmod go-w",
            code="ca-dir-unsafe",
        )
