"""A strict reader of foreign JSON (RFC 8259): what two readers could see differently is refused.

No byte order mark, no key twice, no NaN, no numbers that a double would round or a reader would choke on, no text that
is not Unicode, bounded in size and depth.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from lrms_vm.errors import RequestError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_INTEGER = (1 << 63) - 1
_MAX_FLOAT = 1e15
_MAX_NUMBER_CHARS = 40
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]", re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def parse(data: bytes, *, source: str) -> Any:
    """Dicts, lists, texts, ints, floats, booleans and None. Raises `RequestError`, each defect with its own code.

    json-too-large, json-encoding, json-malformed, json-duplicate-key, json-number, json-text, json-too-deep
    """
    if len(data) > MAX_BYTES:
        raise RequestError(f"{source}: {len(data)} bytes; at most {MAX_BYTES} are read", code="json-too-large")
    if data.startswith((b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe")):
        raise RequestError(
            f"{source}: begins with a byte order mark", hint="save it as plain UTF-8", code="json-encoding"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{source}: byte {error.start} is not UTF-8", code="json-encoding") from error
    try:
        value = _DECODER.decode(text)
    except _DefectError as error:
        raise RequestError(f"{source}: {error}", code=error.code) from error
    except RecursionError as error:
        raise _too_deep(source) from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{source}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}", code="json-malformed"
        ) from error
    _check_depth(value, source)
    if _SURROGATE.search(text):
        _check_texts(value, source)
    return value


def integer(value: Any, *, most: int = MAX_INTEGER) -> int | None:
    """0 to `most`, as a number or as its decimal text without zeros in front; None for everything else."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    return None


class _DefectError(Exception):
    """What a hook of the decoder found; translated by `parse`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _DefectError(f"key {twice!r:.80} is there twice", code="json-duplicate-key")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS or abs(found := int(text)) > MAX_INTEGER:
        raise _DefectError(f"number {text:.40} is out of range", code="json-number")
    return found


def _float(text: str) -> float:
    if len(text) > _MAX_NUMBER_CHARS or not abs(found := float(text)) <= _MAX_FLOAT:
        raise _DefectError(f"number {text:.40} is out of range", code="json-number")
    return found


def _constant(text: str) -> NoReturn:
    raise _DefectError(f"{text} is not a number in JSON", code="json-number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant, strict=True
)


def _check_depth(value: Any, source: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise _too_deep(source)


def _too_deep(source: str) -> RequestError:
    return RequestError(f"{source}: nested deeper than {MAX_DEPTH}", code="json-too-deep")


def _check_texts(value: Any, source: str) -> None:
    """Escapes can spell half of a pair; a whole pair has become its character by now."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{source}: a text has half a surrogate pair", code="json-text") from error
