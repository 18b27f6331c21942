"""The Debian package, built from this checkout and installed into a fresh Debian 12: used, upgraded, removed, purged.

Nothing of the machine that runs this is seen in there but /proc and the processor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lrms_vm import __version__, build, checks, verdict

CHECKOUT = Path(__file__).parent.parent.parent
KEY = "slurm-7.n1"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("deb")
    done = subprocess.run([CHECKOUT / "packaging/build_deb", place], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = place.glob("lrms-vm_*.deb")
    shutil.rmtree(place / "source")
    return found


class Debian:
    """A fresh system below `root`, with what the package depends on and Slurm's client."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *argv: str, code: int = 0) -> str:
        script = 'mount -t proc proc "$0/proc" && mount -t tmpfs dev "$0/dev" && mknod -m 666 "$0/dev/null" c 1 3 '
        script += '&& mknod -m 660 "$0/dev/kvm" c 10 232 && chown 0:4242 "$0/dev/kvm"'  # a group without a name
        script += ' && exec chroot "$0" "$@"'
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            ["unshare", "--mount", "--fork", "sh", "-c", script, str(self.root), *argv],
            capture_output=True, text=True, timeout=120, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, package: Path) -> str:
        shutil.copy(package, self.root / "tmp")
        return self.run("dpkg", "-i", f"/tmp/{package.name}")

    def files(self) -> set[str]:
        """Everything but what dpkg notes for itself, and its logs."""
        own = re.compile(r"(var/lib/dpkg|var/lib/apt|var/log|tmp|var/cache|dev|proc)(/|$)")
        found = (os.path.relpath(os.path.join(at, name), self.root)
                 for at, directories, names in os.walk(self.root) for name in (*directories, *names))  # fmt: skip
        return {name for name in found if not own.match(name)}


@pytest.fixture(scope="module")
def debian(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Debian:
    fields = subprocess.run(["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True).stdout
    names = dict.fromkeys(re.split(r"[ (|]", one.strip())[0] for one in fields.split(","))
    work = tmp_path_factory.mktemp("debian")
    sources = build._write_sources("bookworm", work)
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join((*names, 'slurm-client'))}",
         "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io",
         "bookworm", work / "root", *sources],
        check=True, timeout=600, capture_output=True,
    )  # fmt: skip
    (work / "root/tmp/apt.conf").write_text('APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n')
    (work / "root/etc/slurm/slurm.conf").write_text("ClusterName=c\nSlurmctldHost=n1\nNodeName=n1\n")
    return Debian(work / "root")


@pytest.fixture
def installed(debian: Debian, package: Path) -> Debian:
    debian.install(package)
    return debian


def older(package: Path, at: Path) -> Path:
    """The same package under an earlier version: its directory, and what leads there."""
    subprocess.run(["dpkg-deb", "-R", package, at / "tree"], check=True)
    control = at / "tree/DEBIAN/control"
    version = re.search(r"^Version: (.*)$", control.read_text(), re.M)
    assert version
    control.write_text(control.read_text().replace(version[0], "Version: 0.0.1"))
    homes = at / "tree/usr/lib/lrms-vm"
    (homes / version[1]).rename(homes / "0.0.1")
    (homes / "current").unlink()
    (homes / "current").symlink_to("0.0.1")
    (homes / "0.0.1/gone-since").write_text("")
    found = at / "lrms-vm_0.0.1_amd64.deb"
    subprocess.run(["dpkg-deb", "-b", "-Zgzip", "-z1", at / "tree", found], check=True, capture_output=True)
    shutil.rmtree(at / "tree")
    return found


def test_the_changelog_names_the_version_of_the_program() -> None:
    said = (CHECKOUT / "packaging/debian/changelog").read_text()
    assert said.startswith(f"lrms-vm ({__version__}")


def test_what_is_pinned_is_what_the_program_asks_for() -> None:
    wanted = (CHECKOUT / "setup.cfg").read_text()
    pinned = (CHECKOUT / "packaging/wheels.txt").read_text()
    for name in ("cryptography", "pyOpenSSL"):
        at_least = re.search(rf"^\s*{name} >= (\d+)$", wanted, re.M)
        there = re.search(rf"^{name}==(\d+)\.", pinned, re.M | re.I)
        assert at_least and there and int(there[1]) >= int(at_least[1])


