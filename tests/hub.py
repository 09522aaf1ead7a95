"""A hub of one's own: serves model folders to huggingface_hub's real client, and counts what is fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def serve_hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, names of the files fetched so far) of a hub that has the one model `name`."""
    fetched: list[str] = []

    def facts() -> dict[str, object]:
        files = [{"rfilename": path.name, "size": path.stat().st_size} for path in sorted(folder.iterdir())]
        return {"_id": "1", "id": name, "sha": COMMIT, "siblings": files, "private": False}

    def tree() -> list[dict[str, object]]:
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        return [{"type": "file", "path": path, "size": size, "oid": COMMIT} for path, size in sizes.items()]

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{name}"):
                return self._send(200, json.dumps(tree() if "/tree/" in path else facts()).encode(), body)
            file = folder / Path(path).name
            if not path.startswith(f"/{name}/resolve/") or not file.is_file():
                self._send(404, b"", body)
                return None
            if body:
                fetched.append(file.name)
            return self._send(200, file.read_bytes(), body)

        def _send(self, status: int, content: bytes, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
