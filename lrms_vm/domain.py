"""Domain: what libvirt shall start, as a value; `describe` makes it, `render` writes it, `compare` reads it back.

The only importer of jinja2, which is loaded by `render` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from lrms_vm import kernel_rules, overhead
from lrms_vm.errors import ConfigError, RequestError
from lrms_vm.image import VerifiedImage
from lrms_vm.kernel_rules import SiteKernel
from lrms_vm.network_rules import mac_of, port_of
from lrms_vm.paths import NAME_PREFIX as NAME_PREFIX
from lrms_vm.paths import JobPlaces
from lrms_vm.request import Allocation, Request
from lrms_vm.values import dataclass
from lrms_vm.xml_check import Must, require

CHANNEL_NAME = "org.lrms_vm.channel.0"
NO_IMAGE = "/nonexistent/verified-image"  # only a `VerifiedImage` can take its place
MIN_MEMORY_MIB = 128  # a Debian guest with systemd does not come up in less


@dataclass(frozen=True)
class Domain:
    """Everything a template may use, and nothing a user wrote: numbers, our own paths, checked names."""

    name: str  # lrms_vm-<key>
    hypervisor: str  # "qemu" | "kvm" | "xen"
    memory_mib: int
    vcpus: int
    base_path: str  # the verified image: raw, read-only
    overlay_path: str  # qcow2 over base_path, for the guest to write
    seed_path: str  # raw ISO; read-only where the hypervisor can do it
    kernel_path: str  # the site's, or GRUB for Xen. Empty: the firmware, or the boot loader, finds one on the disk
    initrd_path: str
    cmdline: str
    channel_path: str  # unix socket, bound by the hypervisor
    console_path: str  # file that gets the console's bytes
    network: str  # "none" | "nat" | "bridge:NAME"
    mac: str | None
    run_as: str  # "user:group" of the hypervisor process, names or +numbers
    guest: str = ""  # on Xen "pv", "pvh" or "hvm"
    bootloader: str = ""  # a program of dom0 that takes the kernel out of the image. Empty: none
    bootloader_args: str = ""
    nat_bridge: str = ""  # the node's own bridge

    @property
    def bridge(self) -> str:
        """What the guest is plugged into: the node's own bridge, or one of the site's. Empty: nothing."""
        if self.network == "none":
            return ""
        return self.nat_bridge if self.network == "nat" else self.network.removeprefix("bridge:")

    @property
    def port(self) -> str:
        """The name of the guest's interface on this host, which the rules for it go by."""
        return port_of(self.name.removeprefix(NAME_PREFIX))


