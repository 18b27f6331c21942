"""Which of a grid's hundred CA files may be about one name: looked up as bytes, for reading all takes milliseconds."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence

_BLOCK = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,20}CERTIFICATE-----([^-]*)-----END")


class Unread:
    """CA files (PEM) that nobody asked for yet."""

    def __init__(self, pems: Iterable[bytes]) -> None:
        self._files = [(pem, _small_letters(pem)) for pem in pems]

    def naming(self, name: Iterable[tuple[str, str]]) -> Sequence[bytes]:
        """Those that may have a certificate of this name (`dn.loose`), each once; all where none has it so written.

        A twin that is written otherwise is passed over beside one that is written so, and then anchors nothing.
        """
        values = [value.encode("utf-8", "replace") for _, value in name]
        found = [pem for pem, text in self._files if text is None or all(value in text for value in values)]
        if not found:
            found = [pem for pem, _ in self._files]
        taken = set(found)
        self._files = [(pem, text) for pem, text in self._files if pem not in taken]
        return found


def _small_letters(pem: bytes) -> bytes | None:
    """The DER of all of its certificates, A to Z made small; None for one that cannot be read so simply."""
    try:
        found = [binascii.a2b_base64(match[1]) for match in _BLOCK.finditer(pem)]
    except binascii.Error:
        return None
    return b"".join(found).lower() if found else None
