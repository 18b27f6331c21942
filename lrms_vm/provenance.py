"""Where a job's image came from and who let it pass, in one line that `grep` and `awk` can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrms_vm import logfmt

if TYPE_CHECKING:
    from lrms_vm.image import VerifiedImage
    from lrms_vm.trust.verify import Claim


def facts(image: VerifiedImage, claim: Claim, version: str | None) -> dict[str, str]:
    """What is kept in the job's record and verdict; what is not known is left out. `version` is the site's word."""
    known = {
        "name": image.name,
        "version": claim.image_version or version,
        "digest": f"sha256:{image.sha256}",
        "signer": image.signer,
        "issuer": image.issuer,
        "rule": image.rule,
        "runner": claim.runner,
        "list": claim.list_identifier,
        "list_version": claim.list_version,
    }
    return {key: value for key, value in known.items() if value}


def words(
    key: str,
    user: str,
    image: Mapping[str, str],
    *,
    code: str = "accepted",
    used: Mapping[str, float | int] | None = None,
) -> dict[str, str]:
    """One verdict, as the log's words. `image` is `facts`, or of a refused one its `name` as the job said it. `used`:
    of an ended job, what its guest took (cgroup_paths.Usage.facts).
    """
    name, version = image.get("name", ""), image.get("version")
    return {
        "job": key,
        "user": user,
        "image": f"{name}@{version}" if version else name,
        **{word: image[word] for word in ("digest", "signer", "issuer", "rule", "runner", "list") if word in image},
        **({"version": image["list_version"]} if "list_version" in image else {}),
        "verdict": "accepted" if code == "accepted" else "refused",
        "code": code,
        **{word: str(value) for word, value in (used or {}).items()},
    }


def line(
    key: str,
    user: str,
    image: Mapping[str, str],
    *,
    code: str = "accepted",
    used: Mapping[str, float | int] | None = None,
) -> str:
    """The same as text.

    >>> line("local-1.n", "alice", {"name": "a", "version": "2", "signer": "CN=A B"})
    'job=local-1.n user=alice image=a@2 signer="CN=A B" verdict=accepted code=accepted'
    """
    return logfmt.line(words(key, user, image, code=code, used=used))