class Site(Protocol):
    """What describe() needs of config.Config; values only, so that this module stays above the effects."""

    @property
    def hypervisor(self) -> str: ...
    @property
    def hypervisor_user(self) -> str: ...
    @property
    def memory_overhead_mib(self) -> int: ...
    @property
    def memory_default_mib(self) -> int: ...
    @property
    def network(self) -> str: ...
    @property
    def networks_allowed(self) -> tuple[str, ...]: ...
    @property
    def nat_bridge(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def kernels(self) -> Mapping[str, SiteKernel]: ...
    @property
    def pygrub(self) -> str: ...
    @property
    def pygrub_program(self) -> str: ...
    @property
    def pygrub_uid(self) -> int: ...
    @property
    def contact(self) -> str: ...


def describe(
    request: Request,
    allocation: Allocation,
    image: VerifiedImage,
    *,
    config: Site,
    places: JobPlaces,
    kernel_bytes: int = 0,
) -> Domain:
    """Decide what the job's guest is. Raises `RequestError` for what the site does not give, `ConfigError`.

    A request can only make the guest smaller than the allocation, never larger. `kernel_bytes`: as overhead.py.
    """
    made = outline(request, allocation, config=config, places=places, kernel_bytes=kernel_bytes)
    return replace(made, base_path=image.path)


def outline(
    request: Request, allocation: Allocation, *, config: Site, places: JobPlaces, kernel_bytes: int = 0
) -> Domain:
    """The same without an image: to be looked at (`lrms-vm render`), not to be started. Raises like `describe`."""
    kernel = _kernel(request, config)
    by_pygrub = kernel.boot == kernel_rules.PYGRUB
    network = _network(request, config)
    user, _, group = config.hypervisor_user.partition(":")
    vcpus = min(request.cpus or allocation.cpus, allocation.cpus)
    return Domain(
        name=NAME_PREFIX + allocation.key,
        hypervisor=config.hypervisor,
        memory_mib=_memory_mib(request, allocation, config, vcpus, kernel_bytes),
        vcpus=vcpus,
        base_path=NO_IMAGE,
        overlay_path=str(places.overlay),
        seed_path=str(places.seed),
        kernel_path=kernel.vmlinuz,
        initrd_path=kernel.initrd,
        cmdline=kernel_rules.cmdline_for(kernel, config.hypervisor),
        channel_path=str(places.channel),
        console_path=str(places.console),
        network=network,
        mac=None if network == "none" else mac_of(allocation.key),
        run_as=f"{user}:{group or user}",
        guest=kernel_rules.guest_of(kernel, config.hypervisor),
        bootloader=config.pygrub_program if by_pygrub else "",
        bootloader_args=f"--quiet --runas={config.pygrub_uid}" if by_pygrub else "",
        nat_bridge=config.nat_bridge,
    )


def render(domain: Domain, template_text: str) -> str:
    """Fill a template; every value is escaped, an unknown name is an error, and the template reaches nothing else.

    Raises `ConfigError`: templates are the site's.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # autoescape=True and not select_autoescape(): that one goes by the last suffix, which is .j2
    environment = ImmutableSandboxedEnvironment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    try:
        return environment.from_string(template_text).render(domain=domain) + "\n"
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise ConfigError(
            f"the domain template cannot be filled: {error}", hint="compare it with ours", code="template-broken"
        ) from error


def compare(domain: Domain, xml_text: str) -> None:
    """Read a rendered domain again. Raises `ConfigError` naming the first element that is not what `domain` says."""
    require(_xen(domain) if domain.hypervisor == "xen" else _qemu(domain), xml_text)


def _memory_mib(request: Request, allocation: Allocation, config: Site, vcpus: int, kernel_bytes: int) -> int:
    """What the guest gets: all that the batch system counts, less what the hypervisor process itself needs."""
    if allocation.memory_mib is None:
        limit_mib, least_mib = config.memory_default_mib, MIN_MEMORY_MIB
        whence = f"{config.memory_default_mib} MiB is what the site gives where memory is not counted"
    else:
        total_mib = allocation.memory_mib
        kind = config.hypervisor
        if kept_mib := config.memory_overhead_mib:
            limit_mib, least_mib = total_mib - kept_mib, MIN_MEMORY_MIB + kept_mib
        else:
            limit_mib = overhead.guest_mib(total_mib, kind, vcpus=vcpus, kernel_bytes=kernel_bytes)
            least_mib = MIN_MEMORY_MIB + overhead.overhead_mib(
                MIN_MEMORY_MIB, kind, vcpus=vcpus, kernel_bytes=kernel_bytes
            )
        whence = f"{total_mib} MiB of the job less {total_mib - limit_mib} MiB for the hypervisor is {limit_mib} MiB"
    memory_mib = min(request.memory_mib or limit_mib, limit_mib)
    if memory_mib < MIN_MEMORY_MIB:
        raise RequestError(
            f"memory: the guest would get {memory_mib} MiB, at least {MIN_MEMORY_MIB} MiB are needed ({whence}"
            + (f"; --vm-memory says {request.memory_mib} MiB)" if request.memory_mib else ")"),
            hint=f"ask for at least {least_mib} MiB",
            code="memory-too-small",
        )
    return memory_mib


def _network(request: Request, config: Site) -> str:
    network = request.network or config.network
    if network not in ("none", config.network, *config.networks_allowed):
        raise RequestError(
            f"--vm-network: {network!r} is not allowed here (allowed: {', '.join(config.networks_allowed) or 'none'})",
            hint=f"leave the option out, or ask {config.contact}",
            code="network-not-allowed",
        )
    if network not in ("none", "nat") and not network.startswith("bridge:"):
        raise ConfigError(f"network: {network!r} is not one of none, nat, bridge:NAME", code="network-unknown")
    return network


def _kernel(request: Request, config: Site) -> SiteKernel:
    name = request.kernel or config.kernel
    if not name:
        raise ConfigError("kernel: the site names no default kernel", hint="set kernel = NAME", code="kernel-missing")
    kernel = config.kernels.get(name)
    if kernel is None:
        raise RequestError(
            f"--vm-kernel: {name!r} is not one of the site's kernels ({', '.join(sorted(config.kernels)) or 'none'})",
            hint=f"leave the option out, or ask {config.contact}",
            code="kernel-unknown",
        )
    why = kernel_rules.problem(kernel, config.hypervisor, pygrub=config.pygrub, pygrub_uid=config.pygrub_uid)
    if why:
        raise ConfigError(f"kernels.{name}.{why}", hint=kernel_rules.HINT, code="kernel-unfit")
    return kernel


def _common(domain: Domain, os: Must, devices: list[Must], more: list[Must]) -> Must:
    memory = {"unit": "MiB"}
    return Must(
        "domain",
        {"type": domain.hypervisor},
        children=(
            Must("name", text=domain.name),
            Must("memory", memory, str(domain.memory_mib)),
            Must("currentMemory", memory, str(domain.memory_mib)),
            Must("vcpu", text=str(domain.vcpus)),
            os,
            *(Must(on, text="destroy") for on in ("on_poweroff", "on_reboot", "on_crash")),
            Must("devices", children=(*devices, *_interfaces(domain))),
            *more,
        ),
    )


def _os(domain: Domain, type_: str, attributes: dict[str, str]) -> Must:
    return Must(
        "os",
        children=(
            Must("type", attributes, type_),
            *([Must("kernel", text=domain.kernel_path)] if domain.kernel_path else []),
            *([Must("initrd", text=domain.initrd_path)] if domain.initrd_path else []),
            *([Must("cmdline", text=domain.cmdline)] if domain.cmdline else []),
            *([] if domain.kernel_path or domain.bootloader else [Must("boot", {"dev": "hd"})]),
        ),
    )


def _disks(domain: Domain, names: tuple[str, str], bus: str) -> list[Must]:
    base = Must(
        "backingStore",
        {"type": "file"},
        children=(
            Must("format", {"type": "raw"}),
            Must("source", {"file": domain.base_path}),
            Must("backingStore"),
        ),
    )
    made = []
    seed_device = "cdrom" if domain.guest == "pv" else "disk"
    for path, device, format_, name, last in (
        (domain.overlay_path, "disk", "qcow2", names[0], [base]),
        (domain.seed_path, seed_device, "raw", names[1], [] if domain.guest in ("pvh", "hvm") else [Must("readonly")]),
    ):
        made.append(
            Must(
                "disk",
                {"type": "file", "device": device},
                children=(
                    Must("driver", {"name": "qemu", "type": format_}),
                    Must("source", {"file": path}),
                    Must("target", {"dev": name, "bus": bus}),
                    *last,
                ),
            )
        )
    return made


def _interfaces(domain: Domain) -> list[Must]:
    if domain.network == "none":
        return []
    # netfront: no emulated card beside it, whose own interface in dom0 would have another name than the rules know
    model = {"": "virtio", "hvm": "netfront"}.get(domain.guest)
    return [
        Must(
            "interface",
            {"type": "bridge"},
            children=(
                Must("mac", {"address": domain.mac or ""}),
                Must("source", {"bridge": domain.bridge}),
                Must("target", {"dev": domain.port}),
                *([Must("model", {"type": model})] if model else []),
            ),
        )
    ]


def _channel(domain: Domain, type_: str) -> Must:
    source = Must("source", {"mode": "bind", "path": domain.channel_path})
    return Must("channel", {"type": "unix"}, children=(source, Must("target", {"type": type_, "name": CHANNEL_NAME})))


def _qemu(domain: Domain) -> Must:
    devices = [
        *_disks(domain, ("vda", "vdb"), "virtio"),
        Must("serial", {"type": "file"}, children=(Must("source", {"path": domain.console_path, "append": "off"}),)),
        _channel(domain, "virtio"),
    ]
    label = Must(
        "seclabel",
        {"type": "static", "model": "dac", "relabel": "no"},
        children=(Must("label", text=domain.run_as),),
    )
    return _common(domain, _os(domain, "hvm", {}), devices, [label])


# libvirt.org/formatdomain.html, os/type. A firmware starts from IDE disks, which the guest's own drivers take over.
_XEN_OS = {
    "pv": ("linux", {"machine": "xenpv"}),
    "pvh": ("xenpvh", {"machine": "xenpvh"}),
    "hvm": ("hvm", {"machine": "xenfv"}),
}


def _xen(domain: Domain) -> Must:
    devices = [
        *(_disks(domain, ("hda", "hdb"), "ide") if domain.guest == "hvm" else _disks(domain, ("xvda", "xvdb"), "xen")),
        Must("console", {"type": "pty"}),
        _channel(domain, "xen"),
    ]
    loader = {"bootloader": domain.bootloader, "bootloader_args": domain.bootloader_args}
    more = [Must(name, text=text) for name, text in loader.items() if text]
    return _common(domain, _os(domain, *_XEN_OS[domain.guest]), devices, more)
