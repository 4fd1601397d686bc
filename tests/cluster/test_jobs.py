"""Jobs handed to a running head that asks for a token: by this program's `submit` and by Ray's own command."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlflow
import psutil
import pytest
import safetensors.torch
import torch
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from kdcore.configs import ModelConfig
from kdcore.models import build_model
from ops.__main__ import main
from tests.cluster.machines import start_node
from tests.own_code import write_own_code, write_own_images

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPE = "ops/recipes/demo/teacher.yaml"
NO_TOKEN = {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None}
slow = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Head:
    address: str
    environment: dict[str, str]  # of one who has the token

    def run(self, *command: str, **changes: str | None) -> subprocess.CompletedProcess:
        """A command's end; changes to its environment, None for a variable it shall not have."""
        env = {name: value for name, value in (self.environment | changes).items() if value is not None}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    def submit(self, *command: str, **changes: str | None) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "ops", "submit", "--address", self.address, *command, **changes)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head started as an operator would, with a token of its own; everything it needs is its own too."""
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short: Ray puts sockets below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        env.pop(name, None)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder / 'ray'}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with start_node(command, env) as process:
        try:
            yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", env)
        finally:
            end(process)
    shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started. (Left to itself, `ray start` waits half a minute for them.)"""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=20)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def tiny(image_folder, tmp_path) -> list[str]:
    """Overrides that make a run of seconds, in the job's own process, out of the demo's teacher."""
    return [
        f"data.root={image_folder}",
        f"output_dir={tmp_path / 'out'}",
        "views.size=16",
        "student.args={widths: [4, 4, 8, 16]}",
        "train.batch_size=8",
        "train.micro_batch=4",
        "train.max_steps=4",
        "tracking.system_metrics=false",
        "scaling.num_workers=0",
    ]


