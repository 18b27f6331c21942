"""One target for each parser of foreign bytes: it may return, or raise what its module promises, and nothing else.

TARGETS["cms"](data) is what a fuzzer calls; SEEDS["cms"] is where it begins.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lrms_vm import config, disk_format, image, qcow2, request, units
from lrms_vm.errors import ConfigError, LrmsVmError, RequestError, SiteError, UsageError
from lrms_vm.signing import bare_signature, detached_cms
from lrms_vm.trust import (
    cms,
    der,
    dgst,
    dn,
    freshness,
    imagelist,
    list_extract,
    names,
    policy,
    sealed_json,
    smime,
    strict_json,
    voms,
    x509,
)
from lrms_vm.trust import crl as plain_crl
from lrms_vm.trust.verify import SignatureFiles, TrustAnchors, check_bytes, check_claim, named_signer
from lrms_vm.trust.verify_list import claim_listed, open_list
from tests import lists
from tests.certs.edit_certs import pem
from tests.certs.make_certs import Authority, ec_key, ed25519_key, name, person, rsa_key
from tests.fuzz import lrms_targets

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CA = Authority.root(name("Test CA"), at=NOW)
SUB = CA.sub(name("Sub CA"))
KEYS = {"rsa": rsa_key(), "ec": ec_key(2), "ed25519": ed25519_key()}
SIGNERS = {kind: CA.issue(person("Alice Example"), key=key) for kind, key in KEYS.items()}
ANCHORS = TrustAnchors(
    (CA.pem,), (CA.crl(), SUB.crl()), namespaces=((CA.subject_hash, b'TO Issuer SELF PERMIT Subject ".*"'),)
)
IMAGE = b"a disk"
DIGESTS = {one: hashlib.new(one, IMAGE).digest() for one in ("sha1", "sha256", "sha384", "sha512")}
RULES = b"""version = 1
[defaults]
namespaces = "if-present"
digests = ["sha256", "sha384", "sha512"]
max_image = "64GiB"
contact = "x"
[[builder]]
name = "alice"
issuer = "CN=Test CA,DC=TestGrid,DC=org"
subject = "CN=Alice Example,O=People,DC=TestGrid,DC=org"
images = ["*"]
signatures = ["list", "cms", "dgst"]
allow_sha1_until = "2027-01-31"
[[runner]]
name = "all"
users = ["*"]
images = ["*"]
[[block]]
list = "x"
below_version = "1.2"
until = 2027-01-01
"""
POLICY = policy.parse_policy(RULES, source="trust.toml")


def read_der(data: bytes) -> None:
    """All of it, down to the leaves; what is read has exactly this encoding."""
    with contextlib.suppress(der.DerError):
        _descend(der.read(data), 0)


def _descend(element: der.Element, depth: int) -> None:
    for read in (der.integer, der.oid):
        with contextlib.suppress(der.DerError):
            read(element, "fuzz")
    if element.tag & 0x20 and depth < 50:
        fields = element.children(element.tag, "fuzz")
        with contextlib.suppress(der.DerError):
            der.require_sorted(fields, "fuzz")
        inner = list(fields)
        assert b"".join(one.raw for one in inner) == element.content
        for one in inner:
            _descend(one, depth + 1)


def read_cms(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        cms.verify_signature(cms.parse(data))
    with contextlib.suppress(RequestError):
        signature, content = cms.parse_attached(data, max_content_bytes=1 << 20)
        cms.check_content(signature, content)
        cms.verify_signature(signature)
    named_signer(SignatureFiles("cms", data))


def judge_cms(data: bytes) -> None:
    """The whole decision: what is accepted is Alice's, and over these bytes."""
    _judge(SignatureFiles("cms", data))


def judge_dgst(data: bytes) -> None:
    for kind, signer in SIGNERS.items():
        _judge(SignatureFiles("dgst", data, "sha1" if len(data) % 2 and kind == "rsa" else "sha256", signer.pem))


