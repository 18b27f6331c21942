"""Signed image lists that the site subscribes to, asked for the image that a job names.

A good copy is used for `refresh_s` without asking, and as long as the server does not answer, until it expires. What a
copy says yes to is accepted; a no is asked again of the server first, so that no refusal rests on an old copy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import field
from functools import cmp_to_key

from lrms_vm import journal, list_copy, trust_state
from lrms_vm.config import Subscription
from lrms_vm.errors import ConfigError, LrmsVmError, RequestError, SiteError
from lrms_vm.image import ImageEntry, ImageReference, Listed
from lrms_vm.list_copy import Copy, Row
from lrms_vm.list_refresh import Decide, Refresher, check_ratchet, path_of
from lrms_vm.paths import Places
from lrms_vm.trust import list_extract
from lrms_vm.trust.imagelist import compare_versions
from lrms_vm.values import dataclass

_READ_AGAIN = ("list-replaced", "extract-damaged")  # says nothing of the list: get it again
_BY_VERSION = cmp_to_key(compare_versions)


@dataclass
class Lists:
    """The lists of one site, for one job."""

    refresher: Refresher
    _failed: dict[str, LrmsVmError] = field(default_factory=dict)

    @property
    def _subscriptions(self) -> Mapping[str, Subscription]:
        return self.refresher.subscriptions

    @property
    def _decide(self) -> Decide:
        return self.refresher.decide

    def find(self, reference: ImageReference) -> ImageEntry | None:
        """The image that a name, NAME@VERSION or digest means; None where no list has ever heard of it.

        Raises `RequestError` (what the trust core says of it, "image-withdrawn", "image-superseded"), `ConfigError`
        "image-ambiguous" where two lists have it and both count, `SiteError` where a list that might have it cannot be
        had, or the clock is back.
        """
        if not self._subscriptions:
            return None
        for one in self._subscriptions.values():
            self._freshen(one, reference)
        found, refusals = self._looked(reference)
        if found is not None:
            return found  # the clock is judged when it is acquired
        trust_state.check_clock(self.refresher.places, self._decide.at)
        if self._may_change(refusals):
            for one in self._subscriptions.values():
                self._try_refresh(one, soon=False)
            found, refusals = self._looked(reference)
            if found is not None:
                return found
        for name, error in refusals:
            raise self._doubted(name, error)
        for error in self._failed.values():
            raise SiteError(
                f"--vm-image: {reference.text!r} is in none of the lists that could be had; {error.message}",
                hint=error.hint or "try again later",
                code=error.code,
            )
        self._raise_if_gone(reference)
        return None

    def _may_change(self, refusals: list[tuple[str, LrmsVmError]]) -> bool:
        """Whether a newer version of some list may say something else; not where a CRL is missing, say."""
        for name, error in refusals:
            if error.code == "extract-damaged":
                self.refresher.drop(name)
        return not refusals or any(
            isinstance(error, RequestError) or error.code in _READ_AGAIN for _, error in refusals
        )

    def _freshen(self, one: Subscription, reference: ImageReference) -> None:
        """Ask for a list that has the image, where our copy is older than it may be. The others are left alone."""
        copy = self.refresher.copy(one.name)
        if copy is not None and _rows(copy, reference) and abs(time.time() - copy.answered_at) > one.refresh_s:
            failed_s = self.refresher.failed_s(one.name)
            if failed_s is None or failed_s > one.refresh_s:  # else let this job not wait for that server as well
                self._try_refresh(one, soon=True)

    def _try_refresh(self, one: Subscription, *, soon: bool) -> None:
        """As `refresh`; what fails is kept for whoever needs it, and said where nobody may."""
        try:
            has_copy = self.refresher.copy(one.name) is not None
            self.refresher.refresh(one.name, soon=soon)
            self._failed.pop(one.name, None)
        except ConfigError:
            raise
        except SiteError as error:
            self._failed[one.name] = error
            if error.code != "cache-busy":
                what = "the copy is used" if has_copy else "there is no copy"
                journal.say("warning", f"list {one.name}", f"not refreshed, {what}: {error.code}: {error}")

    def _looked(self, reference: ImageReference) -> tuple[ImageEntry | None, list[tuple[str, LrmsVmError]]]:
        """The image, by the copies as they are; else why not, by list."""
        found: list[ImageEntry] = []
        refusals: list[tuple[str, LrmsVmError]] = []
        for name in self._subscriptions:
            for row in self._candidates(name, reference):
                try:
                    found.append(self._asked(name, row))
                except (RequestError, SiteError) as error:
                    refusals.append((name, error))
        others = [one for one in found if _digests(one) != _digests(found[0])]
        if others and reference.sha256 is None:
            lists = " and ".join(_list_of(one) for one in (found[0], others[0]))
            raise ConfigError(
                f"--vm-image: {reference.text!r} is {found[0].version} and {others[0].version} in the lists {lists}",
                hint="say NAME@VERSION or sha256:HEX, or let only one list's builder use this name (trust.toml)",
                code="image-ambiguous",
            )
        return (found[0] if found else None), refusals

    def _candidates(self, name: str, reference: ImageReference) -> list[tuple[Copy, Row]]:
        copy = self.refresher.copy(name)
        if copy is None:
            return []
        rows = _rows(copy, reference)
        if reference.name is not None and reference.version is None and rows:
            rows = [max(rows, key=lambda row: _BY_VERSION(row.version))]
        return [(copy, row) for row in rows]

    def _asked(self, name: str, candidate: tuple[Copy, Row]) -> ImageEntry:
        copy, row = candidate
        signed, image = list_extract.read_extract(copy.extract(row), source=str(copy.path))
        check_ratchet(trust_state.read_ratchet(self.refresher.places), signed)
        listed = Listed(name, signed, image)
        self._decide.listed(listed)
        return ImageEntry(
            name=image.name, url=image.urls[0], mirrors=image.urls[1:], version=image.version, listed=listed
        )

    def _doubted(self, name: str, error: LrmsVmError) -> LrmsVmError:
        """While a list's server does not answer, a refusal by the others' is none: nobody can tell."""
        if not self._failed or not isinstance(error, RequestError):
            return error
        failed = self._failed.get(name) or next(iter(self._failed.values()))
        return SiteError(
            f"{error.message}; so says the copy of the list {name}, but not every list could be refreshed: "
            f"{failed.message}",
            hint="try again later",
            code=error.code if error.code == "list-expired" else failed.code,
        )

    def _raise_if_gone(self, reference: ImageReference) -> None:
        for name in self._subscriptions:
            copy = self.refresher.copy(name)
            for one in copy.gone() if copy is not None else ():
                by_name = one.name == reference.name and reference.version in (None, one.version)
                if copy is None or not (by_name or (reference.sha256 is not None and one.sha256 == reference.sha256)):
                    continue
                when = f"in version {one.list_version} of the list {name} ({one.at}), by {one.signer}"
                if now := ", ".join(row.version for row in copy.named(one.name)):
                    raise RequestError(
                        f"--vm-image: {one.name}@{one.version} was superseded by {now} {when}",
                        hint=f"use {one.name} without a version",
                        code="image-superseded",
                    )
                raise RequestError(
                    f"--vm-image: {one.name}@{one.version} was withdrawn {when}",
                    hint="see `lrms-vm image list`",
                    code="image-withdrawn",
                )


def outline(reference: ImageReference, subscriptions: Mapping[str, Subscription], places: Places) -> ImageEntry | None:
    """What the copies say of a reference, believed or not: for those who only want to know what would be asked for."""
    for name in subscriptions:
        copy = list_copy.read(path_of(places, name))
        for row in _rows(copy, reference) if copy is not None else ():
            return ImageEntry(name=row.name, url=copy.head.url if copy else "", version=row.version)
    return None


def _rows(copy: Copy, reference: ImageReference) -> list[Row]:
    if reference.sha256 is not None:
        return copy.with_sha256(reference.sha256)
    rows = copy.named(reference.name) if reference.name is not None else []
    return [row for row in rows if reference.version in (None, row.version)]


def _digests(entry: ImageEntry) -> Mapping[str, bytes]:
    return entry.listed.image.digests if entry.listed is not None else {}


def _list_of(entry: ImageEntry) -> str:
    return entry.listed.subscription if entry.listed is not None else "-"
