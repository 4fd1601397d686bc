"""Handing a command to a Ray cluster as a job: the tree goes with it, its log comes back, and so does its exit status.

Data, outputs and environments stay behind: the cluster's nodes have the environment, and see the folders that the
recipe names.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.recipe import paths_of
from cluster.tracking.description import COMMIT, git_commit
from kdcore.credentials import has_credentials, without_credentials
from kdcore.errors import Refused, RunFailed
from pipelines.places import is_remote

TREE = Path(__file__).parents[1]
# What holds secrets by its name, anywhere in the tree: as in a .gitignore.
SECRETS = (
    ".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials", "credentials",
    "*credentials*.json", ".aws/", ".ssh/", ".ray/", ".config/", ".kube/", ".docker/", "*.pem", "*.key", "*.p12",
    "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "token", "*_token", "*-token",
    "*.token", "*token*.txt", "*token*.json", "secret", "secrets", "*.secret", "*secret*.txt", "*secret*.json",
    "*secret*.y*ml", "*password*.txt", "passwords", "password",
)  # fmt: skip
# As in a .gitignore; what the tree's own .gitignore names stays behind too.
EXCLUDES = (
    ".git/",
    ".venv/",
    "tests/",
    "/outputs/",
    "/data/",
    "/scratch/",
    "mlruns/",
    "mlflow.db",
    "__pycache__/",
    ".*_cache/",
)


class Detached(Exception):
    """The person who followed a job has gone; the job runs on. The message says how to come back to it."""


def submit(
    address: str,
    command: Sequence[str],
    token_file: str | None,
    show: Callable[[str], None],
    modules: Sequence[str] = (),
) -> int:
    """Run a command in the tree on the cluster behind `address` (its dashboard, such as http://head:8265).

    modules: files and folders of Python modules that travel beside the tree, and are found by their names there.
    token_file: the cluster's token, for one that asks for it; None: where Ray looks for it itself. show: takes the
    job's log, in pieces. Gives the job's exit status. Refused where the cluster cannot be reached or refuses the
    token; RunFailed where the connection is lost on the way; Detached on Ctrl-C.
    """
    use_token(token_file)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    refuse_credentials(command)
    if left_out := secret_files(TREE):
        show(f"left out of the job, for their names say that they hold secrets: {', '.join(left_out)}\n")
    try:
        client = JobSubmissionClient(address)
        with as_packages(modules) as packages:
            job = client.submit_job(
                entrypoint=shlex.join(command),
                runtime_env={
                    "working_dir": str(TREE),
                    "excludes": [*EXCLUDES, *SECRETS],
                    **({"py_modules": packages} if packages else {}),
                    "env_vars": {COMMIT: git_commit()},  # the repository stays behind
                },
                metadata={"command": shlex.join(command)},
            )
    except AuthenticationError as error:
        raise Refused(
            f"{address} refuses the token; give the cluster's own with --token-file, or as ~/.ray/auth_token"
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise Refused(
            f"{address} does not answer as a Ray cluster does ({first_line(error)}); give the address of the head's "
            "dashboard, such as http://head:8265"
        ) from error
    return follow(client, job, address, show)


def refuse_credentials(command: Sequence[str]) -> None:
    """Refuse a command with a password in it: the cluster keeps and shows the commands of its jobs."""
    for word in command:
        if has_credentials(word):
            raise Refused(
                f"{without_credentials(word)}: with the credentials that you have given it, which the cluster would "
                "keep and show as part of the job's command; leave them out, and set them in the environment of its "
                "nodes (such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID)"
            )


def secret_files(tree: Path) -> list[str]:
    """Return what of a tree would be part of a job, if its name did not say that it holds secrets."""
    stays = [pattern.strip("/") for pattern in EXCLUDES]
    found: list[str] = []
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if not _matches(name, stays)]
        found += [str(Path(folder, name).relative_to(tree)) for name in (*folders, *files) if _matches(name, SECRETS)]
        folders[:] = [name for name in folders if not _matches(name, SECRETS)]
    return sorted(found)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern.strip("/")) for pattern in patterns)


@contextmanager
def as_packages(modules: Sequence[str]) -> Iterator[list[str]]:
    """Give folders of modules as they are, and single files as packages: Ray's jobs take folders alone."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for module in map(Path, modules):
            if module.is_file():
                package = Path(folder) / module.stem
                package.mkdir()
                shutil.copyfile(module, package / "__init__.py")
                module = package
            found.append(str(module))
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
        raise Detached(f"{job} runs on; see it: {again}; end it: ray job stop --address {address} {job}") from None
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RunFailed(f"lost sight of {job} ({first_line(error)}); it may run on, see it: {again}") from error
    if info.status == "SUCCEEDED":
        return 0
    show(f"job {job}: {info.status}; {info.message or ''}\n")
    return info.driver_exit_code or 1


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shipped(path: str) -> str:
    """Return a recipe file's place in the tree as the job finds it; Refused for one that lies outside."""
    absolute = Path(path).absolute()
    if not absolute.is_relative_to(TREE):
        raise Refused(f"{path} lies outside {TREE}, which is what the job gets; copy it to ops/recipes/")
    return absolute.relative_to(TREE).as_posix()


def check_paths(config: RunConfig) -> None:
    """Refuse a path that a job would look for in its own working folder, which begins without it and is not kept."""
    for key, path in paths_of(config):
        if key != "plugins" and not is_remote(path) and not Path(path).is_absolute():
            raise Refused(f"{key} is {path!r}; a job needs a place that every node sees: give {key}=/shared/...")
