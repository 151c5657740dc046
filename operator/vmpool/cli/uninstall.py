"""``vmpool uninstall``: machines, operator and definitions go, in the one order in which nothing hangs."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from vmpool.api import keys
from vmpool.api.meta import parse_duration
from vmpool.cli.cluster import Cluster, Context, Kubeconfig, Mistake, in_cluster, out, problems
from vmpool.cli.leftover import Left, Remains, is_going, is_held, is_taken, without_ours
from vmpool.kube.client import Client
from vmpool.kube.errors import Conflict, KindNotFound, NotFound
from vmpool.kube.kinds import CONFIGMAPS, CRDS, POOLEDVMS, SECRETS, VMCLAIMS, VMPOOLS, VMPROVIDERS
from vmpool.kube.resource import LEASES, Json, Resource
from vmpool.plan.crds import definitions

LOOK_SECONDS: Final = 1.0
"""Between two looks at what is left."""
STEP_SECONDS: Final = 120.0
"""How long the release, and the definitions, may take to go once nothing of theirs is left."""
SHOWN: Final = 20
"""Most objects that are named at the end; the rest is counted."""
RELEASE_LABEL: Final = "app.kubernetes.io/instance"
PART_OF: Final = "app.kubernetes.io/part-of=vmpool"
NOTHING_WORKS: Final = (
    "no operator works here (nobody renews lease {namespace}/{lease}), so no machine would go: start one,"
    " say by --namespace where it is, or leave the machines behind with --abandon"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    release: str
    namespace: str
    """The release's own."""
    only: str
    """Empty, or the one namespace that the release serves."""
    seconds: float
    end_claims: bool
    abandon: bool
    helm: bool
    kubeconfig: str
    context: str


