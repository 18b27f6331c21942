"""Signed messages as the tools write them: which bytes are signed, and which bytes are the signature.

  clear   multipart/signed: the list as text, then its detached signature (RFC 8551 section 3.5.3)
  opaque  application/pkcs7-mime: the signature with the list inside (section 3.5.2)
  bare    the latter without MIME: CMS in DER, or in one PEM block

`openssl smime`, `openssl cms` and HEPiX's tools give the signed part no MIME headers of its own, so that general
readers of mail take its first lines for headers. This one takes what is between the boundaries as it stands. What a
message could say twice, or say differently to another reader, is refused.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from itertools import islice

from lrms_vm.errors import RequestError
from lrms_vm.values import dataclass

MAX_BYTES = (1 << 21) - 1  # a list of 1 MiB inside base64, with its certificates
MAX_HEADER_BYTES = 16 << 10
_HEADER = re.compile(rb"([!-9;-~]{1,60}):[ \t]*([ -~\t]*)")
_MEDIA_TYPE = re.compile(r"([a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60})", re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(
    r"""[ \t]*;[ \t]*([a-z0-9-]{1,40})=(?:"([^"\\]{1,200})"|([^\s";,\\()<>@:/\[\]?=]{1,200}))""",
    re.ASCII | re.IGNORECASE,
)
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]", re.ASCII)
_SIGNATURES = ("application/x-pkcs7-signature", "application/pkcs7-signature")
_OPAQUE = ("application/x-pkcs7-mime", "application/pkcs7-mime")
_UNENCODED = ("7bit", "8bit", "binary")
# What `openssl smime -sign -text` and mail programs put before the text, signed with it.
_TEXT_HEADERS = re.compile(
    rb"""(?:Content-Type:\ (?:text/plain|application/json)(?:;\ charset="?(?:utf-8|us-ascii)"?)?\r?\n
        |Content-Transfer-Encoding:\ (?:7bit|8bit|binary)\r?\n){1,2}\r?\n""",
    re.IGNORECASE | re.VERBOSE,
)
_HINT = "make it with `lrms-vm image sign --list`, or with `openssl cms -sign -binary`"


@dataclass(frozen=True)
class Message:
    """Nothing in it is proved. `content` is the signed part as it stands; None: it is inside the signature."""

    signature: bytes  # CMS in DER or PEM
    content: bytes | None
    form: str  # "smime", or "cms" for one without MIME


def split(data: bytes) -> Message:
    """Take a message apart. Raises `RequestError` "smime-malformed", "not-signed", whatever the bytes are."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes; at most {MAX_BYTES} are read")
    if not data.strip():
        raise RequestError("the signed list is empty", code="not-signed")
    if data[:1] == b"\x30" or data.lstrip(b" \t\r\n").startswith(b"-----BEGIN"):
        return Message(data, None, "cms")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        raise RequestError("the list is not signed: it is plain JSON", hint=_HINT, code="not-signed")
    headers, body = _headers(data, "the message")
    kind, parameters = _content_type(headers, "the message")
    encoding = headers.get("content-transfer-encoding", "7bit").lower()
    if kind in _OPAQUE:
        if parameters.get("smime-type", "signed-data").lower() != "signed-data" or encoding != "base64":
            raise _malformed("application/pkcs7-mime: expected smime-type=signed-data in base64")
        return Message(_base64(body), None, "smime")
    if kind != "multipart/signed":
        raise _malformed(f"Content-Type {kind}: expected multipart/signed or application/pkcs7-mime")
    if parameters.get("protocol", "").lower() not in _SIGNATURES or encoding not in _UNENCODED:
        raise _malformed("multipart/signed: expected protocol application/pkcs7-signature and no encoding")
    content, second = _two_parts(body, parameters.get("boundary", ""))
    headers, body = _headers(second, "the signature's part")
    kind, _ = _content_type(headers, "the signature's part")
    if kind not in _SIGNATURES or headers.get("content-transfer-encoding", "").lower() != "base64":
        raise _malformed("the signature's part: expected application/pkcs7-signature in base64")
    return Message(_base64(body), content, "smime")


