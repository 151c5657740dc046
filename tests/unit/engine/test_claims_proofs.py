"""What counts as proof: that a VMClaim is gone, that a requester can be believed; and who has what."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.unit.plan.queues import a_claim, a_pool, a_vm, hold
from tests.unit.plan.worlds import NOW, soon
from vmpool.engine.held import HeldIndex
from vmpool.engine.trust import trust_in
from vmpool.kube.mirror import Change
from vmpool.kube.store import Entry
from vmpool.plan.queue import Trust
from vmpool.plan.snapshot import VM


def policy(made: str = "2030-01-01T00:00:00Z", **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": "vmpool-claims", "creationTimestamp": made, **meta}}


def binding(made: str = "2030-01-01T00:00:05Z", *, name: str = "vmpool-claims", **spec: Any) -> dict[str, Any]:
    return {**policy(made), "spec": {"policyName": name, "validationActions": ["Deny"], **spec}}


LATER_ONE = datetime(2030, 1, 1, 0, 0, 5, tzinfo=UTC)
LATE_POLICY = "2030-01-01T00:00:09Z"


@pytest.mark.parametrize(
    ("of", "by", "since"),
    [
        (policy(), binding(), LATER_ONE),
        (policy(LATE_POLICY), binding(), datetime(2030, 1, 1, 0, 0, 9, tzinfo=UTC)),
        (policy(), binding(name="another"), None),
        (policy(), binding(validationActions=["Audit"]), None),
        (policy(), binding(validationActions=["Audit", "Deny"]), LATER_ONE),
        (policy(deletionTimestamp=LATE_POLICY), binding(), None),
        (policy(), binding(matchResources={"namespaceSelector": {"matchLabels": {"a": "b"}}}), None),
        (policy(), binding(paramRef={"name": "somebody"}), None),
        ({**policy(), "spec": {"failurePolicy": "Ignore"}}, binding(), None),
        ({**policy(), "spec": {"failurePolicy": "Fail"}}, binding(), LATER_ONE),
    ],
)
def test_a_policy_counts_from_when_it_is_enforced(
    of: dict[str, Any], by: dict[str, Any], since: datetime | None
) -> None:
    assert trust_in(of, by, timedelta(0)) == Trust(since)
    margin = timedelta(seconds=10)
    assert trust_in(of, by, margin) == Trust(since + margin if since else None)


class Vms:
    """The part of a mirror that an index follows."""

    def on_change(self, listener: Any) -> None:
        self._tell = listener

    def tell(self, old: VM | None, new: VM | None) -> None:
        def entry(vm: VM | None) -> Entry[VM] | None:
            return None if vm is None else Entry(vm.uid, (vm.namespace, vm.name), 1, vm, "", ())

        kind = "added" if old is None else "deleted" if new is None else "modified"
        self.change(Change(kind, entry(old), entry(new)))

    def change(self, change: Change[VM]) -> None:
        self._tell(change)


def test_the_index_knows_who_has_what_until_the_object_goes() -> None:
    vms = Vms()
    index = HeldIndex(vms)  # type: ignore[arg-type]
    claim, pool = a_claim(), a_pool()
    free = a_vm("one", pool)
    first, second = replace(free, claim=hold(claim)), a_vm("two", pool, hold(claim, 1, at=soon(minutes=1)))
    vms.tell(None, free)
    assert index.of(claim.uid) == ()
    vms.tell(free, first)
    vms.tell(None, second)
    assert {vm.name for vm in index.of(claim.uid)} == {"one", "two"}
    assert [ref.uid for ref in index.refs()] == [claim.uid]
    assert index.served == {"ci": soon(minutes=1)}
    assert first.claim is not None
    ended = replace(first, claim=replace(first.claim, released_at=NOW))
    vms.tell(first, ended)
    assert ended in index.of(claim.uid)
    vms.tell(ended, None)
    vms.tell(second, None)
    assert (index.of(claim.uid), list(index.refs())) == ((), [])
    assert index.served == {"ci": soon(minutes=1)}, "turns outlive the VMs"


def test_a_checkout_over_rest_is_no_claims() -> None:
    vms = Vms()
    index = HeldIndex(vms)  # type: ignore[arg-type]
    vms.tell(None, a_vm("one", a_pool(), replace(hold(a_claim()), ref=None)))
    assert list(index.refs()) == []
    assert index.served == {}


def test_a_vm_that_goes_while_it_cannot_be_read_is_dropped() -> None:
    vms = Vms()
    index = HeldIndex(vms)  # type: ignore[arg-type]
    claim = a_claim()
    vm = a_vm("one", a_pool(), hold(claim))
    vms.tell(None, vm)
    strange: Entry[VM] = Entry(vm.uid, (vm.namespace, vm.name), 2, None, "a word of a newer release", ())
    vms.change(Change("modified", None, strange))
    assert index.of(claim.uid) == (vm,), "that it cannot be read proves nothing"
    vms.change(Change("deleted", strange, None))
    assert (index.of(claim.uid), list(index.refs())) == ((), [])
