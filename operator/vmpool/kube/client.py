"""The verbs of the API, with bounds, typed errors and the few retries that are safe.

A read is tried again after 429, 5xx and a broken connection. A write is tried again only when the server said
429 or was never reached; everything else without a clear answer is ``OutcomeUnknown``, and the caller looks.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from vmpool.kube.errors import BadRequest, Gone, OutcomeUnknown, ServerError, Throttled, Unreachable, error_from_status
from vmpool.kube.resource import Json, Resource
from vmpool.kube.transport import ClientSettings, Request, RequestSeen, Transport, ignore_request

__all__ = ["Client", "ClientSettings", "Page", "RequestSeen", "retry_pause"]

log = logging.getLogger(__name__)

WATCH_OVERTIME = timedelta(seconds=30)
"""After its own end a watch is cut: the server has forgotten to end it."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list; all parts of one list show the same moment, ``resource_version``."""

    items: Sequence[Json]
    resource_version: str
    continue_: str


def retry_pause(tried: int, roll: float, settings: ClientSettings, wanted: timedelta | None = None) -> timedelta:
    """How long to wait after ``tried`` tries: doubling, with jitter from ``roll`` in [0, 1), never above the maximum.

    ``wanted`` is what the server asked for; it is waited out in full, up to the maximum.
    """
    doubled: timedelta = settings.pause_base * 2 ** min(tried - 1, 20)
    jittered = doubled * (0.5 + roll / 2)
    return min(max(jittered, wanted or timedelta(0)), settings.pause_max)


