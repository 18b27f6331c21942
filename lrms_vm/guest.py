"""Starts and ends guests. The only importer of libvirt, and the only place where its errors are known.

libvirt's calls have no time limit of their own: each runs in a daemon thread that we stop waiting for at the
deadline. What it may still do then is undone by name, by the teardown that follows every failure.
"""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from xml.etree import ElementTree

import libvirt

from lrms_vm.command import remaining_s
from lrms_vm.errors import LrmsVmError, NodeError
from lrms_vm.node_size import XenMachine

T = TypeVar("T")

NATIVE_FORMATS = {"qemu": "qemu-argv", "xl": "xen-xl"}
QEMU_RUN = Path("/run/libvirt/qemu")  # of qemu:///system: NAME.pid, root's
_HINT = "is libvirtd running? try `virsh -c {uri} list`; then `lrms-vm doctor`"
_NATIVE_HINT = "only the libvirt driver of that hypervisor can: ask on a node that has it"


class Hypervisor(Protocol):
    """What the lifecycle needs. `deadline` is a time.monotonic() value; everything raises `NodeError`."""

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        """Start a transient domain. Code "domain-exists" when there is one of that name.

        `confine` gets the pid of its process before its first instruction; where the hypervisor has none for a
        domain (Xen), it is not called. What it raises is raised.
        """

    def destroy(self, name: str, *, deadline: float) -> None:
        """End a domain; one that is absent is fine. Returns only when domain and process are gone."""

    def names(self, *, deadline: float) -> list[str]:
        """Of all domains, ours and others'."""

    def is_active(self, name: str, *, deadline: float) -> bool:
        """Whether it runs."""

    def console(self, name: str, *, deadline: float) -> str:
        """The terminal of a running domain's console, where it has one on this node (Xen); else empty."""

    def native_config(self, xml: str, format_: str, *, deadline: float) -> str:
        """The same domain in the hypervisor's own words; `format_` is a key of NATIVE_FORMATS."""

    def usable(self, kind: str, *, deadline: float) -> bool:
        """Whether domains of this type ("qemu", "kvm", "xen") can be started here."""

    def xen_machine(self, *, deadline: float) -> XenMachine:
        """What Xen has; of no use under another hypervisor."""


