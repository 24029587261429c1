"""Five scripts that pretend to be Slurm's sbatch, squeue, sacct, scancel and srun.

Jobs run here, each in a session of its own. A job has a directory with its process id, and with its exit status when it has
ended. `fail` ends one like a node that fails.
"""

import os
import signal

SCRIPTS = {
    "sbatch": r"""
id=$(ls "$JOBS" | wc -l); id=$((id + 100)); mkdir -p "$JOBS/$id"; script="$1"
out=$(sed -n 's/^#SBATCH --output=//p' "$script"); err=$(sed -n 's/^#SBATCH --error=//p' "$script")
echo "$script" >> "$JOBS/$id/script"
export SLURM_JOB_ID=$id
lead='echo $$ > "$2/pid"; bash "$1"; echo $? > "$2/exit"'
setsid bash -c "$lead" job "$script" "$JOBS/$id" >"$out" 2>"$err" </dev/null &
echo "Submitted batch job $id"
""",
    "sacct": r"""
if [ "$1" = -X ] && [ $# -eq 1 ]; then exit 0; fi
while [ $# -gt 1 ]; do shift; done
for id in ${1//,/ }; do
    if [ -e "$JOBS/$id/cancelled" ]; then echo "$id CANCELLED by 0"
    elif [ -e "$JOBS/$id/exit" ]; then echo "$id COMPLETED"
    elif kill -0 "$(cat "$JOBS/$id/pid")" 2>/dev/null; then echo "$id RUNNING"
    else echo "$id NODE_FAIL"; fi
done
""",
    "squeue": r"""
for job in "$JOBS"/*; do [ -e "$job/exit" ] || echo "$(basename "$job") R"; done
""",
    "scancel": r"""
for id in "$@"; do touch "$JOBS/$id/cancelled"; kill -KILL -- "-$(cat "$JOBS/$id/pid")" 2>/dev/null; done; exit 0
""",
    "srun": r"""
while [ "${1#-}" != "$1" ]; do case "$1" in --ntasks) shift 2;; *) shift;; esac; done
echo srun "$@" >> "$JOBS/$SLURM_JOB_ID/script"
exec "$@"
""",
}


def install(folder):
    """Write the scripts. Returns the environment variables under which a program finds them."""
    jobs, scripts = folder / "jobs", folder / "slurm"
    jobs.mkdir()
    scripts.mkdir()
    for name, text in SCRIPTS.items():
        (scripts / name).write_text(f"#!/bin/bash\nJOBS={jobs}\n{text.lstrip()}")
        (scripts / name).chmod(0o755)
    return {"PATH": f"{scripts}:{os.environ['PATH']}", "PEFT_HARNESS_ADDRESS": "127.0.0.1"}


def jobs(folder):
    """Return job -> the process that leads it."""
    return {one.name: int((one / "pid").read_text()) for one in (folder / "jobs").iterdir() if (one / "pid").is_file()}


def fail(folder, job):
    """End a job like a node that fails."""
    os.killpg(jobs(folder)[job], signal.SIGKILL)
