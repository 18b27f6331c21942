#!/bin/sh
#SBATCH --job-name=hep-jets
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=10:00
#SBATCH --output=hep-jets.%j.out
# Find jets with Pythia 8 and FastJet in the image hep-jets:
#   sbatch --vm-image=hep-jets job.sh [EVENTS]                      Slurm
#   qsub -cwd -S /bin/sh -v VM_IMAGE=hep-jets job.sh [EVENTS]       Grid Engine
# The job runs in the directory it was submitted from, in the guest too; jets.json is left there.
set -eu

echo "job ${SLURM_JOB_ID:-${JOB_ID:-none}} of $(id -un) on $(uname -n), kernel $(uname -r), in $(pwd)"
# The example's own directory when it was copied into the job's; Slurm runs a copy of this script from elsewhere.
exec python3 "${JETS_DIR:-.}/jets.py" --events "${1:-100}" --out jets.json
