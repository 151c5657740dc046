"""What a redrive comes to: once, whatever was done before the process ended, and never against what the pool wants."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.test_retention import a_letter
from tests.unit.plan.worlds import EAST, PLANS, WEST, claim, down, pool, provider, spec, vm
from vmpool.api.pool import PoolProvider, template_digest
from vmpool.plan.lifecycle import LetterPhase, Phase
from vmpool.plan.policies import Letter, Queue
from vmpool.plan.redrive import (
    AGAIN,
    NAMES,
    Conclude,
    DestroyAnew,
    Later,
    Redrive,
    Resume,
    Succeed,
    decide,
    successor_names,
)
from vmpool.plan.snapshot import VM

POOL = pool()
DIGEST = template_digest(POOL.spec.template)
LETTER = a_letter(request_id="req-1", retry_count=2)


def seen(**changes: Any) -> Redrive:
    """A letter of a VM that is gone, and a pool of three that has none."""
    return replace(Redrive(LETTER, None, POOL, (), 0, {EAST: provider()}), **changes)


def ours(phase: str, **changes: Any) -> VM:
    return vm("web-0", phase, uid="vm-0", digest=DIGEST, **changes)


def test_a_quarantined_vm_of_the_present_template_is_resumed() -> None:
    kept = ours(Phase.QUARANTINED)
    assert decide(seen(vm=kept, vms=(kept,))) == Resume(kept)
    ready = [vm(f"r{n}") for n in range(2)]
    on_the_way = vm("p", Phase.PENDING)
    assert decide(seen(vm=kept, vms=(kept, *ready, on_the_way))) == Resume(kept), "the newest pending one makes room"
    full = decide(seen(vm=kept, vms=(kept, *ready, vm("r3"))))
    assert isinstance(full, Conclude)
    assert full.phase is LetterPhase.NOT_NEEDED
    assert "stays in quarantine" in full.message
    claimed = vm("c", Phase.READY, claim=claim())
    assert decide(seen(vm=kept, vms=(kept, *ready, claimed))) == Resume(kept), "a claimed one is not for the pool"


def test_a_quarantined_vm_of_an_older_template_has_a_successor() -> None:
    old = replace(ours(Phase.QUARANTINED), digest="v1:old")
    assert isinstance(decide(seen(vm=old, vms=(old,))), Succeed)
    assert isinstance(decide(seen(vm=replace(ours(Phase.QUARANTINED), deleting=True))), Succeed)


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.READY, Phase.QUARANTINED, Phase.COMPLETED])
def test_a_vm_that_is_an_attempt_further_was_redriven(phase: Phase) -> None:
    again = ours(phase, attempt=2)
    answer = decide(seen(vm=again, vms=(again,)))
    assert isinstance(answer, Conclude)
    assert (answer.phase, answer.successor) == (LetterPhase.REDRIVEN, "web-0")


@pytest.mark.parametrize("there", [None, ours(Phase.QUARANTINED), ours(Phase.READY, attempt=2)])
def test_what_was_redriven_is_not_redriven_twice(there: VM | None) -> None:
    done = replace(LETTER, phase=LetterPhase.REDRIVEN)
    assert decide(seen(letter=done, vm=there)) == Conclude(LetterPhase.REDRIVEN, AGAIN)


def test_what_was_not_needed_is_decided_anew() -> None:
    before = replace(LETTER, phase=LetterPhase.NOT_NEEDED)
    assert isinstance(decide(seen(letter=before)), Succeed)


def test_a_vm_that_is_about_to_be_given_up_is_waited_for_and_a_ready_one_needs_nothing() -> None:
    assert isinstance(decide(seen(vm=ours(Phase.PENDING))), Later)
    answer = decide(seen(vm=ours(Phase.READY)))
    assert isinstance(answer, Conclude)
    assert answer.phase is LetterPhase.NOT_NEEDED


def test_a_gone_vm_has_a_successor_with_its_request_and_one_retry_more() -> None:
    answer = decide(seen())
    assert isinstance(answer, Succeed)
    assert (answer.request_id, answer.retry_count, answer.provider, answer.digest) == ("req-1", 3, EAST, DIGEST)
    assert answer.names == successor_names(POOL, LETTER)
    there = vm(answer.names[0], request_id="req-1")
    full = (there, *(vm(f"r{n}") for n in range(3)))
    assert decide(seen(vms=full)) == Conclude(
        LetterPhase.REDRIVEN, f"{there.name} goes on with its request", there.name
    ), "the successor is found, although the pool wants no other"


def test_a_namesake_with_another_request_is_no_successor() -> None:
    stranger = vm(successor_names(POOL, LETTER)[0], request_id="req-2")
    assert isinstance(decide(seen(vms=(stranger,))), Succeed)


def test_a_letter_without_a_request_gets_one_that_is_always_the_same() -> None:
    letter = a_letter()
    first, second = decide(seen(letter=letter)), decide(seen(letter=letter))
    assert isinstance(first, Succeed)
    assert first == second
    assert first.request_id.startswith("req-")


@PLANS
@given(st.integers(0, 5), st.integers(0, 2), st.integers(0, 4), st.integers(0, 3), st.integers(1, 12))
def test_one_is_made_only_where_the_pool_lacks_one_within_max_vms(
    ready: int, pending: int, quarantined: int, waiting: int, most: int
) -> None:
    phases = [Phase.READY] * ready + [Phase.PENDING] * pending + [Phase.QUARANTINED] * quarantined
    vms = tuple(vm(f"v{number}", phase) for number, phase in enumerate(phases))
    answer = decide(seen(pool=pool(spec(maxVMs=most)), vms=vms, waiting=waiting))
    if ready + pending < 3 + waiting and len(vms) < most:
        assert isinstance(answer, Succeed)
    else:
        assert isinstance(answer, Conclude)
        assert answer.phase is LetterPhase.NOT_NEEDED


def test_the_provider_with_room_and_the_least_for_its_weight_is_chosen() -> None:
    shares = (PoolProvider(name=EAST, weight=1), PoolProvider(name=WEST, weight=3))
    both = {"pool": pool(spec(providers=shares, replicas=9)), "providers": {EAST: provider(), WEST: provider(WEST)}}

    def chosen(**changes: Any) -> str:
        answer = decide(seen(**{**both, **changes}))
        return answer.provider if isinstance(answer, Succeed) else ""

    assert chosen() == WEST
    assert chosen(vms=tuple(vm(f"w{n}", provider=WEST) for n in range(3))) == EAST
    assert chosen(providers={EAST: provider(), WEST: down(WEST)}) == EAST
    assert chosen(providers={EAST: provider(room=0), WEST: provider(WEST)}) == WEST
    assert isinstance(decide(seen(providers={EAST: down()})), Later)
    assert isinstance(decide(seen(providers={})), Later)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pool": None}, "does not exist any more"),
        ({"pool": pool(uid="another")}, "made anew"),
        ({"pool": pool(deleting=True)}, "is being deleted"),
    ],
)
def test_without_its_pool_a_redrive_is_refused(changes: dict[str, Any], sentence: str) -> None:
    answer = decide(seen(vm=ours(Phase.QUARANTINED), **changes))
    assert isinstance(answer, Conclude)
    assert answer.phase is LetterPhase.REFUSED
    assert sentence in answer.message


def test_a_paused_pool_is_waited_for() -> None:
    assert isinstance(decide(seen(vm=ours(Phase.QUARANTINED), pool=pool(spec(paused=True)))), Later)


def test_a_task_is_begun_anew_once_and_never_makes_a_vm() -> None:
    letter = a_letter(queue_from=Queue.TASKS.value)
    ending = ours(Phase.COMPLETED)
    assert decide(seen(letter=letter, vm=ending, pool=None)) == DestroyAnew(ending), "its pool does not matter"
    again = decide(seen(letter=letter, vm=replace(ending, attempt=2)))
    assert isinstance(again, Conclude)
    assert again.phase is LetterPhase.REDRIVEN
    for found in (None, ours(Phase.READY)):
        answer = decide(seen(letter=letter, vm=found))
        assert isinstance(answer, Conclude)
        assert answer.phase is LetterPhase.NOT_NEEDED


@given(st.text(min_size=1, max_size=36), st.text(min_size=1, max_size=36))
def test_names_are_host_names_of_the_letter_alone(one: str, other: str) -> None:
    def names(uid: str) -> tuple[str, ...]:
        return successor_names(POOL, replace(LETTER, uid=uid))

    made = names(one)
    assert len(set(made)) == NAMES
    assert made == names(one)
    assert (made == names(other)) == (one == other)
    for name in made:
        prefix, suffix = name.rsplit("-", 1)
        assert prefix == POOL.name
        assert len(suffix) == 8
        assert set(suffix) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_a_prefix_of_the_pool_is_used() -> None:
    named = pool(spec(hostName={"prefix": "lab-"}))
    assert all(name.startswith("lab-") for name in successor_names(named, LETTER))
    assert isinstance(LETTER, Letter)


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"creating": 0}, True),
        ({"creating": 3}, False),
        ({"vms": (vm("r1"), vm("r2")), "creating": 1}, False),
        ({"vms": (vm("q1", Phase.QUARANTINED),), "pool": pool(spec(maxVMs=3)), "creating": 1}, True),
        (
            {
                "vms": (vm("q1", Phase.QUARANTINED), vm("q2", Phase.QUARANTINED)),
                "pool": pool(spec(maxVMs=3)),
                "creating": 1,
            },
            False,
        ),
    ],
)
def test_a_place_that_is_being_filled_is_not_filled_twice(changes: dict[str, Any], free: bool) -> None:
    """Seed 28790 of the simulation: the pool's own create was in flight, and the two made one more than maxVMs."""
    answer = decide(seen(**changes))

    assert isinstance(answer, Succeed if free else Later), "what is in flight may fail: the letter waits"


def test_a_successor_that_has_failed_and_gone_was_one_all_the_same() -> None:
    """Seed 83668: the answer on the letter was lost, the successor failed, and the redrive made it a second time."""
    first = decide(seen())
    assert isinstance(first, Succeed)
    answer = decide(seen(failed={(first.names[0], first.request_id)}))
    assert isinstance(answer, Conclude)
    assert (answer.phase, answer.successor) == (LetterPhase.REDRIVEN, first.names[0])
    assert isinstance(decide(seen(failed={(first.names[0], "req-other")})), Succeed)
