"""What the Xen node's own files say that other nodes' do not. Pure."""

from __future__ import annotations

from demo.machine_conf import Own
from demo.xen_layout import SITE_BRIDGE

# Nothing of this is needed by what is tested, and each takes seconds of an emulated start.
MASKED = (
    *("apparmor.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("fstrim.timer", "dpkg-db-backup.timer", "logrotate.timer", "systemd-timesyncd.service", "getty.target"),
    *("systemd-udev-trigger.service", "systemd-udevd.service", "systemd-udevd-kernel.socket"),
    *("systemd-udevd-control.socket", "systemd-hwdb-update.service", "systemd-journal-flush.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-binfmt.service"),
    *("systemd-logind.service", "libvirt-guests.service", "xendomains.service"),
    *("networking.service", "ifupdown-pre.service", "systemd-pstore.service", "systemd-boot-system-token.service"),
    *("systemd-random-seed.service", "systemd-tmpfiles-clean.timer", "cron.service", "dnsmasq.service"),
    *("systemd-machine-id-commit.service", "keyboard-setup.service", "console-setup.service"),
    *("libvirtd-admin.socket", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "modprobe@drm.service", "systemd-sysusers.service"),
)

# libvirt's table of CPUs, with one more in the place of its oldest: Xen shows AMD's without `sep` and `vme`, which
# each of Debian's has, and libvirt's Xen driver does not start on a CPU that fits none.
CPU_MAP = """\
<cpus>
  <model name='lrms-vm-test'>
    <decode host='on' guest='on'/>
    <feature name='fpu'/>
    <feature name='lm'/>
  </model>
</cpus>
"""

OWN = Own(
    memory_mb=3800,  # of guests: what Xen has free, with MACHINE_MIB and DOM0_MIB of xen_node.py
    cgroups=False,
    # sysrq: tests have a guest's kernel panic from outside (`xl sysrq`)
    cmdline="root=/dev/xvda rw console=hvc0 quiet sysrq_always_enabled",
    settings={
        "hypervisor": "xen",
        "libvirt_uri": "xen:///system",
        "hypervisor_user": "root",
        "network": "none",
        "networks_allowed": ["none", "nat", f"bridge:{SITE_BRIDGE}"],
        "prologue_timeout_s": 300,
        "epilogue_timeout_s": 120,
        "boot_timeout_s": 300,
    },
    files={"usr/share/libvirt/cpu_map/x86_486.xml": CPU_MAP},
    commands=(
        f"/usr/sbin/ip link add {SITE_BRIDGE} type bridge",
        f"/usr/sbin/ip link set {SITE_BRIDGE} up",
    ),
)
