"""``vmpool dlq``: look at dead letters, try again, discard, keep a copy."""

import gzip
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from vmpool.cli.cluster import (
    AllNamespaces,
    Cluster,
    Context,
    Kubeconfig,
    Mistake,
    Namespace,
    age,
    in_cluster,
    out,
    text,
)
from vmpool.kube.errors import NotFound
from vmpool.kube.kinds import DEAD_LETTER_QUEUES, DEAD_LETTERS
from vmpool.kube.resource import Json

app = typer.Typer(no_args_is_help=True, help="Dead letters: failures that are kept, tried again or discarded.")

Queue = Annotated[str, typer.Option("--queue", "-q", help="Only letters of this DeadLetterQueue.")]
Pool = Annotated[str, typer.Option("--pool", "-p", help="Only letters of this VMPool.")]
From = Annotated[str, typer.Option("--from", help="Only those from pending, clone, ready, running or tasks.")]
Fingerprint = Annotated[str, typer.Option("--fingerprint", "-f", help="Only failures that are alike.")]
Request = Annotated[str, typer.Option("--request", "-r", help="Only those of this request id.")]
Selector = Annotated[str, typer.Option("--selector", "-l", help="Label selector, as for kubectl.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names of letters.")]
Shown = Annotated[Literal["table", "json", "name"], typer.Option("--output", "-o", help="table, json or name.")]


