"""Mistakes planted into the engine's core: a simulation that does not find them proves nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.simulation.run import simulate
from vmpool.engine import binding, effects, pool, stragglers, writes
from vmpool.kube import store
from vmpool.plan import actions
from vmpool.plan import pool as plan_of_pool
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, PoolSnapshot
from vmpool.providers.simulated import SimulatedProvider

Patch = pytest.MonkeyPatch


def destroyed_without_completed(patch: Patch) -> None:
    """A VM that has to go is destroyed at once, without the write that decides between claim and destroy."""
    run = effects.Effects.run

    async def hasty(self: effects.Effects, action: actions.VMAction) -> Any:
        if isinstance(action, actions.Complete) and action.vm.machine_id:
            return await run(self, actions.DestroyMachine(action.vm))
        return await run(self, action)

    patch.setattr(effects.Effects, "run", hasty)


def created_without_token(patch: Patch) -> None:
    """Creates carry no token, and nobody looks whether a machine is there already."""
    from vmpool.providers import simulated

    async def ensure(self: SimulatedProvider, want: Any) -> Any:
        body = simulated._create_body(want, None)
        return simulated._machine(await self._call("POST", "v1/machines", body))

    patch.setattr(SimulatedProvider, "ensure", ensure)


def drains_not_counted(patch: Patch) -> None:
    """VMs on their way out are taken for gone when there is room to be counted."""
    plan = plan_of_pool.plan_pool

    def blind(seen: PoolSnapshot, now: Any) -> Any:
        made = plan(seen, now)
        live = tuple(vm for vm in seen.vms if vm.phase in (Phase.PENDING, Phase.READY))
        creates = [one for one in plan(replace(seen, vms=live), now).actions if isinstance(one, actions.CreateVM)]
        others = [one for one in made.actions if not isinstance(one, actions.CreateVM)]
        return replace(made, actions=(*others, *creates))

    patch.setattr(pool, "plan_pool", blind)


def object_forgotten_first(patch: Patch) -> None:
    """The object of a Completed VM goes when its machine's deletion has begun, not when it is done."""
    delete = effects.Effects._delete

    async def early(self: effects.Effects, vm: VM, machine_id: str) -> Any:
        calm = await delete(self, vm, machine_id)
        await writes.forget(self.world, vm)
        return calm

    patch.setattr(effects.Effects, "_delete", early)


def letter_after_the_fact(patch: Patch) -> None:
    """A VM leaves its phase before its failure is written down."""
    patch.setattr(pool, "failure_in", lambda _action, _now: None)


def own_writes_not_overlaid(patch: Patch) -> None:
    """The picture is that of the watch alone: what was just created is not counted yet."""
    patch.setattr(store.Store, "saw", lambda _self, _obj: [])


def stragglers_ignored(patch: Patch) -> None:
    """Machines without an object are nobody's business."""

    async def look(self: stragglers.Stragglers, machines: Any, began: Any) -> None:
        return

    patch.setattr(stragglers.Stragglers, "look", look)


def intent_without_finalizer(patch: Patch) -> None:
    """The object that stands for a machine can go before the machine."""
    make = writes.new_vm

    def loose(*args: Any) -> Any:
        body = make(*args)
        del body["metadata"]["finalizers"]
        return body

    patch.setattr(writes, "new_vm", loose)


def finding_taken_for_binding(patch: Patch) -> None:
    """A bind that got no answer is taken for done."""

    async def after_silence(vms: Any, vm: VM, claim_id: str) -> VM:
        return vm

    patch.setattr(binding, "_after_silence", after_silence)


def lost_race_taken_for_won(patch: Patch) -> None:
    """Nobody looks at the answer to a claim: the VM that another has is handed out once more."""
    bind = binding.bind

    async def deaf(client: Any, vms: Any, vm: VM, claim: Any) -> VM:
        return await bind(client, vms, vm, claim) or vm

    patch.setattr(binding, "bind", deaf)


PLANTED: dict[Callable[[Patch], None], range] = {
    destroyed_without_completed: range(5),
    created_without_token: range(25),
    drains_not_counted: range(20),
    object_forgotten_first: range(10),
    letter_after_the_fact: range(30),
    own_writes_not_overlaid: range(20),
    intent_without_finalizer: range(20),
    lost_race_taken_for_won: range(75, 85),
    finding_taken_for_binding: range(20, 30),
    stragglers_ignored: range(100),
}
"""Each mistake with the seeds within which it has to be found."""


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)

    assert any(simulate(seed).problem for seed in PLANTED[plant]), "no seed has found it"