def test_the_manual_comes_along(package: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    for page in ("man1/lrms-vm.1.gz", "man5/lrms_vm.toml.5.gz", "man5/lrms_vm-trust.toml.5.gz"):
        assert f"/usr/share/man/{page}\n" in listed


def test_installing_the_package_starts_and_enables_nothing(installed: Debian) -> None:
    assert installed.run("lrms-vm", "--version").strip() == f"lrms-vm {__version__}"
    links = [path for path in (installed.root / "etc/systemd/system").rglob("*") if "lrms" in path.name]
    assert links == []
    assert not (installed.root / "opt/lrms_vm").exists()


def test_it_sees_its_own_libraries_and_two_of_debians(installed: Debian) -> None:
    (installed.root / "usr/local/lib/python3.11/dist-packages").mkdir(parents=True, exist_ok=True)
    hostile = installed.root / "usr/local/lib/python3.11/dist-packages/jinja2.py"
    hostile.write_text("raise SystemExit(7)\n")
    (installed.root / "tmp/json.py").write_text("raise SystemExit(8)\n")
    said = installed.run(
        "/usr/lib/lrms-vm/current/bin/python3", "-I", "-c",
        "import json, jinja2, libvirt, cryptography, OpenSSL, lrms_vm.cli\n"
        "import lrms_vm.domain, lrms_vm.guest, lrms_vm.trust.verify\n"
        "print(*(one.__file__ for one in (jinja2, libvirt, cryptography, OpenSSL, json)), sep='\\n')",
    )  # fmt: skip
    hostile.unlink()
    (installed.root / "tmp/json.py").unlink()
    assert all(line.startswith(("/usr/lib/lrms-vm/current/lib/", "/usr/lib/python3.11/")) for line in said.split())


def test_doctor_finds_every_program_and_says_what_the_site_has_still_to_do(installed: Debian) -> None:
    configured(installed)
    said = installed.run("lrms-vm", "doctor", code=69)
    for name in (*checks.PROGRAMS, "sftp-server"):
        assert re.search(rf"^ok +program {name}", said, re.M), said
    assert re.search(r"^ok +interpreter +/usr/lib/lrms-vm/current/bin/python3$", said, re.M), said
    assert re.search(r"^ok +guest program +/usr/lib/lrms-vm/current/built/lrms-vm-guest$", said, re.M), said
    assert re.search(r"^STOP +hypervisor ", said, re.M), said
    assert re.search(r"^STOP +/dev/kvm +group 4242, mode 660$", said, re.M), said


def configured(debian: Debian) -> None:
    for name in ("lrms_vm.toml", "trust.toml"):
        shutil.copy(debian.root / f"etc/lrms_vm/{name}.example", debian.root / "etc/lrms_vm" / name)


def test_debians_libraries_do_what_the_program_asks_of_them(installed: Debian) -> None:
    """Jinja2 3.1.2 and libvirt 9.0, where the checkout's tests have newer ones."""
    digest = "0" * 64
    (installed.root / "etc/lrms_vm/lrms_vm.toml").write_text(
        f"""version = 1
        libvirt_uri = "test:///default"
        kernel = "k"
        [kernels.k]
        vmlinuz = "/vmlinuz"
        initrd = "/initrd"
        vmlinuz_sha256 = "{digest}"
        initrd_sha256 = "{digest}"
        [images.small]
        url = "/image.raw"
        """
    )
    (installed.root / "etc/lrms_vm/trust.toml").write_text('version = 1\n[defaults]\nca_dir = "/etc/ssl"\n')
    assert "<name>lrms_vm-" in installed.run("lrms-vm", "render", "--vm-image=small", "--hypervisor=qemu")
    installed.run("lrms-vm", "reap", "--lrms=slurm", "--node=n1")
    assert re.search(r"^ok +trust policy|^STOP +trust policy", installed.run("lrms-vm", "doctor", code=69), re.M)


def test_install_uses_the_plugin_that_the_package_brought_and_enables_its_units(installed: Debian) -> None:
    before = installed.files()
    said = installed.run("lrms-vm", "install", "--lrms=slurm", "--systemd=yes")
    assert (installed.root / "opt/lrms_vm/lib/lrms_vm.so").read_bytes()[:4] == b"\x7fELF"
    assert (
        "/usr/lib/lrms-vm/current/bin/python3 -I -m lrms_vm"
        in (installed.root / "opt/lrms_vm/libexec/slurm.prolog").read_text()
    )
    assert "/lib/systemd/system/lrms-vm-reap@.service" in said
    assert not (installed.root / "etc/tmpfiles.d/lrms_vm.conf").exists()  # the package's is enough
    installed.run("lrms-vm", "install", "--lrms=slurm", "--undo")
    assert installed.files() == before


def test_a_plugin_of_another_slurm_is_not_taken(installed: Debian) -> None:
    release = installed.root / "usr/lib/lrms-vm/current/built/lrms_vm.so.slurm"
    kept = release.read_text()
    release.write_text("21.08\n")
    said = installed.run("lrms-vm", "install", "--lrms=slurm", code=69)
    release.write_text(kept)
    assert "apt install gcc make" in said
    assert not (installed.root / "opt/lrms_vm").exists()


def job(debian: Debian) -> Path:
    """What a prologue of this version left of a job whose guest is up."""
    run = debian.root / "run/lrms_vm/jobs" / KEY
    run.mkdir(parents=True)
    (run / "record.jsonl").write_text(json.dumps({"version": 1, "step": "begin", "uid": 1000}) + "\n")
    (debian.root / "run/lrms_vm/verdicts").mkdir(exist_ok=True)
    (debian.root / f"run/lrms_vm/verdicts/{KEY}.json").write_bytes(
        verdict.write_verdict(verdict.Verdict(verdict.READY, KEY, 1000))
    )
    return run


def test_an_upgrade_leaves_a_jobs_things_and_what_was_installed_alone(
    debian: Debian, package: Path, tmp_path: Path
) -> None:
    debian.run("dpkg", "--purge", "lrms-vm")
    debian.install(older(package, tmp_path))
    assert "0.0.1" in os.readlink(debian.root / "usr/lib/lrms-vm/current")
    debian.run("lrms-vm", "install", "--lrms=slurm", "--systemd=yes")
    (debian.root / "etc/lrms_vm/lrms_vm.toml").write_text("version = 1\n")
    run = job(debian)
    before = {path: path.stat().st_ino for path in (debian.root / "opt").rglob("*")}
    said = debian.install(package)
    assert "go on working" in said
    assert run.exists()
    assert {path: path.stat().st_ino for path in (debian.root / "opt").rglob("*")} == before  # slurmd has it mapped
    assert (debian.root / "etc/lrms_vm/lrms_vm.toml").read_text() == "version = 1\n"
    assert [path.name for path in (debian.root / "usr/lib/lrms-vm").iterdir() if path.name != "current"] == [
        __version__
    ]
    assert debian.run("lrms-vm", "--version").strip() == f"lrms-vm {__version__}"

    said = debian.run("dpkg", "--remove", "lrms-vm", code=1)  # guests are up: not now
    assert KEY in said and "not removed" in said
    assert debian.run("lrms-vm", "--version").strip() == f"lrms-vm {__version__}"
    shutil.rmtree(debian.root / "run/lrms_vm/jobs")
    debian.run("dpkg", "--purge", "lrms-vm")
    assert not (debian.root / "opt/lrms_vm").exists()
    assert not (debian.root / "etc/slurm/plugstack.conf.d/lrms_vm.conf").exists()


def test_a_purge_asks_nothing_and_leaves_nothing(debian: Debian, package: Path) -> None:
    debian.run("dpkg", "--purge", "lrms-vm")
    before = debian.files()
    debian.install(package)
    configured(debian)
    debian.run("lrms-vm", "install", "--lrms=slurm", "--systemd=yes")
    debian.run("lrms-vm", "cache", "list")
    debian.run("dpkg", "--purge", "lrms-vm")
    assert debian.files() == before


def commands(heading: str) -> list[str]:
    """The indented lines below a heading of the administrators' guide."""
    text = (CHECKOUT / "docs/admin.md").read_text().partition(f"# {heading}\n")[2].partition("\n#")[0]
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_the_guide_as_it_is_typed(debian: Debian, package: Path) -> None:
    debian.run("dpkg", "--purge", "lrms-vm")
    before = debian.files()
    shutil.copy(package, debian.root / "tmp")
    first, last = commands("Or as a Debian package"), commands("And away again")
    assert (first[0], last[-1]) == (f"apt install ./{package.name}", "apt purge lrms-vm")
    for line in (*first, "lrms-vm install --lrms=slurm", *last):
        debian.run("sh", "-c", f"cd /tmp && APT_CONFIG=/tmp/apt.conf {line}")
    assert debian.files() == before


def test_a_prologue_under_way_is_waited_for(debian: Debian, package: Path) -> None:
    debian.install(package)
    locks = debian.root / "run/lrms_vm/locks"
    locks.mkdir(parents=True)
    (locks / f"{KEY}.lock").write_text("")
    ends = f"(sleep 2; touch /tmp/ended; rm /run/lrms_vm/locks/{KEY}.lock) &"
    debian.run("sh", "-c", f"{ends} dpkg -i /tmp/{package.name}; code=$?; wait; exit $code")
    replaced_at = (debian.root / "usr/bin/lrms-vm").stat().st_ctime_ns
    assert replaced_at > (debian.root / "tmp/ended").stat().st_mtime_ns
    debian.run("dpkg", "--purge", "lrms-vm")
