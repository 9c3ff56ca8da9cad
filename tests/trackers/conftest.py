"""Records to publish, nobody logged in, and a server on 127.0.0.1 that W&B's own client takes for W&B.

The server keeps what it is sent as W&B documents it: a run that is begun again without resuming is overwritten. It can
refuse the key (`trouble = "refuse"`), drop every connection (`"drop"`), or take no artifacts (`"quota"`); from a run on
if `trouble_at` names one.
"""

import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mad.config import Run
from mad.records import Record, Store

ARCH = {"name": "striped_hyena_with_a_name_of_more_than_sixty_four_characters_in_all", "stack": ["hyena", "attention"]}
CURVE = [{"step": 10, "loss": 2.0, "accuracy": 0.25}, {"step": 20, "loss": 1.0, "accuracy": 0.5}]


def make_record(seed: int, status: str = "ok", accuracy: float = 0.5) -> Record:
    run = Run.of({"task": {"name": "mqar", "vocab_size": 64}, "arch": ARCH, "seed": seed})
    failed: dict[str, Any] = {"error": "Traceback\nValueError: no"} if status == "failed" else {"curve": CURVE}
    cost = {"params": 1000, "flops": 2000, "state_size": 64}
    return Record(run.id, status, run.to_dict(), {"accuracy": accuracy}, cost=cost, steps=20, device="cpu", **failed)


def make_store(folder: Path, *records: Record) -> Store:
    made = Store(folder, "my sweep")
    for record in records:
        made.write(record)
    return made


@pytest.fixture
def make():
    return make_record


@pytest.fixture
def store():
    return make_store


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("API_KEY", "IDENTITY_TOKEN_FILE", "MODE", "PROJECT", "ENTITY", "BASE_URL", "DATA_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def server(monkeypatch):
    """A W&B that a key is there for; short waits."""
    made = Server()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    yield made
    made.http.shutdown()
    made.http.server_close()


class Server:
    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.trouble: str | None = None
        self.trouble_at: tuple[str, str] | None = None  # run id, and the trouble that begins once it has begun
        self.http = QuietServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": self}))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name, begun = given["name"], given.get("displayName") is not None
        if begun:
            self.runs[name] = {"history": [], "summary": {}, "complete": False, "title": given["displayName"]}
            self.runs[name]["group"] = given["groupName"]
        if given.get("config"):
            self.runs[name]["config"] = {key: item["value"] for key, item in json.loads(given["config"]).items()}
        if begun and self.trouble_at and self.trouble_at[0] == name:
            self.trouble = self.trouble_at[1]
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "them"}}
        bucket = {"id": name, "name": name, "displayName": given.get("displayName"), "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}

    def stream(self, run: str, given: dict[str, Any]) -> None:
        for file, part in given.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if file == "wandb-history.jsonl":
                self.runs[run]["history"][part["offset"] :] = lines
            elif file == "wandb-summary.json":
                self.runs[run]["summary"] = lines[-1]
        self.runs[run]["complete"] |= given.get("complete") or False
        self.runs[run]["exit"] = given.get("exitcode")

    def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """To the GraphQL operation `name`."""
        up, asked = f"{self.url}/up/", given.get("input") or {}
        if name == "UpsertBucket":
            return self.upsert_bucket(given)
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{up}{given['run']}/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact" and self.trouble == "quota":
            raise PermissionError("storage quota exceeded")
        if name == "CreateArtifact":
            artifact = {"id": asked["artifactCollectionName"], "state": "PENDING", "artifactSequence": {}}
            return {"createArtifact": {"artifact": {**artifact, "artifactSequence": {"latestArtifact": None}}}}
        if name == "CreateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{up}{given['artifactID']}/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "UpdateArtifactManifest":
            file = {"id": "f", "uploadUrl": f"{up}manifest", "uploadHeaders": []}
            return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "CreateArtifactFiles":
            nodes = [
                {"storagePath": f["name"], "uploadUrl": f"{up}{f['artifactID']}/{f['name']}", "uploadHeaders": []}
                | {"uploadMultipartUrls": None, "artifact": {"id": f["artifactID"]}}
                for f in asked["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        if name == "ArtifactByID":
            return {"artifact": logged_artifact(given["id"])}
        if name == "UpsertView2":
            self.views.append(given)
            return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
        viewer = {"id": "u", "entity": "them", "username": "them", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "project": None}


def logged_artifact(name: str) -> dict[str, Any]:
    """As W&B describes one that has been logged."""
    project = {"id": "p", "internalId": "p", "name": "mad", "entity": {"name": "them"}}
    empty = ("description", "metadata", "digestAlgorithm", "historyStep", "commitHash", "updatedAt")
    numbers = {"versionIndex": 0, "size": 1, "fileCount": 3, "digest": "d", "ttlDurationSeconds": -2}
    sequence = {"__typename": "ArtifactSequence", "name": name, "project": project}
    about = {"__typename": "Artifact", "id": name, "artifactSequence": sequence, "artifactType": {"name": "results"}}
    more = {"tags": [], "aliases": [], "state": "COMMITTED", "ttlIsInherited": True, "createdAt": "2026-01-01T00:00:00"}
    return {**about, **numbers, **more, **dict.fromkeys(empty)}


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # not just a client that is gone


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, format, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.state.trouble == "drop":
            self.close_connection = True
            self.connection.close()
        elif self.state.trouble == "refuse":
            self.send(401, {"errors": [{"message": "user is not logged in"}]})
        else:
            try:
                self.send(200, self.reply(body))
            except PermissionError as error:
                self.send(400, {"errors": [{"message": str(error)}]})

    do_GET = do_PUT = do_POST

    def reply(self, body: bytes) -> dict[str, Any]:
        if self.path == "/graphql":
            asked = json.loads(body)
            name = found[1] if (found := re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])) else ""
            self.state.asked.append(name)
            return {"data": self.state.answer(name, asked.get("variables") or {})}
        if self.path.endswith("/file_stream"):
            self.state.stream(self.path.split("/")[-2], json.loads(body))
        elif self.path.startswith("/up/"):
            self.state.files[self.path.removeprefix("/up/")] = body
        return {}

    def send(self, code: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
