"""HubDownloader: byte ranges of a model's files from the hub, over HTTP; resumes, never hangs."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from swarm.checkpoint.byte_ranges import ByteRange, ByteRanges, split
from swarm.checkpoint.hub_errors import explained
from swarm.checkpoint.sparse_file import FileFacts
from swarm.checkpoint.weight_store import Take
from swarm.errors import BadModel, Unreachable

STREAMS = 8  # requests at a time
PART_BYTES = 1 << 25  # of one request
READ_BYTES = 1 << 18
SKIP_BYTES = 1 << 20  # read past, at most, where a server knows no ranges
TRIES = 5  # in a row that bring next to nothing
LEAST_BYTES = 1 << 14  # that a try must bring to be none of those
PAUSE_SECONDS = 0.5  # before the second try; doubles from try to try
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes that may go away
STALE = frozenset({401, 403, 404, 410})  # of an address that the hub signed some time ago


class _NoRanges(Exception):
    """The server sends whole files only."""


class HubDownloader:
    """The files of one commit of one model."""

    name = "the hub"

    def __init__(self, repo: str, commit: str) -> None:
        self._repo, self._commit = repo, commit
        self._known: dict[str, FileFacts] = {}
        self._places: dict[str, tuple[str, str]] = {}  # by file: address of the bytes, their ETag
        self._stopping = threading.Event()

    def facts(self, file: str) -> FileFacts:
        """Size and ETag of a file; raises BadModel, Unreachable."""
        if file not in self._known:
            with explained(self._repo):
                found = self._metadata(file)
            if found.size is None or not found.etag:
                raise Unreachable(
                    f"The hub says neither size nor version of {file} of {self._repo}.",
                    "Check HF_ENDPOINT: it must be a Hugging Face hub or a mirror of one.",
                )
            self._known[file] = FileFacts(found.size, found.etag)
        return self._known[file]

    def fetch(self, file: str, facts: FileFacts, ranges: ByteRanges, take: Take) -> None:
        """Hand over the bytes of the ranges, several requests at a time; raises SwarmError."""
        if self.facts(file) != facts:
            raise _changed(file, self._repo)
        self._stopping.clear()
        with ThreadPoolExecutor(STREAMS, "hub") as pool:
            parts = split(ranges, PART_BYTES)
            jobs = [pool.submit(self._fetch, file, part, take) for part in parts]
            try:
                for job in jobs:
                    job.result()
            except _NoRanges:
                self._stop(pool)
                self._fetch_whole(file, ranges, take)
            except BaseException:
                self._stop(pool)
                raise

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        self._stopping.set()
        pool.shutdown(cancel_futures=True)

    def _fetch(self, file: str, wanted: ByteRange, take: Take) -> None:
        position, end = wanted
        failures, paid = 0, position
        with explained(self._repo):
            while position < end and not self._stopping.is_set():
                try:
                    for data in self._stream(file, position, end):
                        take(position, data)
                        position += len(data)
                    if position < end:
                        raise httpx2.RemoteProtocolError(f"{file} ended too early")
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    failures = 1 if position - paid >= LEAST_BYTES else failures + 1
                    paid = position
                    if failures >= TRIES or not _may_pass(error):
                        raise
                    self._stopping.wait(PAUSE_SECONDS * 2**failures)

    def _stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        place, _ = self._places.get(file, ("", ""))
        url = place or self._url(file)
        is_hub = _is_same_host(url, self._url(file))
        headers = build_hf_headers() if is_hub else {}
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if place and not is_hub and response.status_code in STALE:
                self._places.pop(file, None)
                raise httpx2.RemoteProtocolError(f"the address of {file} has expired")
            hf_raise_for_status(response)
            self._check_version(file, response)
            begin = self._begin_of(file, response, start)
            for data in response.iter_bytes():
                piece = data[max(0, start - begin) : max(0, end - begin)]
                begin += len(data)
                if piece:
                    yield piece
                if begin >= end:
                    return

    def _begin_of(self, file: str, response: httpx2.Response, start: int) -> int:
        """The position of the first byte of an answer; raises BadModel, _NoRanges."""
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            if start > SKIP_BYTES:
                raise _NoRanges
            return 0
        said = response.headers.get("Content-Range", "")
        span, _, total = said.removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(start) or total not in ("*", str(self._known[file].size)):
            raise _changed(file, self._repo)
        return start

    def _check_version(self, file: str, response: httpx2.Response) -> None:
        """Remember where the bytes lie; raises BadModel if they are of another version."""
        chain = (*response.history, response)
        names = [each.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) for each in chain]
        address, etag = str(response.url), response.headers.get("ETag", "")
        if _is_same_host(address, self._url(file)):
            names.append(etag)
        known = self._known[file].etag
        said = next((_plain(name) for name in names if name), known)
        if said != known or self._places.setdefault(file, (address, etag))[1] != etag:
            raise _changed(file, self._repo)

    def _fetch_whole(self, file: str, ranges: ByteRanges, take: Take) -> None:
        with explained(self._repo):
            path = Path(hf_hub_download(self._repo, file, revision=self._commit))
        with path.open("rb") as whole:
            for start, end in split(ranges, READ_BYTES):
                whole.seek(start)
                take(start, whole.read(end - start))

    def _metadata(self, file: str) -> HfFileMetadata:
        for failures in range(1, TRIES):
            with contextlib.suppress(httpx2.TransportError):
                return get_hf_file_metadata(self._url(file))
            time.sleep(PAUSE_SECONDS * 2**failures)
        return get_hf_file_metadata(self._url(file))

    def _url(self, file: str) -> str:
        return hf_hub_url(self._repo, file, revision=self._commit)


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING


def _plain(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _is_same_host(one: str, other: str) -> bool:
    return urlsplit(one).netloc == urlsplit(other).netloc


def _changed(file: str, repo: str) -> BadModel:
    return BadModel(
        f"{file} of {repo} changed on the hub while it was read.",
        "Start again; if that does not help, delete the folder of the model below HF_HOME/swarm.",
    )
