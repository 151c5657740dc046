"""``vmpool uninstall``: machines, operator and definitions go, in the one order in which nothing hangs."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from vmpool.api import keys
from vmpool.api.meta import parse_duration
from vmpool.cli.cluster import Cluster, Context, Kubeconfig, Mistake, in_cluster, out, problems
from vmpool.cli.leftover import Absence, Left, Remains, is_going, is_held, is_taken, letting_go, served_by, unkept
from vmpool.kube.client import Client
from vmpool.kube.errors import Conflict, Invalid, KindNotFound, NotFound
from vmpool.kube.kinds import CONFIGMAPS, CRDS, POOLEDVMS, SECRETS, VMCLAIMS, VMPOOLS, VMPROVIDERS
from vmpool.kube.resource import LEASES, Json, Resource
from vmpool.plan.crds import definitions

LOOK_SECONDS: Final = 1.0
"""Between two looks at what is left."""
STEP_SECONDS: Final = 120.0
"""How long the release, and the definitions, may take to go once nothing of theirs is left; what was abandoned too."""
ABSENT_SECONDS: Final = 60.0
"""Nobody has to hold the lease for so long, without a break, until no operator works: leaders change, and upgrades."""
LET_GO_TRIES: Final = 5
"""So often a finalizer is taken off anew because somebody has written in between."""
SHOWN: Final = 20
"""Most objects that are named at the end; the rest is counted."""
RELEASE_LABEL: Final = "app.kubernetes.io/instance"
PART_OF: Final = "app.kubernetes.io/part-of=vmpool"
OPERATORS: Final = f"{PART_OF},app.kubernetes.io/component=operator"
DEPLOYMENTS: Final = Resource(group="apps", version="v1", plural="deployments", kind="Deployment")
NOTHING_WORKS: Final = (
    "no operator works here (nobody renews lease {namespace}/{lease}), so no machine would go: start one,"
    " say by --namespace where it is, or leave the machines behind with --abandon"
)
OTHERS_WORK: Final = (
    "other operators have leases here ({leases}), and what they serve would go too. If the release serves one"
    " namespace, type --only and that one; else remove the other releases first. A lease that is nobody's any more"
    " goes by kubectl delete lease"
)
DEFINITIONS_GO: Final = (
    "helm uninstall would delete definitions that others use too, and with them all their objects: release"
    " {namespace}/{release} does not keep {names}. Type helm upgrade {release} CHART -n {namespace} --reuse-values"
    " --set crds.keep=true first"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many seconds others have."""

    absent: float = ABSENT_SECONDS
    """The next operator, to take the lease."""
    step: float = STEP_SECONDS
    """What was abandoned, to be gone."""


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
    pace: Pace = field(default=Pace())


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
    """Return what is there. Raises Mistake when nobody would remove it, or what is others' would go too."""
    await _own_alone(cluster.client, wish)
    if wish.only and wish.helm:
        await asyncio.to_thread(_definitions_stay, wish)
    remains = await _remains(cluster.client, wish)
    if not remains.done and not wish.abandon and not await _works(cluster.client, wish):
        raise Mistake(NOTHING_WORKS.format(namespace=wish.namespace, lease=keys.LEASE_NAME))
    return remains


async def _remove(cluster: Cluster, wish: Wish) -> None:
    client = cluster.client
    out.print("1/3 machines")
    await drain(client, wish)
    out.print("2/3 operator")
    if wish.helm:
        await asyncio.to_thread(_helm_uninstall, wish)
    out.print("3/3 what is left of the installation")
    await _tidy(client, wish)
    if not wish.only:
        await _definitions_go(client)
    out.print("done: nothing of vmpool is left" if wish.helm else "done: nothing is left but what --no-helm leaves")


# --- machines