def command(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    release: Annotated[str, typer.Argument(help="Name of the Helm release.")] = "vmpool",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="That of the release.")] = "vmpool",
    only: Annotated[str, typer.Option("--only", help="The one namespace that the release serves; kinds stay.")] = "",
    timeout: Annotated[str, typer.Option(help="How long the machines may take to go.")] = "30m",
    end_claims: Annotated[bool, typer.Option("--end-claims", help="Take VMs from those who have them.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="What has not gone by then loses its object; its machine stays.")
    ] = False,
    helm: Annotated[bool, typer.Option("--helm/--no-helm", help="Whether the operator came with Helm.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Remove everything: all machines, then the operator, then the definitions of the kinds.

    What cannot go in time is listed with the reason, and nothing behind it is removed. Do it again to go on.
    """
    try:
        seconds = parse_duration(timeout).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(f"--timeout: {error}") from None
    wish = Wish(release, namespace, only, seconds, end_claims, abandon, helm, kubeconfig, context)
    if helm and shutil.which("helm") is None:
        problems.print("error: the operator goes by helm uninstall, and there is no helm here; --no-helm leaves it out")
        raise typer.Exit(1)
    remains = in_cluster(kubeconfig, context, namespace, lambda cluster: _survey(cluster, wish))
    out.print(f"to be removed: {remains.counted()}, {_rest(wish)}", markup=False)
    if remains.taken and not end_claims:
        out.print(f"note: {len(remains.taken)} VMs are somebody's, and go when their claims end (--end-claims)")
    if abandon:
        out.print("note: --abandon: machines that have not gone by then stay at their providers, and nobody knows them")
    if not yes:
        typer.confirm("Remove all of it?", abort=True)
    in_cluster(kubeconfig, context, namespace, lambda cluster: _remove(cluster, wish))


def _rest(wish: Wish) -> str:
    operator = f"release {wish.namespace}/{wish.release}" if wish.helm else "no release (--no-helm)"
    return f"{operator}, {f'nothing outside of namespace {wish.only}' if wish.only else 'all definitions of our kinds'}"


async def _survey(cluster: Cluster, wish: Wish) -> Remains:
    """Return what is there. Raises Mistake when nobody would remove it."""
    remains = await _remains(cluster.client, wish)
    if not remains.done and not wish.abandon and not await _works(cluster.client, wish):
        raise Mistake(NOTHING_WORKS.format(namespace=wish.namespace, lease=keys.LEASE_NAME))
    return remains


async def _remove(cluster: Cluster, wish: Wish) -> None:
    client = cluster.client
    out.print("1/3 machines")
    await _drain(client, wish)
    out.print("2/3 operator")
    if wish.helm:
        await asyncio.to_thread(_helm_uninstall, wish)
    out.print("3/3 what is left of the installation")
    await _tidy(client, wish)
    if not wish.only:
        await _definitions_go(client)
    out.print("done: nothing of vmpool is left" if wish.helm else "done: nothing is left but what --no-helm leaves")


# --- machines


async def _drain(client: Client, wish: Wish) -> None:
    """Delete claims and pools, then providers, and wait until they are gone. Raises Mistake at the end of the time."""
    end, said = time.monotonic() + wish.seconds, ""
    while not (remains := await _remains(client, wish)).done:
        if (now := f"  {remains.counted()} left") != said:
            out.print(now)
            said = now
        await _ask(client, remains, end_claims=wish.end_claims)
        working = await _works(client, wish)
        if time.monotonic() > end or not working:
            if not wish.abandon:
                why = f"not within {wish.seconds:g} s" if working else "no operator works any more"
                raise _unfinished(remains.reasons(), why)
            await _abandon(client, remains)
        await asyncio.sleep(LOOK_SECONDS)


async def _ask(client: Client, remains: Remains, *, end_claims: bool) -> None:
    """Have everything deleted that can go now; what was asked for already is left alone."""
    if end_claims:
        for pool in remains.pools:
            if pool["spec"].get("deletionPolicy") != "Force":
                await _quietly(_patch(client, VMPOOLS, pool, {"spec": {"deletionPolicy": "Force"}}))
    await _delete(client, VMCLAIMS, remains.claims)
    await _delete(client, VMPOOLS, remains.pools)
    if not remains.pools:
        # Of no pool any more: machines that were found without an object.
        await _delete(client, POOLEDVMS, (vm for vm in remains.vms if not is_taken(vm)))
    if not remains.vms and not remains.pools:
        await _delete(client, VMPROVIDERS, remains.providers)


async def _abandon(client: Client, remains: Remains) -> None:
    """Delete what is left and take our finalizers off; the machines are named, for nobody else will."""
    for left in remains.reasons():
        if left.machine:
            out.print(f"  abandoned: machine {left.machine} ({left})", markup=False)
    kinds = ((VMCLAIMS, remains.claims), (VMPOOLS, remains.pools), (POOLEDVMS, remains.vms))
    for resource, things in (*kinds, (VMPROVIDERS, remains.providers)):
        await _delete(client, resource, things)
        for thing in things:
            await _let_go(client, resource, thing)
    for provider in remains.providers:
        status, where = provider.get("status") or {}, provider["metadata"]["namespace"]
        for name in (status.get("heldSecret"), (provider["spec"].get("secretRef") or {}).get("name")):
            found = await _found(client, SECRETS, where, name) if name else None
            if found is not None:
                await _let_go(client, SECRETS, found)


async def _let_go(client: Client, resource: Resource, thing: Json) -> None:
    """Take our finalizers off an object and leave those of others."""
    meta = thing["metadata"]
    held = list(meta.get("finalizers") or ())
    if (kept := without_ours(held)) != held:
        # On the newest version: who puts one on meanwhile is heard at the next look.
        await _quietly(_patch(client, resource, thing, {"metadata": {"finalizers": kept or None}}))


# --- operator and definitions


def _helm_uninstall(wish: Wish) -> None:
    argv = ["helm", "uninstall", wish.release, f"--namespace={wish.namespace}", "--ignore-not-found"]
    argv += ["--wait", f"--timeout={STEP_SECONDS:g}s"]
    argv += [f"--kubeconfig={wish.kubeconfig}"] if wish.kubeconfig else []
    argv += [f"--kube-context={wish.context}"] if wish.context else []
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=2 * STEP_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Mistake(f"helm uninstall: {error}") from error
    if done.returncode != 0:
        raise Mistake(f"helm uninstall ended with {done.returncode}: {done.stderr.strip()}")


async def _tidy(client: Client, wish: Wish) -> None:
    """Remove what a release keeps so that another one can go on: identity, lease, tokens, the simulated cloud's key."""
    await _delete_named(client, CONFIGMAPS, wish.namespace, keys.IDENTITY_CONFIGMAP)
    await _delete_named(client, LEASES, wish.namespace, keys.LEASE_NAME)
    ours = f"{PART_OF},{RELEASE_LABEL}={wish.release}"
    for where in {wish.namespace, wish.only} - {""}:
        async for page in client.list_pages(SECRETS, where, label_selector=ours):
            await _delete(client, SECRETS, page.items)
    shelves = (f"{keys.TOKEN_SECRET_PREFIX}{digit}" for digit in "0123456789abcdef")
    for name in (keys.TOKEN_KEY_SECRET, *shelves):
        await _delete_named(client, SECRETS, wish.namespace, name)


async def _definitions_go(client: Client) -> None:
    """Delete our definitions and wait until they are gone: letters and policies go with them."""
    names = [one["metadata"]["name"] for one in definitions().values()]
    end = time.monotonic() + STEP_SECONDS
    while True:
        left = [found for name in names if (found := await _found(client, CRDS, None, name)) is not None]
        if not left:
            return
        await _delete(client, CRDS, left)
        if time.monotonic() > end:
            whys = [
                Left(one["kind"], "", one["metadata"]["name"], "objects of it are held by finalizers") for one in left
            ]
            raise _unfinished(whys, f"not within {STEP_SECONDS:g} s")
        await asyncio.sleep(LOOK_SECONDS)


# --- the API server


async def _remains(client: Client, wish: Wish) -> Remains:
    where = wish.only or None

    async def every(resource: Resource) -> tuple[Json, ...]:
        try:
            pages = [page async for page in client.list_pages(resource, where)]
        except (KindNotFound, NotFound):
            return ()
        # In a list they do not say what they are.
        return tuple({"kind": resource.kind, **item} for page in pages for item in page.items)

    return Remains(*[await every(resource) for resource in (VMCLAIMS, VMPOOLS, POOLEDVMS, VMPROVIDERS)])


async def _works(client: Client, wish: Wish) -> bool:
    lease = await _found(client, LEASES, wish.namespace, keys.LEASE_NAME)
    return lease is not None and is_held(lease, datetime.now(UTC) + (client.clock_skew or timedelta(0)))


async def _found(client: Client, resource: Resource, namespace: str | None, name: str) -> Json | None:
    try:
        return await client.get(resource, namespace, name)
    except NotFound:
        return None


async def _delete(client: Client, resource: Resource, things: Iterable[Json]) -> None:
    for thing in things:
        meta = thing["metadata"]
        if not is_going(thing):
            await _quietly(client.delete(resource, meta.get("namespace"), meta["name"], uid=meta["uid"]))


async def _delete_named(client: Client, resource: Resource, namespace: str, name: str) -> None:
    found = await _found(client, resource, namespace, name)
    await _delete(client, resource, [found] if found is not None else [])


async def _patch(client: Client, resource: Resource, thing: Json, change: Json) -> None:
    meta = thing["metadata"]
    body = {**change, "metadata": {"uid": meta["uid"], **change.get("metadata", {})}}
    await client.patch_merge(resource, meta["namespace"], meta["name"], body)


async def _quietly(work: Awaitable[object]) -> None:
    """Do what another one may have done meanwhile: gone is as good."""
    with suppress(NotFound, Conflict):
        await work


def _unfinished(left: list[Left], why: str) -> Mistake:
    named = "\n".join(f"  {one}" for one in left[:SHOWN])
    more = f"\n  and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return Mistake(f"{why}; still there:\n{named}{more}\nnothing more was removed; do it again to go on")