def forms(content: bytes) -> Iterator[bytes]:
    """The part as it stands, and with CRLF at every line's end, as it was signed if its ends were changed since.

    The signature's digest picks one; that one is then read.
    """
    yield content
    yield canonical(content)


def canonical(content: bytes) -> bytes:
    """With CRLF at the end of every line, as text is signed without -binary (RFC 8551 section 3.1.1)."""
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def text_of(content: bytes) -> bytes:
    """The signed bytes without the headers of a text, which are signed with it."""
    match = _TEXT_HEADERS.match(content)
    return content[match.end() :] if match else content


def _two_parts(body: bytes, boundary: str) -> tuple[bytes, bytes]:
    """What is between the first delimiter and the second, and the second and the last (RFC 2046 section 5.1.1)."""
    if _BOUNDARY.fullmatch(boundary) is None:
        raise _malformed("multipart/signed: no boundary, or one that is not of 1 to 70 plain characters")
    found = re.finditer(rb"^--" + re.escape(boundary.encode()) + rb"([^\n]*)", body, re.MULTILINE)
    delimiters = list(islice(found, 4))
    tails = [match[1].rstrip(b" \t\r") for match in delimiters]
    if tails != [b"", b"", b"--"]:
        raise _malformed("the lines that begin with the boundary are not those of two parts and an end")
    first, second, last = delimiters
    if body[last.end() :].strip():
        raise _malformed("something stands after the last boundary")
    return _part(body, first, second), _part(body, second, last)


def _part(body: bytes, before: re.Match[bytes], after: re.Match[bytes]) -> bytes:
    """The line end before a delimiter belongs to it."""
    part = body[before.end() + 1 : after.start()]
    return part[: -2 if part.endswith(b"\r\n") else -1] if part else part


def _headers(data: bytes, what: str) -> tuple[Mapping[str, str], bytes]:
    """Header fields by small name, each once, and what follows the empty line."""
    end = re.search(rb"\r?\n\r?\n", data[: MAX_HEADER_BYTES + 4])
    if end is None:
        raise _malformed(f"{what} has no headers, or more than {MAX_HEADER_BYTES} bytes of them")
    fields: dict[str, str] = {}
    unfolded = re.sub(rb"\r?\n[ \t]+", b" ", data[: end.start()])
    for line in unfolded.split(b"\n"):
        match = _HEADER.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise _malformed(f"{what}: cannot read the header {line[:60]!r}")
        name = match[1].decode().lower()
        if name in fields and name in ("content-type", "content-transfer-encoding", "mime-version"):
            raise _malformed(f"{what}: {name} is there twice")
        fields[name] = match[2].decode().strip()
    return fields, data[end.end() :]


def _content_type(headers: Mapping[str, str], what: str) -> tuple[str, Mapping[str, str]]:
    text = headers.get("content-type", "")
    kind = _MEDIA_TYPE.match(text)
    if kind is None:
        raise _malformed(f"{what} has no Content-Type that can be read")
    parameters: dict[str, str] = {}
    at = kind.end()
    while text[at:].strip(" \t;"):
        match = _PARAMETER.match(text, at)
        if match is None or match[1].lower() in parameters:
            raise _malformed(f"{what}: cannot read the Content-Type's parameters, or one is there twice")
        parameters[match[1].lower()] = match[2] or match[3]
        at = match.end()
    return kind[1].lower(), parameters


def _base64(body: bytes) -> bytes:
    try:
        return binascii.a2b_base64(body.translate(None, b"\r\n"), strict_mode=True)
    except binascii.Error as error:
        raise _malformed("the signature is not base64") from error


def _malformed(what: str) -> RequestError:
    return RequestError(f"not an S/MIME message as signing tools write it: {what}", hint=_HINT, code="smime-malformed")
