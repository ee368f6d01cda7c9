"""Downloads of official files: resumed where they were cut off.

FILE.part grows beside FILE.part.json, which stores the server's validator of these bytes (its ETag or date). The
rest is requested only while the validator is unchanged; FILE appears when complete.
"""

import json
import re
import time
from pathlib import Path

import requests
from requests import Response
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from semcorr.core.errors import UserError
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.download.recipe import ArchiveInfo

TIMEOUT = (15, 60)  # seconds: to connect, between two bytes
MAX_TRIES = 5  # connections in a row; another follows only where bytes were received
PAUSE = 1.0  # seconds between them
CHUNK = 1 << 16  # what a killed download loses at most
# requests wraps urllib3's errors, but not those of a raw read.
CONNECTION_ERRORS = (requests.RequestException, HTTPError)
PLAIN = {"Accept-Encoding": "identity"}  # the file's own bytes: only they can be counted and resumed


def remote_size(url: str) -> int | None:
    """Return the file's size as the server reports it; None if it reports none."""
    try:
        response = requests.head(url, headers=PLAIN, timeout=TIMEOUT, allow_redirects=True)
    except requests.RequestException:
        return None
    return _content_length(response) if response.ok else None


def download_archive(archive: ArchiveInfo, folder: Path) -> Path:
    """Download the whole file to `folder`; what an earlier call has of it is not requested again.

    Raises:
        UserError: The download failed. The part received is kept, unless it is useless.
    """
    done, part = folder / archive.file, folder / f"{archive.file}.part"
    for attempt in range(1, MAX_TRIES + 1):
        if done.is_file():
            return done
        previous_size = _file_size(part)
        try:
            _fetch(archive, part)
        except CONNECTION_ERRORS as error:
            if attempt == MAX_TRIES or _file_size(part) <= previous_size:
                raise UserError(_connection_message(archive, part, error)) from None
            time.sleep(PAUSE)
        else:
            _finish(archive, part, done)
    return done


def _fetch(archive: ArchiveInfo, part: Path) -> None:
    """Append the rest of the file to `part` in one connection, or write it from the start."""
    if _file_size(part) and _file_size(part) == _read_ticket(part).get("length"):
        return  # cut off between the last byte and its new name
    with _request(archive, part) as response:
        if response.status_code not in (200, 206):
            raise UserError(
                f"{archive.url} answers {response.status_code} {response.reason}. "
                f"If the file has moved, fetch it yourself and give --archive {archive.file}"
            )
        if response.status_code == 200:
            part.unlink(missing_ok=True)  # first the old bytes, then their ticket: never new words for old bytes
            ticket = {"url": archive.url, "validator": _validator(response), "length": _content_length(response)}
            _ticket_path(part).write_text(json.dumps(ticket))
        _receive(response, part, _read_ticket(part).get("length"), archive.file)


def _request(archive: ArchiveInfo, part: Path) -> Response:
    """Return the server's response: 206 with exactly the missing rest, or the whole file, or an error."""
    offset, ticket = _file_size(part), _read_ticket(part)
    if offset and ticket.get("validator") and ticket.get("url") == archive.url:
        range_headers = {"Range": f"bytes={offset}-", "If-Range": ticket["validator"]}
        response = requests.get(archive.url, headers=PLAIN | range_headers, timeout=TIMEOUT, stream=True)
        if response.status_code not in (206, 416) or _is_continuation(response, offset, ticket):
            return response
        response.close()
    return requests.get(archive.url, headers=PLAIN, timeout=TIMEOUT, stream=True)


def _is_continuation(response: Response, offset: int, ticket: JsonMapping) -> bool:
    """Return whether a 206 is the rest of the same file. A server may ignore If-Range or send another range."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not content_range or int(content_range[1]) != offset:
        return False
    if ticket.get("length") is not None and content_range[2] not in ("*", str(ticket["length"])):
        return False
    return _validator(response) in (None, ticket["validator"])


def _receive(response: Response, part: Path, length: int | None, label: str) -> None:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    size = "" if length is None else f", {decimal(length)}"
    done = part.stat().st_size if part.is_file() else 0
    with Stage(f"Downloading {label}{size}", length, columns, done) as stage, part.open("ab", buffering=0) as file:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            file.write(chunk)
            stage.advance(len(chunk))


def _finish(archive: ArchiveInfo, part: Path, done: Path) -> None:
    """Give the whole file its name, unless it is a web page or of the wrong length."""
    length, size = _read_ticket(part).get("length"), _file_size(part)
    with part.open("rb") as file:
        is_web_page = file.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if is_web_page or (length is not None and size != length):
        part.unlink()
        content = "a web page, not the file" if is_web_page else f"{size} bytes instead of {length}"
        raise UserError(
            f"{archive.url} sent {content}. Fetch the file with a browser and give --archive {archive.file}"
        )
    part.replace(done)
    _ticket_path(part).unlink(missing_ok=True)


def _connection_message(archive: ArchiveInfo, part: Path, error: Exception) -> str:
    if size := _file_size(part):
        return f"{archive.url}: the connection broke after {decimal(size)}. Run the same line again to go on from there"
    reason = "it does not answer in time" if isinstance(error, requests.Timeout) else "no connection"
    return (
        f"{archive.url} cannot be reached ({reason}). Check the network, or fetch the file on another machine "
        f"and give --archive {archive.file}"
    )


def _read_ticket(part: Path) -> JsonObject:
    """Return what is known of the bytes in `part`; nothing if the note is absent or half-written."""
    try:
        return dict(json.loads(_ticket_path(part).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _ticket_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _file_size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _validator(response: Response) -> str | None:
    """Return what If-Range may carry: a strong ETag or else a date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _content_length(response: Response) -> int | None:
    header = response.headers.get("Content-Length", "")
    return int(header) if header.isdigit() else None
