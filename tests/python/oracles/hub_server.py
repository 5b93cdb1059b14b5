"""A hub on this machine with one model: the routes that huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import urllib.parse
from typing import Any

MODEL = "org/model"


class Server(http.server.ThreadingHTTPServer):
    """A hub with one model, and what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.commit = "c" * 40
        self.asked: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """The routes of the hub that the library needs."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        revisions = ("main", "v1", self.server.commit)
        if self.server.broken:
            self._send(500, b"{}")
        elif path in (
            f"/api/models/{MODEL}",
            *(f"/api/models/{MODEL}/revision/{r}" for r in revisions),
        ):
            self._send(200, json.dumps(self._model()).encode())
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self._send(200, json.dumps(self._tree()).encode())
        elif path.startswith(f"/api/models/{MODEL}/revision/"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/org/gated"):
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(f"/{MODEL}/resolve/") and path.rsplit("/", 1)[1] in self.server.files:
            content = self.server.files[path.rsplit("/", 1)[1]]
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _model(self) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.server.files]
        return {"id": MODEL, "modelId": MODEL, "sha": self.server.commit, "siblings": siblings}

    def _tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for name, content in self.server.files.items()
        ]

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
