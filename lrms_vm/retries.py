"""How often we sent a job back. Root's, on the node's disk: a batch system that starts a job again at once, and has no
counter of its own, would otherwise do so for ever.

    state_dir/retries/<key>    0600 root    one decimal number
"""

from __future__ import annotations

from lrms_vm.errors import NodeError
from lrms_vm.paths import Places

FORGET_AFTER_S = 7 * 86400


def count(places: Places, key: str) -> int:
    """How often so far. A file that cannot be read counts as nothing."""
    try:
        return int((places.retries / key).read_bytes()[:20])
    except (OSError, ValueError):
        return 0


def add(places: Places, key: str) -> None:
    """One more. Raises `NodeError`: then the job must not be sent back."""
    path = places.retries / key
    fresh = path.with_name(f".{key}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_text(str(count(places, key) + 1))
        fresh.replace(path)
    except OSError as error:
        raise NodeError(f"{path}: cannot count: {error.strerror}", code="state-unwritable") from error


def forget(places: Places, key: str) -> None:
    """The job was not sent back this time. Raises nothing: a counter too many harms a job of the same id at most."""
    try:
        (places.retries / key).unlink(missing_ok=True)
    except OSError:
        return


def forget_old(places: Places, *, now: float) -> None:
    """Those of jobs that went elsewhere. `now` is time.time()."""
    try:
        for path in places.retries.iterdir():
            if path.stat().st_mtime < now - FORGET_AFTER_S:
                path.unlink(missing_ok=True)
    except OSError:
        return
