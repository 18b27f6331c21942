# OpenPBS runs this in its own Python at the events of a job (qmgr: create hook lrms_vm). `lrms-vm install` fills in the
# names between @. It reads what the event says, leaves at once for a job that asked for no VM, hands the rest to our
# isolated Python, and does with the job and the node what that prints. Only the standard library, for Python 3.6 on.
import glob
import json
import os
import re
import subprocess

import pbs

PYTHON = "@PYTHON@"
CONFIG = "@CONFIG@"
RUN_DIR = "@RUN_DIR@"
EXEC = "@EXEC@"
ALARM_S = "@ALARM_S@"
RESOURCE, VARIABLE = "vm_image", "VM_IMAGE"
REFERENCE = re.compile(r"(?!.*\.\.)[A-Za-z0-9/][A-Za-z0-9._:/@+-]{0,1023}\Z")


def main(event):
    """One of the events below; every other is none of our business."""
    what = {
        pbs.QUEUEJOB: queuejob,
        pbs.EXECJOB_BEGIN: begin,
        pbs.EXECJOB_PROLOGUE: require_verdict,
        pbs.EXECJOB_LAUNCH: launch,
        pbs.EXECJOB_EPILOGUE: end,
        pbs.EXECJOB_END: end,
        pbs.EXECHOST_STARTUP: startup,
    }.get(event.type)
    if what is not None:
        what(event)
    event.accept()


def queuejob(event):
    """What can be told before the job waits: a name that is none. Whether there is such an image, the node knows."""
    image = asked(event.job)
    if image is not None and REFERENCE.match(image) is None:
        event.reject(f"lrms_vm: {image[:80]!r} is not the name of an image (letters, digits and ._:/@+-)")


def begin(event):
    """On each node of the job, before anything of it runs."""
    if asked(event.job) is None:
        return
    code, lines, said = call("prologue", facts(event))
    follow(event, lines)
    if code != 0:
        if not any(line.get("do") == "hold" for line in lines):
            event.job.rerun()
        event.reject(said or "lrms_vm: no guest could be made on this node")


def require_verdict(event):
    """Were the hook of execjob_begin switched off, the job would run on the host."""
    if asked(event.job) is not None and verdict(event.job) is None:
        hold(event)
        event.reject("lrms_vm: this job asked for a VM, but no hook of ours made one on this node")


def launch(event):
    """Each shell and task of the job, on each node: our program, as the user, in its place."""
    path = verdict(event.job)
    if path is None:
        if asked(event.job) is not None:
            event.reject("lrms_vm: this job asked for a VM, but no hook of ours made one on this node")
        return
    words = [str(word) for word in event.argv or []]
    command = [str(event.progname), *words[1:]]
    event.progname = EXEC
    commands = os.path.join(pbs.pbs_conf.get("PBS_EXEC") or "/opt/pbs", "bin")
    event.argv = [EXEC, "exec", "--lrms", "openpbs", "--commands", commands, "--verdict", path, "--", *command]


def end(event):
    """After the job. Whatever happens it is accepted: a rejection would change the job's exit status."""
    noted = os.path.join(RUN_DIR, "jobs", key(event.job) + ".*")
    if verdict(event.job) is not None or glob.glob(noted):
        _, lines, _ = call("epilogue", facts(event))
        follow(event, lines)


def startup(event):
    """pbs_mom starts: what jobs that are gone left here is removed."""
    call("reap", None, ["--node", node(), "--"] + (jobs_here() or ["none"]))


# -- what the event says


def asked(job):
    """The image, by the first carrier that is there; None: no VM is asked for."""
    for holder, name in ((job.Resource_List, RESOURCE), (job.Variable_List, VARIABLE)):
        value = texts(holder).get(name)
        if value is not None and value != "":
            return value
    return None


def facts(event):
    job = event.job
    local = pbs.get_local_nodename()
    vnodes = [str(name) for name in event.vnode_list.keys()] if event.vnode_list else []  # noqa: SIM118 - no dict
    return {
        "id": str(job.id),
        "node": node(),
        "euser": str(job.euser),
        "queue": str(job.queue or ""),
        "exec_vnode": str(job.exec_vnode or ""),
        "vnodes": vnodes or [str(local)],
        "resources": texts(job.Resource_List),
        "variables": texts(job.Variable_List),
        "run_count": int(job.run_count or 0),
        "jobs": [*jobs_here(), str(job.id)],
    }


def texts(values):
    """A Resource_List or a Variable_List as a plain dictionary of texts."""
    if values is None:
        return {}
    names = [name for name in values.keys() if values[name] is not None]  # noqa: SIM118 - PBS's own kind of mapping
    return {str(name): str(values[name]) for name in names}


def node():
    return str(pbs.get_local_nodename()).split(".")[0]


def jobs_here():
    """The jobs that pbs_mom keeps files of. One that cannot be told is said as it is: then nobody's guest is reaped."""
    directory = os.path.join(pbs.pbs_conf["PBS_HOME"], "mom_priv", "jobs")
    try:
        names = [name.rpartition(".") for name in os.listdir(directory)]
    except OSError:
        return ["?"]
    return sorted({stem for stem, _, end in names if end in ("JB", "SC", "TK") and stem})


def key(job):
    """As lrms/pbs_text.py: 42[1].server is 42-1."""
    return "openpbs-" + str(job.id).split(".")[0].replace("[", "-").replace("]", "")


def verdict(job):
    found = glob.glob(os.path.join(RUN_DIR, "verdicts", key(job) + ".*.json"))
    return found[0] if found else None


# -- what is done


def call(verb, known, words=()):
    """Our own Python, with nothing of this one's: its exit code, its instructions, its first line for the user."""
    argv = [PYTHON, "-I", "-m", "lrms_vm", "--config", CONFIG, verb, "--lrms", "openpbs"]
    argv += list(words) if known is None else ["--", str(ALARM_S)]
    given = json.dumps(known or {}).encode()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            close_fds=True,
        )
        out, err = process.communicate(given)
    except OSError as error:
        pbs.logmsg(pbs.LOG_ERROR, f"lrms_vm: cannot start {PYTHON}: {error}")
        return 1, [{"do": "hold", "why": "lrms_vm: cannot start its program on this node"}], ""
    said = err.decode("utf-8", "replace").strip().splitlines()
    for line in said:
        pbs.logmsg(pbs.LOG_WARNING, line[:1000])
    if verb == "reap":
        return process.returncode, [], ""
    try:
        lines = [json.loads(line) for line in out.decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if isinstance(line, dict)]
    except ValueError:
        lines = [{"do": "hold", "why": "lrms_vm: its program on this node said nothing that can be read"}]
    if process.returncode not in (0, 1) and not lines:
        lines = [{"do": "hold", "why": f"lrms_vm: its program on this node ended with {process.returncode}"}]
    return process.returncode, lines, said[0][:400] if said else ""


def follow(event, lines):
    for line in lines:
        if line.get("do") == "take out":
            mine = event.vnode_list[pbs.get_local_nodename()]
            mine.state = pbs.ND_OFFLINE
            mine.comment = str(line.get("why", "lrms_vm"))[:250]
        elif line.get("do") == "hold" and event.type == pbs.EXECJOB_BEGIN:
            hold(event)


def hold(event):
    event.job.Hold_Types = pbs.hold_types("s")
    event.job.rerun()


main(pbs.event())
