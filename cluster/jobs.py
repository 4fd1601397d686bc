"""Handing a command to a Ray cluster as a job: the tree goes with it, its log comes back, and so does its exit status.

Data, outputs and environments stay behind: the cluster's nodes have the environment, and see the folders that the
recipe names.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.error_text import first_line
from cluster.parcel import pack_package, pack_parcel, place_in
from cluster.provenance import Provenance
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute_store, paths_of
from kdcore.credentials import has_credentials, without_credentials
from kdcore.errors import Refused, RunFailed
from kdcore.located import is_uri

TREE = Path(__file__).parents[1]
# How long `ray job stop` lets a run finish its step and write a checkpoint before killing it; 3 s without this.
TIME_TO_END = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


class Detached(Exception):
    """The user has stopped following a job, which runs on. The message says how to follow it again."""


@dataclass(frozen=True)
class JobOptions:
    """How a command is sent.

    include: files and folders of the tree that git does not track; env: {name: value} of the job's processes; name: of
    the job; wait: whether its log is followed; resources: of its driver, {"CPU": 1, "GPU": 0, "memory": bytes};
    modules: files and folders of Python modules that travel with the tree, and are imported by their names there.
    """

    include: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    wait: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


def submit(
    address: str, command: Sequence[str], token_file: str | None, show: Callable[[str], None], options: JobOptions
) -> int:
    """Run a command in the tree on the cluster behind `address` (its dashboard, such as http://head:8265).

    token_file: the cluster's token, for one that asks for it; None: Ray looks for it itself. show: takes the
    job's log, in pieces. Returns the job's exit status. Refused where the cluster cannot be reached or refuses the
    token, and for a larger upload than it accepts; RunFailed where the connection is lost; Detached on Ctrl-C.
    """
    refuse_other_address(address)
    use_token(token_file)
    refuse_credentials(command)
    parcel = pack_parcel(TREE, options.include)
    packages = {Path(module): pack_package(Path(module)) for module in options.modules if Path(module).is_dir()}
    secrets = [*parcel.secrets, *(f"{place}/{name}" for place, one in packages.items() for name in one.secrets)]
    if secrets:
        show(f"left out of the job, as their names say that they hold secrets: {', '.join(secrets)}\n")
    for one in (parcel, *packages.values()):  # each is an upload of its own
        one.refuse_too_large()
    provenance, shown = Provenance.of_tree(TREE), without_credentials(address)
    show(f"sending {parcel.summary()} of commit {provenance.commit} to {shown}\n")
    with as_packages(options.modules) as folders, tempfile.TemporaryDirectory() as folder:
        parcel.lay_out(Path(folder), provenance)
        client, job = send(
            address,
            options.name,
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": folder,
                **({"py_modules": folders} if folders else {}),
                "env_vars": {**TIME_TO_END, **options.env},
            },
            metadata={
                "command": shlex.join(command),
                "commit": provenance.commit,
                "submitter_host": f"{provenance.user}@{provenance.host}",
            },
            **driver_resources(options.resources),
        )
    if not options.wait:
        show(f"job {job} on {shown}; see it: ray job logs --follow --address {shown} {job}\n")
        return 0
    return follow(client, job, shown, show)


def refuse_other_address(address: str) -> None:
    """Refuse an address that is not a web page's: Ray would take it for a cluster's, and wait for that."""
    if not address.startswith(("http://", "https://")):
        raise Refused(f"--address {address}: give the address of the head's dashboard, such as http://head:8265")


def send(address: str, name: str | None, **job: Any) -> tuple[Any, str]:
    """Hand a job to the cluster; return Ray's client, and the job's name there."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # It logs every upload, and sets its own level when it is imported.
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        return client, client.submit_job(submission_id=name, **job)
    except AuthenticationError as error:
        raise Refused(
            f"{address} refuses the token; give the cluster's own with --token-file, or as ~/.ray/auth_token"
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise Refused(refusal_of(address, name, error)) from error


def refusal_of(address: str, name: str | None, error: BaseException) -> str:
    """Return the message about a cluster that does not take a job."""
    reason = first_line(error)
    if name is not None and "already exists" in str(error):
        return f"--name {name}: the cluster has a job of that name; give another, or none"
    return (
        f"{address} does not answer as a Ray cluster does ({reason}); give the address of the head's dashboard, such "
        "as http://head:8265"
    )


def driver_resources(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return the arguments of `submit_job` for the resources of a job's driver; empty if none are asked for."""
    names = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    known = {names[name]: amount for name, amount in resources.items() if name in names}
    if "entrypoint_memory" in known:
        known["entrypoint_memory"] = int(known["entrypoint_memory"])
    others = {name: amount for name, amount in resources.items() if name not in names}
    return {**known, **({"entrypoint_resources": others} if others else {})}


def refuse_credentials(command: Sequence[str]) -> None:
    """Refuse a command with a password in it: the cluster keeps and shows the commands of its jobs."""
    for word in command:
        if has_credentials(word):
            raise Refused(
                f"{without_credentials(word)}: it was given with credentials, which the cluster would "
                "keep and show as part of the job's command; leave them out, and set them in the environment of its "
                "nodes (such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID)"
            )


@contextmanager
def as_packages(modules: Sequence[str]) -> Iterator[list[str]]:
    """Give copies of modules as packages without secrets, also of single files: Ray's jobs take only folders."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for module in map(Path, modules):
            package = Path(folder) / (module.stem if module.is_file() else module.name)
            package.mkdir()
            if module.is_file():
                shutil.copyfile(module, package / "__init__.py")
            else:
                pack_package(module).lay_out(package)
            found.append(str(package))
        yield found


def use_token(token_file: str | None) -> None:
    """Turn Ray's token authentication on where there is a token; a client does not do so by itself."""
    if token_file is not None:
        if not Path(token_file).is_file():
            raise Refused(f"--token-file {token_file}: no such file; copy the cluster's token there")
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_file
        os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray would prefer it
    default = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or default.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def follow(client: Any, job: str, address: str, show: Callable[[str], None]) -> int:
    """Show a job's log to its end; return its exit status."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            show(text)

    again = f"ray job logs --follow --address {address} {job}"
    show(f"job {job} on {address}\n")
    try:
        asyncio.run(tail())
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        raise Detached(f"{job} still runs; see it: {again}; end it: ray job stop --address {address} {job}") from None
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RunFailed(
            f"lost sight of {job} ({first_line(error)}); it may still be running; to follow it: {again}"
        ) from error
    if info.status == "SUCCEEDED":
        return 0
    show(f"job {job}: {info.status}; {info.message or ''}\n")
    return info.driver_exit_code or 1


def shipped(path: str) -> str:
    """Return a recipe file's place in the tree as the job finds it; Refused for one that lies outside."""
    if (name := place_in(TREE, path)) is None:
        raise Refused(f"{path} lies outside {TREE}, which is what the job gets; copy it to ops/recipes/")
    return name


def check_paths(config: RunConfig) -> None:
    """Refuse a path that a job would look for in its own working folder, which starts without it and is not kept."""
    for key, path in paths_of(config):
        if key != "plugins":
            check_path(key, path)
    uri = config.tracking.uri
    if uri is not None and absolute_store(uri, Path("/here")) != absolute_store(uri, Path("/there")):
        raise Refused(
            f"tracking.uri is {uri!r}; a job needs a store that every node sees: give a server's address, or a file "
            "such as tracking.uri=sqlite:////shared/mlflow.db, or none for one in output_dir"
        )


def check_path(key: str, path: str) -> None:
    """Refuse the path of one field, as `check_paths` does."""
    if not is_uri(path) and not Path(path).is_absolute():
        raise Refused(f"{key} is {path!r}; a job needs a place that every node sees: give {key}=/shared/...")
