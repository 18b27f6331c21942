"""Real implementations in memory of what the lifecycle acts through. No patching: pass them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from lrms_vm.errors import NodeError
from lrms_vm.node_size import XenMachine


@dataclass
class FakeHypervisor:
    """`guest.Hypervisor` without a hypervisor. Like the real one it makes the channel's socket and the console's file."""

    kinds: tuple[str, ...] = ("qemu",)
    down: bool = False  # every call fails as with a dead libvirtd
    refuses: str = ""  # create fails with this text
    stuck: set[str] = field(default_factory=set)  # names of domains that destroy cannot end
    domains: dict[str, str] = field(default_factory=dict)  # name: xml
    calls: list[tuple[str, str]] = field(default_factory=list)
    on_create: Callable[[str], None] | None = None
    terminal: str = ""  # of each domain's console, as Xen has one
    process: int | None = None  # whose pid a guest's process has, where it has one
    machine: XenMachine = field(default_factory=lambda: XenMachine(1 << 20, 64, 2))

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        self._called("create", xml)
        if self.refuses:
            raise NodeError(f"libvirt: cannot start the domain: {self.refuses}", code="domain-create-failed")
        try:
            root = ElementTree.fromstring(xml)
        except ElementTree.ParseError as error:
            raise NodeError(f"libvirt: cannot start the domain: {error}", code="domain-create-failed") from error
        name = root.findtext("name") or ""
        if name in self.domains:
            raise NodeError(f"libvirt: domain {name} is already active", code="domain-exists")
        for source in root.iterfind("./devices/*/source[@path]"):
            path = Path(source.get("path", ""))
            if path.parent.is_dir():
                path.touch()
        self.domains[name] = xml
        if confine is not None and self.process is not None:
            confine(self.process)
        if self.on_create is not None:
            self.on_create(name)

    def destroy(self, name: str, *, deadline: float) -> None:
        self._called("destroy", name)
        if name in self.stuck:
            raise NodeError(f"libvirt: the process of domain {name} does not end", code="domain-destroy-failed")
        self.domains.pop(name, None)

    def names(self, *, deadline: float) -> list[str]:
        self._called("names", "")
        return list(self.domains)

    def is_active(self, name: str, *, deadline: float) -> bool:
        self._called("is_active", name)
        return name in self.domains

    def console(self, name: str, *, deadline: float) -> str:
        self._called("console", name)
        return self.terminal if name in self.domains else ""

    def native_config(self, xml: str, format_: str, *, deadline: float) -> str:
        self._called("native_config", format_)
        return f"{format_}: {ElementTree.fromstring(xml).findtext('name')}\n"

    def usable(self, kind: str, *, deadline: float) -> bool:
        self._called("usable", kind)
        return kind in self.kinds

    def xen_machine(self, *, deadline: float) -> XenMachine:
        self._called("xen_machine", "")
        return self.machine

    def _called(self, what: str, argument: str) -> None:
        self.calls.append((what, argument))
        if self.down:
            raise NodeError("libvirt: cannot connect", hint="is libvirtd running?", code="hypervisor-down")
