"""What a job may leave on the node with systemd. Shares no code with teardown.py: it must find what that forgets.

Everything is listed, whosever it is: a test compares with what was there before any guest.
"""

from __future__ import annotations

import time

from demo.machine import Machine

# Runs in the node; a line for each thing. A process counts when it works for a guest: by name, by our mark, by a key.
LOOK = r"""
import os, re, subprocess

def lines(*argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.split("\n")

def names(path):
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []

for name in lines("virsh", "-q", "list", "--all", "--name"):
    print("domain", name)
for line in lines("machinectl", "--no-legend", "--no-pager", "list"):
    print("machine", line)
for line in lines("systemctl", "--no-legend", "--no-pager", "--plain", "list-units", "--all"):
    name = line.partition(" ")[0]
    if name.endswith(".scope") or "machine" in name:
        print("unit", name)
    if " failed " in line:
        print("failed unit", name)
for path, directories, _ in os.walk("/sys/fs/cgroup"):
    for name in directories:
        if re.search(r"lrms_vm|lrmsvm|qemu|machine|job_", name):
            print("cgroup", os.path.join(path, name))
for line in open("/proc/self/mountinfo"):
    print("mount", " ".join(line.split()[3:5]))
for place in ("jobs", "verdicts", "locks"):
    for name in names("/run/lrms_vm/" + place):
        print("run", place, name)
for place in ("jobs", "leases", "ingest", "locks"):
    for name in names("/var/lib/lrms_vm/" + place):
        print("state", place, name)
for name in names("/run/libvirt/qemu"):
    if "lrms" in name:
        print("libvirt", name)
for pid in names("/proc"):
    if not pid.isdigit():
        continue
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
        environment = open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        continue
    text = b" ".join(words).decode("utf-8", "replace")
    ours = b"LRMS_VM_KEY=" in environment or re.search(r"slurm-\d+\.", text)
    if ours or b"qemu" in words[0]:
        print("process", text[:160])
"""

# Of the cache, whose lock files stay, and of units that systemd starts.
USUAL = ("state locks", "mount / /run/credentials")


def look(node: Machine) -> frozenset[str]:
    """One line for each thing. Raises `DemoError`."""
    said = node.run("python3 -I -", stdin=LOOK.encode(), timeout_s=90)
    return frozenset(line for line in said.splitlines() if not line.startswith(USUAL) and len(line.split()) > 1)


def search(node: Machine, before: frozenset[str], *, timeout_s: float = 20) -> list[str]:
    """What is there now and was not before; waits for what is about to go. Empty when nothing is left."""
    deadline = time.monotonic() + timeout_s
    while left := sorted(look(node) - before):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    return left