class TestWithToken:
    pytestmark = slow

    def test_submit(self, head, tiny, image_folder, tmp_path):
        """The job's log comes back, its exit status too, and its result lies where the recipe says. It brings networks,
        a loss and a kind of images from a folder outside, which the job and its worker do not see."""
        token_file, code = head.environment["RAY_AUTH_TOKEN_PATH"], write_own_code(tmp_path / "code")
        images = write_own_images(image_folder, tmp_path / "listed")
        plugins = [f"--plugin={code / name}" for name in ("own_nets.py", "own_losses.py", "own_images")]
        own = [
            *("name=own", f"data.root={images}", "student.model=own_nets:build", "student.args={}"),
            "scaling.num_workers=1",
            *(
                'teacher={"model": "own_nets:build", "args": {"width": 8}}',
                'method=[{"term": "logit_l1", "weight": 1.0}]',
            ),
        ]
        done = head.submit("--token-file", token_file, "train", RECIPE, *tiny, *own, *plugins, **NO_TOKEN)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "own: step 4/4" in done.stdout
        assert re.search(r"sending [\d,]+ files, \d\.\d MiB of commit [0-9a-f]{40}(-dirty)? to http", done.stdout)
        facts = json.loads((tmp_path / "out/own/facts.json").read_text())
        assert facts["plugins"].keys() == {"own_nets", "own_losses", "own_images"}
        assert "plugins:\n- own_nets\n- own_losses\n- own_images\n" in (tmp_path / "out/own/recipe.yaml").read_text()
        tags, inputs = recorded(tmp_path / "out")
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", tags["mlflow.source.git.commit"])
        assert tags["mlflow.source.type"] == "JOB"
        assert tags["ray.job"].startswith("raysubmit_")
        assert tags["mlflow.user"]
        assert inputs == 1
        assert (tmp_path / "out/own/result.json").is_file()
        assert (tmp_path / "out/own/student.safetensors").is_file()

    def test_a_name_an_environment_and_no_waiting(self, head, tiny):
        """The job is there under its name, with the variable; a second one of that name is refused in one line."""
        words = ("--name", "named", "--env", "OF_THE_JOB=yes", "--no-wait", "--resources", "CPU=64", "train", RECIPE)
        done = head.submit(*words, *tiny)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "job named on" in done.stdout
        assert "yes" not in done.stdout
        token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        job = JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {token}"}).get_job_info("named")
        assert job.status == JobStatus.PENDING  # of a cluster with fewer CPUs: it never starts
        assert job.runtime_env["env_vars"]["OF_THE_JOB"] == "yes"
        again = head.submit(*words, *tiny)
        assert again.returncode == 2
        assert "--name named: the cluster has a job of that name" in one_line(again.stderr)

    @pytest.mark.long
    def test_a_job_builds_a_cache(self, head, image_folder, tmp_path):
        """File for file what this machine builds by itself."""
        torch.manual_seed(7)
        weights = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c")).state_dict()
        safetensors.torch.save_file(weights, tmp_path / "teacher.safetensors")
        words = [
            *(f"data.root={image_folder}", f"output_dir={tmp_path / 'out'}", "data.loader=reference"),
            *("views.size=16", "views.num_views=2"),
            *("train.batch_size=8", "train.micro_batch=4", "cache.batch_size=4", "cache.rows_per_shard=12"),
            f"teacher={{model: cifar_resnet8, checkpoint: {tmp_path / 'teacher.safetensors'}}}",
        ]
        built = [tmp_path / "job", tmp_path / "here"]
        done = head.submit("cache", "build", "kd", *words, f"cache.dir={built[0]}", "scaling.num_workers=2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert main(["cache", "build", "kd", *words, f"cache.dir={built[1]}", "scaling.num_workers=0"]) == 0
        ours, theirs = ({file.relative_to(one): file.read_bytes() for file in one.rglob("[!.]*.*")} for one in built)
        assert ours == theirs
        assert sum(path.suffix == ".arrow" for path in ours) == 2 * 4 + 2 + 1, "train, val and held_out"

    def test_ray_job_submit(self, head, image_folder, tmp_path):
        """Ray's own command, with a recipe that is not there: the job's failure comes back, in this program's words."""
        entry = ["python", "-m", "ops", "train", "nowhere.yaml"]
        submit = ["job", "submit", "--address", head.address, "--working-dir", ".", "--", *entry]
        done = head.run(str(BIN / "ray"), *submit)
        assert done.returncode != 0
        assert "stillhouse: nowhere.yaml: no such recipe" in done.stdout + done.stderr

    def test_failing_job(self, head, tiny):
        """What only the job can find out: its exit status is the job's."""
        done = head.submit("train", RECIPE, *tiny, "data.root=/nowhere")
        assert done.returncode == 2
        assert "data.root=/nowhere: no such folder" in done.stdout

    def test_wrong_token(self, head, tiny, tmp_path):
        wrong = tmp_path / "token"
        wrong.write_text(secrets.token_hex(32))
        done = head.submit("--token-file", str(wrong), "train", RECIPE, *tiny)
        assert done.returncode == 2
        assert f"{head.address} refuses the token; give the cluster's own with --token-file" in one_line(done.stderr)

    def test_no_token(self, head, tiny, tmp_path):
        """A client without any token, as on a machine that has never seen the cluster."""
        done = head.submit("train", RECIPE, *tiny, **NO_TOKEN, HOME=str(tmp_path))
        assert done.returncode == 2
        assert "refuses the token" in one_line(done.stderr)


def recorded(output_dir: Path) -> tuple[dict[str, str], int]:
    """The tags of the one run in an output folder's store, and how many data sets it names."""
    client = mlflow.MlflowClient(f"sqlite:///{output_dir / 'mlflow.db'}")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return run.data.tags, len(run.inputs.dataset_inputs)


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture
def refused(tiny, capsys):
    """A function that submits and gives the one line with which it is refused; no cluster is asked."""

    def run(*words: str) -> str:
        assert main(["submit", "--address", f"http://127.0.0.1:{free_ports(1)[0]}", *words]) == 2
        return one_line(capsys.readouterr().err)

    with mock.patch.dict(os.environ):
        yield run


def test_unreachable_address(refused, tiny):
    assert "does not answer as a Ray cluster does" in refused("train", RECIPE, *tiny)


def test_missing_recipe(refused):
    assert "nowhere.yaml: no such recipe" in refused("train", "nowhere.yaml")


def test_missing_token_file(refused, tiny):
    line = refused("--token-file", "nowhere/token", "train", RECIPE, *tiny)
    assert "--token-file nowhere/token: no such file" in line


def test_relative_folder(refused, tiny):
    """A job's working folder is thrown away: what it writes there is lost."""
    assert "give output_dir=/shared/..." in refused("train", RECIPE, *tiny, "output_dir=outputs")


@pytest.mark.parametrize("run", ["kd", ROOT / RECIPE, "/shared/outputs/run", "/shared/weights.safetensors"])
@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_relative_folder_of_what_is_looked_at(refused, command, run):
    """A recipe, by its name or its file, and a run on the cluster, which cannot be read here."""
    line = refused(command, str(run), "data.root=images", "output_dir=/shared/outputs")
    assert "data.root is 'images'; a job needs a place that every node sees: give data.root=/shared/..." in line
    line = refused(command, str(run), "data.root=/shared/images", "teacher.model=local-dir:mine", "output_dir=/shared")
    assert "teacher.model is 'mine'; a job needs a place that every node sees" in line


def test_recipe_outside_the_tree(refused, tiny, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": str(ROOT / RECIPE)}))
    assert f"{path} lies outside" in refused("train", str(path), *tiny)


def test_not_a_job(refused):
    assert "doctor cannot be submitted" in refused("doctor")
