"""An image's recipe: a short TOML file, read once into a frozen value. Pure; build.py does what it says.

A recipe either makes an image (packages, pip, files, commands) or, with [kernel], the site's kernel and initrd.
Unknown keys are errors and all problems are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any

from lrms_vm.errors import UsageError
from lrms_vm.values import dataclass

MAX_BYTES = 1 << 20

# Debian Policy 5.6.1 and 5.6.7: names, and optionally an exact version.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}(=[0-9][A-Za-z0-9.+~:-]{0,99})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", re.ASCII)
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,39}", re.ASCII)
_MODULE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_PYTHON = re.compile(r"3\.[0-9]{1,2}", re.ASCII)
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,63})", re.ASCII)


@dataclass(frozen=True)
class Pip:
    """Wheels put into the image by the host's pip: none of the image's code runs for it."""

    requirements: str  # file beside the recipe, one NAME==VERSION a line
    prefix: str  # modules go to <prefix>/lib/python<python>/dist-packages, data to <prefix>/share and <prefix>/etc
    python: str  # the image's Python, e.g. "3.11"


@dataclass(frozen=True)
class KernelParts:
    """What the site's kernel is made of."""

    package: str
    cmdline: str
    modules: tuple[str, ...]
    xen_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What goes into an image. Paths in the image are absolute; paths beside the recipe are relative to it."""

    name: str
    version: str
    suite: str
    packages: tuple[str, ...] = ()
    pip: Pip | None = None
    files: tuple[tuple[str, str], ...] = ()  # (path in the image, path beside the recipe)
    remove: tuple[str, ...] = ()  # patterns of paths in the image, removed after pip and before `commands`
    commands: tuple[tuple[str, ...], ...] = ()  # argument vectors, run in the image with no network
    free_mib: int = 256  # room left on the root disk for the job
    kernel: KernelParts | None = None


def parse(text: bytes, *, source: str) -> Recipe:
    """Read a recipe. Raises `UsageError` that names every problem with its key."""
    try:
        table = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{source}: not TOML: {error}", code="recipe-unreadable") from error
    problems: list[str] = []
    recipe = _recipe(_Table(table, "", problems))
    if not problems and recipe.kernel and (recipe.packages or recipe.pip or recipe.files or recipe.commands):
        problems.append("kernel: a recipe makes an image or a kernel, not both")
    if problems:
        raise UsageError(f"{source}: " + "; ".join(problems), hint="see docs/images.md", code="recipe-invalid")
    return recipe


def parse_requirements(text: bytes, *, source: str) -> tuple[str, ...]:
    """Read a requirements file of which every line is NAME==VERSION: anything looser builds another image tomorrow.

    Raises `UsageError`.

    >>> parse_requirements(b"# jets\\nfastjet==3.5.2.0\\n", source="r.txt")
    ('fastjet==3.5.2.0',)
    """
    pinned = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        if _PINNED.fullmatch(requirement) is None:
            raise UsageError(
                f"{source}:{number}: {requirement[:60]!r} is not NAME==VERSION",
                hint="pin every package, also those others need (pip freeze)",
                code="requirement-unpinned",
            )
        pinned.append(requirement)
    return tuple(pinned)


class _Table:
    """A TOML table that notes what is wrong with it instead of stopping at the first problem."""

    def __init__(self, values: dict[str, Any], where: str, problems: list[str]) -> None:
        self._values = dict(values)
        self._where = where
        self._problems = problems

    def problem(self, key: str, what: str) -> None:
        self._problems.append(f"{self._where}{key[:60]}: {what}")

    def text(self, key: str, good: Callable[[str], bool], what: str) -> str:
        value = self._values.pop(key, None)
        if isinstance(value, str) and good(value):
            return value
        self.problem(key, f"expected {what}, got {value!r:.60}" if value is not None else f"missing ({what})")
        return ""

    def texts(self, key: str, good: Callable[[str], bool], what: str) -> tuple[str, ...]:
        value = self._values.pop(key, [])
        if isinstance(value, list) and all(isinstance(item, str) and good(item) for item in value):
            return tuple(value)
        self.problem(key, f"expected a list of {what}, got {value!r:.60}")
        return ()

    def number(self, key: str, default: int, lowest: int, highest: int) -> int:
        value = self._values.pop(key, default)
        if type(value) is int and lowest <= value <= highest:
            return value
        self.problem(key, f"expected a number from {lowest} to {highest}, got {value!r:.60}")
        return default

    def table(self, key: str) -> _Table | None:
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(key, f"expected a table [{key}], got {value!r:.60}")
            value = {}
        return _Table(value, f"{self._where}{key}.", self._problems)

    def pairs(self) -> dict[str, Any]:
        values, self._values = self._values, {}
        return values

    def pop(self, key: str) -> Any:
        return self._values.pop(key, None)

    def end(self) -> None:
        for key in self._values:
            self.problem(key, "unknown key")


def _recipe(table: _Table) -> Recipe:
    recipe = Recipe(
        name=table.text("name", _matches(_NAME), "a name of letters, digits and . _ + -"),
        version=table.text("version", _matches(_NAME), "a version of letters, digits and . _ + -"),
        suite=table.text("suite", _matches(_SUITE), "a Debian suite such as bookworm"),
        packages=table.texts("packages", _matches(_PACKAGE), "Debian packages"),
        pip=_pip(table.table("pip")),
        files=_files(table.table("files")),
        remove=table.texts("remove", _in_image, "absolute patterns without '..'"),
        commands=_commands(table),
        free_mib=table.number("free_mib", Recipe.free_mib, 16, 1 << 20),
        kernel=_kernel(table.table("kernel")),
    )
    table.end()
    return recipe


def _pip(table: _Table | None) -> Pip | None:
    if table is None:
        return None
    pip = Pip(
        requirements=table.text("requirements", _beside, "a file relative to the recipe"),
        prefix=table.text("prefix", _in_image, "an absolute directory of the image, such as /usr/local"),
        python=table.text("python", _matches(_PYTHON), "the image's Python, such as 3.11"),
    )
    table.end()
    return pip


def _kernel(table: _Table | None) -> KernelParts | None:
    if table is None:
        return None
    kernel = KernelParts(
        package=table.text("package", _matches(_PACKAGE), "a Debian package"),
        cmdline=table.text("cmdline", lambda t: t.isascii() and t.isprintable() and len(t) < 1024, "printable ASCII"),
        modules=table.texts("modules", _matches(_MODULE), "kernel modules"),
        xen_modules=table.texts("xen_modules", _matches(_MODULE), "kernel modules"),
    )
    table.end()
    return kernel


def _files(table: _Table | None) -> tuple[tuple[str, str], ...]:
    if table is None:
        return ()
    files = []
    for inside, beside in table.pairs().items():
        if not _in_image(inside):
            table.problem(inside, "expected an absolute path of the image without '..'")
        elif not (isinstance(beside, str) and _beside(beside)):
            table.problem(inside, f"expected a file relative to the recipe, got {beside!r:.60}")
        else:
            files.append((inside, beside))
    return tuple(sorted(files))


def _commands(table: _Table) -> tuple[tuple[str, ...], ...]:
    value = table.pop("commands") or []
    if isinstance(value, list) and all(_is_argv(argv) for argv in value):
        return tuple(tuple(argv) for argv in value)
    table.problem("commands", f'expected a list of argument vectors [["ldconfig"]], got {value!r:.60}')
    return ()


def _is_argv(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(w, str) and "\0" not in w for w in value)


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


def _in_image(path: str) -> bool:
    return path.startswith("/") and path.isprintable() and len(path) < 1024 and ".." not in path.split("/")


def _beside(path: str) -> bool:
    """Any file of the builder's: a recipe is as trusted as the shell that starts the build."""
    return bool(path) and path.isprintable() and not path.startswith("/") and len(path) < 1024
