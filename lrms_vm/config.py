"""The site's configuration of a node: /etc/lrms_vm/lrms_vm.toml, read once into a frozen value.

Unknown keys are errors and all problems are reported at once: a switch that is silently not read is how
peers ended up verifying nothing (reference/peers.md 7).
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from lrms_vm import kernel_rules
from lrms_vm.errors import ConfigError, UsageError
from lrms_vm.image import ImageEntry
from lrms_vm.paths import Places
from lrms_vm.units import parse_size_bytes
from lrms_vm.values import dataclass
from lrms_vm.water_marks import Limits

DEFAULT_PATH = Path("/etc/lrms_vm/lrms_vm.toml")
MAX_BYTES = 1 << 20
HYPERVISORS = ("qemu", "kvm", "xen")
CONFINE = ("required", "if-possible", "off")
SICK_NODE = ("drain", "no-vm")
PYGRUB = ("off", kernel_rules.RESTRICTED)
_PLACES = ("/", "http://", "https://")


@dataclass(frozen=True)
class Kernel:
    """How a guest boots (kernel_rules.py): by default with a kernel kept at the site, and the image brings none.

    The digests are checked before each boot's first use.
    """

    name: str
    vmlinuz: str = ""
    initrd: str = ""
    vmlinuz_sha256: str = ""
    initrd_sha256: str = ""
    cmdline: str = ""  # empty: root and console as the hypervisor names them, and quiet
    guest: str = ""  # on Xen "pv" (as when empty), "pvh" or "hvm"
    boot: str = kernel_rules.DIRECT  # "guest": the image's own kernel, by its own boot loader; or "pygrub"


@dataclass(frozen=True)
class Subscription:
    """A signed image list whose images jobs may name. `identifier` pins which list it must be."""

    name: str
    url: str  # an absolute path, or http(s)://
    refresh_s: int = 300  # how old our copy may be before the server is asked again
    identifier: str = ""  # the list's own dc:identifier; empty: that of the first one accepted


@dataclass(frozen=True)
class Config:
    """Every setting, its default and its unit."""

    state_dir: str = "/var/lib/lrms_vm"
    run_dir: str = "/run/lrms_vm"
    policy: str = "/etc/lrms_vm/trust.toml"
    templates_dir: str = ""  # empty: the package's own
    guest_program: str = ""  # the static binary put on the seed; empty: the installed one
    hypervisor: str = "kvm"  # "qemu" is software emulation and must be said: falling back to it silently is wrong
    libvirt_uri: str = "qemu:///system"
    hypervisor_user: str = "libvirt-qemu"  # whom libvirt runs qemu as
    memory_overhead_mib: int = 0  # kept back from the allocation for the hypervisor process. 0: computed (overhead.py)
    confine: str = "required"  # guests in the job's cgroup: "required", "if-possible" (then said in the log), "off"
    sick_node: str = "drain"  # or "no-vm": a node whose hypervisor is sick loses its VM feature only (Slurm)
    memory_default_mib: int = 1024  # a guest's, where the batch system does not count memory
    network: str = "none"  # what a guest gets when the job does not say
    networks_allowed: tuple[str, ...] = ("none",)
    nat_bridge: str = "lrms_vm0"  # the node's own bridge for guests with "nat"; it is there while one of them is
    nat_subnet: str = "10.208.0.0/22"  # of those guests; the first address is the node's
    nat_refuse: tuple[str, ...] = ()  # networks that they may not reach, besides link-local, loopback and multicast
    bridge_guests_talk: bool = False  # whether guests on one of the site's own bridges may reach each other
    pygrub: str = "off"  # "restricted": [kernels.NAME] may say boot = "pygrub"
    pygrub_program: str = "/usr/lib/xen-4.17/bin/pygrub"
    pygrub_uid: int = 0  # whom it runs as: a user without any other process
    share_roots: tuple[str, ...] = ()  # --vm-share may name directories below these
    prologue_timeout_s: int = 600
    epilogue_timeout_s: int = 60
    boot_timeout_s: int = 300
    guest_silent_s: int = 120  # a guest that was up and is silent for so long is lost; by an address 45 at most
    kernel: str = ""  # name of the default kernel
    scontrol: str = "/usr/bin/scontrol"
    qmod: str = "/usr/bin/qmod"  # Grid Engine's
    spank_plugin: str = ""  # path of lrms_vm.so; the prologue makes sure that slurmd has loaded it. Empty: not checked
    slurm_admin_comment: bool = False  # write each accepted image's provenance into its job's AdminComment
    image_places: tuple[str, ...] = ()  # prefixes of paths and URLs that a job may name directly
    http_proxy: str = ""  # http://HOST:PORT for images and lists; the environment's is never used
    http_ca_file: str = ""  # PEM, readable by everybody, for https; empty: the system's
    contact: str = "your site's administrators"
    cache_max: str = ""  # a size: what the node's images may take. Empty: what the disk gives beyond cache_reserve
    cache_high_water: int = 90  # percent of that; from here on the least recently used go
    cache_low_water: int = 70  # percent; until here
    cache_reserve: str = ""  # a size: kept free for the jobs' disks. Empty: 2 % of the disk, 1 to 4 GiB, at most 20 %
    state_dir_on_network: bool = False  # true: it is not on a disk of this node, but nobody else's all the same
    cache_quota: Mapping[str, str] = field(default_factory=dict)  # by VO, a size: what its images may take
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    images: Mapping[str, ImageEntry] = field(default_factory=dict)
    lists: Mapping[str, Subscription] = field(default_factory=dict)
    source: str = "built-in defaults"

    @property
    def places(self) -> Places:
        return Places(Path(self.state_dir), Path(self.run_dir))

    @property
    def limits(self) -> Limits:
        """What the cache may take. Raises `UsageError` for a size that `parse` would have refused."""
        sizes = {where: parse_size_bytes(text, bare="", source=where) for where, text in _cache_sizes(self).items()}
        by_vo = {vo: sizes[f"cache_quota.{vo}"] for vo in self.cache_quota}
        quota, reserve = sizes.get("cache_max"), sizes.get("cache_reserve")
        return Limits(quota, self.cache_high_water, self.cache_low_water, reserve, by_vo)


def load(path: Path, *, must_be_root_owned: bool = True) -> Config:
    """Read and check the file. Raises `ConfigError` naming every problem with its key."""
    return parse(read_trusted(path, must_be_root_owned=must_be_root_owned), source=str(path))


def read_trusted(path: Path, *, must_be_root_owned: bool = True, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file that root may believe: a regular file, root's, writable by nobody else, and so are all parents.

    Raises `ConfigError`. Symbolic links are followed by the kernel only for parents, each of which is checked resolved.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = open(fd, "rb")  # noqa: SIM115 - closed below; a directory is refused here
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}", code="config-missing") from error
    with file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise ConfigError(f"{path}: not a regular file of at most {max_bytes} bytes", code="config-unsafe")
        if must_be_root_owned:
            for where, state in [(path, status), *((p, p.stat()) for p in path.resolve().parents)]:
                sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
                if state.st_uid != 0 or (state.st_mode & 0o022 and not sticky):
                    found = f"owner {state.st_uid}, mode {stat.S_IMODE(state.st_mode):o}"
                    raise ConfigError(
                        f"{where}: {found}; not only root can write it",
                        hint="chown root and chmod go-w",
                        code="config-unsafe",
                    )
        return file.read(max_bytes)


def parse(text: bytes, *, source: str) -> Config:
    """Pure: the file's bytes to a `Config`. Raises `ConfigError`."""
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise ConfigError(f"{source}: not TOML: {str(error)[:200]}", code="config-unreadable") from error
    problems: list[str] = []
    if table.pop("version", None) != 1:
        problems.append("version: expected 1")
    kernels = _tables(table.pop("kernels", {}), "kernels", Kernel, problems)
    images = _tables(table.pop("images", {}), "images", ImageEntry, problems)
    lists = _tables(table.pop("lists", {}), "lists", Subscription, problems)
    quota = _quotas(table.pop("cache_quota", {}), problems)
    values = _values(table, problems)
    config = Config(**values, kernels=kernels, images=images, lists=lists, cache_quota=quota, source=source)
    problems += _contradictions(config)
    if problems:
        raise ConfigError(f"{source}: " + "; ".join(problems), hint="see examples/lrms_vm.toml", code="config-invalid")
    return config


