"""The house: a module imports only what stands above it in this list. Read it from top to bottom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lrms_vm"

# Values in, values out: no disk, no program, no clock, no network.
_PURE = """
    errors values units image paths request
    lrms.slurm_notation lrms.command lrms.base lrms.slurm lrms.gridengine lrms.pbs_text lrms.torque lrms.torque_filter lrms.openpbs lrms.local lrms
    trust.names trust.name_hash trust.dn trust.der trust.digests trust.tree trust.patterns trust.voms trust.policy_values trust.toml_table trust.policy trust.certificate_policies trust.anchor_index trust.crl trust.x509 trust.rules trust.policy_lint trust.ca_lint trust.cms trust.dgst trust.verify trust.forms
    trust.strict_json trust.sealed_json trust.smime trust.json_object trust.imagelist trust.list_rules trust.verify_list trust.freshness trust.list_extract trust
    disk_format qcow2 verdict logfmt provenance metrics report environment launch_options srun_options pbsdsh_options launchers xml_check overhead node_size kernel_rules network_rules domain cgroup_paths
    recipe apt_sources guest_system initrd water_marks
    submit.description submit.result submit.words submit.carry submit.job_script submit.systems submit.slurm submit.gridengine submit.pbs submit.drmaa_words
"""
_EFFECTS = """
    config command account record verdict_file journal cgroups
    anchors site_policy decision resolve
    fetch_http fetch hashing image_file file_systems locks pins lease store sidefiles trust_state list_copy list_refresh lists ingest download convert upkeep admission scrub cache
    site_kernel pygrub keys signing signing_list overlay seed network
    guest node_memory channel console share attach launch_service suspension payload starter
    counters lifecycle teardown retries batch_system slurm_node gridengine_node torque_node openpbs_node node submit
    build finding checks_xen installed_from checks installed install install_gridengine install_pbs install_systemd
    cli __main__
"""
PURE = _PURE.split()
ORDER = PURE + _EFFECTS.split()

# What only the pure half may not do. `re`, `json`, `hashlib` and the like compute and are welcome.
_WORLDLY = """
    asyncio ctypes fcntl glob http io logging multiprocessing pathlib random secrets shutil signal socket subprocess
    tempfile threading time urllib.request
"""
# One importer per heavy library, so that everything else runs and is tested without it.
HEAVY = {
    "cryptography": ("trust", "keys", "signing"),
    "OpenSSL": ("trust",),
    "jinja2": ("domain",),
    "libvirt": ("guest",),
    "drmaa": ("submit",),
    "pyslurm": ("submit",),
}
# `os` names paths and exit codes for everybody; these of its names touch nothing.
PURE_OS = ("EX_", "path", "fsencode", "fsdecode")


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        words = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(words[:-1] if words[-1] == "__init__" else words)
        if name:
            found[name] = ast.parse(path.read_text(), filename=str(path))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> Iterator[str]:
    """Full dotted names of everything imported while running, inside functions too; for type checkers only: not."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner.removeprefix("lrms_vm.") in MODULES else base


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def place(name: str) -> str:
    """Where a module stands in the list: by its own name, or by its package's (cli)."""
    return name if name in ORDER else name.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_place(name: str) -> None:
    assert place(name) in ORDER, f"say in {Path(__file__).name} which modules {name} may import"


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_up(name: str) -> None:
    wrong = []
    for target in imports(MODULES[name]):
        if not target.startswith("lrms_vm."):
            continue
        above = target.removeprefix("lrms_vm.")
        if place(name) != place(above) and ORDER.index(place(above)) > ORDER.index(place(name)):
            wrong.append(f"{name} imports {above}, which stands below it")
    assert wrong == []


@pytest.mark.parametrize("name", [name for name in MODULES if place(name) in PURE])
def test_the_pure_half_touches_nothing(name: str) -> None:
    worldly = set(_WORLDLY.split()) - _allowed(name)
    touched = sorted(target for target in imports(MODULES[name]) if {target, target.partition(".")[0]} & worldly)
    assert touched == [], f"{name} is pure but imports {touched}"
    for node in _running(MODULES[name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr.startswith(PURE_OS), f"{name} is pure but uses os.{node.attr}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("now", "utcnow", "today"), f"{name} is pure but looks at the clock"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"{name} is pure but calls {node.func.id}()"


def _allowed(name: str) -> set[str]:
    return {"pathlib"} if name == "paths" else set()  # paths names places; it never goes there


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_have_one_importer(name: str) -> None:
    for target in imports(MODULES[name]):
        library = target.partition(".")[0]
        may = HEAVY.get(library, (place(name),))
        assert name.startswith(may), f"{name} imports {library}; only {', '.join(may)} may"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("values", "fetch_http")])
def test_values_are_made_the_quick_way(name: str) -> None:
    named = {
        alias.name
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
        for alias in node.names
    }
    assert "dataclass" not in named, f"{name}: from lrms_vm.values import dataclass"


def test_the_fetching_child_needs_nothing_of_ours() -> None:
    """It is started as a file, by a user who may not read our directory."""
    assert [name for name in imports(MODULES["fetch_http"]) if name.startswith("lrms_vm")] == []


def test_a_verified_image_has_one_maker() -> None:
    """So there is no path in the types from an unverified file to a running guest."""
    makers = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "VerifiedImage"
    }
    assert makers <= {"cache"}


@pytest.mark.parametrize("module", ["lrms_vm.cli.exec", "lrms_vm.cli.hooks", "lrms_vm.payload"])
def test_what_starts_with_every_job_starts_light(module: str) -> None:
    """`exec` starts once a task, the hooks before anything was asked: the heavy libraries must wait until they are."""
    code = f"import sys, {module}; print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
