"""Questions to an HTTP server: so many at a time, repeated while it is down or busy, and a sentence if it stays so."""

from __future__ import annotations

import json
import os
import random
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import ip_address
from threading import Event
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from kdkit.errors import ConfigError, ServerError

__all__ = ["Endpoint", "checked_url", "in_one_line"]

LONGEST_WAIT = 30.0
"""Seconds to which the waits grow by themselves."""

LONGEST_ASKED = 300.0
"""Seconds up to which a server's ``Retry-After`` is waited for."""

_SHOWN = 300


class Endpoint:
    """An API at one address.

    A question is repeated after errors that may pass: no connection, no answer in time, one that is cut off, and the
    statuses 408, 429 and 5xx. The n-th wait is ``wait * 2 ** n`` seconds, at most 30, times a number drawn from
    [0.5, 1.5]; longer where the server asks for it by ``Retry-After``. Redirections are not followed, because they
    would carry the key elsewhere.

    Args:
        url: where the API begins, as in ``http://localhost:8000/v1``.
        timeout: seconds without a sign of life after which a question counts as failed.
        retries: how often a question is repeated at most.
        wait: seconds before the first repetition.
        concurrency: questions under way at the same time.
        key_variable: environment variable that holds the key, sent as ``Authorization: Bearer``; ``None`` for none.

    Raises:
        ConfigError: for an address or a variable that cannot be used.
    """

    def __init__(
        self, url: str, *, timeout: float, retries: int, wait: float, concurrency: int, key_variable: str | None
    ) -> None:
        self.url = checked_url(url)
        self.timeout, self.retries, self.wait, self.concurrency = timeout, retries, wait, concurrency
        self.key_variable = key_variable
        self._key = _key(key_variable)
        self._random = random.Random()  # the global one belongs to the training
        proxies = [ProxyHandler({})] if _is_here(urlsplit(self.url).hostname or "") else []
        self._opener = build_opener(_Stays(), *proxies)

    def get(self, path: str) -> Any:
        """What the server says to a GET, from JSON.

        Raises:
            ServerError: if there is no answer, or one that is none.
        """
        return self._ask(path, None, Event())

    def post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the server says to these questions, in order.

        Raises:
            ServerError: for the first that has no answer; the others are given up.
        """
        if not bodies:
            return []
        stop = Event()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="kdkit-served") as pool:
            futures = [pool.submit(self._ask, path, body, stop) for body in bodies]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in futures if future.done() and future.exception() is not None]
                return [future.result() for future in failed or futures]
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, path: str, body: Mapping[str, Any] | None, stop: Event) -> Any:
        attempt = 0
        while True:
            try:
                return self._once(path, body)
            except _MayPass as error:
                pause = max(self._pause(attempt), error.after)
                attempt += 1
                if attempt > self.retries or error.after > LONGEST_ASKED or stop.wait(pause):
                    raise ServerError(self._gave_up(error, attempt)) from None

    def _pause(self, attempt: int) -> float:
        return min(self.wait * 2.0**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1.5)

    def _gave_up(self, error: _MayPass, attempts: int) -> str:
        times = "once" if attempts == 1 else f"{attempts} times"
        later = f" and wants to be left alone for {error.after:.0f} s" if error.after > LONGEST_ASKED else ""
        return (
            f"the server at {self.url} was asked {times} and did not answer ({error}){later}; start it again, or raise "
            "teacher.served.retries or teacher.served.timeout"
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "User-Agent": "kdkit"}
        headers |= {"Content-Type": "application/json"} if data is not None else {}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with self._opener.open(Request(self.url + path, data, headers), timeout=self.timeout) as answer:
                content = answer.read()
        except HTTPError as error:
            with error:
                raise self._refused(path, error) from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            text = self._shown(reason)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ServerError(f"the certificate of {self.url} cannot be verified ({text}); mend it") from None
            raise _MayPass(text) from None
        try:
            return json.loads(content)
        except ValueError:
            raise ServerError(
                f"the server at {self.url} answers {path} with something that is no JSON ({self._shown(content)}); "
                "give the address of an OpenAI-compatible API as teacher.served.url"
            ) from None

    def _refused(self, path: str, error: HTTPError) -> Exception:
        """What a status says: try again, or not."""
        try:
            text = self._shown(_message(error.read(65_536)))
        except (OSError, HTTPException):
            text = ""
        status = f"status {error.code}{f', {text}' if text else ''}"
        if error.code in (408, 429) or error.code >= 500:
            return _MayPass(status, _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            if self.key_variable is None:
                way_out = "name the environment variable that holds its key in teacher.served.key_variable"
            else:
                way_out = f"check the key in the environment variable {self.key_variable}"
            return ServerError(f"the server at {self.url} does not let this run in ({status}); {way_out}")
        if 300 <= error.code < 400:
            place = self._shown(error.headers.get("Location") or "elsewhere")
            return ServerError(
                f"the server at {self.url} redirects to {place} ({status}); give the address itself as "
                "teacher.served.url"
            )
        if error.code == 404:
            return ServerError(
                f"{self.url}{path} is not there ({status}); teacher.served.url must be where an OpenAI-compatible API "
                "begins, as http://localhost:8000/v1"
            )
        return ServerError(f"the server at {self.url} refuses {path} ({status}); change what it objects to")

    def _shown(self, text: object) -> str:
        """For people: in one line, without what could steer a terminal, and without the key."""
        shown = in_one_line(text)
        return shown.replace(self._key, "***") if self._key else shown


class _MayPass(Exception):
    """Why a question failed that may be asked again, ``after`` so many seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _Stays(HTTPRedirectHandler):
    """Follows no redirection."""

    def redirect_request(self, *_: Any) -> None:
        return None


def checked_url(url: object) -> str:
    """The address without a trailing slash.

    Raises:
        ConfigError: if it is none of an API over HTTP, or holds a password.
    """
    rule = "teacher.served.url must be an address like http://localhost:8000/v1"
    try:
        parts = urlsplit(str(url))
        host = parts.hostname if parts.port != 0 else None
        (host or "").encode("idna")
    except ValueError:
        raise ConfigError(f"{rule}, got {url!r}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "teacher.served.url must not hold a name or password, because it is written into the run's folder; put the "
            "key into an environment variable and name that in teacher.served.key_variable"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or not _plain(str(url)):
        raise ConfigError(f"{rule}, got {url!r}")
    return str(url).rstrip("/")


def _plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url


def in_one_line(text: object) -> str:
    """The beginning of a text from elsewhere, printable characters alone, in one line."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    plain = "".join(character if character.isprintable() else " " for character in words[: 4 * _SHOWN])
    plain = " ".join(plain.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _is_here(host: str) -> bool:
    """Whether it is this machine, to which no proxy leads."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"teacher.served.key_variable names the environment variable {variable!r}, which holds no key; export it, "
            "or set teacher.served.key_variable=null"
        )
    return key


def _message(body: bytes) -> object:
    """What the body of a refusal says, wherever the server puts it."""
    try:
        content: Any = json.loads(body)
    except ValueError:
        return body
    for name in ("error", "message", "detail"):
        if isinstance(content, Mapping) and content.get(name):
            content = content[name]
    return content


def _seconds(after: str | None) -> float:
    """Seconds of a ``Retry-After``: a number, or a date."""
    if after is None:
        return 0.0
    try:
        return max(float(after), 0.0)
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(after)
    except ValueError:
        return 0.0
    return max(((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds(), 0.0)
