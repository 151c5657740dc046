"""The libvirt plug-in against real QEMU machines: conformance, and guests that boot, answer and leave no trace."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.guests import Config, LibvirtHarness
from tests.waiting import until
from vmpool.dev import guest as guests
from vmpool.providers.base import Deletion, Machine, MachineRequest, MachineState
from vmpool.providers.conformance import ProviderConformance
from vmpool.providers.errors import ProviderError

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.e2e

BOOT_SECONDS = 180.0
"""A guest takes about four seconds alone under emulation; a loaded machine may need many times that."""
GONE_SECONDS = 30.0


@pytest.fixture
async def harness(libvirt_config: Config) -> AsyncIterator[LibvirtHarness]:
    connection = libvirt.open(libvirt_config["uri"])
    made = LibvirtHarness(libvirt_config, connection, "qemu", disk=True)
    try:
        yield made
    finally:
        await made.aclose()
        connection.close()


class TestConformance(ProviderConformance):
    @pytest.fixture
    def harness(self, harness: LibvirtHarness) -> LibvirtHarness:
        return harness


async def test_three_guests_boot_answer_with_their_names_and_leave_nothing(harness: LibvirtHarness) -> None:
    wants = [_fresh(harness) for _ in range(3)]
    made = [await harness.provider.ensure(want) for want in wants]
    booted = [await _booted(harness, machine) for machine in made]
    assert len({machine.addresses for machine in booted}) == 3
    answers = [await _answer(machine.addresses[0]) for machine in booted]
    assert answers == [want.hostname for want in wants]
    listed = {machine.id: machine.addresses async for machine in harness.provider.machines()}
    assert listed == {machine.id: machine.addresses for machine in booted}
    for machine in booted:
        await _deleted(harness, machine)
    assert await harness.leftovers() == []
    assert harness.leases() == []


async def test_a_guest_that_powers_off_is_stopped_and_its_lease_is_given_back(harness: LibvirtHarness) -> None:
    machine = await _booted(harness, await harness.provider.ensure(_fresh(harness)))
    harness.connection.lookupByUUIDString(machine.id).shutdown()

    async def stopped() -> bool:
        return (await harness.provider.get(machine.id)).state is MachineState.STOPPED

    await until(stopped, deadline=GONE_SECONDS, what="the guest's own power-off")
    assert harness.leases() != []
    await _deleted(harness, machine)
    assert await harness.leftovers() == []


async def test_a_machine_is_not_gone_while_its_lease_is_left(
    harness: LibvirtHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await _booted(harness, await harness.provider.ensure(_fresh(harness)))

    def unreachable(*_: Any) -> None:
        raise OSError("no such device")

    with monkeypatch.context() as patch:
        patch.setattr("vmpool.providers.libvirt.resources.release", unreachable)
        assert await harness.provider.delete(machine.id) is Deletion.STARTED
        assert (await harness.provider.get(machine.id)).state is MachineState.DELETING
        assert harness.disks() == []
    await _deleted(harness, machine)
    assert await harness.leftovers() == []


async def test_a_layer_over_a_base_volume_starts_and_the_base_stays(
    harness: LibvirtHarness, libvirt_config: Config
) -> None:
    pool = harness.connection.storagePoolLookupByName(libvirt_config["pool"])
    base = pool.createXML(
        "<volume><name>base.qcow2</name><capacity unit='MiB'>64</capacity>"
        "<target><format type='qcow2'/></target></volume>"
    )
    config = {**libvirt_config, "images": {"empty": {"volume": "base.qcow2"}}}
    layered = LibvirtHarness(config, harness.connection, "qemu", disk=False)
    try:
        want = replace(_fresh(layered), image="empty")
        machine = await layered.provider.ensure(want)
        assert machine.state is MachineState.RUNNING
        await _deleted(layered, machine)
        assert pool.listVolumes() == ["base.qcow2"]
    finally:
        await layered.aclose()
        base.delete()


async def test_a_kernel_that_is_not_there_fails_the_one_machine_and_leaves_it_deletable(
    harness: LibvirtHarness, libvirt_config: Config
) -> None:
    broken = {"kernel": "/no/such/kernel", "initrd": "/no/such/initrd"}
    config = {**libvirt_config, "images": {"broken": broken}}
    failing = LibvirtHarness(config, harness.connection, "qemu", disk=False)
    try:
        want = replace(_fresh(failing), image="broken")
        with pytest.raises(ProviderError, match="/no/such/") as caught:
            await failing.provider.ensure(want)
        assert not caught.value.counts_against_circuit
        left = await failing.provider.find(want.token)
        assert left is not None
        assert left.state is MachineState.CREATING
        await _deleted(failing, left)
        assert await failing.leftovers() == []
    finally:
        await failing.aclose()


def _fresh(harness: LibvirtHarness) -> MachineRequest:
    return harness.request(str(uuid.uuid4()), f"guest-{uuid.uuid4().hex[:8]}")


async def _booted(harness: LibvirtHarness, machine: Machine) -> Machine:
    async def addressed() -> Machine | None:
        seen = await harness.provider.get(machine.id)
        return seen if seen.addresses else None

    return await until(addressed, deadline=BOOT_SECONDS, what=f"an address of {machine.name}")


async def _answer(address: str) -> str:
    """Return the body of the guest's page."""

    async def page() -> bytes:
        try:
            reader, writer = await asyncio.open_connection(address, guests.PORT)
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()
        except OSError:
            return b""

    answer = await until(page, deadline=BOOT_SECONDS, what=f"an answer from {address}")
    return answer.rpartition(b"\r\n\r\n")[2].decode().strip()


async def _deleted(harness: LibvirtHarness, machine: Machine) -> None:
    async def gone() -> bool:
        return await harness.provider.delete(machine.id) is Deletion.GONE

    await until(gone, deadline=GONE_SECONDS, what=f"the deletion of {machine.name}")
