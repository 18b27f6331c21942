"""Signed image lists as HEPiX tools publish them (`hv:imagelist`), with our `lv:` keys: the native manifest.

Field names and forms are those of the HEPiX virtualisation working group's list and of the lists EGI's AppDB makes of
it; docs/image-lists.md has the table. What a list says is believed only after its signature (trust/verify_list.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from functools import cmp_to_key
from itertools import zip_longest

from lrms_vm.errors import RequestError
from lrms_vm.trust import strict_json
from lrms_vm.trust.json_object import WORD, JsonObject, checked_url
from lrms_vm.trust.tree import Tree
from lrms_vm.values import dataclass

MAX_IMAGES = 1000
MAX_MIRRORS = 20
CHUNK_BYTES = tuple(1 << power for power in range(16, 27))  # 64 KiB to 64 MiB
IDENTIFIER = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_NAME = re.compile(r"(?!.*\.\.)(?=.{1,200}$)[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*)*", re.ASCII)
_FORMAT = re.compile(r"[A-Za-z0-9-]{1,16}", re.ASCII)
_RUNS = re.compile(r"[0-9]+|[A-Za-z]+", re.ASCII)


@dataclass(frozen=True)
class ListedImage:
    """One version of one image, as its list describes it. Digests and sizes are of the file at `urls`."""

    name: str  # at the site: lv:name, else dc:title where that is a name, else the identifier
    identifier: str
    version: str
    size_bytes: int
    digests: Mapping[str, bytes]  # by "sha256", "sha512"; at least one
    urls: tuple[str, ...]  # hv:uri, then lv:mirrors
    format: str = "raw"  # small letters; only "raw" and "qcow2" can be used
    virtual_size_bytes: int | None = None
    tree: Tree | None = None
    vo: tuple[str, ...] = ()  # its own, else its list's
    title: str = ""
    description: str = ""
    comments: str = ""
    expires: datetime | None = None
    kernel: str | None = None  # a site kernel's name
    kernel_sha256: bytes | None = None
    initrd_sha256: bytes | None = None
    min_version: str | None = None  # below it, no version of this name boots


@dataclass(frozen=True)
class Endorser:
    """Whom the list names as its endorser: text that is shown and never compared."""

    subject: str = ""
    issuer: str = ""
    creator: str = ""
    email: str = ""


@dataclass(frozen=True)
class ImageList:
    """The whole list. `expires` is what it says; what counts is computed by `verify_list.valid_until`."""

    identifier: str
    version: str
    title: str
    created: datetime
    expires: datetime
    images: tuple[ListedImage, ...]
    endorser: Endorser = field(default_factory=Endorser)
    vo: tuple[str, ...] = ()
    description: str = ""
    url: str | None = None


def parse_list(payload: bytes) -> ImageList:
    """Read the signed bytes of a list. Raises `RequestError`, whatever they are; the first defect is the one reported.

    Codes: json-* (trust/strict_json.py), list-malformed, list-critical-key, list-too-long, list-duplicate.
    """
    top = JsonObject(strict_json.parse(payload, source="the image list"), "the image list")
    if top.has("hv:imagelist") == top.has("hv:images"):
        top.fail("hv:imagelist", "missing, or there beside hv:images")
    content = top.object("hv:imagelist") if top.has("hv:imagelist") else top  # older tools left out the outer one
    vo = content.words("lv:vo") or content.words("ad:vo")
    found = content.sequence("hv:images", MAX_IMAGES)
    entries = [JsonObject(one, f"hv:images[{index}]").object("hv:image") for index, one in enumerate(found)]
    images = tuple(_image(entry, vo) for entry in entries)
    _check_duplicates(images)
    return ImageList(
        identifier=content.matching("dc:identifier", IDENTIFIER),
        version=content.version("hv:version"),
        title=content.text("dc:title"),
        created=content.date("dc:date:created"),
        expires=content.date("dc:date:expires"),
        images=_with_min_versions(images),
        endorser=_endorser(content),
        vo=vo,
        description=content.text("dc:description"),
        url=content.url("hv:uri") if content.has("hv:uri") else None,
    )


def compare_versions(a: str, b: str) -> int:
    """-1, 0 or 1: runs of digits as numbers, runs of letters as text, whatever stands between them.

    A version that goes on is the greater one, a number is greater than letters.

    >>> compare_versions("1.10", "1.9"), compare_versions("1.0", "1.0.1"), compare_versions("1.01", "1.1")
    (1, -1, 0)
    """
    for left, right in zip_longest(_runs(a), _runs(b), fillvalue=(-1, 0, "")):
        if left != right:
            return 1 if left > right else -1
    return 0


def _runs(version: str) -> list[tuple[int, int, str]]:
    """Numbers as (1, how many digits, digits): no number is too long for that."""
    runs = [run.lstrip("0") if run.isdigit() else run for run in _RUNS.findall(version)]
    return [(0, 0, run) if run.isalpha() else (1, len(run), run) for run in runs]


def _image(image: JsonObject, list_vo: tuple[str, ...]) -> ListedImage:
    identifier = image.matching("dc:identifier", IDENTIFIER)
    title = image.text("dc:title")
    named = title if _NAME.fullmatch(title) else identifier
    size_bytes = image.size("hv:size")
    digests = {
        algorithm: image.digest(key, bits)
        for algorithm, key, bits in (("sha256", "lv:checksum:sha256", 256), ("sha512", "sl:checksum:sha512", 512))
        if image.has(key)
    }
    if not digests:
        image.fail("sl:checksum:sha512", "missing, and so is lv:checksum:sha256")
    kernel = image.object("lv:kernel") if image.has("lv:kernel") else None
    initrd = image.object("lv:initrd") if image.has("lv:initrd") else None
    mirrors = image.sequence("lv:mirrors", MAX_MIRRORS) if image.has("lv:mirrors") else ()
    urls = (image.url("hv:uri"), *(checked_url(one, image, "lv:mirrors") for one in mirrors))
    format_key = "lv:format" if image.has("lv:format") else "hv:format"
    return ListedImage(
        name=image.matching("lv:name", _NAME) if image.has("lv:name") else named,
        identifier=identifier,
        version=image.version("hv:version"),
        size_bytes=size_bytes,
        digests=digests,
        urls=tuple(dict.fromkeys(urls)),
        format=image.matching(format_key, _FORMAT).lower() if image.has(format_key) else "raw",
        virtual_size_bytes=image.size("lv:virtual_size") if image.has("lv:virtual_size") else None,
        tree=_tree(image.object("lv:tree"), size_bytes) if image.has("lv:tree") else None,
        vo=image.words("lv:vo") or image.words("ad:vo") or list_vo,
        title=title,
        description=image.text("dc:description"),
        comments=image.text("sl:comments"),
        expires=image.date("dc:date:expires") if image.has("dc:date:expires") else None,
        kernel=kernel.matching("name", WORD) if kernel else None,
        kernel_sha256=kernel.digest("sha256", 256) if kernel and kernel.has("sha256") else None,
        initrd_sha256=initrd.digest("sha256", 256) if initrd else None,
        min_version=image.version("lv:min_version") if image.has("lv:min_version") else None,
    )


def _tree(tree: JsonObject, size_bytes: int) -> Tree:
    if tree.get("alg") != "sha256":
        tree.fail("alg", "expected sha256")
    chunk_bytes = tree.size("chunk")
    if chunk_bytes not in CHUNK_BYTES:
        tree.fail("chunk", f"{chunk_bytes}: expected a power of two from {CHUNK_BYTES[0]} to {CHUNK_BYTES[-1]}")
    root = tree.digest("root", 256)
    if not tree.has("leaves"):
        return Tree(chunk_bytes, root, None, None, None)
    leaves = tree.object("leaves")
    leaves_size_bytes, expected = leaves.size("size"), -(-size_bytes // chunk_bytes) * 32
    if leaves_size_bytes != expected:
        leaves.fail("size", f"{leaves_size_bytes}: expected {expected}, 32 for each chunk")
    return Tree(chunk_bytes, root, leaves.url("uri"), leaves_size_bytes, leaves.digest("sha256", 256))


def _endorser(content: JsonObject) -> Endorser:
    if not content.has("hv:endorser"):
        return Endorser()
    x509 = content.object("hv:endorser").object("hv:x509")
    return Endorser(x509.text("hv:dn"), x509.text("hv:ca"), x509.text("dc:creator"), x509.text("hv:email"))


def _check_duplicates(images: Sequence[ListedImage]) -> None:
    """Each version of a name once, each version of an identifier once, and no name that is another's identifier."""
    seen: dict[tuple[str, str, tuple[tuple[int, int, str], ...]], ListedImage] = {}
    by_identifier = {image.identifier: image for image in images}
    for image in images:
        runs = tuple(_runs(image.version))
        for kind, value in (("name", image.name), ("identifier", image.identifier)):
            other = seen.setdefault((kind, value, runs), image)
            if other is not image:
                raise RequestError(
                    f"the image list has {kind} {value} twice in version {image.version}", code="list-duplicate"
                )
        namesake = by_identifier.get(image.name)
        if namesake is not None and image.identifier != image.name:
            raise RequestError(
                f"the image list has {image.name} as an image's name and as another's identifier", code="list-duplicate"
            )


def _with_min_versions(images: tuple[ListedImage, ...]) -> tuple[ListedImage, ...]:
    """The highest lv:min_version among a name's versions holds for all of them."""
    least: dict[str, list[str]] = {}
    for image in images:
        if image.min_version is not None:
            least.setdefault(image.name, []).append(image.min_version)
    highest = {name: max(versions, key=cmp_to_key(compare_versions)) for name, versions in least.items()}
    return tuple(replace(one, min_version=highest[one.name]) if one.name in highest else one for one in images)
