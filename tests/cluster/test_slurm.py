"""The SLURM script on a machine without SLURM: its programs stand in, and write down how they were called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/deploy/slurm.sh"
STAND_INS = {
    "scontrol": "echo a1; echo a2; echo a3",
    "srun": 'echo "srun $*" >> "$CALLS"; [[ "$*" == *hostname* ]] || exec sleep 60; echo fe80::1 127.0.0.1 10.0.0.5',
    "ray": 'echo "ray $* $RAY_AUTH_MODE $(wc -c < "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"',
    "python": 'echo "python $* at $RAY_ADDRESS" >> "$CALLS"; ls -l "$RAY_AUTH_TOKEN_PATH" >> "$CALLS"; exit $STATUS',
    "nproc": "echo 8",
}


@pytest.fixture
def run(tmp_path):
    """A function that runs the script with a command, and gives its exit status and the calls that it made."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)

    def call(*words: str, status: int = 0, **more: str) -> tuple[int, list[str]]:
        calls, scratch = tmp_path / "calls", tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        calls.write_text("")
        slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "a[1-3]", "SLURM_SUBMIT_DIR": str(tmp_path)}
        env = {**os.environ, **slurm, "CALLS": str(calls), "STATUS": str(status), "SCRATCH": str(scratch), **more}
        env["PATH"] = f"{programs}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(SCRIPT), *words], env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert not list(scratch.iterdir()), f"the token is gone: {done.stderr}"
        return done.returncode, calls.read_text().splitlines()

    return call


def test_a_head_a_raylet_a_node_and_one_driver(run):
    status, calls = run("train", "kd", "name=a b", SLURM_CPUS_PER_TASK="16", SLURM_GPUS_ON_NODE="4")
    assert status == 0
    started = sorted(line for line in calls if "ray start" in line)
    options = "--disable-usage-stats --temp-dir=/tmp/ray-4242 --num-cpus=16 --num-gpus=4 --block"
    where = "srun --nodes=1 --ntasks=1 --nodelist="
    assert started == [
        f"{where}a1 ray start --head --node-ip-address=10.0.0.5 --port=24242 {options}",
        f"{where}a2 ray start --address=10.0.0.5:24242 {options}",
        f"{where}a3 ray start --address=10.0.0.5:24242 {options}",
    ]
    assert "ray health-check --address 10.0.0.5:24242 token 64" in calls
    assert "python -m ops train kd name=a b at 10.0.0.5:24242" in calls
    assert any(line.startswith("-rw-------") for line in calls), "the token is its user's alone"


@pytest.mark.parametrize("status", [1, 2, 143])
def test_the_exit_status_is_the_command_s(run, status):
    assert run("train", "kd", status=status)[0] == status


def test_it_is_a_script_for_sbatch():
    text = SCRIPT.read_text()
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert text.startswith("#!/bin/bash\n")
    last_option = max(i for i, line in enumerate(text.splitlines()) if line.startswith("#SBATCH"))
    assert not [line for line in text.splitlines()[:last_option] if line and not line.startswith("#")]
