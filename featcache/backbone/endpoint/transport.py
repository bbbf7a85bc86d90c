"""The connections to an endpoint, and what goes wrong with them as sentences."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from featcache.backbone.endpoint.errors import KEPT, Passing
from featcache.backbone.endpoint.key import NAMES
from featcache.backbone.endpoint.model import EndpointModel
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import BackboneError, UsageError
from featcache.system.text import readable

CONNECT = 10.0  # seconds until a server must have taken the connection


def pool_of(model: EndpointModel, settings: EndpointSettings) -> urllib3.PoolManager:
    """Connections to the host of an endpoint, through the proxy of the environment if there is one.

    A server on this machine is never asked through a proxy.

    Raises:
        UsageError: a proxy that cannot be used.
    """
    size = settings.connections
    options: dict[str, Any] = {
        "num_pools": 1, "maxsize": size, "retries": False,
        "timeout": urllib3.Timeout(connect=CONNECT, read=settings.request_timeout),
    }  # fmt: skip
    parts = urlsplit(model.address)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    if not proxy or model.is_local or proxy_bypass(parts.netloc):
        return urllib3.PoolManager(**options)
    try:
        address = urllib3.util.parse_url(proxy)
        login = urllib3.make_headers(proxy_basic_auth=address.auth) if address.auth else None
        return urllib3.ProxyManager(proxy, proxy_headers=login, **options)
    except (LocationParseError, urllib3.exceptions.ProxySchemeUnknown) as error:
        raise UsageError(
            f"the proxy of the environment cannot be used for {model.host}: {error}",
            hint=f"an http proxy is needed, or NO_PROXY={model.host}",
        ) from None


def connection_error(model: EndpointModel, settings: EndpointSettings, error: Exception) -> Exception:
    """`Passing` or `BackboneError` for what urllib3 raised."""
    at = model.address
    if isinstance(error, ProxyError):
        return Passing(f"the proxy between here and {at} does not work: {_line(error)}", refuses=True)
    if isinstance(error, SSLError):
        return BackboneError(
            f"no secure connection to {at}: {_line(error)}",
            hint="a certificate of your own network: SSL_CERT_FILE=FILE; is the date of this machine right?",
        )
    if isinstance(error, NameResolutionError):
        return Passing(f"the name {model.host} is not known", refuses=True)
    if isinstance(error, NewConnectionError):
        return Passing(f"{at} refuses connections", refuses=True)
    if isinstance(error, ConnectTimeoutError):
        return Passing(f"{at} takes no connection within {CONNECT:g} s", refuses=True)
    if isinstance(error, ReadTimeoutError):
        return Passing(f"{at} does not answer within {settings.request_timeout:g} s (--request-timeout)")
    if isinstance(error, ProtocolError):
        return Passing(f"{at} breaks the connection off in the middle: {_line(error)}")
    return Passing(f"{at} cannot be asked: {_line(error)}")


def status_error(model: EndpointModel, status: int, headers: Mapping[str, str], said: str) -> BackboneError:
    """What an answer with this status means."""
    what = f"{model.address} answers with {status}: {said}"
    if status in (401, 403):
        names = " or ".join(NAMES)
        return BackboneError(what, hint=f"set the key of this server in the environment: {names}")
    if 300 <= status < 400:
        place = readable(headers.get("location", "").partition("?")[0]) or "nowhere"
        return BackboneError(
            f"{model.address} redirects to {place}, which is not followed: the key and the texts go to the "
            "address that you name alone",
            hint="name the new address, if you trust it: --model openai+...",
        )
    if status == 404:
        return BackboneError(
            what, hint=f"is the address right, up to /v1, and does the server have {model.name}?"
        )
    if status == 429:
        return BackboneError(what, hint=f"your account at this server is used up; {KEPT}")
    return BackboneError(what, hint="what the server says may tell what to change")


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, a number or a date; None where it says neither."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _line(error: Exception) -> str:
    """What an error says, without the object in front."""
    text = str(error.args[0]) if error.args else str(error)
    return readable(" ".join(str(error if not error.args else text).split()))[:200]
