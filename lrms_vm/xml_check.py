"""The second pair of eyes: reads a rendered domain again and compares it with what it must say.

Templates are the site's to edit, so what comes out of one is not believed: whatever gives a guest something of the
host (disks, sockets, files, networks, devices, who the process runs as) must be exactly as expected; whatever only
tunes it may be there (`HARMLESS`). An element that neither list knows is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from xml.etree import ElementTree

from lrms_vm.errors import ConfigError
from lrms_vm.values import dataclass

MAX_LENGTH = 1 << 18

# What a template may add (libvirt.org/formatdomain.html): "path" an element with all below it, "path@name" an
# attribute. Nothing below a harmless element may name a file or a URL.
_HARMLESS = """
    domain/description domain/title domain/features domain/clock domain/cpu domain/pm domain/iothreads
    domain/cputune domain/blkiotune domain/memtune domain/numatune domain/memoryBacking domain/resource
    domain/vcpu@placement domain/vcpu@cpuset
    domain/os/type@arch domain/os/type@machine domain/os/bios domain/os/bootmenu domain/os/smbios
    domain/devices/controller domain/devices/memballoon domain/devices/rng domain/devices/panic
    domain/devices/video
    domain/devices/disk/address domain/devices/disk/alias domain/devices/disk/blockio domain/devices/disk/iotune
    domain/devices/disk/serial
    domain/devices/disk/driver@cache domain/devices/disk/driver@io domain/devices/disk/driver@discard
    domain/devices/disk/driver@detect_zeroes domain/devices/disk/driver@iothread domain/devices/disk/driver@queues
    domain/devices/disk/driver@queue_size domain/devices/disk/driver@event_idx domain/devices/disk/driver@ioeventfd
    domain/devices/disk/driver@packed domain/devices/disk/driver@iommu
    domain/devices/disk/driver/metadata_cache
    domain/devices/channel/address domain/devices/channel/alias
    domain/devices/serial/address domain/devices/serial/alias
    domain/devices/serial/target domain/devices/console/target
    domain/devices/interface/address domain/devices/interface/alias domain/devices/interface/driver
    domain/devices/interface/mtu domain/devices/interface/bandwidth domain/devices/interface/port
    domain/devices/interface/rom
"""
HARMLESS = frozenset(_HARMLESS.split())
_FILES_OF_HARMLESS = frozenset(["/dev/urandom", "/dev/random"])
_RESOURCE_PARTITION = "domain/resource/partition"  # a cgroup's name, not a file's
_DECLARATION = re.compile(r"<!(?!--)")  # DOCTYPE, ENTITY, CDATA: none is needed, and entities are how parsers are hurt


@dataclass(frozen=True)
class Must:
    """An element that must be there exactly like this. `text` None: any."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str | None = ""
    children: tuple[Must, ...] = ()


def require(must: Must, xml_text: str) -> None:
    """Raises `ConfigError` (code "template-differs", or "template-unreadable") naming the first element that is off."""
    if len(xml_text) > MAX_LENGTH or _DECLARATION.search(xml_text):
        raise ConfigError(
            f"the rendered domain has a declaration (<!...) or over {MAX_LENGTH} characters", code="template-unreadable"
        )
    try:
        root = ElementTree.fromstring(xml_text)  # noqa: S314 - declarations were refused above
    except (ElementTree.ParseError, RecursionError) as error:
        raise ConfigError(f"the rendered domain is not XML: {error}", code="template-unreadable") from error
    for problem in _differences(must, root, ""):
        raise ConfigError(
            f"the domain template gives {problem}",
            hint="compare it with ours; see `lrms-vm render`",
            code="template-differs",
        )


def _differences(must: Must, found: ElementTree.Element, above: str) -> Iterator[str]:
    path = f"{above}/{found.tag}".lstrip("/")
    if found.tag != must.tag:
        yield f"<{found.tag}> where <{must.tag}> was expected"
        return
    text = (found.text or "").strip()
    if must.text is not None and text != must.text:
        yield f"{path} = {text!r:.200}, expected {must.text!r:.200}"
    for name, value in found.attrib.items():
        if must.attributes.get(name) != value and f"{path}@{name}" not in HARMLESS:
            yield f"{path} {name}={value!r:.200}, expected {must.attributes.get(name)!r:.200}"
    for name in must.attributes.keys() - found.attrib.keys():
        yield f"{path} without {name}={must.attributes[name]!r:.200}"
    yield from _children(must, found, path)


def _children(must: Must, found: ElementTree.Element, path: str) -> Iterator[str]:
    missing = list(must.children)
    for child in found:
        if (child.tail or "").strip():
            yield f"stray text {child.tail!r:.80} in {path}"
        twin = next((wanted for wanted in missing if wanted.tag == child.tag), None)
        if twin is not None:
            missing.remove(twin)
            yield from _differences(twin, child, path)
        elif f"{path}/{child.tag}" in HARMLESS:
            yield from _files_in(child, f"{path}/{child.tag}")
        else:
            yield f"one more {path}/{child.tag} than was expected"
    for wanted in missing:
        yield f"no {path}/{wanted.tag} {wanted.attributes or wanted.text or ''}".rstrip()


def _files_in(element: ElementTree.Element, path: str) -> Iterator[str]:
    for below in element.iter():
        for value in (*below.attrib.values(), (below.text or "").strip()):
            if ("/" in value or below.tag.startswith("{")) and value not in _FILES_OF_HARMLESS:
                if f"{path}/{below.tag}" == _RESOURCE_PARTITION:
                    continue
                yield f"{value!r:.200} in {path}, where no file may be named"
