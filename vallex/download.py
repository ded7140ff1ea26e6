"""Fetching weights: resumed where they were cut, checked, and renamed only when whole.

One path over plain HTTP for every source: the hub's own client checks no sums, and EnCodec is not on the hub.
What the hub knows of a file (its size, its SHA-256) comes with the redirect to where its bytes are.
"""

import errno
import http.client
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock

from vallex.errors import ConfigError, WeightsError
from vallex.files import sha256_of
from vallex.sources import CHECKPOINTS_DIR, Component, WeightFile

TIMEOUT_SEC = 8.0
RETRY_DELAYS_SEC = (1.0, 2.0, 4.0, 8.0)
CHUNK_BYTES = 1 << 20
_PASSING_CODES = (408, 425, 429, 500, 502, 503, 504)

Progress = Callable[[WeightFile, int, int | None], None]
"""Called with a file, the bytes that are there, and how many it has (None where nobody said)."""


class Outcome(Enum):
    """What came of asking for a file."""

    FETCHED = "fetched"
    THERE = "there already, and right"
    UNCHECKED = "there already; not checked, because its source does not answer"


class _Passing(Exception):
    """What may be over when one tries again."""

    def __init__(self, reason: str, is_silent: bool = False):
        super().__init__(reason)
        self.is_silent = is_silent  # nothing answered at all


class _Refused(Exception):
    """What trying again does not mend."""


class _Silent(_Refused):
    """Nothing answers there: no network, or no such host."""


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """The answer to a request for a file from byte `start` on, with what it says of the whole file."""

    body: http.client.HTTPResponse | None  # None where nothing is left to send
    start: int
    num_bytes: int | None
    sha256: str | None

    def fault(self, path: Path) -> str | None:
        """What is wrong with a file that should be the whole; None where nothing is."""
        found = path.stat().st_size
        if self.num_bytes is not None and found != self.num_bytes:
            return f"wrong size: {found:,} bytes, it should be {self.num_bytes:,}"
        if self.sha256 is not None and (sha256 := sha256_of(path)) != self.sha256:
            return f"wrong sum: SHA-256 {sha256}, it should be {self.sha256}"
        return None


def fetch(
    files: Sequence[WeightFile],
    folder: Path | str = CHECKPOINTS_DIR,
    *,
    mirror: str | None = None,
    on_progress: Progress = lambda file, num_done, num_bytes: None,
) -> dict[WeightFile, Outcome]:
    """Fetches what is not in `folder` yet, or not right there.

    mirror: an address (https://…) that stands for the hub's, before HF_ENDPOINT
    errors: ConfigError for an address that is none; WeightsError, once, with every file that could not be
        had, where from, why, and where to put it by hand
    """
    _check_addresses(files, mirror)
    outcomes, missing, silent_hosts = {}, [], {}
    for file in files:
        target = Path(folder) / file.name
        try:
            outcomes[file] = _fetch_one(file, target, mirror, silent_hosts, on_progress)
        except _Refused as error:
            missing.append(f"{target} {error}")
        except OSError as error:
            reason = error.strerror or error
            missing.append(f"{target} cannot be written ({reason}; make room, or take another folder)")
    if missing:
        raise WeightsError(
            f"could not be fetched: {'; '.join(missing)}. Try again (what came is kept and gone on from), "
            "name another source (vallex download --mirror URL), or put them there by hand; to try things "
            "out without them, in noise: --offline-toy"
        )
    return outcomes


def obtain(component: Component, folder: Path | str = CHECKPOINTS_DIR) -> list[Path]:
    """The files of a component under `folder`, fetched where they are missing; what is there is not checked.

    errors: as of `fetch`
    """
    fetch([file for file in component.files if not (Path(folder) / file.name).is_file()], folder)
    return component.paths(folder)


def _check_addresses(files: Sequence[WeightFile], mirror: str | None) -> None:
    for url in {url for file in files for url in file.urls(mirror)}:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(
                f"{url}: not an address to fetch from; --mirror and HF_ENDPOINT begin with https:// or http://"
            )


