"""What the files of the node with systemd say that other nodes' do not. Pure."""

from __future__ import annotations

from demo.machine_conf import Own
from demo.slurm_conf import CGROUP_CONF

# Nothing of this is needed by what is tested, and each takes seconds of an emulated start.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
    *("dpkg-db-backup.timer", "getty.target", "systemd-hwdb-update.service", "systemd-binfmt.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
    *("systemd-logind.service", "libvirt-guests.service", "networking.service", "ifupdown-pre.service"),
    *("systemd-pstore.service", "systemd-boot-system-token.service", "systemd-random-seed.service"),
    *("cron.service", "dnsmasq.service", "keyboard-setup.service", "console-setup.service"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-mqueue.mount", "modprobe@drm.service"),
)

OWN = Own(
    memory_mb=3000,
    cgroups=True,
    cmdline="root=/dev/vda rw console=ttyS0 quiet",
    settings={"epilogue_timeout_s": 120},
    files={"etc/slurm/cgroup.conf": CGROUP_CONF},
)
