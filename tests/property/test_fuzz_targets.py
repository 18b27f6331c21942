"""The fuzz targets for a moment, with seeds that are the same every time; and that no parser has none."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lrms_vm.trust
from tests.fuzz import targets
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import SEEDS, TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")  # the library warns of certificates that break RFC 5280
SLOW = {"certificate": 200, "crl": 200, "dgst-decision": 150, "dgst": 300}

# Public functions of lrms_vm.trust that take bytes and are in no target, and why.
ELSEWHERE = {
    "crl.ends_of": "as plain_crl.ends_of",
    "digests.of": "any bytes have a digest",
    "tree.leaf": "any chunk has a leaf",
    "tree.root_of": "the leaves are our own",
    "tree.bound": "any root",
    "tree.split_leaves": "tests/property/test_tree.py",
    "forms.check_form": "no bytes of others: a claim",
    "verify.check_bytes": "no bytes of others: digests",
    "verify.check_tree": "no bytes of others: leaves",
}


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_nearly_right_ends_in_an_answer(target: str) -> None:
    chance = random.Random(f"lrms_vm {target}")
    for seed in SEEDS[target]:
        TARGETS[target](seed)
    for _ in range(SLOW.get(target, 1500)):
        TARGETS[target](mutated(chance.choice(SEEDS[target]), chance))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(lambda text: text.encode(errors="surrogatepass"))))
def test_no_bytes_get_anything_but_our_errors_out_of_the_trust_core(data: bytes) -> None:
    for target in TARGETS.values():
        target(data)


def test_every_public_function_of_the_trust_core_that_reads_bytes_has_a_target() -> None:
    source = inspect.getsource(targets)
    missing = []
    for found in pkgutil.iter_modules(lrms_vm.trust.__path__):
        module = importlib.import_module(f"lrms_vm.trust.{found.name}")
        for word, function in inspect.getmembers(module, inspect.isfunction):
            if word.startswith("_") or function.__module__ != module.__name__:
                continue
            kinds = [str(one.annotation) for one in inspect.signature(function).parameters.values()]
            name = f"{found.name}.{word}"
            called = re.search(rf"\b{found.name}\.{word}\b|\b{word}\(", source)
            if any("bytes" in kind for kind in kinds) and not called and name not in ELSEWHERE:
                missing.append(name)
    assert not missing, f"{missing}: no fuzz target; see tests/fuzz/targets.py"
