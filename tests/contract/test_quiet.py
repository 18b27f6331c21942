"""What libraries warn of does not get into jobs' outputs and slurmd's log."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from tests.certs.edit_certs import SERIAL, edited
from tests.certs.make_certs import Authority, name, person

SCRIPT = """
import sys
from cryptography import x509
from lrms_vm import cli
if sys.argv[1] == "ours":
    cli.main([])
print(x509.load_der_x509_certificate(sys.stdin.buffer.read()).serial_number)
"""


@pytest.mark.parametrize(("by", "warned"), [("ours", False), ("theirs", True)])
def test_a_certificate_with_an_odd_serial_number_costs_no_words_but_ours(by: str, warned: bool) -> None:
    ca = Authority.root(name("CA"), at=datetime.now(UTC))
    certificate = edited(ca.issue(person("Alice")), ca, lambda fields: fields[SERIAL].__setitem__(1, b"\0"))
    done = subprocess.run([sys.executable, "-c", SCRIPT, by], input=certificate, capture_output=True, timeout=60)
    assert done.stdout == b"0\n", done.stderr
    assert (b"Warning" in done.stderr) == warned
