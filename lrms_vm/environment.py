"""Which of a job's environment variables the payload gets. Pure: bytes in, bytes out.

The rule, and the one place where it is written down:

    1. Every variable of the job passes, exported bash functions too, except those that describe the host:
       `HOST_NAMES`, `HOST_PREFIXES` and everything of ours.
    2. `--vm-env=NAMES` adds back any of them by name, except ours.
    3. HOME, USER, LOGNAME, PATH are the guest's; SHELL is set there, to a shell the image has.
    4. LRMS_VM_IMAGE and LRMS_VM_IMAGE_DIGEST tell the payload where it runs.
    5. A task started from inside a guest (launchers.py): the values of that guest win, except the step's own
       (`STEP_PREFIXES`). They travel in one variable, because the host's programs must never run with them:
       an LD_PRELOAD set in the guest would be a way out of it.
"""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterable, Mapping

from lrms_vm.errors import RequestError
from lrms_vm.verdict import Verdict

TASK_VARIABLE = b"LRMS_VM_TASK_ENV"
MAX_TASK_VARIABLE_BYTES = 96 << 10  # one string of execve(2) holds 128 KiB
MAX_TASK_BYTES = 4 << 20  # unpacked
GUEST_PATH = b"/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

OURS = b"LRMS_VM_"
STEP_PREFIXES = (b"SLURM_", b"SLURMD_", b"SRUN_", b"SPANK_", b"PMI", b"PALS_", b"ROCR_VISIBLE", b"CUDA_VISIBLE")
HOST_NAMES = frozenset(
    b"PATH HOME SHELL USER LOGNAME MAIL HOSTNAME HOST HOSTTYPE PWD OLDPWD SHLVL _ "
    b"TMPDIR TMP TEMP TEMPDIR "
    b"BASH_ENV ENV CDPATH MANPATH INFOPATH PKG_CONFIG_PATH CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH "
    b"PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONEXECUTABLE PYTHONPYCACHEPREFIX VIRTUAL_ENV "
    b"PERL5LIB PERLLIB RUBYLIB GEM_PATH GEM_HOME GOPATH GOROOT JAVA_HOME CLASSPATH TCLLIBPATH R_HOME R_LIBS "
    b"GCONV_PATH LOCPATH NLSPATH TZDIR TERMINFO TERMINFO_DIRS MODULEPATH MODULESHOME LOADEDMODULES _LMFILES_ "
    b"DISPLAY XAUTHORITY WAYLAND_DISPLAY SESSION_MANAGER DESKTOP_SESSION KRB5CCNAME WINDOWID "
    b"INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET LISTEN_FDS LISTEN_PID MEMORY_PRESSURE_WATCH "
    b"SLURM_CONF PBS_JOBCOOKIE".split()
)
HOST_PREFIXES = (b"LD_", b"SSH_", b"XDG_", b"DBUS_", b"GPG_", b"SUDO_", b"SYSTEMD_", b"LMOD_", b"CONDA_", b"__LMOD")


def payload_environment(
    job: Mapping[bytes, bytes], verdict: Verdict, *, also: Mapping[bytes, bytes] | None = None
) -> dict[bytes, bytes]:
    """The payload's environment from that of the job's step, by the rule above. `also` is set last.

    Raises `RequestError` for a `LRMS_VM_TASK_ENV` that is not ours.
    """
    asked = {name.encode() for name in verdict.env_names}
    passed = {name: value for name, value in job.items() if _passes(name, asked)}
    fixed = {b"HOME": verdict.home, b"USER": verdict.user_name, b"LOGNAME": verdict.user_name}
    environment = passed | {name: value.encode() for name, value in fixed.items()}
    environment.setdefault(b"PATH", GUEST_PATH)
    if TASK_VARIABLE in job:
        guest = unpack(job[TASK_VARIABLE])
        environment |= {name: value for name, value in guest.items() if not name.startswith((*STEP_PREFIXES, OURS))}
    environment[b"LRMS_VM_IMAGE"] = verdict.image.get("name", "").encode()
    environment[b"LRMS_VM_IMAGE_DIGEST"] = verdict.image.get("digest", "").encode()
    return environment | dict(also or {})


def pack(environment: Mapping[bytes, bytes]) -> bytes:
    """A guest's environment as the value of `TASK_VARIABLE`. Raises `RequestError` when it is too large for one."""
    fields = b"".join(name + b"=" + value + b"\0" for name, value in environment.items())
    packed = binascii.b2a_base64(zlib.compress(fields), newline=False)
    if len(packed) > MAX_TASK_VARIABLE_BYTES or len(fields) > MAX_TASK_BYTES:
        raise RequestError(
            f"the environment is too large to take along: {len(fields)} bytes, {len(packed)} packed",
            hint=f"at most {MAX_TASK_VARIABLE_BYTES} bytes packed; unset what the step does not need",
            code="environment-too-large",
        )
    return packed


def unpack(packed: bytes) -> dict[bytes, bytes]:
    """What `pack` took. Raises `RequestError`: anybody can set a variable."""
    try:
        opened = zlib.decompressobj()
        fields = opened.decompress(binascii.a2b_base64(packed, strict_mode=True), MAX_TASK_BYTES)
        if opened.unconsumed_tail or not opened.eof:
            raise ValueError(f"more than {MAX_TASK_BYTES} bytes, or cut short")
    except (ValueError, zlib.error) as error:
        raise RequestError(
            f"{TASK_VARIABLE.decode()}: not what a launcher in a guest sends: {error}",
            hint="do not set this variable",
            code="environment-unreadable",
        ) from error
    return parse(fields)


def parse(fields: bytes) -> dict[bytes, bytes]:
    """NUL-terminated NAME=VALUE entries, as in environ(7); entries without a name are dropped."""
    pairs = (entry.partition(b"=") for entry in fields.split(b"\0"))
    return {name: value for name, equals, value in pairs if name and equals}


def entries(environment: Mapping[bytes, bytes]) -> Iterable[bytes]:
    return (name + b"=" + value for name, value in environment.items())


def _passes(name: bytes, asked: set[bytes]) -> bool:
    if name.startswith(OURS) or not name:
        return False
    return name in asked or not (name in HOST_NAMES or name.startswith(HOST_PREFIXES))
