#!/bin/sh
# slurmd runs this as root on each node of a job, before the job (slurm.conf: Prolog=). `lrms-vm install` fills in the
# names between @. A job that asked for no VM leaves here, before Python starts; no command is run for it.
# The comment is split as in lrms_vm/lrms/slurm.py; a `case` pattern is no place for a newline, hence the variable.
blank=' 	
'
case "${SPANK_VM_IMAGE+x}${SPANK_VM_MEMORY+x}${SPANK_VM_CPUS+x}${SPANK_VM_NETWORK+x}${SPANK_VM_SHARE+x}${SPANK_VM_KERNEL+x}${SPANK_VM_ENV+x},${SLURM_JOB_COMMENT-}" in
x* | *[,\;"$blank"]lrms_vm:*) exec @PYTHON@ -I -m lrms_vm --config @CONFIG@ prologue --lrms slurm ;;
esac
exit 0
