"""libvirt's own schema accepts every golden domain. The in-memory test driver checks it before it looks at the type."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

GOLDEN = Path(__file__).parent.parent / "golden"
# the hostile ones break the schema's grammar of names on purpose
CASES = sorted(path.name for path in GOLDEN.glob("*.xml") if "hostile" not in path.name)


def schema_error(xml: str) -> str:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    try:
        connection.createXML(xml, libvirt.VIR_DOMAIN_START_VALIDATE).destroy()
    except libvirt.libvirtError as error:
        return str(error) if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA else ""
    finally:
        connection.close()
    return ""


def test_there_are_golden_domains() -> None:
    assert len(CASES) >= 5


@pytest.mark.parametrize("name", CASES)
def test_golden_domain_fits_libvirts_schema(name: str) -> None:
    assert schema_error((GOLDEN / name).read_text()) == ""


def test_the_schema_is_really_asked() -> None:
    assert schema_error((GOLDEN / CASES[0]).read_text().replace("<on_crash>destroy", "<on_crash>dance")) != ""