@app.command("list")
def list_letters(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    queue: Queue = "",
    pool: Pool = "",
    queue_from: From = "",
    fingerprint: Fingerprint = "",
    request: Request = "",
    selector: Selector = "",
    group: Annotated[bool, typer.Option("--group", "-g", help="One line for failures that are alike.")] = False,
    output: Shown = "table",
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """List dead letters, newest first."""
    fields = _fields(queue, pool, queue_from, fingerprint, request)

    async def work(cluster: Cluster) -> list[Json]:
        return await cluster.every(DEAD_LETTERS, everywhere=everywhere, fields=fields, labels=selector)

    letters = in_cluster(kubeconfig, context, namespace, work)
    letters.sort(key=lambda one: str(one["spec"]["failedAt"]), reverse=True)
    if output == "json":
        _write_lines(sys.stdout.buffer, letters)
    elif output == "name":
        for one in letters:
            typer.echo(one["metadata"]["name"])
    elif not letters:
        out.print("no dead letters")
    else:
        out.print(_groups(letters) if group else _table(letters, everywhere=everywhere))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the letter.")],
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show everything that one letter tells."""
    found = in_cluster(kubeconfig, context, namespace, lambda cluster: cluster.one(DEAD_LETTERS, name))
    spec, status = found["spec"], found.get("status") or {}
    out.print(f"[bold]{name}[/]: {spec['errorClass']} at step {spec['step']}")
    out.print(f"  {spec['errorMessage']}", markup=False)
    table = Table.grid(padding=(0, 2))
    for label, value in (
        ("vm", spec["vm"]),
        ("pool", spec["pool"]),
        ("queue", spec["queueFrom"]),
        ("failed", f"{spec['failedAt']} ({_age(spec['failedAt'])} ago)"),
        ("request", f"{text(spec.get('requestId'))}, {spec.get('retryCount', 0)} failed before"),
        ("provider", f"{spec['provider']} {text(spec.get('machineId'))}".strip()),
        ("template", text(spec.get("templateDigest"))),
        ("alike", spec["fingerprint"]),
        ("action", text(spec.get("action"))),
        ("status", f"{text(status.get('phase'))} {text(status.get('message'))}".strip()),
    ):
        if value:
            table.add_row(f"  {label}", escape(value))
    out.print(table)
    for attempt in spec.get("attempts", ()):
        out.print(f"  {attempt['at']}  {attempt['reason']}: {attempt['message']}", markup=False)
    for label, value in (spec.get("diagnostics") or {}).items():
        if value:
            out.print(f"[bold]{label}[/]")
            out.print(value, markup=False)


@app.command()
def redrive(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    names: Names = None,
    queue: Queue = "",
    pool: Pool = "",
    queue_from: From = "",
    fingerprint: Fingerprint = "",
    request: Request = "",
    selector: Selector = "",
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Try again: the named letters, or all that match."""
    fields = _fields(queue, pool, queue_from, fingerprint, request)
    _act("redrive", names, fields, selector, (namespace, kubeconfig, context))


@app.command()
def discard(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    names: Names = None,
    queue: Queue = "",
    pool: Pool = "",
    queue_from: From = "",
    fingerprint: Fingerprint = "",
    request: Request = "",
    selector: Selector = "",
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Remove the named letters, or all that match, without archiving them."""
    fields = _fields(queue, pool, queue_from, fingerprint, request)
    _act("discard", names, fields, selector, (namespace, kubeconfig, context))


@app.command()
def archive(
    file: Annotated[Path, typer.Argument(help="Where to; with .gz at the end it is compressed, - is the output.")],
    queue: Queue = "",
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Write a copy of all letters as JSON lines; nothing is removed."""

    async def work(cluster: Cluster) -> list[Json]:
        return await cluster.every(DEAD_LETTERS, everywhere=everywhere, fields=_fields(queue, "", "", "", ""))

    letters = in_cluster(kubeconfig, context, namespace, work)
    if str(file) == "-":
        _write_lines(sys.stdout.buffer, letters)
        return
    try:
        with gzip.open(file, "wb") if file.suffix == ".gz" else file.open("wb") as target:
            _write_lines(target, letters)
    except OSError as error:
        out.print(f"error: {file}: {error.strerror}")
        raise typer.Exit(1) from None
    out.print(f"{len(letters)} letters written to {file}")


def _act(action: str, names: list[str] | None, fields: str, selector: str, where: tuple[str, str, str]) -> None:
    """Ask for an action on letters. What nobody chose is never acted on."""
    if bool(names) == bool(fields or selector):
        out.print("error: name letters, or choose them by an option: one of the two")
        raise typer.Exit(2)
    namespace, kubeconfig, context = where

    async def work(cluster: Cluster) -> tuple[int, list[str]]:
        chosen = names or [one["metadata"]["name"] for one in await _matching(cluster, fields, selector)]
        queues: Counter[str] = Counter()
        for name in chosen:
            try:
                queues[await _ask(cluster, name, action)] += 1
            except NotFound:
                if names:
                    raise Mistake(f"there is no DeadLetter {name} in namespace {cluster.namespace}") from None
        return queues.total(), [name for name in sorted(queues) if not await _exists(cluster, name)]

    count, unserved = in_cluster(kubeconfig, context, namespace, work)
    out.print(f"{action} asked for {count} {'letter' if count == 1 else 'letters'}")
    for name in unserved:
        out.print(f"note: there is no DeadLetterQueue {name}: nothing is done for its letters until there is")


async def _ask(cluster: Cluster, name: str, action: str) -> str:
    """Ask for an action on one letter, anew if it was answered before; return its queue."""

    async def put(value: str | None) -> Json:
        return await cluster.client.patch_merge(DEAD_LETTERS, cluster.namespace, name, {"spec": {"action": value}})

    letter = await put(action)
    if (letter.get("status") or {}).get("observedGeneration", -1) >= letter["metadata"]["generation"]:
        # The same wish again changes nothing on the server: it has to be taken back first.
        await put(None)
        letter = await put(action)
    return str(letter["spec"]["queue"])


async def _exists(cluster: Cluster, queue: str) -> bool:
    try:
        await cluster.client.get(DEAD_LETTER_QUEUES, cluster.namespace, queue)
    except NotFound:
        return False
    return True


async def _matching(cluster: Cluster, fields: str, selector: str) -> list[Json]:
    found = await cluster.every(DEAD_LETTERS, fields=fields, labels=selector)
    if not found:
        raise Mistake(
            f"no letter in namespace {cluster.namespace} matches {' '.join(filter(None, (fields, selector)))}"
        )
    return found


def _fields(queue: str, pool: str, queue_from: str, fingerprint: str, request: str) -> str:
    wanted = {"queue": queue, "pool": pool, "queueFrom": queue_from, "fingerprint": fingerprint, "requestId": request}
    return ",".join(f"spec.{field}={value}" for field, value in wanted.items() if value)


def _table(letters: list[Json], *, everywhere: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in (
        *(("NAMESPACE",) if everywhere else ()),
        "NAME",
        "QUEUE",
        "CAUSE",
        "RETRIES",
        "STATUS",
        "AGE",
        "MESSAGE",
    ):
        table.add_column(head, overflow="ellipsis", no_wrap=True)
    for one in letters:
        spec = one["spec"]
        table.add_row(
            *((one["metadata"]["namespace"],) if everywhere else ()),
            one["metadata"]["name"],
            spec["queueFrom"],
            spec["errorClass"],
            text(spec.get("retryCount", 0)),
            text((one.get("status") or {}).get("phase")),
            _age(spec["failedAt"]),
            escape(spec["errorMessage"]),
        )
    return table


def _groups(letters: list[Json]) -> Table:
    """One line for each fingerprint, the most frequent first; the message is that of the newest."""
    newest = {one["spec"]["fingerprint"]: one["spec"] for one in reversed(letters)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("TIMES", "FINGERPRINT", "QUEUE", "CAUSE", "MESSAGE"):
        table.add_column(head, overflow="ellipsis", no_wrap=True)
    for fingerprint, count in Counter(one["spec"]["fingerprint"] for one in letters).most_common():
        spec = newest[fingerprint]
        table.add_row(str(count), fingerprint, spec["queueFrom"], spec["errorClass"], escape(spec["errorMessage"]))
    return table


def _age(moment: str) -> str:
    return age(datetime.fromisoformat(moment), datetime.now(UTC))


def _write_lines(target: Any, letters: list[Json]) -> None:
    for one in letters:
        target.write(orjson.dumps(one) + b"\n")
