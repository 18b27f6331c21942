"""What a batch system would have started, in place of which it starts us."""

from __future__ import annotations

from lrms_vm.values import dataclass

MAX_LINE_BYTES = 1 << 20  # of a command that comes as a line on stdin


@dataclass(frozen=True)
class Command:
    """The payload: what is to be run in the guest."""

    words: tuple[str, ...]
    script_at: int | None = None  # which word is a file of this node, to be copied into the guest
