"""What a node's half of an adapter does. `slurm_node.py` is one, as a module; cli/hooks.py is the only caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lrms_vm.config import Config
from lrms_vm.errors import LrmsVmError
from lrms_vm.lrms.base import Action, Call, Outcome, Told
from lrms_vm.request import Allocation


class BatchSystem(Protocol):
    """Everything the hooks ask of a batch system. `call` is what `call()` gave them."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module has it too
        """The `Allocation.lrms` of its jobs: their keys begin with it."""

    def call(self, words: Sequence[str]) -> Call:
        """How our hook was called: `words` is what the hook file handed on. Raises `SiteError`."""

    def identify(self, call: Call) -> Allocation:
        """As `Lrms.identify`."""

    def unready(self, hook: str, error: LrmsVmError) -> int:
        """The exit code of a hook that cannot even begin: no configuration, or not called as a hook is."""

    def prologue_limit_s(self, call: Call) -> float:
        """After how many seconds the batch system itself would end our prologue; infinite where it would not."""

    def require_way_in(self, call: Call, config: Config) -> None:
        """Make sure that the payload will be led into the guest and cannot run on the host. Raises `NodeError`."""

    def parse_options(self, call: Call) -> tuple[dict[str, str], str]:
        """As `Lrms.parse_options`."""

    def allocation(self, call: Call, config: Config) -> Allocation:
        """What the job has on this node. Raises `RequestError` or `SiteError`."""

    def outcome(self, hook: str, outcome: Outcome, *, retries: int) -> Told:
        """As `Lrms.outcome`."""

    def act(self, action: Action, why: str, job: Allocation, call: Call, config: Config) -> None:
        """Do one of `TAKE_OUT`, `HOLD`, `EXPLAIN`. Raises `LrmsVmError`."""

    def started(self, allocation: Allocation, call: Call, config: Config) -> None:
        """The guest was started and its verdict written. Does not raise."""

    def node_name(self, call: Call) -> str | None:
        """This node's name in the batch system, where its environment says it."""

    def lost(self, key: str, call: Call, config: Config) -> None:
        """A reboot took the guest of a job that the batch system believes to run here. Does not raise."""

    def active_keys(self, node: str, call: Call, config: Config) -> set[str]:
        """The keys of the jobs the batch system has on this node. Raises `SiteError` when it cannot be asked."""
