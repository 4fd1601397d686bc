"""The deployment files: against the schema that Ray ships, against the options of the programs that they call, and,
for KubeRay, whose schema no package carries, against its fields written down here. Anything unknown is refused."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.cli import server
from pydantic import ValidationError
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from cluster.jobs import TIME_TO_END, check_paths
from cluster.parcel import pack_parcel
from cluster.provenance import COMMIT
from cluster.training.board import STARTS_METRIC
from cluster.training.progress import GAUGES
from kdcore import __version__
from ops import catalog
from ops.command_line.parser import build_parser
from tests.cluster.manifests import ClusterSpec, RayCluster, RayJob, VolumeClaim

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster/deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def kuberay() -> Iterator[ClusterSpec]:
    yield RayCluster.model_validate(read("kuberay-cluster.yaml")).spec
    yield RayJob.model_validate(read("kuberay-job.yaml")).spec.rayClusterSpec


def pinned(package: str) -> str:
    return re.search(
        rf"^{package}==(\S+)", (ROOT / "requirements.txt").read_text().replace("[default,train,tune]", ""), re.M
    )[1]


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_kuberay_manifests():
    for spec in kuberay():
        assert spec.rayVersion == pinned("ray")
        assert spec.authOptions.mode == "token"
        assert spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
        for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
            assert {f"--{name}" for name in group.rayStartParams} <= options(start)
            pod = group.template.spec
            for container in pod.containers:
                assert container.resources.requests == container.resources.limits
                assert {mount.name for mount in container.volumeMounts} <= {volume.name for volume in pod.volumes}
        for group in spec.workerGroupSpecs:
            assert group.minReplicas <= group.replicas <= group.maxReplicas


def test_pods_write_as_the_image_s_user():
    """Else a fresh volume belongs to root. Credentials come from a secret, and nodes get time to go."""
    user = int(re.search(r"--uid (\d+)", (DEPLOY / "Dockerfile").read_text())[1])
    claim = VolumeClaim.model_validate(read("shared-volume.yaml"))
    assert claim.spec.accessModes == ["ReadWriteMany"]
    for spec in kuberay():
        for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
            pod = group.template.spec
            assert pod.securityContext.fsGroup == user
            assert {c.image for c in pod.containers} == {f"stillhouse:{__version__}"}
            assert all(c.envFrom[0].secretRef.optional for c in pod.containers)
            named = {volume.persistentVolumeClaim.claimName for volume in pod.volumes if volume.persistentVolumeClaim}
            assert named == {claim.metadata.name}
        assert all(group.template.spec.terminationGracePeriodSeconds >= 60 for group in spec.workerGroupSpecs)


def test_fault_tolerance_of_the_head():
    """The two lines that are taken in where there is a Redis."""
    text = (DEPLOY / "kuberay-cluster.yaml").read_text()
    taken_in = re.sub(r"^  # (gcsFault|  redisAddress)", r"  \1", text, flags=re.M)
    spec = RayCluster.model_validate(yaml.safe_load(taken_in)).spec
    assert spec.gcsFaultToleranceOptions.redisAddress.endswith(":6379")


def test_a_refused_run_is_not_repeated():
    job = RayJob.model_validate(read("kuberay-job.yaml"))
    assert job.spec.backoffLimit == job.spec.submitterConfig["backoffLimit"] == 0
    assert job.metadata.labels == {"kueue.x-k8s.io/queue-name": "stillhouse"}


def test_the_image_says_its_commit():
    text = (DEPLOY / "Dockerfile").read_text()
    assert "org.opencontainers.image.revision=$COMMIT" in text
    assert f"{COMMIT}=$COMMIT" in text


def test_an_unknown_field_is_refused():
    manifest = read("kuberay-cluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(ValidationError, match=r"workerGroupSpecs.0.replica"):
        RayCluster.model_validate(manifest)


def test_the_job_runs_a_recipe_that_fits():
    """Its command is one of this program's, its recipe is valid, and its workers find their GPUs and cores."""
    job = RayJob.model_validate(read("kuberay-job.yaml")).spec
    words = shlex.split(job.entrypoint)
    assert words[:3] == ["python", "-m", "ops"]
    args = build_parser().parse_args(words[3:])
    config = catalog.load(args.recipe, args.overrides)
    check_paths(config)
    (group,) = job.rayClusterSpec.workerGroupSpecs
    limits = group.template.spec.containers[0].resources.limits
    assert config.scaling.num_workers == group.replicas * int(limits["nvidia.com/gpu"])
    assert config.scaling.num_workers * config.scaling.cpus_per_worker <= group.replicas * int(limits["cpu"])
    home = re.search(r"^WORKDIR (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)[1]
    assert yaml.safe_load(job.runtimeEnvYAML) == {"working_dir": home, "env_vars": TIME_TO_END}


def test_ray_cluster():
    """Against the schema in Ray's own package, and with options that `ray start` has."""
    config = read("ray-cluster.yaml")
    validate_config(prepare_config(config))
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        given = {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert given <= options(start)


def test_commands_of_ray_up_find_ray_in_the_image(tmp_path):
    """In a login shell, as Ray calls one, where Debian's profile has set PATH anew. A home's stands in for it here."""
    line, place = re.search(r"^RUN echo '(.+)' > (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M).groups()
    assert re.fullmatch(r"/etc/profile\.d/\w+\.sh", place), "which Debian's profile reads after it has set PATH"
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text("#!/bin/sh\necho called with $1\n")
    ray.chmod(0o755)
    profile = f"PATH=/usr/bin:/bin\n{line.replace('/opt/stillhouse/bin', str(ray.parent))}\n"
    (tmp_path / ".bash_profile").write_text(profile)
    (command, *_) = read("ray-cluster.yaml")["head_start_ray_commands"]
    words = shlex.split(" ".join(_with_interactive(command)))
    env = {"HOME": str(tmp_path), "PATH": f"{ray.parent}:/usr/bin:/bin"}
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=False, start_new_session=True)
    assert said.stdout == "called with stop\n", said.stderr


def test_mlflow_server():
    services = read("mlflow.yaml")["services"]
    command = services["server"]["command"]
    assert command[:2] == ["mlflow", "server"]
    assert {word.partition("=")[0] for word in command[2:]} <= options(server)
    assert services["database"]["image"] == "postgres:16"
    assert services["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_mlflow_is_not_open_without_a_login():
    """On loopback until told otherwise, never without its login, and with no secret but those of its own file."""
    text = (DEPLOY / "mlflow.yaml").read_text()
    content = read("mlflow.yaml")
    server_, database = content["services"]["server"], content["services"]["database"]
    assert server_["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:5000:5000"]
    assert "ports" not in database
    assert "--app-name=basic-auth" in server_["command"]
    assert server_["env_file"] == database["env_file"] == [{"path": "mlflow.env", "required": True}]
    secrets = "POSTGRES_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY"
    assert f"for name in {secrets}" in text
    assert "umask 077" in text
    given = [str(one.get("environment", "")) for one in content["services"].values()] + server_["command"]
    assert not [one for one in given if re.search(r"PASSWORD|SECRET|://\w+:", one)]
    auth = configparser.ConfigParser()
    auth.read_string(content["configs"]["auth"]["content"])
    assert auth["mlflow"]["authorization_function"] == "mlflow.server.auth:authenticate_request_basic_auth"
    assert "admin_password" not in auth["mlflow"]
    pinned = re.findall(r"^([\w-]+)==", (DEPLOY / "requirements-mlflow.txt").read_text(), re.M)
    assert set(pinned) == {"flask-wtf", "psycopg2-binary", "wtforms"}


def test_the_secrets_of_mlflow_stay_here(tmp_path):
    """Neither git nor a job's package takes the file that they are in."""
    assert "mlflow.env" in (ROOT / ".gitignore").read_text().split()
    (tmp_path / "mlflow.env").touch()
    assert pack_parcel(tmp_path).secrets == ("mlflow.env",)


@pytest.mark.parametrize(("name", "context"), [("Dockerfile", ROOT), ("mlflow.Dockerfile", DEPLOY)])
def test_dockerfiles(name, context):
    """What is copied exists, and nothing is installed without its hash."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for words in (shlex.split(line) for line in lines if line.startswith("COPY")):
        for source in [word for word in words[1:-1] if not word.startswith("--")]:
            assert (context / source).exists(), source
    installs = re.findall(r"(?:pip install|pip sync)[^&]*", text)
    assert installs
    assert all("--require-hashes" in command for command in installs)


def test_the_dashboard_of_grafana():
    """Its panels ask for metrics that runs have, by the label that they carry, and stand beside one another."""
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    known = {f"ray_{name}" for name, _ in (*GAUGES.values(), STARTS_METRIC)}
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert {name for expr in asked for name in re.findall(r"ray_\w+", expr)} == known
    assert all('{run=~"$run"}' in expr and expr.count("(") == expr.count(")") for expr in asked)
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "run"}
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    text = (DEPLOY / "README.md").read_text()
    assert all(f"`{name}`" in text for name in known)


def test_images_name_no_registry():
    images = re.findall(r"(?:image:|FROM) *(\S+)", "\n".join(path.read_text() for path in DEPLOY.iterdir()))
    assert set(images) == {
        "stillhouse",
        f"stillhouse:{__version__}",
        "stillhouse-mlflow",
        "postgres:16",
        "python:3.12-slim",
    }


def test_every_file_is_explained():
    text = (DEPLOY / "README.md").read_text()
    files = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert not [name for name in files if f"`{name}`" not in text]
    assert not [path for path in re.findall(r"cluster/deploy/[\w.-]+", text) if not (ROOT / path).is_file()]