_SETTINGS = {f.name: f for f in fields(Config) if f.name not in ("kernels", "images", "lists", "cache_quota", "source")}
_NOT_IN_FILE = {"name", "listed"}  # of a table's kind: its header says the one, a signed list the other


def _values(table: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _SETTINGS:
            problems.append(f"{key[:60]}: unknown key")
            continue
        values |= _typed(key, value, type(_SETTINGS[key].default), problems, key)
    return values


def _typed(key: str, value: Any, kind: type, problems: list[str], where: str) -> dict[str, Any]:
    """`{key: value}` where the value is of the kind that the key's default has, else nothing."""
    if kind is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return {key: tuple(value)}
    elif type(value) is kind:
        return {key: value}
    expected = "a list of texts" if kind is tuple else kind.__name__
    problems.append(f"{where}: expected {expected}, got {value!r:.60}")
    return {}


def _tables(tables: Any, what: str, kind: Any, problems: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if not isinstance(tables, dict):
        problems.append(f"{what}: expected tables [{what}.NAME]")
        return made
    known = {f.name: type(f.default) if isinstance(f.default, int | tuple) else str for f in fields(kind)}
    known = {key: value for key, value in known.items() if key not in _NOT_IN_FILE}
    for name, table in tables.items():
        where = f"{what}.{name[:60]}"
        if not isinstance(table, dict):
            problems.append(f"{where}: expected a table")
        elif unknown := sorted(set(table) - set(known)):
            problems.append(f"{where}.{unknown[0][:60]}: unknown key")
        else:
            values: dict[str, Any] = {}
            for key, value in table.items():
                values |= _typed(key, value, known[key], problems, f"{where}.{key}")
            if len(values) < len(table):
                continue
            try:
                made[name] = kind(name=name, **values)
            except TypeError as error:
                problems.append(f"{where}: {str(error).rpartition('__init__() ')[2]}")
    return made


def _quotas(table: Any, problems: list[str]) -> dict[str, str]:
    if isinstance(table, dict) and all(isinstance(text, str) for text in table.values()):
        return table
    problems.append('cache_quota: expected a table of VO = size, e.g. atlas = "200G"')
    return {}


def _cache_sizes(config: Config) -> dict[str, str]:
    """The sizes that are texts in the file, by key; those that are not said are left out."""
    own = {key: getattr(config, key) for key in ("cache_max", "cache_reserve") if getattr(config, key)}
    return {**own, **{f"cache_quota.{vo}": text for vo, text in config.cache_quota.items()}}


def _contradictions(config: Config) -> list[str]:
    problems = []
    for key in ("state_dir", "run_dir", "policy", "scontrol", "qmod", "pygrub_program"):
        if not str(getattr(config, key)).startswith("/"):
            problems.append(f"{key}: expected an absolute path, got {getattr(config, key)!r}")
    if config.http_ca_file and not config.http_ca_file.startswith("/"):
        problems.append(f"http_ca_file: expected an absolute path, got {config.http_ca_file!r}")
    if config.http_proxy and re.fullmatch(r"http://[A-Za-z0-9.\[\]:-]{1,250}/?", config.http_proxy, re.ASCII) is None:
        problems.append(f"http_proxy: expected http://HOST:PORT, got {config.http_proxy!r:.80}")
    for key, words in (("hypervisor", HYPERVISORS), ("confine", CONFINE), ("sick_node", SICK_NODE), ("pygrub", PYGRUB)):
        if getattr(config, key) not in words:
            problems.append(f"{key}: expected one of {', '.join(words)}, got {getattr(config, key)!r}")
    if config.kernel and config.kernel not in config.kernels:
        problems.append(f"kernel: there is no [kernels.{config.kernel}]")
    for name in (n for n, f in _SETTINGS.items() if isinstance(f.default, int)):
        if getattr(config, name) < 0 or (name.endswith("_s") and getattr(config, name) < 1):
            problems.append(f"{name}: {getattr(config, name)} is too small")
    for name, kernel in config.kernels.items():
        what = kernel_rules.problem(kernel, config.hypervisor, pygrub=config.pygrub, pygrub_uid=config.pygrub_uid)
        if what:
            problems.append(f"kernels.{name}.{what}")
        for path, digest in ((kernel.vmlinuz, kernel.vmlinuz_sha256), (kernel.initrd, kernel.initrd_sha256)):
            if (path or digest) and re.fullmatch("[0-9a-f]{64}", digest) is None:
                problems.append(f"kernels.{name}: {digest[:20]!r} is not a sha256 in hex")
    if "nat" in (config.network, *config.networks_allowed):
        problems += _nat_problems(config)
    for where, text in _cache_sizes(config).items():
        try:
            parse_size_bytes(text, bare="", source=where[:60])
        except UsageError as error:
            problems.append(error.message)
    if not config.cache_low_water <= config.cache_high_water <= 100:
        problems.append(
            f"cache_low_water, cache_high_water: expected at most 100 and the low one below, got "
            f"{config.cache_low_water} and {config.cache_high_water}"
        )
    for name, entry in config.images.items():
        problems += [_not_a_place(f"images.{name}.url", url) for url in entry.urls if not url.startswith(_PLACES)]
    for name, list_ in config.lists.items():
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name, re.ASCII) is None:
            problems.append(f"lists.{name[:60]!r}: expected letters, digits and ._-")
        if not list_.url.startswith(_PLACES):
            problems.append(_not_a_place(f"lists.{name}.url", list_.url))
        if list_.refresh_s < 1:
            problems.append(f"lists.{name}.refresh_s: {list_.refresh_s} is too small")
    return problems


def _nat_problems(config: Config) -> list[str]:
    import ipaddress  # 3 ms: for sites that give guests a network

    problems = []
    for key, texts in (("nat_subnet", (config.nat_subnet,)), ("nat_refuse", config.nat_refuse)):
        for text in texts:
            try:
                network = ipaddress.IPv4Network(text)
            except ValueError as error:
                problems.append(f"{key}: expected an IPv4 network like 10.208.0.0/22, got {text!r:.40} ({error})")
                continue
            if key == "nat_subnet" and not 12 <= network.prefixlen <= 29:
                problems.append(f"nat_subnet: {text} has no place for guests; expected /12 to /29")
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,14}", config.nat_bridge, re.ASCII) is None:
        problems.append(f"nat_bridge: expected at most 15 letters, digits and _, got {config.nat_bridge!r:.40}")
    return problems


def _not_a_place(key: str, url: str) -> str:
    return f"{key}: expected an absolute path or http(s)://, got {url!r:.60}"