class Client:
    """One API server, one identity. Use it as an async context manager, inside the loop that made it."""

    def __init__(
        self,
        configuration: Configuration,
        settings: ClientSettings,
        on_request: Callable[[RequestSeen], None] = ignore_request,
    ) -> None:
        self.settings = settings
        self._transport = Transport(configuration, settings, on_request)
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._refresh: asyncio.Task[None] | None = None

    @classmethod
    async def from_kubeconfig(
        cls,
        path: str | Path,
        context: str | None = None,
        settings: ClientSettings | None = None,
        on_request: Callable[[RequestSeen], None] = ignore_request,
    ) -> Self:
        """The server and user of a context (by default the current one); the file is never written.

        Raises ``Unreachable`` when the file is missing or makes no sense.
        """
        configuration = Configuration()
        try:
            loader = await config.load_kube_config(
                str(path), context, client_configuration=configuration, persist_config=False
            )
        except config.ConfigException as error:
            raise Unreachable(f"kubeconfig {path}: {error}") from error
        client = cls(configuration, settings or ClientSettings(), on_request)
        if loader._user is not None:
            client._refresh = asyncio.create_task(_keep_token(loader, configuration))
        return client

    @classmethod
    async def in_cluster(
        cls,
        settings: ClientSettings | None = None,
        on_request: Callable[[RequestSeen], None] = ignore_request,
    ) -> Self:
        """The pod's own service account; its token is read again as it is rotated.

        Raises ``Unreachable`` outside a pod.
        """
        configuration = Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise Unreachable(f"service account: {error}") from error
        return cls(configuration, settings or ClientSettings(), on_request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection; requests in flight fail."""
        if self._refresh is not None:
            self._refresh.cancel()
            with suppress(asyncio.CancelledError):
                await self._refresh
        await self._transport.close()

    @property
    def api(self) -> ApiClient:
        """The library's client on the same session, for what is not on the hot path."""
        return self._transport.api

    @property
    def clock_skew(self) -> timedelta | None:
        """The server's clock minus ours, exact to about a second; None before the first answer."""
        return self._transport.clock_skew

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Json:
        """The object as it is now (a quorum read). Raises ``NotFound``, ``KindNotFound``."""
        return await self._send(Request("GET", resource.path(namespace, name), resource.plural))

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None,
        limit: int | None = None,
        continue_: str = "",
        resource_version: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
    ) -> Page:
        """One page; without ``resource_version`` what is true now. Raises ``Gone`` when ``continue_`` is too old."""
        query = {"limit": str(limit or self.settings.page_limit)}
        if continue_:
            query["continue"] = continue_
        if resource_version is not None:
            query["resourceVersion"] = resource_version
        query |= _selectors(field_selector, label_selector)
        answer = await self._send(Request("GET", resource.path(namespace), resource.plural, query=query))
        metadata = answer["metadata"]
        return Page(answer.get("items") or (), metadata["resourceVersion"], metadata.get("continue") or "")

    async def count(self, resource: Resource, namespace: str | None, version: str) -> int | None:
        """How many objects there were at exactly this version of a list; None where the server cannot tell.

        It counts its keys for that and reads one object: what it says does not come from the list it gave before.
        """
        query = {"limit": "1", "resourceVersion": version, "resourceVersionMatch": "Exact"}
        try:
            answer = await self._send(Request("GET", resource.path(namespace), resource.plural, query=query))
        except (Gone, BadRequest):
            # Compacted meanwhile, or no server that takes such a question: the list stands as it is.
            return None
        found, metadata = len(answer.get("items") or ()), answer["metadata"]
        if not metadata.get("continue"):
            return found
        left = metadata.get("remainingItemCount")
        return None if left is None else found + int(left)

    async def list_pages(
        self,
        resource: Resource,
        namespace: str | None,
        limit: int | None = None,
        field_selector: str = "",
        label_selector: str = "",
    ) -> AsyncGenerator[Page]:
        """All pages of what is true now. Raises ``Gone`` when reading them took too long: begin again."""
        continue_ = ""
        while True:
            page = await self.list_page(
                resource,
                namespace,
                limit,
                continue_,
                field_selector=field_selector,
                label_selector=label_selector,
            )
            continue_ = page.continue_
            yield page
            # Decoded, a page is ten times its size: two of them need not be there at once.
            del page
            if not continue_:
                return

    async def create(self, resource: Resource, namespace: str | None, body: Mapping[str, Any]) -> Json:
        """The object as created. Raises ``AlreadyExists``, ``Invalid``, ``Forbidden``, ``OutcomeUnknown``, ..."""
        if resource.namespaced and namespace is None:
            raise ValueError(f"{resource.plural} are made in a namespace")
        return await self._write("POST", resource, resource.path(namespace), body)

    async def patch_merge(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        subresource: str | None = None,
    ) -> Json:
        """The object as patched; a ``metadata.resourceVersion`` or ``metadata.uid`` in ``patch`` must match.

        Raises ``Conflict`` (resourceVersion), ``Invalid`` (uid, fields, rules), ``NotFound``, ``OutcomeUnknown``, ...
        """
        path = resource.path(namespace, name, subresource)
        return await self._write("PATCH", resource, path, patch, subresource, "application/merge-patch+json")

    async def patch_json(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Sequence[Mapping[str, Any]],
        subresource: str | None = None,
    ) -> Json:
        """The object as patched by JSON Patch operations. A ``test`` that fails raises ``Invalid``."""
        path = resource.path(namespace, name, subresource)
        return await self._write("PATCH", resource, path, patch, subresource, "application/json-patch+json")

    async def apply(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        force: bool = False,
    ) -> Json:
        """The object after a server-side apply. Raises ``Conflict`` when another owns a field, unless forced."""
        query = {"force": "true"} if force else {}
        path = resource.path(namespace, name)
        return await self._write("PATCH", resource, path, body, None, "application/apply-patch+yaml", query)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
        propagation: str | None = None,
    ) -> Json | None:
        """The object while finalizers hold it, None when the server says that it is gone.

        Never touches another object than the one of ``uid``. Raises ``Conflict``, ``NotFound``, ``OutcomeUnknown``, ...
        """
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        if propagation is not None:
            options["propagationPolicy"] = propagation
        body = orjson.dumps(options)
        path = resource.path(namespace, name)
        answer = await self._send(Request("DELETE", path, resource.plural, body=body))
        return None if answer.get("kind") == "Status" else answer

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        resource_version: str,
        timeout: timedelta,
        silence: timedelta,
        field_selector: str = "",
        label_selector: str = "",
    ) -> AsyncGenerator[tuple[str, Json]]:
        """ADDED, MODIFIED, DELETED and BOOKMARK with their objects, until the server ends it after ``timeout``.

        Raises ``Gone`` and other typed errors for an ERROR event, ``Unreachable`` after ``silence`` without a byte.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout.total_seconds()))),
            **_selectors(field_selector, label_selector),
        }
        request = Request("GET", resource.path(namespace), resource.plural, query=query)
        lines = self._transport.lines(request, silence=silence, total=timeout + WATCH_OVERTIME)
        async with aclosing(lines):
            async for line in lines:
                event = _decode(request, line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise error_from_status(status.get("code") or 500, status)
                yield event["type"], event["object"]

    async def _write(
        self,
        method: str,
        resource: Resource,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        subresource: str | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        request = Request(
            method,
            path,
            resource.plural,
            subresource or "",
            {"fieldManager": self.settings.field_manager, **(query or {})},
            orjson.dumps(body),
            content_type,
        )
        return await self._send(request)

    async def _send(self, request: Request) -> Json:
        for tried in range(1, self.settings.tries + 1):
            try:
                async with self._slots:
                    body = await self._transport.send(request)
                return _decode(request, body)
            except (Throttled, ServerError, Unreachable) as error:
                # The transport raises these only where a second try cannot do a write twice.
                if tried == self.settings.tries:
                    raise
                pause = retry_pause(tried, random.random(), self.settings, error.retry_after)  # noqa: S311
                log.debug("try %d of %s %s: %s", tried, request.method, request.path, error)
            await asyncio.sleep(pause.total_seconds())
        raise AssertionError("unreachable: the last try returns or raises")


async def _keep_token(loader: Any, configuration: Configuration) -> None:
    """Renew tokens of exec plug-ins and GCP as long as we live; for other users there is nothing to do."""
    while True:
        try:
            await config.refresh_token(loader, configuration)  # sleeps a minute before each look
            return
        except Exception:
            log.exception("the API token could not be renewed; trying again")


def _decode(request: Request, body: bytes) -> Json:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if isinstance(answer, dict):
        return answer
    error = OutcomeUnknown if request.is_write else ServerError
    raise error(f"{request.method} {request.path}: an answer that is no JSON object: {body[:100]!r}")


def _selectors(field_selector: str, label_selector: str) -> dict[str, str]:
    chosen = {"fieldSelector": field_selector, "labelSelector": label_selector}
    return {name: value for name, value in chosen.items() if value}