def _judge(files: SignatureFiles, anchors: TrustAnchors = ANCHORS) -> None:
    try:
        claim = check_claim(files, anchors=anchors, policy=POLICY, image_name="x", user="u", partition="", at=NOW)
        check_bytes(claim, digests=DIGESTS, size_bytes=len(IMAGE))
    except LrmsVmError as error:
        assert error.code, error
        return
    assert claim.signer == "CN=Alice Example,O=People,DC=TestGrid,DC=org"
    assert claim.signed_digest in (None, DIGESTS[claim.digest_algorithm])


def read_dgst(data: bytes) -> None:
    for signer in SIGNERS.values():
        for algorithm in DIGESTS:
            with contextlib.suppress(RequestError):
                dgst.signed_digest(data, signer.certificate, algorithm)
            with contextlib.suppress(RequestError):
                dgst.verify_digest(data, signer.certificate, algorithm, DIGESTS[algorithm])


def read_certificate(data: bytes) -> None:
    """As a signer's, as one in its chain, and as an anchor."""
    with contextlib.suppress(RequestError):
        x509.parse_chain(data, source="fuzz")
    in_pem = pem("CERTIFICATE", data)
    for one in (data, in_pem):
        x509.issuer_hashes_of_pem([one])
        x509.readable([one])
    _judge(SignatureFiles("dgst", BARE, "sha256", in_pem))
    _judge(SignatureFiles("dgst", BARE, "sha256", SIGNERS["rsa"].pem + in_pem))
    _judge(SignatureFiles("dgst", BARE, "sha256", SIGNERS["rsa"].pem), replace(ANCHORS, certificates=(in_pem, CA.pem)))
    try:
        certificate = x509.parse_der(data, source="fuzz")
    except RequestError:
        return
    x509.spki_sha256(certificate)
    for one in (certificate.subject, certificate.issuer):
        dn.show(one), dn.is_safe(one), dn.loose(one), dn.of(one), dn.slash(one)
    with contextlib.suppress(RequestError):
        x509.check_signer(certificate, min_rsa_bits=2048)


def read_crl(data: bytes) -> None:
    crl = pem("X509 CRL", data)
    chain = (SIGNERS["rsa"].certificate, CA.certificate)
    plain_crl.ends_of(chain, [crl], at=NOW, grace=timedelta(0), must_be_there=bool(len(data) % 2))
    x509.crl_expiries(TrustAnchors((), (crl, data)))
    _judge(SignatureFiles("dgst", BARE, "sha256", SIGNERS["rsa"].pem), replace(ANCHORS, crls=(crl, data)))


