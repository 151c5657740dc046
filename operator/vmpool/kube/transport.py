"""One HTTP request to the API server: sent once, timed, answered with bytes or a typed error.

The session, TLS and credentials are the library's (``kubernetes.aio``). Ours is the path of a request and the
verdict on a failure, which the library leaves to its callers: a write whose answer is missing or 5xx is
``OutcomeUnknown``, one that never left is ``Unreachable``.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yarl
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

import vmpool
from vmpool.api import keys
from vmpool.kube.errors import KubeError, OutcomeUnknown, ServerError, Unreachable, error_from_answer

SKEW_MAX_ROUND_TRIP = timedelta(seconds=2)
"""A slower answer says too little about when its ``Date`` was true."""
DATE_RESOLUTION = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Bounds of one client; every default beside its reason."""

    in_flight: int = 32
    """Requests at once, watches aside: more brought no more throughput on one API server."""
    watches: int = 64
    """Connections kept free for watches: one a mirror, with room for small mirrors of single objects."""
    request_timeout: timedelta = timedelta(seconds=20)
    """One try. The server's own limit is 60 s, but nobody here can wait that long."""
    connect_timeout: timedelta = timedelta(seconds=5)
    """TCP and TLS; part of ``request_timeout``."""
    tries: int = 5
    """Of one request, the first included; what may be tried again depends on the error."""
    pause_base: timedelta = timedelta(milliseconds=200)
    """Before the second try; doubles, with jitter."""
    pause_max: timedelta = timedelta(seconds=10)
    """Longest pause, also when the server asks for more: the caller's next round comes soon enough."""
    page_limit: int = 500
    """Objects a page: a page of 1 MB decodes in about 10 ms, so the loop never stalls."""
    field_manager: str = keys.FIELD_MANAGER
    """Who we are in ``managedFields``."""


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """One try of one request, for metrics; ``status`` is 0 when there was no answer."""

    method: str
    plural: str
    subresource: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Request:
    """What to send; ``plural`` and ``subresource`` only name it to ``on_request``."""

    method: str
    path: str
    plural: str
    subresource: str = ""
    query: Mapping[str, str] | None = None
    body: bytes | None = None
    content_type: str = "application/json"

    @property
    def is_write(self) -> bool:
        """True when it may change something."""
        return self.method != "GET"


def ignore_request(seen: RequestSeen) -> None:
    """The hook of a client whose requests nobody counts."""


