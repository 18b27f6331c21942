"""`python -I -m lrms_vm VERB ...`, as the hooks call it; `attach --verdict FILE` only as the prologue does."""

from __future__ import annotations

import gc
import os
import sys

gc.disable()  # a hook ends before there is garbage; collecting while importing is a fifth of its start (measured)

# Some batch systems hand the job's environment to root's hooks. These names choose code and certificates for the
# libraries that are loaded below: OPENSSL_CONF alone names a shared object.
_CHOOSING = ("OPENSSL", "SSL_", "X509_", "LD_", "GLIBC_", "MALLOC_", "GCONV_", "LOCPATH", "LIBVIRT_", "XDG_", "TMPDIR")
if os.geteuid() == 0:
    for _name in [one for one in os.environ if one.startswith(_CHOOSING)]:
        del os.environ[_name]

for _fd in (0, 1, 2):  # an interactive job of Grid Engine has none of them yet: our next file must not become one
    try:
        os.fstat(_fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)

if __name__ == "__main__":
    if sys.argv[1:2] == ["attach"]:  # starts beside every guest: without the command line's parser
        from lrms_vm.attach import main
    else:
        from lrms_vm.cli import main
    code = main()
    for _stream in (sys.stdout, sys.stderr):
        if _stream is not None:  # none where we were started without it
            _stream.flush()
    os._exit(code)  # nothing to tidy up in memory, while the new guest already wants the cpu