class Libvirt:
    """`Hypervisor` over libvirt. Connects at the first call, and again after the daemon went away."""

    def __init__(self, uri: str, *, qemu_run: Path = QEMU_RUN) -> None:
        self._uri = uri
        self._qemu_run = qemu_run
        self._connection: libvirt.virConnect | None = None
        libvirt.registerErrorHandler(_silent, None)  # otherwise libvirt prints each error on stderr

    def create(self, xml: str, *, deadline: float, confine: Callable[[int], None] | None = None) -> None:
        paused = confine is not None and self._local_qemu
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        name = self._call(
            "start the domain", "domain-create-failed", deadline, lambda c: str(c.createXML(xml, flags).name())
        )
        if confine is None or not paused:
            return
        try:
            pid = int((self._qemu_run / f"{name}.pid").read_text())
        except (OSError, ValueError) as error:
            raise NodeError(
                f"{self._qemu_run}/{name}.pid: cannot read: {error}", code="domain-create-failed"
            ) from error
        confine(pid)
        self._call("start the domain's cpus", "domain-create-failed", deadline, lambda c: c.lookupByName(name).resume())

    def destroy(self, name: str, *, deadline: float) -> None:
        process = self._process(name)
        try:
            if process is not None:
                _kill(process)
            self._call("destroy the domain", "domain-destroy-failed", deadline, lambda c: _destroy(c, name))
            if process is not None and not _ended(process, deadline):
                raise NodeError(f"libvirt: the process of domain {name} does not end", code="domain-destroy-failed")
        finally:
            if process is not None:
                os.close(process)

    def names(self, *, deadline: float) -> list[str]:
        return self._call(
            "list domains", "hypervisor-down", deadline, lambda c: [domain.name() for domain in c.listAllDomains()]
        )

    def is_active(self, name: str, *, deadline: float) -> bool:
        return self._call("look at the domain", "hypervisor-down", deadline, lambda c: _is_active(c, name))

    def console(self, name: str, *, deadline: float) -> str:
        text = self._call(
            "look at the domain", "hypervisor-down", deadline, lambda c: str(c.lookupByName(name).XMLDesc(0))
        )
        found = ElementTree.fromstring(text).find("./devices/console")  # noqa: S314 - libvirtd's own words
        return found.get("tty", "") if found is not None else ""

    def native_config(self, xml: str, format_: str, *, deadline: float) -> str:
        native = NATIVE_FORMATS[format_]  # each is written only by the libvirt driver of its own hypervisor
        return self._call(
            f"write {native}", "native-unavailable", deadline, lambda c: str(c.domainXMLToNative(native, xml, 0))
        )

    def usable(self, kind: str, *, deadline: float) -> bool:
        text = self._call("ask for capabilities", "hypervisor-down", deadline, lambda c: str(c.getCapabilities()))
        root = ElementTree.fromstring(text)  # noqa: S314 - libvirtd's own words
        return any(domain.get("type") == kind for domain in root.iterfind("./guest/arch/domain"))

    def xen_machine(self, *, deadline: float) -> XenMachine:
        return self._call("ask what Xen has", "hypervisor-down", deadline, _xen_machine)

    def _call(self, what: str, code: str, deadline: float, call: Callable[[libvirt.virConnect], T]) -> T:
        """Run `call` with the connection in a thread; its result, or `NodeError`."""
        done: list[T] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                if self._connection is None or not self._connection.isAlive():
                    self._connection = libvirt.open(self._uri)
                done.append(call(self._connection))
            except BaseException as error:  # the caller's thread raises it
                failed.append(error)

        thread = threading.Thread(target=work, name=f"libvirt: {what}", daemon=True)
        thread.start()
        thread.join(remaining_s(deadline))
        if thread.is_alive():
            raise NodeError(
                f"libvirt ({self._uri}): cannot {what}: no answer in time", hint=self._hint, code="hypervisor-timeout"
            )
        if failed:
            raise self._translated(what, code, failed[0]) from failed[0]
        return done[0]

    def _translated(self, what: str, code: str, error: BaseException) -> BaseException:
        if not isinstance(error, libvirt.libvirtError) or isinstance(error, LrmsVmError):
            return error
        if self._connection is None or error.get_error_domain() == libvirt.VIR_FROM_RPC:
            self._connection = None
            code = "hypervisor-down"
        elif error.get_error_code() == libvirt.VIR_ERR_DOM_EXIST or "already exists with uuid" in str(error):
            code = "domain-exists"
        hint = {"hypervisor-down": self._hint, "native-unavailable": _NATIVE_HINT}.get(code, "")
        return NodeError(f"libvirt ({self._uri}): cannot {what}: {error}", hint=hint, code=code)

    @property
    def _hint(self) -> str:
        return _HINT.format(uri=self._uri)

    @property
    def _local_qemu(self) -> bool:
        """Whether domains are processes of this node with libvirt's pid files."""
        return re.match(r"qemu(\+unix)?:///system(\?|$)", self._uri) is not None

    def _process(self, name: str) -> int | None:
        """A descriptor (pidfd_open(2)) of the domain's qemu, by libvirt's pid file; None: there is none."""
        if not self._local_qemu or "/" in name:
            return None
        try:
            pid = int((self._qemu_run / f"{name}.pid").read_text())
            descriptor = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        except OSError as error:
            raise NodeError(f"{self._qemu_run}: {name}.pid: {error.strerror}", code="domain-destroy-failed") from error
        # looked at after the descriptor was taken: from here on the number cannot become somebody else
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            argv = []
        if not any(word.startswith(f"guest={name},".encode()) for word in argv):
            os.close(descriptor)
            return None
        return descriptor


def _kill(process: int) -> None:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return  # ended by itself just now


def _ended(process: int, deadline: float) -> bool:
    """Whether it ends by the deadline: a pidfd becomes readable when its process is a zombie or gone."""
    return bool(select.select([process], [], [], max(deadline - time.monotonic(), 0))[0])


def _destroy(connection: libvirt.virConnect, name: str) -> None:
    try:
        connection.lookupByName(name).destroy()
    except libvirt.libvirtError as error:
        # not valid: libvirt saw the process end before us; invalid operation: it is in between
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise


def _is_active(connection: libvirt.virConnect, name: str) -> bool:
    try:
        return bool(connection.lookupByName(name).isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _xen_machine(connection: libvirt.virConnect) -> XenMachine:
    cpus, dom0_cpus, guests = int(connection.getInfo()[2]), 0, []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            _, max_kib, _, vcpus, _ = domain.info()
            if domain.ID() == 0:
                dom0_cpus = int(vcpus)
            else:
                guests.append((int(max_kib) >> 10, int(vcpus)))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # ended meanwhile
                raise
    return XenMachine(int(connection.getFreeMemory()) >> 20, cpus, dom0_cpus, tuple(guests))


def _silent(_context: Any, _error: Any) -> None:
    return
