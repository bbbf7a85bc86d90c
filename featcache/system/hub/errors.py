"""Every exception of the hubs' clients, and of the HTTP libraries below them, as one sentence with a hint.

The clients use httpx, httpx2, requests, urllib3, aiohttp and a library in Rust, in versions that come and go.
So exceptions are told apart by their HTTP status, by the names of their classes, and by the number of the
system's error, never by importing one of these libraries.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from featcache.system.hub.timeouts import VARIABLE, answer_timeout
from featcache.system.text import clip

_OUR_FOLDER = Path(__file__).parents[2]
MIRROR = "a mirror: export HF_ENDPOINT=https://<mirror>"
LOGIN = "log in: hf auth login"


class Kind(Enum):
    """What an error means for the copy on this disk."""

    UNREACHABLE = "unreachable"  # no answer, or none that is of use: a copy serves
    REFUSED = "refused"  # an answer: not for you. A copy that was fetched before serves
    UNKNOWN = "unknown"  # an answer: there is no such revision or file. A copy would be something else
    DISK = "disk"  # this machine's disk, not the hub


class HubError(Exception):
    """Why something of a hub is not to be had.

    Args:
        what: a clause such as `the hub at https://... does not answer within 10 s`.
        hint: what to do about it; empty where the general ways out say it all.
    """

    def __init__(self, what: str, hint: str = "", kind: Kind = Kind.UNREACHABLE) -> None:
        super().__init__(what)
        self.what, self.hint, self.kind = what, hint, kind


def hub_error(
    error: BaseException, address: str, name: str, revision: str | None = None, *, server: str = "hub"
) -> HubError:
    """What `error` means.

    Args:
        address: of the server that was asked.
        name: what was asked for, for example `the model a/b`.
        revision: of it, as it was asked for.
        server: what kind of server that is.
    """
    at = f"the {server} at {address}"
    for one in _chain(error):
        if "RevisionNotFoundError" in _names(one):
            return HubError(f"{at} has no revision {revision!r} of {name}", kind=Kind.UNKNOWN)
        found = one if isinstance(one, HubError) else _by_answer(one, at, name) or _by_disk(one)
        found = found or _by_connection(one, at, address) or _by_content(one, at)
        if found is not None:
            return found
    return HubError(f"{at} cannot be used: {_line(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        failed = getattr(one, "failed_files", None)  # of ModelScope's client: the errors by file
        inner = next(iter(failed.values())) if isinstance(failed, dict) and failed else None
        one = inner or one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return clip(lines[0], 200) if lines else type(error).__name__


# ---------------------------------------------------------------- the hub gave an answer


def _status_of(error: BaseException) -> int | None:
    for holder in (getattr(error, "response", None), error):
        for attribute in ("status_code", "status"):
            status = getattr(holder, attribute, None)
            if isinstance(status, int) and status >= 300:
                return status
    return None


def _headers_of(error: BaseException) -> dict[str, str]:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return {str(key).lower(): str(value) for key, value in headers.items()} if headers is not None else {}


def _by_answer(error: BaseException, at: str, name: str) -> HubError | None:
    names, status = _names(error), _status_of(error)
    if "GatedRepoError" in names:
        granted = "log in with an account that has access: hf auth login"
        page = f"ask for access on its page, then {granted}"
        return HubError(f"{at} gives {name} only to those who asked for access", page, Kind.REFUSED)
    if "DisabledRepoError" in names:
        return HubError(f"{at} has disabled {name}", "", Kind.REFUSED)
    if names & {"RepositoryNotFoundError", "NotExistError"}:
        spelling = f"check the spelling, or {LOGIN}"
        what = name.removeprefix("the ")
        return HubError(f"{at} has no {what}, or it needs a login", spelling, Kind.REFUSED)
    if "RemoteEntryNotFoundError" in names:
        return HubError(f"{at} lacks a file of {name}: {_line(error)}", "", Kind.UNKNOWN)
    return None if status is None else _by_status(status, error, at, name)


def _by_status(status: int, error: BaseException, at: str, name: str) -> HubError:
    if status == HTTPStatus.UNAUTHORIZED:
        return HubError(f"{at} wants a login for {name} (401)", LOGIN, Kind.REFUSED)
    if status == HTTPStatus.FORBIDDEN:
        right = "does the token that is used have the right to read it? hf auth whoami"
        return HubError(f"{at} refuses {name} (403)", right, Kind.REFUSED)
    if status == HTTPStatus.NOT_FOUND:
        part = "is the name right, and does this mirror have all parts of the hub?"
        return HubError(f"{at} has nothing at the address of {name} (404)", part, Kind.REFUSED)
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return HubError("the proxy wants a login (407)", _proxy_hint())
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        after = _headers_of(error).get("retry-after", "")
        when = f"; it asks to wait {clip(after, 40)}{' s' if after.isdigit() else ''}" if after else ""
        calm = f"wait, or {LOGIN} (who is logged in may ask more often), or {MIRROR}"
        return HubError(f"{at} counts too many requests (429){when}", calm)
    if status >= 500:
        return HubError(f"{at} has a fault of its own ({status} {_phrase(status)})".replace(" )", ")"))
    return HubError(f"{at} answers with {status} {_phrase(status)}".rstrip())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


# ---------------------------------------------------------------- this machine's disk

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


def _by_disk(error: BaseException) -> HubError | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return None
    place = f" ({error.filename})" if error.filename else ""
    elsewhere = "downloads are kept elsewhere with: export HF_HOME=FOLDER (ModelScope: MODELSCOPE_CACHE)"
    if error.errno in _FULL:
        return HubError(f"the disk is full{place}", f"free some space; {elsewhere}", Kind.DISK)
    if error.errno in _DENIED:
        return HubError(f"the folder of downloads cannot be written{place}", elsewhere, Kind.DISK)
    if error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        return None
    return HubError(f"the disk: {os.strerror(error.errno)}{place}", elsewhere, Kind.DISK)


# ---------------------------------------------------------------- no answer


def _by_connection(error: BaseException, at: str, address: str) -> HubError | None:
    names = _names(error)
    proxy = _proxy(address)
    through = f" (through the proxy {proxy})" if proxy else ""
    below = [*_chain(error)]
    all_names, said = set().union(*map(_names, below)), " ".join(map(str, below))
    if "OfflineModeIsEnabled" in names:
        return HubError(f"{at} is not asked, because HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if names & {"ProxyError", "ProxyConnectionError"}:
        return HubError(f"the proxy {proxy or 'in use'} does not work: {_line(error)}", _proxy_hint())
    if names & {"UnsupportedProtocol", "InvalidURL", "MissingSchema", "InvalidSchema", "LocationParseError"}:
        begin = "HF_ENDPOINT and MODELSCOPE_ENDPOINT begin with https:// or http://"
        return HubError(f"{address} is no address of a hub: {_line(error)}", begin)
    if not names & _CONNECTION:
        return None
    if "UNEXPECTED_EOF" in said:
        return HubError(f"{at}{through} breaks the connection off")
    if "CERTIFICATE" not in said and ("SSL" in said or any("SSL" in one for one in all_names)):
        return HubError(f"{at}{through} fails in TLS: {_line(below[-1])}", "http:// instead of https://?")
    if "CERTIFICATE" in said:
        own = "a network with certificates of its own: export SSL_CERT_FILE=FILE and REQUESTS_CA_BUNDLE=FILE"
        return HubError(f"{at} has no certificate that this machine trusts", own)
    if all_names & {"gaierror", "NameResolutionError"} or _NO_NAME.search(said):
        return HubError(f"{at} is not found: its name cannot be resolved")
    if names & _BROKEN or all_names & {"ConnectionResetError", "BrokenPipeError"}:
        return HubError(f"{at}{through} breaks the connection off")
    if any("Timeout" in one or "Silent" in one for one in all_names) or "timed out" in said:
        slow = f"to wait longer: export {VARIABLE}=60"
        return HubError(f"{at}{through} does not answer within {answer_timeout():g} s", slow)
    if "ConnectionRefusedError" in all_names or "refused" in said:
        return HubError(f"{at}{through} refuses connections", _proxy_hint() if proxy else "")
    return HubError(f"{at}{through} cannot be reached: {_line(below[-1])}")


_NO_NAME = re.compile("not known|nodename nor servname|getaddrinfo failed|name resolution|No address assoc")
_BROKEN = {
    "Interrupted", "ReadError", "WriteError", "CloseError", "RemoteProtocolError", "LocalProtocolError",
    "ChunkedEncodingError", "IncompleteRead", "ProtocolError", "ConnectionResetError", "BrokenPipeError",
    "ConnectionAbortedError", "_IncompleteBodyError", "ServerDisconnectedError",
}  # fmt: skip
_CONNECTION = _BROKEN | {
    "TransportError", "TimeoutException", "TimeoutError", "Timeout", "ConnectionError", "NetworkError",
    "ConnectError", "SSLError", "MaxRetryError", "ClientConnectionError", "gaierror", "RetryError",
    "_DownloadDeadlineError",
}  # fmt: skip


def _proxy(hub: str) -> str:
    """The proxy through which a hub is asked, without its password; empty where there is none."""
    parts = urlsplit(hub)
    address = getproxies().get(parts.scheme) or getproxies().get("all")
    if not address or proxy_bypass(parts.netloc):
        return ""
    found = urlsplit(address)
    return f"{found.scheme}://{found.hostname}{f':{found.port}' if found.port else ''}"


def _proxy_hint() -> str:
    return "check HTTPS_PROXY and HTTP_PROXY; NO_PROXY names the hosts that need none"


# ---------------------------------------------------------------- an answer that is of no use


def _by_content(error: BaseException, at: str) -> HubError | None:
    names = _names(error)
    short = re.search(r"should be of size (\d+) but has size (\d+)", str(error))
    if short:
        return HubError(f"{at} sent {short[2]} bytes of a file of {short[1]}")
    if names & {"FileSizeMismatchError", "FileIntegrityError"}:
        return HubError(f"{at} sent a file with other bytes than it announced")
    if names & {"ChecksumVerificationError", "SplitsVerificationError"}:
        return HubError(f"{at} has a card and files that do not agree", "", Kind.UNKNOWN)
    if "TooManyRedirects" in names:
        return HubError(f"{at} redirects in a circle")
    if names & {"HFValidationError", "InvalidParameter"}:
        return HubError(_line(error), "a hub id is NAME or OWNER/NAME", Kind.UNKNOWN)
    unread = isinstance(error, KeyError | TypeError | AttributeError | AssertionError | ValueError)
    strange = {"DecodingError", "ContentDecodingError", "FileMetadataError"}
    if names & strange or (unread and not _is_ours(error)):
        page = "a login page of the network? else check HF_ENDPOINT (MODELSCOPE_ENDPOINT)"
        return HubError(f"{at} answers with something that is no hub's", page)
    return None


def _is_ours(error: BaseException) -> bool:
    """True if a line of featcache raised `error`, and not a client that could not read an answer."""
    trace, file = error.__traceback__, ""
    while trace is not None:
        file, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return Path(file).is_relative_to(_OUR_FOLDER)
