"""The provider ``simulated``: speaks HTTP to ``vmpool simcloud``.

It treats that cloud like any other, and shows how a plug-in of an HTTP cloud looks. Two ways of making a machine
exactly once, by ``tokenMode``:

``Token``
    The cloud knows idempotency tokens: one request, repeatable for ever.
``None``
    It does not, as with many real clouds. ``ensure`` looks for a machine with our token in its tags, creates one,
    and looks again; when two are there, the oldest stays and the others are deleted. One window remains: when a
    reply is lost and the cloud's listing lags behind, or another process creates at the same moment, a second
    machine shows up only later. The engine's sweep of stragglers takes that in.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from vmpool.api import keys
from vmpool.providers.base import Deletion, Machine, MachineRequest, MachineState, Session
from vmpool.providers.errors import (
    CredentialsRefused,
    Exhausted,
    InvalidConfig,
    InvalidTemplate,
    MachineNotFound,
    ProviderError,
    Terminal,
    Throttled,
    Unavailable,
)

SECRET_KEY: Final = "apiKey"  # noqa: S105 - the name of a Secret's key
GONE: Final = "Gone"
"""State of a machine whose deletion was done at once."""
MAX_IDENTITY: Final = 253
MAX_PAGES: Final = 100_000
CONSOLE_CHARACTERS: Final = 4096
"""A listing that is longer is taken for a cloud that pages in circles."""
MAX_QUOTED: Final = 300
"""Characters of the cloud's own words in an error message."""
MAX_RETRY_AFTER: Final = timedelta(hours=1)

Document = dict[str, Any]


class TokenMode(StrEnum):
    """How a machine is made exactly once."""

    TOKEN = "Token"  # noqa: S105 - a word, not a secret
    NONE = "None"