async def drain(client: Client, wish: Wish) -> None:
    """Delete claims and pools, then providers, and wait until they are gone. Raises Mistake at the end of the time.

    Without an operator the time ends too. What is to be abandoned loses our finalizers then, and Mistake is raised
    only when something else still holds it.
    """
    begun, said, ended = time.monotonic(), "", 0.0
    absence, named = Absence(wish.pace.absent), set[tuple[str, ...]]()
    while not (remains := await _remains(client, wish)).done:
        if (now := f"  {remains.counted()} left") != said:
            out.print(now)
            said = now
        await _ask(client, remains, end_claims=wish.end_claims)
        missing = absence.lasts(await _works(client, wish), time.monotonic())
        if not ended and (missing or time.monotonic() > begun + wish.seconds):
            if not wish.abandon:
                why = (
                    f"no operator has worked for {wish.pace.absent:g} s"
                    if missing
                    else f"not within {wish.seconds:g} s"
                )
                raise _unfinished(remains.reasons(), why)
            ended = time.monotonic()
        if ended:
            if time.monotonic() > ended + wish.pace.step:
                raise _unfinished(remains.holders(), f"abandoned, and not gone within {wish.pace.step:g} s")
            await _abandon(client, remains, named)
        await asyncio.sleep(LOOK_SECONDS)


async def _ask(client: Client, remains: Remains, *, end_claims: bool) -> None:
    """Have everything deleted that can go now; what was asked for already is left alone.

    A VMClaim goes while it has no VM; one that has some only with ``end_claims``, for its VMs go with it.
    """
    if end_claims:
        for pool in remains.pools:
            if pool["spec"].get("deletionPolicy") != "Force":
                await _quietly(_force(client, pool))
        await _delete(client, VMCLAIMS, remains.claims)
    elif all(is_going(pool) for pool in remains.pools):
        # Only now: a pool that goes hands nothing out, so that no claim gets a VM between our look and its deletion.
        await _delete(client, VMCLAIMS, remains.idle_claims)
    await _delete(client, VMPOOLS, remains.pools)
    if not remains.pools:
        # Of no pool any more: machines that were found without an object.
        await _delete(client, POOLEDVMS, (vm for vm in remains.vms if not is_taken(vm)))
    if not remains.vms and not remains.pools:
        await _delete(client, VMPROVIDERS, remains.providers)


async def _force(client: Client, pool: Json) -> None:
    meta = pool["metadata"]
    change = {"metadata": {"uid": meta["uid"]}, "spec": {"deletionPolicy": "Force"}}
    await client.patch_merge(VMPOOLS, meta["namespace"], meta["name"], change)


async def _abandon(client: Client, remains: Remains, named: set[tuple[str, ...]]) -> None:
    """Delete what is left and take our finalizers off; each machine is named once, for nobody else will."""
    for left in remains.reasons():
        key = (left.namespace, left.name, left.machine)
        if left.machine and key not in named:
            named.add(key)
            out.print(f"  abandoned: machine {left.machine} ({left})", markup=False)
    # VMs first: an operator that works would destroy the machine of one whose VMClaim is gone.
    for resource, things in ((POOLEDVMS, remains.vms), (VMCLAIMS, remains.claims), (VMPOOLS, remains.pools)):
        await _delete(client, resource, things)
        for thing in things:
            await let_go(client, resource, thing)
    await _delete(client, VMPROVIDERS, remains.providers)
    for provider in remains.providers:
        # Its Secrets are known by it alone.
        if all([await let_go(client, SECRETS, secret) for secret in await _secrets(client, provider)]):
            await let_go(client, VMPROVIDERS, provider)


async def _secrets(client: Client, provider: Json) -> list[Json]:
    """Return the Secrets that a provider may hold."""
    status, where = provider.get("status") or {}, provider["metadata"]["namespace"]
    names = {status.get("heldSecret"), (provider["spec"].get("secretRef") or {}).get("name")}
    found = [await _found(client, SECRETS, where, name) for name in names if name]
    return [secret for secret in found if secret is not None]


