"""The index of Ready VMs: what is in it, in which order, and what becomes of reservations."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tests.objects import claim, pool
from tests.unit.gateway.things import stored, vm_object
from vmpool.api.pool import Template, template_digest
from vmpool.engine.facts import pool_facts, vm_facts
from vmpool.engine.ready import FEW, LEFT_BEHIND, ReadyIndex
from vmpool.engine.world import VM_INDEXES
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.snapshot import VM, PoolFacts

WEB = "ci/web"
NEW = template_digest(Template(image="debian-12"))
OLD = "v1:old"


class Seen:
    """Mirrors without a server, and an index on them."""

    def __init__(self, place: str = "here") -> None:
        client: Any = None
        self.vms: Mirror[VM] = Mirror(client, Selection(POOLEDVMS), vm_facts, MirrorSettings(), VM_INDEXES)
        self.pools: Mirror[PoolFacts] = Mirror(client, Selection(VMPOOLS), pool_facts, MirrorSettings())
        self.index = ReadyIndex(place, self.vms, self.pools)

    def pool(self, **spec: Any) -> None:
        self.pools.saw(stored(pool("web", **spec), WEB))

    def vm(self, name: str, phase: str = "Ready", **spec: Any) -> None:
        self.vms.saw(vm_object(name, phase=phase, **{"templateDigest": NEW, **spec}))

    def all(self, pool_uid: str = WEB) -> list[str]:
        names = []
        while (vm := self.index.take(pool_uid)) is not None:
            names.append(vm.name)
        return names


@pytest.fixture
def seen() -> Seen:
    made = Seen()
    made.pool()
    return made


def taken(seen: Seen) -> VM:
    vm = seen.index.take(WEB)
    assert vm is not None
    return vm


def test_only_what_is_ready_and_nobodys_can_be_taken(seen: Seen) -> None:
    seen.vm("ready")
    seen.vm("pending", "Pending")
    seen.vm("claimed", "Claimed", claim=claim())
    seen.vm("bound", claim=claim())
    seen.vm("released", claim=claim(releasedAt="2026-01-01T00:00:00Z"))
    seen.vm("completed", "Completed")
    raw = vm_object("deleting")
    raw["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]}
    seen.vms.saw(raw)
    assert seen.index.count(WEB) == 1
    assert [vm.name for vm in seen.index.of(WEB)] == ["ready"]
    assert seen.all() == ["ready"]
    assert seen.index.take("nowhere") is None


def test_a_taken_vm_is_nobody_elses(seen: Seen) -> None:
    seen.vm("a")
    vm = taken(seen)
    # News of it that say nothing new do not bring it back.
    seen.vm("a")
    assert seen.index.count(WEB) == 0
    assert seen.index.take(WEB) is None
    seen.index.put_back(vm)
    assert taken(seen).name == "a"


def test_what_is_put_back_is_as_the_mirror_has_it_now(seen: Seen) -> None:
    seen.vm("a")
    vm = taken(seen)
    seen.vm("a", claim=claim())
    seen.index.put_back(vm)
    assert seen.index.count(WEB) == 0
    seen.vm("b")
    gone = taken(seen)
    seen.vms.saw_deleted("uid-b")
    seen.index.put_back(gone)
    assert seen.index.count(WEB) == 0


def test_a_lost_vm_comes_back_only_with_news(seen: Seen) -> None:
    seen.vm("a")
    seen.index.lost(taken(seen))
    assert seen.index.count(WEB) == 0
    seen.vm("a")
    assert seen.index.count(WEB) == 1


def test_vms_of_the_present_template_come_first(seen: Seen) -> None:
    for number in range(6):
        seen.vm(f"old-{number}", templateDigest=OLD)
        seen.vm(f"new-{number}")
    names = seen.all()
    assert [name.split("-")[0] for name in names] == ["new"] * 6 + ["old"] * 6


def test_the_order_follows_a_change_of_the_template(seen: Seen) -> None:
    other = template_digest(Template(image="debian-13"))
    for number in range(6):
        seen.vm(f"old-{number}")
        seen.vm(f"new-{number}", templateDigest=other)
    seen.pool(template={"image": "debian-13"})
    assert [name.split("-")[0] for name in seen.all()] == ["new"] * 6 + ["old"] * 6


def test_allocators_begin_at_places_of_their_own() -> None:
    firsts = set()
    orders = set()
    for place in range(12):
        seen = Seen(f"gateway-{place}")
        seen.pool()
        for number in range(40):
            seen.vm(f"vm-{number}")
        order = tuple(seen.all())
        assert len(order) == 40
        firsts.add(order[0])
        orders.add(order)
    assert len(orders) == 12
    assert len(firsts) > 6


def test_pools_are_apart(seen: Seen) -> None:
    seen.vm("a")
    seen.vms.saw(vm_object("b", "db"))
    assert seen.all("ci/db") == ["b"]
    assert seen.all() == ["a"]


@given(st.integers(1, 30), st.integers(0, 30))
def test_what_leaves_and_comes_again_is_there_once(count: int, rounds: int) -> None:
    seen = Seen()
    seen.pool()
    for _ in range(rounds):
        seen.vm("vm-0", "Pending")
        seen.vm("vm-0")
    for number in range(count):
        seen.vm(f"vm-{number}")
    names = seen.all()
    assert sorted(names) == sorted(f"vm-{number}" for number in range(count))


class Index(RuleBasedStateMachine):
    """Whatever happens in whatever order: the index holds what the mirror shows to be free and nobody has reserved."""

    reserved = Bundle("reserved")

    @initialize()
    def begin(self) -> None:
        self.seen = Seen()
        self.seen.pool()
        self.out: set[str] = set()
        self.lost: set[str] = set()

    @rule(name=st.sampled_from("abcdef"), phase=st.sampled_from(["Pending", "Ready", "Ready", "Completed"]))
    def news(self, name: str, phase: str) -> None:
        self.seen.vm(name, phase)
        self.lost.discard(name)
        if phase != "Ready":
            self.out.discard(name)

    @rule(name=st.sampled_from("abcdef"))
    def deleted(self, name: str) -> None:
        self.seen.vms.saw_deleted(f"uid-{name}")
        self.out.discard(name)
        self.lost.discard(name)

    @rule(target=reserved)
    def take(self) -> Any:
        vm = self.seen.index.take(WEB)
        if vm is None:
            return multiple()
        assert vm.name not in self.out | self.lost
        self.out.add(vm.name)
        return vm

    @rule(vm=consumes(reserved))
    def put_back(self, vm: VM) -> None:
        self.seen.index.put_back(vm)
        self.out.discard(vm.name)
        self.lost.discard(vm.name)

    @rule(vm=consumes(reserved))
    def lose(self, vm: VM) -> None:
        if vm.name in self.out:
            self.lost.add(vm.name)
        self.seen.index.lost(vm)
        self.out.discard(vm.name)

    @invariant()
    def what_is_free_can_be_had(self) -> None:
        if not hasattr(self, "seen"):
            return
        facts = [entry.fact for entry in self.seen.vms if entry.fact is not None]
        free = {vm.name for vm in facts if vm.phase == "Ready"} - self.out - self.lost
        assert {vm.name for vm in self.seen.index.of(WEB)} == free
        assert self.seen.index.count(WEB) == len(free)


TestIndex = Index.TestCase


def test_vms_that_others_take_leave_nothing_behind(seen: Seen) -> None:
    seen.vm("stays")
    for number in range(500):
        seen.vm(f"passing-{number}")
        seen.vm(f"passing-{number}", phase="Completed")
    assert seen.index.count(WEB) == 1
    assert len(seen.index._order[WEB]) <= LEFT_BEHIND + FEW
    assert seen.all() == ["stays"]
