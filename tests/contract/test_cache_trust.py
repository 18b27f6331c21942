"""Cache, fetch and trust together: an image signed with nothing but `openssl`, from a real server."""

from __future__ import annotations

import functools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lrms_vm import cache
from lrms_vm.decision import Decision
from lrms_vm.errors import RequestError
from lrms_vm.fetch import Fetch
from lrms_vm.image import ImageEntry, VerifiedImage
from lrms_vm.trust.policy import parse_policy
from lrms_vm.trust.verify import TrustAnchors
from tests.cache_fakes import places_at

POLICY = b"""
version = 1
[defaults]
namespaces = "ignore"
[[builder]]
name = "alice"
issuer = "CN=T CA,DC=T,DC=org"
subject = "CN=Alice,DC=T,DC=org"
images = ["*"]
signatures = ["cms", "dgst"]
[[runner]]
name = "everybody"
users = ["*"]
images = ["*"]
"""
OPENSSL_CNF = """
[ca]
default_ca = d
[d]
database = index.txt
crlnumber = crlnumber
default_md = sha256
default_crl_days = 5
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[user]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = emailProtection
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[crl]
authorityKeyIdentifier = keyid
[req]
distinguished_name = dn
[dn]
"""
COMMANDS = """
req -config ca.cnf -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /DC=org/DC=T/CN=T\u00a0CA -extensions v3_ca
req -config ca.cnf -newkey rsa:2048 -nodes -keyout u.key -out u.csr -subj /DC=org/DC=T/CN=Alice
x509 -req -in u.csr -CA ca.pem -CAkey ca.key -set_serial 7 -days 20 -extfile ca.cnf -extensions user -out www/b.img.crt
ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.pem -crlexts crl -out ca.crl
cms -sign -binary -nosmimecap -cades -md sha256 -signer www/b.img.crt -inkey u.key -in www/a.img -outform DER -out www/a.img.p7s
dgst -sha512 -sign u.key -out www/b.img.sha512 www/b.img
"""
IMAGE = os.urandom(100_000) + bytes(1 << 20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("site")
    (root / "www").mkdir()
    for name, text in (("ca.cnf", OPENSSL_CNF), ("index.txt", ""), ("crlnumber", "01\n")):
        (root / name).write_text(text)
    for name in ("a.img", "b.img"):
        (root / "www" / name).write_bytes(IMAGE)
    for line in COMMANDS.strip().splitlines():
        words = [word.replace("\u00a0", " ") for word in line.split(" ")]
        subprocess.run(["openssl", *words], cwd=root, check=True, capture_output=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def acquire(site_root: Path, state: Path, url: str) -> VerifiedImage:
    anchors = TrustAnchors(
        certificates=((site_root / "ca.pem").read_bytes(),), crls=((site_root / "ca.crl").read_bytes(),)
    )
    decision = Decision(parse_policy(POLICY, source="trust.toml"), anchors)
    return cache.acquire(
        ImageEntry(name="hep", url=url),
        places=places_at(state),
        lease="local-1.n",
        decide=decision.for_job(user="alice"),
        fetch=Fetch(),
        max_image_bytes=decision.max_image_bytes,
        deadline=time.monotonic() + 60,
    )


@pytest.mark.parametrize("name", ["a.img", "b.img"])
def test_an_image_signed_with_openssl_is_accepted_cold_and_warm(
    site: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    root, base = site
    for where in (f"{base}/{name}", f"{base}/{name}", str(root / "www" / name)):
        image = acquire(root, tmp_path, where)
        assert Path(image.path).read_bytes() == IMAGE
        assert (image.signer, image.rule) == ("CN=Alice,DC=T,DC=org", "alice")


@pytest.mark.parametrize("name", ["a.img", "b.img"])
def test_one_flipped_byte_is_refused(site: tuple[Path, str], tmp_path: Path, name: str) -> None:
    root, base = site
    path = root / "www" / name
    path.write_bytes(IMAGE[:500] + bytes([IMAGE[500] ^ 1]) + IMAGE[501:])
    try:
        for where in (f"{base}/{name}", str(path)):
            with pytest.raises(RequestError) as caught:
                acquire(root, tmp_path, where)
            assert (caught.value.code, caught.value.exit_code) == ("bytes-differ", 77)
        assert cache.entries(places_at(tmp_path)) == []
    finally:
        path.write_bytes(IMAGE)
