#!/bin/sh -p
# sge_shepherd runs this as root on the first host of a job, before the job (queue_conf(5): prolog root@PATH), with the
# variables of the job's user. `lrms-vm install` fills in the names between @. A job that asked for no VM leaves here,
# before Python starts. For the others nothing of the user's environment goes on: what they want is in the spool.
# -p and LC_ALL: no start file, function or message catalogue that a variable names. $PPID is sge_shepherd.
[ "${VM_IMAGE+x}" = x ] || exit 0
LC_ALL=C
export LC_ALL
exec /usr/bin/env -i SGE_ROOT=@SGE_ROOT@ SGE_CELL=@SGE_CELL@ SGE_QMASTER_PORT=@SGE_QMASTER_PORT@ SGE_EXECD_PORT=@SGE_EXECD_PORT@ \
    @PYTHON@ -I -m lrms_vm --config @CONFIG@ prologue --lrms gridengine -- "$PPID"
