"""Ray workers forked from a process that has imported what they need: a start takes little of a processor's time.

Ray starts a worker as `<py_executable> default_worker.py ...`. Here that executable is this file: it hands its command
line, environment, folder, network and standard streams to a server, which forks a process that goes on as the worker;
then it waits until that one has ended. A worker is a process of its own as ever, which Ray knows by its own number; it
ends with the process that stands for it, as what a node has started ends with a node that is killed.

Before that, Ray runs a program that applies a worker's `runtime_env` and becomes its executable, which takes half a
second of a processor. `set_up_here` has it run this file, which does the same for workers that are to be forked.

A program of a test that enters or starts a Ray of its own uses it where it is told to (`tests/commands.py`); elsewhere
its workers start as a user's do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NETWORK = Path("/proc/self/ns/net")
READY = "ready"
CONTEXT = "--serialized-runtime-env-context"
KEPT = 4  # processes with Ray, each of 80 MB
LARGEST = 2**17  # bytes of a request: a command line and an environment
# Not Ray itself, which is imported for each job anew (`serve`).
MODULES = (
    "cluster.training.loop",
    "cluster.tracking.mlflow_tracker",
    "mlflow.store.tracking.sqlalchemy_store",
    "nvidia.dali.fn",
    "torchvision",
)


@contextmanager
def serving(folder: Path, root: Path, within: Sequence[str] = ()) -> Iterator[str]:
    """Serve forks of a process that has the tree at `root` on its path; yield what `py_executable` has to be.

    within: what the server's command begins with, and so where its forks lie.
    """
    import subprocess

    command = [sys.executable, __file__, str(folder / "socket")]
    with subprocess.Popen(
        [*within, *command, READY],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the tests, which close its standard input as they end
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == READY
        yield shlex.join([sys.executable, "-I", "-S", *command[1:]])
        server.communicate()


def set_up_here() -> None:
    """Have the Ray nodes that this process starts from now on set up their workers by this file."""
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = __file__  # joined to Ray's own folder, which an absolute path replaces


def be_ray() -> None:
    """Be the command `ray`, its nodes setting up their workers by this file."""
    del sys.path[0], sys.argv[0]
    from ray.scripts.scripts import main

    set_up_here()
    main()


def set_up(words: list[str]) -> None:
    """Be what a worker's runtime_env makes of its command line, as Ray's own program does.

    words: the executable's script and what Ray tells it, with `--serialized-runtime-env-context JSON` among them.
    """
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument(CONTEXT, default="{}")
    parser.add_argument("--language")
    context, command = parser.parse_known_args(words)
    wanted = json.loads(context.serialized_runtime_env_context)
    executable = shlex.split(wanted.get("py_executable") or "")
    if __file__ not in executable or wanted.get("command_prefix"):  # not to be forked: Ray's program goes on
        theirs = Path(command[0]).with_name("setup_worker.py")
        os.execv(sys.executable, [sys.executable, str(theirs), *words])
    for name, value in wanted.get("env_vars", {}).items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    ask(executable[-1], command)


def ask(path: str, argv: list[str]) -> None:
    """Have the server at a socket fork a process that runs a script; return when it has ended."""
    words = json.dumps({"argv": argv, "environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
    with socket.socket(socket.AF_UNIX) as connection, NETWORK.open() as network:
        connection.connect(path)
        socket.send_fds(connection, [len(words).to_bytes(8)], [0, 1, 2, network.fileno()])
        connection.sendall(words)
        connection.recv(1)  # nothing ever comes; the other side is closed as the process ends


def serve(path: str) -> None:
    """Import the modules, then have a process forked for every one that asks, until standard input is closed.

    Ray's core reads its settings, a worker's job among them, once, as it is imported: a process that has imported Ray
    under the settings that are asked for forks all that ask for the same.
    """
    import gc
    import importlib
    import select

    for module in MODULES:
        importlib.import_module(module)
    assert "ray" not in sys.modules
    gc.freeze()  # what is never collected is never copied either
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    forks: dict[str, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print(READY, flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            connection, _ = listener.accept()
            with connection:
                head, files, _, _ = socket.recv_fds(connection, 8, 4)
                with connection.makefile("rb") as stream:
                    asked = stream.read(int.from_bytes(head))
                environment = json.loads(asked)["environment"]
                settings = json.dumps(
                    {name: environment[name] for name in sorted(environment) if name.startswith("RAY_")}
                )
                if settings not in forks:
                    forks[settings], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    if os.fork() == 0:
                        for other in (listener, connection, *forks.values()):
                            other.close()
                        for file in files:
                            os.close(file)
                        fork_with_ray(theirs, json.loads(settings))
                        os._exit(0)  # at once: it has nothing to end
                    theirs.close()
                    if len(forks) > KEPT:
                        forks.pop(next(iter(forks))).close()  # the oldest, which ends by that
                socket.send_fds(forks[settings], [asked], [*files, connection.fileno()])
            for file in files:
                os.close(file)


def fork_with_ray(requests: socket.socket, settings: dict[str, str]) -> None:
    """Import Ray under its settings, then fork a process for every request, until the server is gone."""
    import gc
    import importlib

    for name in set(os.environ) - set(settings):
        if name.startswith("RAY_"):
            del os.environ[name]
    os.environ.update(settings)
    importlib.import_module("ray")  # not ray.train: its actors draw ids, and every fork would go on with the same ones
    gc.freeze()
    while True:
        asked, files, _, _ = socket.recv_fds(requests, LARGEST, 5)
        if not asked:
            return
        if os.fork() == 0:
            requests.close()
            become(json.loads(asked), files)
            sys.exit()
        for file in files:
            os.close(file)


def become(asked: dict[str, Any], files: Sequence[int]) -> None:
    """Go on, in a forked process, as the script that was asked for.

    files: its standard streams, its network, and the connection to the process that stands for it.
    """
    import runpy

    import numpy as np

    *streams, network, connection = files
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    threading.Thread(target=die_with, args=(socket.socket(fileno=connection),), daemon=True).start()
    enter_network(network)
    os.setpgid(0, 0)  # Ray ends a worker's whole group with it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    np.random.seed()  # noqa: NPY002 - as a process of its own begins; Python's own generator does so by itself
    sys.argv = asked["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def die_with(connection: socket.socket) -> None:
    """End this process when the one at the other end of a connection is gone."""
    connection.recv(1)  # nothing ever comes
    os.kill(os.getpid(), signal.SIGKILL)


def enter_network(namespace: int) -> None:
    """Enter a network namespace, given as a file that is open, unless this process is in it; close the file."""
    import ctypes

    if os.fstat(namespace).st_ino != NETWORK.stat().st_ino:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(namespace)


if __name__ == "__main__":
    if sys.argv[2:] == [READY]:
        serve(sys.argv[1])
    elif sys.argv[1].endswith("default_worker.py"):
        set_up(sys.argv[1:])
    elif sys.argv[1] == "ray":
        be_ray()
    else:
        ask(sys.argv[1], sys.argv[2:])
