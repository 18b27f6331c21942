"""What every batch system's adapter answers. Values in, values out: the environment, the argv and the text of a
command come as arguments, so that every odd variable of every release is a unit test with a dict.

Which outcome tells the batch system what is one table per adapter, with its manual's section above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from lrms_vm.request import Allocation


class Lrms(Protocol):
    """A module under `lrms_vm.lrms` is one of these (Slurm: lrms/slurm.py)."""

    def wants_vm(self, environ: Mapping[str, str]) -> bool:
        """Whether the job of this hook asked for a VM. Agrees with the shell test of the hook file."""

    def identify(self, environ: Mapping[str, str]) -> Allocation:
        """Which job, user and node the hook was called for, from its environment alone. cpus and memory are not
        known yet. Raises `UsageError` when this is no hook's environment."""

    def parse_options(self, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """The option texts by their words (`request.OPTIONS`), and which carrier they came by. Hostile, unread."""

    def show_job_argv(self, command: str, job_id: str) -> list[str]:
        """What to run to learn of the job's allocation; `parse_job` reads what it prints."""

    def parse_job(self, text: str, environ: Mapping[str, str]) -> Allocation:
        """The job's allocation on the hook's node. Raises `RequestError` or `SiteError`."""

    def drain_argv(self, command: str, node: str, reason: str) -> list[str]:
        """What to run to take the node out of service with our reason."""
