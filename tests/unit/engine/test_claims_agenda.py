"""What a round of the queue looks at: what waits, and of thousands that have their VMs only those with news."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.plan.queues import CI, a_claim, a_pool, a_vm, hold, seen, statuses
from tests.unit.plan.worlds import NOW, soon
from vmpool.api.pool import VMPoolStatus
from vmpool.engine.agenda import Agenda
from vmpool.engine.claims import ClaimsLoop
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS, VMPOOLS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan import claims as plan
from vmpool.plan.claims import plan_claims
from vmpool.plan.follow import follow
from vmpool.plan.snapshot import VM, VMClaim
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

MANY = 300
POOL = a_pool(maxVMs=1000)


class Picture:
    """The mirrors, told of facts directly."""

    def __init__(self) -> None:
        none: Any = None
        self.claims, self.vms, self.pools = (
            Mirror[Any](none, Selection(kind), lambda obj: obj["fact"], MirrorSettings())
            for kind in (VMCLAIMS, POOLEDVMS, VMPOOLS)
        )
        self.version = 10

    def see(self, *facts: Any) -> None:
        for fact in facts:
            self.version += 1
            meta = {"uid": fact.uid, "namespace": fact.namespace, "name": fact.name}
            obj = {"metadata": {**meta, "resourceVersion": str(self.version)}, "fact": fact}
            self._of(fact).saw(obj)

    def lose(self, fact: Any) -> None:
        self._of(fact).saw_deleted(fact.uid)

    def _of(self, fact: Any) -> Mirror[Any]:
        return self.claims if isinstance(fact, VMClaim) else self.vms if isinstance(fact, VM) else self.pools


def bound(name: str, **changes: Any) -> tuple[VMClaim, VM]:
    claim = a_claim(name, **changes)
    vm = a_vm(f"of-{name}", POOL, hold(claim))
    told = statuses(plan_claims(seen([claim], [POOL], held={claim.uid: (vm,)}), NOW))[name]
    return replace(claim, status=told), vm


@pytest.fixture
def picture() -> Picture:
    return Picture()


@pytest.fixture
def agenda(picture: Picture) -> Agenda:
    return Agenda(picture.claims, picture.vms, picture.pools)


def look(agenda: Agenda, at: Any = NOW) -> list[str]:
    """The names of what is due; there is nothing to do for any of it."""
    found = agenda.due(at)
    agenda.settle({claim.uid: None for claim in found if claim.phase != "Pending"})
    return sorted(claim.name for claim in found)


def test_what_waits_is_always_looked_at_and_the_rest_once(picture: Picture, agenda: Agenda) -> None:
    have, vm = bound("has")
    picture.see(POOL, a_claim("waits"), have, vm)
    assert agenda.pending
    assert look(agenda) == ["has", "waits"]
    assert look(agenda) == ["waits"]
    picture.see(have)
    assert look(agenda) == ["has", "waits"]
    picture.lose(a_claim("waits"))
    assert (agenda.pending, look(agenda)) == (False, [])


def test_what_is_not_settled_stays(picture: Picture, agenda: Agenda) -> None:
    have, _ = bound("has")
    picture.see(have)
    assert agenda.due(NOW) == agenda.due(NOW) == [have]
    agenda.settle({have.uid: soon(seconds=5)})
    assert (agenda.due(NOW), agenda.next()) == ([], soon(seconds=5))
    assert agenda.due(soon(seconds=5)) == [have]
    agenda.settle({have.uid: soon(seconds=9)})
    picture.lose(have)
    assert (agenda.next(), agenda.due(soon(seconds=9))) == (None, [])


def test_every_word_of_a_vm_is_news_of_its_claim(picture: Picture, agenda: Agenda) -> None:
    have, vm = bound("has")
    picture.see(have, *bound("other"), vm)
    look(agenda)
    picture.see(replace(vm, addresses=("10.0.0.2",)))
    assert look(agenda) == ["has"]
    picture.lose(vm)
    assert look(agenda) == ["has"]


def test_a_vm_that_a_status_names_is_news_although_nobody_saw_it_bound(picture: Picture, agenda: Agenda) -> None:
    have, vm = bound("has")
    picture.see(have)
    look(agenda)
    free = replace(vm, claim=None)
    for tell in (picture.see, picture.lose):
        tell(free)
        assert look(agenda) == ["has"]


def test_a_pool_is_news_for_those_whose_lifetime_it_may_allow_now(picture: Picture, agenda: Agenda) -> None:
    have, _ = bound("has")
    greedy = replace(bound("greedy")[0], spec=a_claim(lifetime="200h").spec)
    picture.see(POOL, have, greedy)
    look(agenda)
    picture.see(replace(POOL, status=VMPoolStatus(claimed_replicas=3)))
    assert look(agenda) == []
    picture.see(replace(POOL, generation=2))
    assert look(agenda) == ["greedy"]
    picture.lose(POOL)
    assert look(agenda) == ["greedy"]


def test_a_vm_that_is_ready_concerns_the_queue_only_while_somebody_waits(picture: Picture, agenda: Agenda) -> None:
    told: list[bool] = []
    picture.vms.on_change(lambda change: told.append(agenda.concerns(change)))
    have, vm = bound("has")
    picture.see(have, a_vm("free", POOL), vm)
    picture.see(a_claim("waits"), a_vm("next", POOL))
    assert told == [False, True, True]


def test_a_claim_that_vms_name_and_nobody_sees_is_astray_until_it_is_seen(picture: Picture, agenda: Agenda) -> None:
    have, vm = bound("has")
    picture.see(vm)
    assert agenda.astray() == (have.uid,)
    picture.see(have)
    assert agenda.astray() == ()
    picture.lose(have)
    assert agenda.astray() == (have.uid,)
    agenda.found_out(have.uid)
    assert agenda.astray() == ()
    agenda.everything([have.uid])
    assert agenda.astray() == (have.uid,)


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the claims that plans have followed."""
    names: list[str] = []

    def counting(claim: VMClaim, *others: Any) -> Any:
        names.append(claim.name)
        return follow(claim, *others)

    monkeypatch.setattr(plan, "follow", counting)
    return iter([names])


async def test_rounds_follow_only_what_has_news_and_everything_at_resync(
    picture: Picture, followed: Iterator[list[str]]
) -> None:
    (names,) = followed
    settings, unused = Settings(), None
    world: Any = SimpleNamespace(
        settings=settings,
        metrics=Metrics(),
        client=unused,
        install_id="one",
        vms=picture.vms,
        pools=picture.pools,
        claims=picture.claims,
        doubt=lambda: "",
        wake_pool=lambda _: None,
    )
    loop = ClaimsLoop(world)
    pairs = [bound(f"c{number}") for number in range(MANY)]
    picture.see(POOL, *(one for pair in pairs for one in pair))
    wake_at = await loop.round(NOW)
    assert (len(names), wake_at) == (MANY, NOW + settings.resync)
    names.clear()
    claim, vm = pairs[7]
    picture.see(replace(vm, steps=()), replace(POOL, status=VMPoolStatus(claimed_replicas=MANY)))
    await loop.round(soon(seconds=1))
    await loop.round(soon(seconds=2))
    assert names == [claim.name]
    await loop.round(NOW + settings.resync)
    assert len(names) == 1 + MANY
    assert claim.namespace == CI
