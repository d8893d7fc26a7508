"""A hub on this machine: a repository by HTTP, with redirects, tags, tokens and every fault."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"commit").hexdigest()
LARGE = ".safetensors"  # such files lie on another host


@dataclass(frozen=True)
class Asked:
    """One request that was answered with bytes of a file."""

    file: str
    range: str
    sent: int
    token: str


@dataclass
class Hub:
    """One repository, how it misbehaves, and what it was asked."""

    folder: Path
    repo: str = "someone/model"
    port: int = 0
    gated: bool = False
    knows_ranges: bool = True
    redirects: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes of the next answers of weights
    stalls: int = 0  # answers of weights that never end
    refusals: list[int] = field(default_factory=list)  # status codes of the next ones
    expired: int = 0  # signed addresses that are no longer good
    salt: str = ""  # of the tags: another one is another version
    asked: list[Asked] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight files that were sent."""
        return sum(each.sent for each in self.asked if each.file.endswith(LARGE))

    def tag(self, file: str) -> str:
        return hashlib.sha256((self.folder / file).read_bytes() + self.salt.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"), body=body, tag="cdn-")
            return
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/").partition("/revision/")[0])
            return
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if self._refuses(repo, revision, file):
            return
        if not body:
            self.hub.heads.append(file)
        if file.endswith(LARGE) and self.hub.redirects:
            size = (self.hub.folder / file).stat().st_size
            self._say(302, Location=f"http://localhost:{self.hub.port}/cdn/{file}?signed=1",
                      X_Linked_Etag=f'"{self.hub.tag(file)}"', X_Linked_Size=str(size))  # fmt: skip
            return
        self._file(file, body=body)

    def _refuses(self, repo: str, revision: str, file: str) -> bool:
        hub = self.hub
        if repo != hub.repo:
            self._say(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in ("main", COMMIT):
            self._say(404, X_Error_Code="RevisionNotFound")
        elif hub.gated and self.headers.get("Authorization") != "Bearer hf_good":
            code = 403 if self.headers.get("Authorization") else 401
            self._say(code, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif not (hub.folder / file).is_file():
            self._say(404, X_Error_Code="EntryNotFound")
        else:
            return False
        return True

    def _info(self, repo: str) -> None:
        names = sorted(path.name for path in self.hub.folder.iterdir())
        siblings = [{"rfilename": name} for name in names]
        facts = {"id": repo, "sha": COMMIT, "siblings": siblings}
        data = json.dumps(facts).encode()
        self._say(200, Content_Length=str(len(data)), Content_Type="application/json")
        self.wfile.write(data)

    def _file(self, file: str, *, body: bool, tag: str = "") -> None:
        hub, data = self.hub, (self.hub.folder / file).read_bytes()
        if tag and self.headers.get("Authorization"):
            self._say(400)  # a store of files wants no token of the hub
            return
        if tag and hub.expired:
            hub.expired -= 1
            self._say(403)
            return
        is_large = body and file.endswith(LARGE)
        if is_large and hub.refusals:
            self._say(hub.refusals.pop(0))
            return
        said = self.headers.get("Range", "") if hub.knows_ranges else ""
        low, high = 0, len(data)
        if said:
            first, _, last = said.removeprefix("bytes=").partition("-")
            low, high = int(first), min(int(last) + 1, len(data))
        facts = {"ETag": f'"{tag}{hub.tag(file)}"', "Content_Length": str(high - low)}
        if said:
            facts["Content_Range"] = f"bytes {low}-{high - 1}/{len(data)}"
        self._say(206 if said else 200, **facts)
        if body:
            self._send(file, data[low:high], said, is_large=is_large)

    def _send(self, file: str, data: bytes, said: str, *, is_large: bool) -> None:
        hub = self.hub
        cut = hub.cut_after.pop(0) if is_large and hub.cut_after else None
        data = data if cut is None else data[:cut]
        if is_large and hub.stalls:
            hub.stalls -= 1
            self.wfile.write(data[:10])
            hub.released.wait(30)
            data = b""
        asked = Asked(file, said, len(data), self.headers.get("Authorization", ""))
        hub.asked.append(asked)  # first: who has the bytes may count them
        try:
            self.wfile.write(data)
        except OSError:
            hub.asked.remove(asked)  # the other side has heard enough
            return
        self.close_connection = cut is not None or not data

    def _say(self, code: int, **facts: str) -> None:
        self.send_response(code)
        if not (code == 200 or code == 206):
            self.send_header("Content-Length", "0")
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in facts.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """Hold a hub that serves the files of a folder."""
    hub = Hub(folder)
    handler = type("OfHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