class Transport:
    """The session with one API server."""

    def __init__(
        self, configuration: Configuration, settings: ClientSettings, on_request: Callable[[RequestSeen], None]
    ) -> None:
        """Must be called inside the running loop that will use it."""
        configuration.connection_pool_maxsize = settings.in_flight + settings.watches
        # Trusting the environment costs two hops through a thread for each request (0.4 ms of CPU, measured) and
        # would send what ~/.netrc says of this host. The proxy is looked up once instead.
        configuration.client_session_kwargs = {"trust_env": False}
        configuration.proxy = configuration.proxy or _proxy_of_environment(configuration.host)
        self.api = ApiClient(configuration)
        self.api.user_agent = f"vmpool/{vmpool.__version__}"
        self.clock_skew: timedelta | None = None
        """Server time minus ours, exact to about a second; None before the first answer."""
        rest = self.api.rest_client
        # The library makes its session on first use; made here, one session serves its calls and ours.
        rest.pool_manager = rest._create_pool_manager()
        self._session: aiohttp.ClientSession = rest.pool_manager
        self._configuration = configuration
        self._on_request = on_request
        self._origin = yarl.URL(configuration.host)
        self._base_path = self._origin.raw_path.rstrip("/")
        self._headers = {
            "User-Agent": self.api.user_agent,
            "Accept": "application/json",
            # Packing a list costs the server more time than sending it plain through a data centre.
            "Accept-Encoding": "identity",
        }
        self._options = {
            name: value
            for name, value in (
                ("server_hostname", configuration.tls_server_name),
                ("proxy", configuration.proxy),
                ("proxy_headers", configuration.proxy_headers),
            )
            if value
        }
        self._connect_seconds = settings.connect_timeout.total_seconds()
        self._timeout = aiohttp.ClientTimeout(
            total=settings.request_timeout.total_seconds(), sock_connect=self._connect_seconds
        )
        self._last_date = ""

    async def close(self) -> None:
        """End every connection."""
        await self.api.close()

    async def send(self, request: Request) -> bytes:
        """The body of a success.

        Raises ``Refused``; for a read ``ServerError`` and ``Unreachable``; for a write ``Unreachable`` when it
        was never sent and ``OutcomeUnknown`` for everything else.
        """
        status = 0
        asked_at, started = datetime.now(UTC), time.monotonic()
        try:
            async with await self._open(request, self._timeout) as response:
                status = response.status
                self._note_clock(response.headers.get("Date", ""), asked_at)
                body = await response.read()
                if status < 300:
                    return body
                error = error_from_answer(status, body, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError) as failure:
            _raise_no_answer(request, failure)
        finally:
            self._saw(request.method, request, status, started)
        if request.is_write and isinstance(error, ServerError):
            raise OutcomeUnknown(
                f"{request.method} {request.path}: {error.message}", status=status, reason=error.reason
            ) from error
        raise error

    async def lines(self, request: Request, *, silence: timedelta, total: timedelta) -> AsyncGenerator[bytes]:
        """The lines of an endless answer, as they come.

        Raises ``Unreachable`` after ``silence`` without a byte, after ``total``, and when it is cut in between.
        """
        status = 0
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(
            total=total.total_seconds(), sock_connect=self._connect_seconds, sock_read=silence.total_seconds()
        )
        try:
            async with await self._open(request, timeout) as response:
                status = response.status
                if status >= 300:
                    body = await response.read()
                    raise error_from_answer(status, body, response.headers.get("Retry-After"))
                rest = b""
                async for chunk in response.content.iter_any():
                    *complete, rest = (rest + chunk).split(b"\n")
                    for line in complete:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as failure:
            _raise_no_answer(request, failure)
        finally:
            # A watch lasts for minutes: under its own name it spoils no latency.
            self._saw("WATCH", request, status, started)

    async def _open(self, request: Request, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        headers = dict(self._headers)
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        try:
            # Asked for every request: this is where the library rotates an in-cluster token.
            credentials = await self._configuration.auth_settings()
        except (ConfigException, OSError) as failure:
            raise Unreachable(f"no credentials: {failure}") from failure
        for header in credentials.values():
            headers[header["key"]] = header["value"]
        url = self._origin.with_path(self._base_path + request.path, encoded=True)
        if request.query:
            url = url.with_query(request.query)
        return await self._session.request(
            request.method,
            url,
            data=request.body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            **self._options,
        )

    def _saw(self, method: str, request: Request, status: int, started: float) -> None:
        seconds = time.monotonic() - started
        self._on_request(RequestSeen(method, request.plural, request.subresource, status, seconds))

    def _note_clock(self, date: str, asked_at: datetime) -> None:
        if date == self._last_date:
            return
        self._last_date = date
        round_trip = datetime.now(UTC) - asked_at
        if not timedelta(0) <= round_trip <= SKEW_MAX_ROUND_TRIP:
            return
        try:
            server = parsedate_to_datetime(date)
        except ValueError:
            return
        # The header has cut off the fraction: on average, half a second.
        self.clock_skew = server.astimezone(UTC) + DATE_RESOLUTION / 2 - (asked_at + round_trip / 2)


def _proxy_of_environment(host: str) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY and NO_PROXY say about this server."""
    url = urlsplit(host)
    return None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)


def _raise_no_answer(request: Request, failure: Exception) -> NoReturn:
    what = f"{request.method} {request.path}: {str(failure) or type(failure).__name__}"
    never_sent = isinstance(failure, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
    error: type[KubeError] = Unreachable if never_sent or not request.is_write else OutcomeUnknown
    raise error(what) from failure
