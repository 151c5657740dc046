"""Everything of vmpool in a cluster as facts: read from the server, or from a file that kubectl has written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vmpool.api.conditions import ConditionType, find
from vmpool.cli.cluster import Cluster, Mistake
from vmpool.engine import facts
from vmpool.engine.facts import ProviderObject
from vmpool.engine.stragglers import is_straggler
from vmpool.kube.kinds import (
    DEAD_LETTER_QUEUES,
    DEAD_LETTERS,
    HEALTH_POLICIES,
    POOLEDVMS,
    PURGE_POLICIES,
    VMCLAIMS,
    VMPOOLS,
    VMPROVIDERS,
)
from vmpool.kube.resource import Json, Resource
from vmpool.plan.health import pauses
from vmpool.plan.policies import HealthObject, Letter, PurgeObject, QueueObject
from vmpool.plan.purge import Group, Surroundings, governor, groups
from vmpool.plan.snapshot import VM, PoolFacts, ProviderFacts, VMClaim

T = TypeVar("T")


@dataclass(slots=True)
class ClusterFacts:
    """The objects of one namespace, or of all."""

    pools: list[PoolFacts] = field(default_factory=list)
    vms: list[VM] = field(default_factory=list)
    providers: list[ProviderObject] = field(default_factory=list)
    claims: list[VMClaim] = field(default_factory=list)
    queues: list[QueueObject] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    purges: list[PurgeObject] = field(default_factory=list)
    healths: list[HealthObject] = field(default_factory=list)

    def vms_of(self, pool: PoolFacts) -> tuple[VM, ...]:
        """Return the VMs that belong to a pool's uid."""
        return tuple(vm for vm in self.vms if vm.pool_uid == pool.uid)

    def letters_of(self, pool: PoolFacts) -> list[Letter]:
        """Return the dead letters of a pool's uid."""
        return [letter for letter in self.letters if letter.pool_uid == pool.uid]

    def stragglers(self) -> list[VM]:
        """Return the VMs that stand for machines that nobody owned."""
        return [vm for vm in self.vms if is_straggler(vm)]

    def naming(self, namespace: str, name: str, of: Callable[[PoolFacts], str | None]) -> list[PoolFacts]:
        """Return the pools of a namespace that name an object; ``of`` reads the field."""
        return [pool for pool in self.pools if pool.namespace == namespace and of(pool) == name]

    def provider_facts(self, namespace: str) -> dict[str, ProviderFacts]:
        """Return what the providers of a namespace say of themselves, by name."""
        return {one.name: _provider(one, self.vms) for one in self.providers if one.namespace == namespace}


_READERS: dict[str, tuple[Resource, str, Callable[[Json], Any]]] = {
    resource.kind: (resource, where, read)
    for resource, where, read in (
        (VMPOOLS, "pools", facts.pool_facts),
        (POOLEDVMS, "vms", facts.vm_facts),
        (VMPROVIDERS, "providers", facts.provider_object),
        (VMCLAIMS, "claims", facts.claim_facts),
        (DEAD_LETTER_QUEUES, "queues", facts.queue_object),
        (DEAD_LETTERS, "letters", facts.letter_facts),
        (PURGE_POLICIES, "purges", facts.purge_object),
        (HEALTH_POLICIES, "healths", facts.health_object),
    )
}


async def gather(cluster: Cluster, *, everywhere: bool = False) -> ClusterFacts:
    """Read every kind of ours: one list each."""
    found = ClusterFacts()
    for resource, where, read in _READERS.values():
        getattr(found, where).extend(read(item) for item in await cluster.every(resource, everywhere=everywhere))
    return found


def of_file(file: Path) -> ClusterFacts:
    """Read what ``kubectl get vmp,pvm,vmprov,vmc,dlq,dl,purge,health -o yaml`` (or json) has written.

    Raises Mistake for anything else.
    """
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Mistake(f"{file} cannot be read: {error}") from error
    found = ClusterFacts()
    for item in _items(documents):
        reader = _READERS.get(item.get("kind", ""))
        if reader is None:
            continue
        try:
            getattr(found, reader[1]).append(reader[2](item))
        except (KeyError, ValueError, TypeError) as error:
            name = (item.get("metadata") or {}).get("name", "?")
            raise Mistake(f"{file}: {item['kind']} {name} cannot be understood: {error}") from error
    return found


def _items(documents: Iterable[Any]) -> Iterator[Json]:
    for one in documents:
        if isinstance(one, dict):
            yield from (one["items"] if isinstance(one.get("items"), list) else [one])


def _provider(one: ProviderObject, vms: Iterable[VM]) -> ProviderFacts:
    ready = find(one.status.conditions, ConditionType.READY)
    stalled = find(one.status.conditions, ConditionType.STALLED)
    fine = ready is not None and ready.status == "True" and not one.spec.paused
    taken = sum(1 for vm in vms if (vm.namespace, vm.provider) == (one.namespace, one.name))
    return ProviderFacts(
        name=one.name,
        usable=fine and not one.deleting,
        reachable=fine,
        reason=ready.reason if ready is not None else "Unknown",
        message=ready.message if ready is not None else "nobody has looked at it yet",
        stalled=stalled is not None and stalled.status == "True",
        deleting=one.deleting,
        room=max(0, one.spec.limits.machines - taken),
    )


def purge_groups(found: ClusterFacts, policy: PurgeObject) -> list[Group]:
    """Return what a purge policy judges, as the operator sees it."""
    namespace = policy.namespace
    known = found.provider_facts(namespace)
    names = {one.name for one in found.purges if one.namespace == namespace}

    def governs(provider: str) -> bool:
        naming = [
            pool
            for pool in found.pools
            if pool.namespace == namespace and any(share.name == provider for share in pool.spec.providers)
        ]
        return governor(naming, names.__contains__) == policy.name

    around = Surroundings(
        vms_of=found.vms_of,
        orphans_of=lambda name: tuple(
            vm for vm in found.stragglers() if (vm.namespace, vm.provider) == (namespace, name)
        ),
        paused=lambda pool: _purge_paused(found, pool),
        reachable=lambda name: name in known and known[name].reachable,
        governs=governs,
    )
    return groups(found.naming(namespace, policy.name, lambda pool: pool.spec.purge_policy), around)


def _purge_paused(found: ClusterFacts, pool: PoolFacts) -> str:
    """Say in a clause why nothing of a pool may be removed; empty when it may."""
    if pool.spec.paused:
        return "spec.paused is true"
    named = (one for one in found.healths if (one.namespace, one.name) == (pool.namespace, pool.spec.health_policy))
    policy = next(named, None)
    return pauses(policy, pool.status.conditions)[1] if policy is not None else ""
