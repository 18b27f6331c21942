"""A signed list of a thousand images, opened as it is when it comes: parse, signature, path, policy."""

from __future__ import annotations

import statistics

from bench.measure import Result, wall_s
from demo.progress import step
from lrms_vm.trust.verify_list import open_list
from tests import lists

IMAGES, TIMES = 1000, 15


def measure() -> list[Result]:
    images = [lists.image(f"atlas/sim-{number}") for number in range(IMAGES)]
    signed = lists.sign(lists.payload(images))
    policy = lists.policy()

    def opened() -> None:
        if len(open_list(signed, anchors=lists.ANCHORS, policy=policy, at=lists.NOW).content.images) != IMAGES:
            raise AssertionError("not all images of the list")

    with step(f"a signed list of {IMAGES} images, {len(signed) >> 10} KiB"):
        opened()
        median_s = statistics.median(wall_s(opened) for _ in range(TIMES))
    return [Result("list-1000-images", median_s * 1e3, "ms", 100.0, "open a signed list of 1,000 images")]