class Config(BaseModel):
    """``VMProvider.spec.config`` of type ``simulated``."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, extra="forbid", frozen=True)

    endpoint: str = Field(
        max_length=1024, description="URL of the simulated cloud, such as http://127.0.0.1:8770; no credentials."
    )
    token_mode: TokenMode = Field(
        default=TokenMode.TOKEN,
        description="Token: creates carry an idempotency token. None: machines are looked up by tag instead.",
    )
    page_size: int = Field(default=500, ge=1, le=1000, description="Machines asked for in one page of a listing.")
    timeout_seconds: float = Field(
        default=30.0, gt=0, le=600, description="Seconds for one HTTP request, after which its outcome is unknown."
    )
    connections: int = Field(default=64, ge=1, le=1024, description="HTTP connections open at once.")

    @field_validator("endpoint")
    @classmethod
    def _is_plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http or https URL")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must be scheme, host, port and path only")
        return value.rstrip("/") + "/"


class SimulatedPlugin:
    """The entry point."""

    name = "simulated"
    Config = Config

    def open(self, session: Session) -> "SimulatedProvider":
        """Return a provider; opens no connection yet. Raises InvalidConfig without a usable ``apiKey``."""
        key = session.secret.get(SECRET_KEY, "").strip()
        if not key:
            raise InvalidConfig(f"the Secret needs a key {SECRET_KEY} that is not empty")
        if not (key.isascii() and key.isprintable()):
            raise InvalidConfig(f"{SECRET_KEY} of the Secret must be printable ASCII")
        assert isinstance(session.config, Config)
        return SimulatedProvider(session.config, key, session.install_id)


class SimulatedProvider:
    """One tenant of one simulated cloud."""

    def __init__(self, config: Config, key: str, install_id: str) -> None:
        self._config = config
        self._key = key
        self._install_id = install_id
        self._http: aiohttp.ClientSession | None = None

    async def identity(self) -> str:
        """Return ``<ledger id>/<tenant>``."""
        identity = (await self._call("GET", "v1/identity")).get("identity")
        if not isinstance(identity, str) or not 0 < len(identity) <= MAX_IDENTITY:
            raise Unavailable("the cloud's identity is not understood")
        return identity

    async def check(self, want: MachineRequest) -> None:
        """Let the cloud look at the request without making anything."""
        await self._call("POST", "v1/machines", _create_body(want, None), {"dryRun": "true"})

    async def ensure(self, want: MachineRequest) -> Machine:
        """Make the machine, or return the one already made for this token."""
        if self._config.token_mode is TokenMode.TOKEN:
            return _machine(await self._call("POST", "v1/machines", _create_body(want, want.token)))
        if found := await self._settled(want.token):
            return found
        try:
            made = _machine(await self._call("POST", "v1/machines", _create_body(want, None)))
        except Unavailable:
            if found := await self._settled(want.token):
                return found
            raise
        return await self._settled(want.token) or made

    async def get(self, machine_id: str) -> Machine:
        """Return one machine of ours."""
        machine = _machine(await self._call("GET", _path(machine_id)))
        if machine.tags.get(keys.TAG_INSTALL) != self._install_id:
            raise MachineNotFound(f"machine {machine_id} is not of this install")
        return machine

    async def find(self, token: str) -> Machine | None:
        """Return the oldest machine with this token that nobody deletes; else one that is being deleted."""
        return next(iter(await self._of_token(token)), None)

    async def machines(self) -> AsyncIterator[Machine]:
        """Yield every machine with our install tag, ``pageSize`` at a time."""
        async for document in self._pages([(keys.TAG_INSTALL, self._install_id)]):
            yield _machine(document)

    async def adopt(self, machine_id: str, tags: Mapping[str, str]) -> Machine:
        """Put tags on a machine, ours or not."""
        return _machine(await self._call("PUT", f"{_path(machine_id)}/tags", {"tags": dict(tags)}))

    async def delete(self, machine_id: str) -> Deletion:
        """Start or follow a deletion; the cloud itself checks our install tag in the same step."""
        only_ours = {"ifTag": f"{keys.TAG_INSTALL}={self._install_id}"}
        try:
            answer = await self._call("DELETE", _path(machine_id), params=only_ours)
        except _NotThere:
            return Deletion.GONE
        # Only the cloud's own word counts: an empty 200 of something in between says nothing.
        if answer.get("state") not in {MachineState.DELETING, GONE}:
            raise Unavailable("the cloud's answer to a delete is not understood")
        return Deletion.GONE if answer["state"] == GONE else Deletion.STARTED

    async def console(self, machine_id: str) -> str:
        """Return the end of what a machine has printed."""
        answer = await self._call("GET", f"{_path(machine_id)}/console")
        text = str(answer.get("console") or "")
        return "".join(one for one in text if one.isprintable() or one in "\n\t")[-CONSOLE_CHARACTERS:]

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _settled(self, token: str) -> Machine | None:
        """Return the one machine of the token after deleting the younger ones."""
        found = await self._of_token(token)
        for machine in found[1:]:
            if machine.state is not MachineState.DELETING:
                await self.delete(machine.id)
        return found[0] if found else None

    async def _of_token(self, token: str) -> list[Machine]:
        """Return our machines of the token: those that stay first, and among them the oldest first."""
        tags = [(keys.TAG_UID, token), (keys.TAG_INSTALL, self._install_id)]
        found = [(_created_at(document), _machine(document)) async for document in self._pages(tags)]
        found.sort(key=lambda pair: (pair[1].state is MachineState.DELETING, pair[0], pair[1].id))
        return [machine for _, machine in found]

    async def _pages(self, tags: list[tuple[str, str]]) -> AsyncIterator[Document]:
        fixed = [("limit", str(self._config.page_size)), *(("tag", f"{key}={value}") for key, value in tags)]
        page: str | None = None
        for _ in range(MAX_PAGES):
            params = [*fixed, ("page", page)] if page else fixed
            answer = await self._call("GET", "v1/machines", params=params)
            machines, after = answer.get("machines"), answer.get("next")
            if not isinstance(machines, list) or not (after is None or isinstance(after, str)):
                raise Unavailable("the cloud's listing is not understood")
            for document in machines:
                yield document
            if after is None:
                return
            if after == page:
                break
            page = after
        raise Unavailable("the cloud's listing does not end")

    async def _call(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        params: Mapping[str, str] | list[tuple[str, str]] | None = None,
    ) -> Document:
        """Return the answer's document. Raises what ``errors`` has for everything else."""
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._session().request(method, path, data=data, params=params) as response:
                content = await response.read()
        except TimeoutError as error:
            raise Unavailable(f"no answer within {self._config.timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(self._told(f"cannot be reached: {type(error).__name__}: {error}")) from error
        if 200 <= response.status < 300:
            return _object(content)
        raise self._refusal(response.status, response.headers, content)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                self._config.endpoint,
                connector=aiohttp.TCPConnector(limit=self._config.connections),
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_seconds),
                headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            )
        return self._http

    def _told(self, text: str) -> str:
        """Return the text fit for users: short, and without our key, which a proxy may quote."""
        return text.replace(self._key, "***")[:MAX_QUOTED]

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> ProviderError:
        code, words = _error(content)
        message = self._told(f"HTTP {status}{f' {code}' if code else ''}: {words or 'no reason given'}")
        pause = _retry_after(headers)
        if status == 404 and code == "MachineNotFound":
            return _NotThere(message)
        return _typed(status, code)(message, retry_after=pause)


