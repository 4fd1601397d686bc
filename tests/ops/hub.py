"""A stand-in for a model hub on the loopback address: the requests by which `huggingface_hub` commits, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_a-token-that-nobody-may-see"
REGULAR = (".md", ".json", ".py")  # other files go through large file storage


@dataclass
class Repository:
    """files: {path: content} after the last commit; commits: the message of each."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds. refuse: {part of a request's path: status to answer with}; asked: every request."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, object]:
        self.asked.append(f"{method} {path}")
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "because it is so"}
        if method == "PUT":
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": f"Invalid credentials: {token}"}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in self.repositories else 200
            is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.repositories.setdefault(name, Repository(is_private))
            return status, {"url": f"{self.address}/{name}", "error": "exists already"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        asked = re.fullmatch(r"/(?:api/models/)?([\w-]+/[\w-]+)(?:\.git)?(?:/(.*))?", path.partition("?")[0])
        if asked is None or asked[1] not in self.repositories:
            return 404, {"error": "there is no such thing"}
        return self.answer_repository(self.repositories[asked[1]], asked[1], asked[2] or "revision/main", body)

    def answer_repository(self, one: Repository, name: str, action: str, body: bytes) -> tuple[int, object]:
        if action.startswith("tree/"):
            return 200, [{"type": "file", "path": p, "size": len(c), "oid": git_oid(c)} for p, c in one.files.items()]
        if action.startswith("preupload/"):
            files = [self.preupload(one, row["path"]) for row in json.loads(body)["files"]]
            return 200, {"files": files, "commitOid": one.head}
        if action == "info/lfs/objects/batch":
            rows = [self.upload_of(row) for row in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": rows}
        if action.startswith("commit/"):
            self.commit(one, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/{one.head}", "commitOid": one.head}
        if action.startswith("revision/"):
            return 200, {"id": name, "sha": one.head, "siblings": [], "tags": [], "private": one.private}
        raise AssertionError(f"the stand-in does not know {action}")

    def upload_of(self, row: dict[str, object]) -> dict[str, object]:
        return {**row, "actions": {"upload": {"href": f"{self.address}/large/{row['oid']}", "header": {}}}}

    def preupload(self, one: Repository, path: str) -> dict[str, object]:
        is_regular, content = path.endswith(REGULAR), one.files.get(path)
        oid = None if content is None else (git_oid(content) if is_regular else hashlib.sha256(content).hexdigest())
        return {"path": path, "uploadMode": "regular" if is_regular else "lfs", "shouldIgnore": False, "oid": oid}

    def commit(self, one: Repository, rows: list[dict]) -> None:
        for row in rows[1:]:
            value = row["value"]
            if row["key"] == "file":
                one.files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                one.files[value["path"]] = self.large[value["oid"]]
            else:
                del one.files[value["path"]]
        one.commits.append(rows[0]["value"]["summary"])


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Give a hub that answers until the body ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_all(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = read_chunks(self)
            status, content = hub.answer(self.command, self.path, self.headers.get("Authorization"), body)
            answer = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = handle_all

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read_chunks(handler: BaseHTTPRequestHandler) -> bytes:
    """Read a body that comes in chunks."""
    found = b""
    while length := int(handler.rfile.readline(), 16):
        found += handler.rfile.read(length)
        handler.rfile.readline()
    handler.rfile.readline()
    return found
