"""The queue against a small server: whatever happens, nobody gets the VM of another, and nothing is lost."""

from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.plan.queues import CI, Server, a_pool
from tests.unit.plan.worlds import STORIES
from vmpool.plan.demand import claim_size
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import Bind
from vmpool.plan.snapshot import VM

POOLS = ("web", "big")
ALIAS = "any"
ROUNDS_TO_REST = 200
NAMESPACES = (CI, "dev")

REQUESTS = st.lists(
    st.one_of(
        st.builds(
            lambda pool, count: {"pool": pool, "namespace": CI, "count": count},
            st.sampled_from(POOLS),
            st.integers(1, 3),
        ),
        st.builds(lambda count: {"alias": ALIAS, "namespace": CI, "count": count}, st.integers(1, 4)),
    ),
    min_size=1,
    max_size=2,
)


class Queue(RuleBasedStateMachine):
    """Makers of claims, a server, machines that come and go, and a process that may die between any two writes."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server({})
        self.given: dict[str, set[str]] = {}
        """Every VM that a status ever named, by claim."""

    @initialize(most=st.tuples(st.integers(1, 4), st.integers(1, 6)))
    def pools(self, most: tuple[int, int]) -> None:
        for name, max_vms in zip(POOLS, most, strict=True):
            self.server.pools[name] = a_pool(name, maxVMs=max_vms, aliases=[ALIAS], claims={"allowedNamespaces": ["*"]})
        self.server.trust = type(self.server.trust)(self.server.now - timedelta(days=1))

    def claims(self) -> list[Any]:
        return sorted(self.server.claims.values(), key=lambda claim: claim.name)

    def live(self) -> list[VM]:
        return sorted((vm for vm in self.server.vms.values() if vm.claimed), key=lambda vm: vm.name)

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(
        requests=REQUESTS,
        namespace=st.sampled_from(NAMESPACES),
        priority=st.sampled_from((0, 0, 0, 7)),
        deadline=st.sampled_from((None, None, "10s")),
    )
    def ask(self, requests: list[Any], namespace: str, priority: int, deadline: str | None) -> None:
        self.server.make(
            requests=requests, namespace=namespace, priority=priority, deadline=deadline, requester="alice"
        )

    @precondition(lambda self: self.server.claims)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims()))
        del self.server.claims[claim.uid]

    @rule(pool=st.sampled_from(POOLS), count=st.integers(1, 4))
    def become_ready(self, pool: str, count: int) -> None:
        for _ in range(count):
            self.server.ready(pool)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), reason=st.sampled_from(("Released", "Expired", "MachineGone")))
    def end(self, data: st.DataObject, reason: str) -> None:
        self.server.end(data.draw(st.sampled_from(self.live())), reason)

    @rule()
    def destroy(self) -> None:
        self.server.destroyed()

    @rule(seconds=st.sampled_from((1, 5, 4000)))
    def pass_time(self, seconds: int) -> None:
        self.server.now += timedelta(seconds=seconds)

    @rule()
    def work(self) -> None:
        self.checked_round()

    @rule(losses=st.integers(1, 3))
    def work_and_lose(self, losses: int) -> None:
        self.server.lose = losses
        self.checked_round()
        self.server.lose = 0

    @rule(writes=st.integers(0, 6))
    def work_and_die(self, writes: int) -> None:
        self.server.writes_left = writes
        self.checked_round()
        self.server.writes_left = None

    def checked_round(self) -> None:
        server = self.server
        plan = server.round()
        asked: dict[str, int] = {}
        for action in plan.actions:
            if isinstance(action, Bind):
                for _, pool in action.places:
                    asked[pool.uid] = asked.get(pool.uid, 0) + 1
        assert set(plan.demand) <= {pool.uid for pool in server.pools.values()}
        assert all(plan.demand.values())
        assert sum(asked.values()) <= sum(plan.demand.values()), "what is being bound stays counted"

    # --- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_given_the_vm_of_another(self) -> None:
        named = [one.uid for claim in self.server.claims.values() for one in claim.status.vms]
        assert len(named) == len(set(named))

    @invariant()
    def what_is_bound_is_whole_and_its_own(self) -> None:
        for claim in self.server.claims.values():
            if claim.phase == ClaimPhase.BOUND:
                assert len(claim.status.vms) == claim_size(claim)
            for one in claim.status.vms:
                vm = self.server.vms.get(one.uid)
                assert vm is None or (vm.claim is not None and vm.claim.id == claim.uid)

    @invariant()
    def a_slot_once_filled_stays(self) -> None:
        for claim in self.server.claims.values():
            now = {one.uid for one in claim.status.vms}
            assert self.given.get(claim.uid, set()) <= now
            self.given[claim.uid] = now

    def teardown(self) -> None:
        """When nothing happens any more but machines that become ready, the queue comes to rest, and rightly."""
        server = self.server
        for _ in range(ROUNDS_TO_REST):
            server.destroyed()
            # Nobody waits for VMs that REST users keep.
            for vm in [vm for vm in self.live() if vm.claim is not None and vm.claim.ref is None]:
                server.end(vm, "Released")
            plan = server.round()
            made = [
                server.ready(name)
                for name, pool in server.pools.items()
                for _ in range(plan.demand.get(pool.uid, 0) - len(server.free(pool)))
            ]
            if not plan.actions and not any(made):
                break
        else:
            raise AssertionError(f"no rest: {plan.actions}")
        for claim in server.claims.values():
            have = {vm.uid for vm in server.held(claim.uid) if vm.claimed}
            if claim.phase == ClaimPhase.BOUND:
                assert have == {one.uid for one in claim.status.vms if one.end_reason is None}
                assert have, "a claim without a VM is finished"
            elif claim.phase == ClaimPhase.PENDING:
                self._waits_for_a_reason(claim)
            else:
                assert not have
        for vm in self.live():
            assert vm.claim is not None
            assert vm.claim.id in server.claims, "the VMs of a claim that is gone are given back"

    def _waits_for_a_reason(self, claim: Any) -> None:
        """Only because all that there may be is taken: by others, or kept for those before it."""
        server = self.server
        assert claim.status.position
        full = [
            pool
            for pool in server.pools.values()
            if sum(vm.pool_uid == pool.uid for vm in server.vms.values()) >= pool.spec.max_vms
        ]
        assert full, "there is room for more, and it waits all the same"


Queue.TestCase.settings = settings(STORIES, stateful_step_count=40)
TestQueue = Queue.TestCase