def _fetch_one(
    file: WeightFile, target: Path, mirror: str | None, silent_hosts: dict[str, str], on_progress: Progress
) -> Outcome:
    """From the first source that has it. `silent_hosts` are not asked again: each costs a time-out."""
    reasons = []
    with _alone(target):
        if file.sha256 and target.is_file() and sha256_of(target) == file.sha256:
            return Outcome.THERE
        for url in file.urls(mirror):
            host = urlsplit(url).netloc
            try:
                if host in silent_hosts:
                    raise _Refused(silent_hosts[host])
                return _fetch_from(url, file, target, on_progress)
            except _Refused as error:
                if isinstance(error, _Silent):
                    silent_hosts[host] = str(error)
                reasons.append(f"from {url} ({error})")
        if target.is_file() and not file.sha256:
            return Outcome.UNCHECKED
    raise _Refused(", nor ".join(reasons))


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One download of a file at a time; the second waits, and then finds it there."""
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            # who waits for it sees that its name is gone, and takes a new one
            with suppress(OSError):
                lock.unlink()
            # where nothing came, no empty folder stays
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _fetch_from(url: str, file: WeightFile, target: Path, on_progress: Progress) -> Outcome:
    """From one address, gone on with after every cut until it is whole, or until nothing comes any more."""
    part = target.with_name(f"{target.name}.part")
    failures, has_answered, has_begun_anew = 0, False, False
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            with _open(url, start, file.sha256) as reply:
                has_answered = True
                if target.is_file() and reply.fault(target) is None:
                    return Outcome.THERE
                _receive(reply, part, lambda done, total: on_progress(file, done, total))
        except _Passing as error:
            has_answered = has_answered or not error.is_silent
            has_come = part.exists() and part.stat().st_size > start
            failures = 1 if has_come else failures + 1
            if not has_answered:
                raise _Silent(f"no answer: {error}") from error
            if failures > len(RETRY_DELAYS_SEC):
                raise _Refused(f"{error}, {failures} times in a row") from error
            time.sleep(RETRY_DELAYS_SEC[failures - 1])
            continue
        fault = reply.fault(part)
        if fault is None:
            part.replace(target)
            return Outcome.FETCHED
        part.unlink()
        # what was there before may have been the part of another file
        if not start or has_begun_anew:
            raise _Refused(f"{fault}; it was not kept")
        has_begun_anew = True


@contextmanager
def _open(url: str, start: int, sha256: str | None) -> Iterator[_Reply]:
    """Asks for a file from byte `start` on."""
    headers = {"User-Agent": "vallex", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    redirects = _RedirectHeaders()
    try:
        response = urllib.request.build_opener(redirects).open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SEC
        )
    except HTTPError as error:
        if error.code != 416:
            kind = _Passing if error.code in _PASSING_CODES else _Refused
            raise kind(f"it answers {error.code} {error.reason}") from error
        response = error  # there is nothing from `start` on
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise _Passing(reason, is_silent=isinstance(error, URLError | TimeoutError)) from error
    with response:
        yield _read_headers(response, start, redirects.seen, sha256)


class _RedirectHeaders(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps their headers: the hub's own are the ones that describe a file."""

    def __init__(self):
        self.seen: list[http.client.HTTPMessage] = []

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """As the library does it, with a note of the headers."""
        self.seen.append(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_headers(response, start: int, redirects: list, sha256: str | None) -> _Reply:
    headers = response.headers
    if headers.get_content_type() == "text/html" and response.status == 200:
        raise _Refused("it answers with a web page, not a file")
    # after a redirect, a plain ETag is that of the store, which may be a hash of another kind
    etags = [each["X-Linked-ETag"] for each in (*redirects, headers)] + [not redirects and headers["ETag"]]
    sums = [etag.strip('W/"') for etag in etags if etag and re.fullmatch(r'(W/)?"?[0-9a-f]{64}"?', etag)]
    linked = [each["X-Linked-Size"] for each in (*redirects, headers) if each["X-Linked-Size"]]
    reply = _Reply(
        body=response,
        start=0,
        num_bytes=_number(linked[0] if linked else headers["Content-Length"]),
        sha256=sha256 or (sums[0] if sums else None),
    )
    if response.status == 200:
        return reply
    described = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", headers["Content-Range"] or "")
    if described is None or described[1] not in (None, str(start)):
        raise _Refused(f"it was asked for bytes {start}- and answers {headers['Content-Range']!r}")
    body = None if described[1] is None else response
    return replace(reply, body=body, start=start, num_bytes=_number(linked[0] if linked else described[2]))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _receive(reply: _Reply, part: Path, on_progress: Callable[[int, int | None], None]) -> None:
    """Appends what comes to the part; _Passing where it ends before its end, OSError where it has no room."""
    done, total = reply.start, reply.num_bytes
    if reply.body is None:
        return
    if total is not None and total - done > shutil.disk_usage(part.parent).free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {total - done:,} bytes are needed")
    with part.open("ab" if reply.start else "wb") as out:
        on_progress(done, total)
        while chunk := _read(reply.body):
            out.write(chunk)
            done += len(chunk)
            on_progress(done, total)
            if total is not None and done > total:
                break
        out.flush()
        os.fsync(out.fileno())
    if total is not None and done < total:
        raise _Passing(f"cut off at byte {done:,} of {total:,}")


def _read(body: http.client.HTTPResponse) -> bytes:
    try:
        return body.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"cut off: {error or type(error).__name__}") from error
