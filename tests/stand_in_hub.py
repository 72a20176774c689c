"""A stand-in for the Hub on this machine's loopback address: it serves one local folder as one model repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(folder: Path, repo_id: str) -> Iterator[str]:
    """Serve `folder` as the model `repo_id`; yields the address to put into `HF_ENDPOINT`."""
    handler = type("Handler", (HubHandler,), {"folder": folder, "repo_id": repo_id})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks when it downloads the files of a repository."""

    folder: Path
    repo_id: str

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        if path.startswith(f"api/models/{self.repo_id}/tree/"):
            self.send_json([{"type": "file", "path": name, "size": 0, "oid": COMMIT} for name in self.file_names()])
        elif path == f"api/models/{self.repo_id}" or path.startswith(f"api/models/{self.repo_id}/revision/"):
            files = [{"rfilename": name} for name in self.file_names()]
            self.send_json({"id": self.repo_id, "sha": COMMIT, "siblings": files, "private": False, "gated": False})
        elif path.startswith(f"{self.repo_id}/resolve/"):
            self.send_file(path.split("/", 4)[-1])
        else:
            self.send_missing("RepoNotFound")

    do_HEAD = do_GET

    def file_names(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir() if file.is_file())

    def send_json(self, content):
        self.send_content(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str):
        if name not in self.file_names():
            self.send_missing("EntryNotFound")
            return
        content = (self.folder / name).read_bytes()
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.send_content(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def send_content(self, content: bytes, headers: dict[str, str]):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_missing(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Keep the test output free of requests."""
