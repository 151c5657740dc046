"""What the commands for a running cluster share: how to reach it, whose objects, and how its refusals are told."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from vmpool.kube.client import Client
from vmpool.kube.connect import context_namespace
from vmpool.kube.errors import KubeError, NotFound
from vmpool.kube.resource import Json, Resource

T = TypeVar("T")

out = Console(soft_wrap=True, highlight=False)
problems = Console(stderr=True, soft_wrap=True, highlight=False)

Kubeconfig = Annotated[str, typer.Option(help="Path of a kubeconfig; default $KUBECONFIG, then ~/.kube/config.")]
Context = Annotated[str, typer.Option(help="Context in the kubeconfig.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Default: that of the context.")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Objects of every namespace.")]


class Mistake(Exception):
    """What was asked for makes no sense; the message says why."""


class Cluster:
    """One cluster, and the namespace that is meant."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def every(
        self, resource: Resource, *, everywhere: bool = False, fields: str = "", labels: str = ""
    ) -> list[Json]:
        """Return all objects of a kind in the namespace, or in all."""
        where = None if everywhere else self.namespace
        pages = self.client.list_pages(resource, where, field_selector=fields, label_selector=labels)
        return [item async for page in pages for item in page.items]

    async def one(self, resource: Resource, name: str) -> Json:
        """Return an object. Raises Mistake when there is none of that name."""
        try:
            return await self.client.get(resource, self.namespace, name)
        except NotFound:
            raise Mistake(f"there is no {resource.kind} {name} in namespace {self.namespace}") from None


def in_cluster(kubeconfig: str, context: str, namespace: str, work: Callable[[Cluster], Awaitable[T]]) -> T:
    """Run ``work`` with a connection; a refusal ends the command with code 1 and one sentence."""

    async def run() -> T:
        path = kubeconfig or os.environ.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
        async with await Client.from_kubeconfig(path, context or None) as client:
            return await work(Cluster(client, namespace or await context_namespace(path, context)))

    try:
        return asyncio.run(run())
    except (Mistake, KubeError) as error:
        problems.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None


def text(value: Any) -> str:
    """Return a value as a table shows it; nothing is an empty text."""
    return "" if value is None else str(value)


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago something was, in one unit."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