class _NotThere(MachineNotFound):
    """The cloud says that no machine has this id; unlike a machine that is there and not ours."""


def _typed(status: int, code: str) -> type[ProviderError]:
    """Return what an HTTP error means.

    A 404 that does not speak of a machine comes from something else at that address: it proves nothing.
    """
    match status:
        case 403 if code == "QuotaExceeded":
            return Exhausted
        case 401 | 403:
            return CredentialsRefused
        case 429:
            return Throttled
        case 412:
            return MachineNotFound
        case 422:
            return InvalidTemplate
        case 400 if code == "TokenUnsupported":
            return InvalidConfig
        case 400 | 409 | 410 | 413:
            return Terminal
    return Unavailable


def _create_body(want: MachineRequest, token: str | None) -> Document:
    return {
        "name": want.name,
        "hostname": want.hostname,
        "image": want.image,
        "cpus": want.cpus,
        "memoryMiB": want.memory_mib,
        "diskGiB": want.disk_gib,
        "parameters": dict(want.parameters),
        "tags": dict(want.tags),
        "token": token,
    }


def _path(machine_id: str) -> str:
    return f"v1/machines/{quote(machine_id, safe='')}"


def _object(content: bytes) -> Document:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise Unavailable("the cloud's answer is not JSON") from error
    if not isinstance(document, dict):
        raise Unavailable("the cloud's answer is not an object")
    return document


def _machine(document: Any) -> Machine:
    try:
        return Machine(
            id=str(document["id"]),
            name=str(document["name"]),
            state=MachineState(document["state"]),
            tags={str(key): str(value) for key, value in document["tags"].items()},
            addresses=tuple(map(str, document["addresses"])),
            message=str(document["message"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"the cloud's machine is not understood: {error!r:.100}") from error


def _created_at(document: Any) -> float:
    at = document.get("createdAt") if isinstance(document, dict) else None
    if not isinstance(at, int | float):
        raise Unavailable("the cloud's machine is not understood: no createdAt")
    return at


def _error(content: bytes) -> tuple[str, str]:
    """Return code and message of an error document; empty strings when it is none."""
    try:
        error = orjson.loads(content)["error"]
        return str(error["code"]), str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "", ""


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    seconds = headers.get("Retry-After", "")
    if not (seconds.isascii() and seconds.isdigit()):
        return None
    return min(timedelta(seconds=min(int(seconds), 10**6)), MAX_RETRY_AFTER)