def read_dn(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # as its docstring says; policy.py translates it
        dn.parse(data.decode(errors="surrogateescape"))


def read_names(data: bytes) -> None:
    for parse in (names.parse_namespaces, names.parse_signing_policy):
        with contextlib.suppress(names.NamesError):
            statements = parse(data)
            names.permits(statements, issuer="/DC=org/CN=CA", subject="/DC=org/O=People/CN=Alice")
            names.permits(statements, issuer="/DC=org/CN=CA", subject=data.decode()[:2000])


def read_policy(data: bytes) -> None:
    try:
        problems = policy.problems_of(data, source="fuzz")
    except ConfigError:
        problems = ("not TOML",)
    try:
        policy.parse_policy(data, source="fuzz")
        assert not problems
    except ConfigError:
        assert problems


def read_mapfile(data: bytes) -> None:
    for groups in (True, False):
        with contextlib.suppress(voms.MapfileError):
            mapping = voms.parse_mapfile(data, groups=groups)
            wanted = [one.fqan for one in mapping[:3]]
            voms.has_any(wanted, mapping, user="atlaspil001", groups=("atlasprd",))
            voms.is_mapped(wanted, mapping)


def read_config(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        config.parse(data, source="fuzz")


def read_request(data: bytes) -> None:
    """Lines of KEY=VALUE, as the carriers bring them."""
    lines = [line.partition("=") for line in data.decode(errors="surrogateescape").split("\n")]
    with contextlib.suppress(RequestError):
        request.parse_request({key: value for key, _, value in lines}, source="fuzz")


def read_reference(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(UsageError):
        found = image.parse_reference(text, source="fuzz")
        assert found.text == text and text.isascii() and text.isprintable() and " " not in text
    for parse in (
        lambda: units.parse_size_bytes(text, bare="", source="fuzz"),
        lambda: units.parse_memory_mib(text, bare="M", source="fuzz"),
        lambda: units.parse_duration_s(text, source="fuzz"),
    ):
        with contextlib.suppress(RequestError):
            assert parse() >= 0


def read_smime(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        message = smime.split(data)
        for one in smime.forms(message.content or b""):
            smime.text_of(one)
        smime.canonical(message.content or b"")


def read_json(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        strict_json.integer(strict_json.parse(data, source="fuzz"))


def read_list(data: bytes) -> None:
    with contextlib.suppress(RequestError):
        found = imagelist.parse_list(data)
        for one in found.images:
            assert imagelist.compare_versions(one.version, one.version) == 0


def judge_list(data: bytes) -> None:
    """What is accepted is what Alice signed."""
    try:
        signed = open_list(data, anchors=lists.ANCHORS, policy=LIST_POLICY, at=lists.NOW)
    except LrmsVmError as error:
        assert error.code, error
        return
    assert signed.content_sha256 == hashlib.sha256(smime.text_of(LIST_BODY)).digest() or signed.content == LIST.content
    for one in signed.content.images:
        with contextlib.suppress(LrmsVmError):
            claim_listed(
                signed,
                one,
                anchors=lists.ANCHORS,
                policy=LIST_POLICY,
                user="atlas001",
                groups=(),
                account="",
                partition="",
                at=lists.NOW,
            )


def read_state(data: bytes) -> None:
    """Files of our own, which only root can write: still, after a crash anything may be in them."""
    for read in (list_extract.read_extract, freshness.read_ratchet, freshness.read_clock):
        with contextlib.suppress(SiteError):
            read(data, source="fuzz")
    with contextlib.suppress(*sealed_json.UNREADABLE):
        inner = sealed_json.read(data, source="fuzz")
        if isinstance(inner, dict):
            sealed_json.write(inner)


def read_qcow2(data: bytes) -> None:
    def read(at: int, size: int) -> bytes:
        return data[at : at + size]

    with contextlib.suppress(RequestError):
        qcow2.check(read, len(data), max_virtual_bytes=1 << 40, max_ratio=1000, source="fuzz")


def read_format(data: bytes) -> None:
    found = disk_format.detect(data[:4096], data[4096:])
    assert found.isprintable()
    with contextlib.suppress(RequestError):
        disk_format.require_raw(data, data[-512:], source="fuzz")


def small_qcow2() -> bytes:
    """One of clusters of 512 bytes, so that a fuzzer can get at all of it."""
    file = bytearray(7 * 512)
    struct.pack_into(">4sIQIIQIIQQIIQ", file, 0, b"QFI\xfb", 3, 0, 0, 9, 4 * 512, 0, 1, 3 * 512, 512, 1, 0, 0)
    struct.pack_into(">II", file, 96, 4, 112)
    struct.pack_into(">Q", file, 512, 2 * 512)
    struct.pack_into(">7H", file, 2 * 512, *[1] * 7)
    struct.pack_into(">Q", file, 3 * 512, 4 * 512 | 1 << 63)
    struct.pack_into(">4Q", file, 4 * 512, 5 * 512 | 1 << 63, 0, 6 * 512 | 1 << 63, 1)
    return bytes(file)


def _unarmoured(text: bytes) -> bytes:
    return base64.b64decode(b"".join(line for line in text.splitlines() if not line.startswith(b"-")))


BARE = bare_signature(SIGNERS["rsa"].signer(), DIGESTS["sha256"], "sha256")
LIST_BODY = lists.payload()
LIST_POLICY = lists.policy()
_LISTS = [
    lists.sign(LIST_BODY, lists.CA.issue(person("Alice Example"), key=rsa_key()), form=form)
    for form in ("smime", "cms")
]
LIST = open_list(_LISTS[0], anchors=lists.ANCHORS, policy=LIST_POLICY, at=lists.NOW)
_CMS = [detached_cms(one.signer(), DIGESTS["sha512"], "sha512", NOW) for one in SIGNERS.values()]
_CMS.append(detached_cms(SUB.issue(person("Alice Example")).signer(SUB.certificate), DIGESTS["sha256"], "sha256", NOW))
_CERTIFICATES = [_unarmoured(one.pem) for one in (*SIGNERS.values(), CA, SUB)]
_NAMES = [
    b'TO Issuer "/DC=org/CN=CA" \\\n PERMIT Subject "/DC=org/.*"\nTO Issuer SELF DENY Subject ".*x.*"\n',
    b"access_id_CA X509 '/DC=org/CN=CA'\npos_rights globus CA:sign\ncond_subjects globus '\"/DC=org/*\" \"/C=XX/*\"'\n",
]
_CONFIG = b"""version = 1
network = "nat"
networks_allowed = ["nat"]
boot_timeout_s = 30
[kernels.k]
vmlinuz = "/a"
initrd = "/b"
vmlinuz_sha256 = "x"
initrd_sha256 = "y"
[images.sim]
url = "https://h/a.img"
[lists.atlas]
url = "/l"
"""

TARGETS: dict[str, Callable[[bytes], None]] = {
    "der": read_der,
    "cms": read_cms,
    "cms-decision": judge_cms,
    "dgst": read_dgst,
    "dgst-decision": judge_dgst,
    "certificate": read_certificate,
    "crl": read_crl,
    "dn": read_dn,
    "names": read_names,
    "policy": read_policy,
    "mapfile": read_mapfile,
    "config": read_config,
    "request": read_request,
    "reference": read_reference,
    "smime": read_smime,
    "json": read_json,
    "list": read_list,
    "list-decision": judge_list,
    "state": read_state,
    "qcow2": read_qcow2,
    "format": read_format,
    **lrms_targets.TARGETS,
}
SEEDS: dict[str, Sequence[bytes]] = {
    "der": [*_CMS, *_CERTIFICATES],
    "cms": [*_CMS, pem("CMS", _CMS[0])],
    "cms-decision": _CMS,
    "dgst": [BARE, bare_signature(SIGNERS["ec"].signer(), DIGESTS["sha256"], "sha256")],
    "dgst-decision": [BARE, bare_signature(SIGNERS["ec"].signer(), DIGESTS["sha256"], "sha256")],
    "certificate": _CERTIFICATES,
    "crl": [_unarmoured(one) for one in (CA.crl([SIGNERS["rsa"].certificate]), SUB.crl())],
    "dn": [b"CN=Alice\\, A,O=People,DC=org", b"emailAddress=a@b,1.2.3=#0401ff,UID=x+CN=y"],
    "names": _NAMES,
    "policy": [RULES],
    "mapfile": [b'"/atlas/Role=production*" atlasprd\n"/atlas/*/Role=NULL" .atlaspil,x # y\n/CN=a b\n'],
    "config": [_CONFIG],
    "request": [
        b"vm-image=atlas/sim@1\nvm-memory=4G\nvm-cpus=2\nvm-network=nat\nvm-share=/a,/b\nvm-kernel=k\nvm-env=A,B"
    ],
    "reference": [
        b"atlas/sim@13.0",
        b"sha256:" + b"ab" * 32,
        b"/a/b.img",
        b"https://h:1/a.img",
        b"16GiB",
        b"1-02:03:04",
    ],
    "smime": _LISTS,
    "json": [LIST_BODY],
    "list": [LIST_BODY],
    "list-decision": _LISTS,
    "state": [
        list_extract.write_extract(LIST, LIST.content.images[0]),
        freshness.write_ratchet(freshness.advance(freshness.Ratchet(), LIST)),
        freshness.write_clock(freshness.check_clock(None, NOW)),
    ],
    "qcow2": [small_qcow2()],
    "format": [
        small_qcow2(),
        bytes(510) + b"U\xaa",
        b"KDMV" + bytes(600),
        b"# Disk DescriptorFile\n",
        b"conectix" + bytes(504),
    ],
    **lrms_targets.SEEDS,
}
