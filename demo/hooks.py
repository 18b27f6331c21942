"""Our hooks and plugin in the demo's Slurm. (A stand-in until lrms_vm/install.py is there.)"""

from __future__ import annotations

from demo.layout import NODES, Layout

_HOOK = """\
#!/bin/sh
case "${{SPANK_VM_IMAGE:-}}:${{SLURM_JOB_COMMENT:-}}" in
    ?*:*|*lrms_vm:*) ;;
    *) exit 0 ;;
esac
exec {python} -I -m lrms_vm --config {config} {verb} --lrms slurm
"""


def write(layout: Layout) -> None:
    """Put prolog, epilog and plugstack.conf of each node in place."""
    plugin = layout.opt / "lrms_vm.so"
    (layout.etc / "plugstack.conf").write_text(f"required {plugin}\n" if plugin.exists() else "")
    for node in NODES:
        own = layout.etc / node
        verdicts = layout.places(node).verdicts
        line = f"required {plugin} exec={layout.command} verdicts={verdicts}\n"
        (own / "plugstack.conf").write_text(line if plugin.exists() else "")
        for name, verb in (("prolog", "prologue"), ("epilog", "epilogue")):
            text = _HOOK.format(python=layout.python, config=layout.config(node), verb=verb)
            (own / name).write_text(text)
            (own / name).chmod(0o755)