async def let_go(client: Client, resource: Resource, thing: Json) -> bool:
    """Take our finalizers off an object and leave those of others; False when it changes faster than that."""
    meta = thing["metadata"]
    for _ in range(LET_GO_TRIES):
        if not (patch := letting_go(thing)):
            return True
        try:
            await client.patch_json(resource, meta["namespace"], meta["name"], patch)
        except NotFound:
            return True
        except (Conflict, Invalid):
            # Somebody has put one on or taken one off since we looked.
            found = await _found(client, resource, meta["namespace"], meta["name"])
            if found is None or found["metadata"]["uid"] != meta["uid"]:
                return True
            thing = found
        else:
            return True
    return False


# --- operator and definitions


def _helm_uninstall(wish: Wish) -> None:
    _helm(wish, "uninstall", "--ignore-not-found", "--wait", f"--timeout={STEP_SECONDS:g}s")


def _definitions_stay(wish: Wish) -> None:
    """Raise Mistake when the end of the release would be that of the definitions, of which others have objects."""
    # What Helm has stored, not what is there: it goes by the annotations in its own manifest.
    names = unkept(_helm(wish, "get", "manifest", missing="release: not found"))
    if names:
        raise Mistake(DEFINITIONS_GO.format(namespace=wish.namespace, release=wish.release, names=", ".join(names)))


def _helm(wish: Wish, *words: str, missing: str = "") -> str:
    """Return what Helm says of the release; nothing when it complains of what is ``missing``. Raises Mistake."""
    verb = [word for word in words if not word.startswith("-")]
    argv = ["helm", *verb, wish.release, f"--namespace={wish.namespace}", *words[len(verb) :]]
    argv += [f"--kubeconfig={wish.kubeconfig}"] if wish.kubeconfig else []
    argv += [f"--kube-context={wish.context}"] if wish.context else []
    called = f"helm {' '.join(verb)}"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=2 * STEP_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Mistake(f"{called}: {error}") from error
    if done.returncode != 0 and not (missing and missing in done.stderr):
        raise Mistake(f"{called} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


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


async def _own_alone(client: Client, wish: Wish) -> None:
    """Raise Mistake when not the release's own would go, but more, or less while its operator goes."""
    pages = [page async for page in client.list_pages(DEPLOYMENTS, wish.namespace, label_selector=OPERATORS)]
    served = {served_by(each) for page in pages for each in page.items}
    what, alone = f"release {wish.namespace}/{wish.release}", ", ".join(sorted(filter(None, served)))
    if wish.only:
        # An operator that is not there, or does not say, may serve it.
        if served and not {wish.only, None} & served:
            instead = _type(alone) if alone else "leave --only out"
            raise Mistake(f"{what} serves {alone or 'every namespace'}, not {wish.only} alone: {instead}")
        return
    if served - {""}:
        raise Mistake(f"{what} serves {alone or 'one namespace'} alone, and what others have would go: {_type(alone)}")
    pages = [page async for page in client.list_pages(LEASES, None, field_selector=f"metadata.name={keys.LEASE_NAME}")]
    metas = [each["metadata"] for page in pages for each in page.items]
    others = [f"{meta['namespace']}/{meta['name']}" for meta in metas if meta["namespace"] != wish.namespace]
    if others:
        raise Mistake(OTHERS_WORK.format(leases=", ".join(others)))


def _type(served: str) -> str:
    return f"type --only={served or 'NAMESPACE'}"


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


async def _quietly(work: Awaitable[object]) -> None:
    """Do what another one may have done meanwhile: gone is as good."""
    with suppress(NotFound, Conflict):
        await work


def _unfinished(left: list[Left], why: str) -> Mistake:
    named = "\n".join(f"  {one}" for one in left[:SHOWN])
    more = f"\n  and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return Mistake(f"{why}; still there:\n{named}{more}\nnothing more was removed; do it again to go on")
