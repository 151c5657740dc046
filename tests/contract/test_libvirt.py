"""The libvirt plug-in against libvirt's own in-memory driver: conformance, and a crash between any two steps."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guests import IMAGE, LibvirtHarness, open_libvirt
from vmpool.api import keys
from vmpool.providers.base import Deletion, MachineRequest, MachineState, Provider
from vmpool.providers.conformance import ProviderConformance
from vmpool.providers.errors import InvalidConfig, InvalidTemplate, MachineNotFound, Retryable, Terminal
from vmpool.providers.libvirt.config import Config

libvirt = pytest.importorskip("libvirt")

from vmpool.providers.libvirt.domain import machine_id, volume_name  # noqa: E402
from vmpool.providers.libvirt.host import Host  # noqa: E402

URI = "test:///default"
POOL = "default-pool"
CONFIG = {
    "uri": URI,
    "pool": POOL,
    "network": "default",
    "images": {
        IMAGE: {"kernel": "/kernel", "initrd": "/initrd", "cmdline": "quiet"},
        "debian": {"volume": "debian.qcow2"},
        "lost": {"volume": "lost.qcow2"},
    },
}
GIB = 2**30
OTHER_HOST = """<node><network><name>default</name><uuid>{id}</uuid><bridge name='virbr0'/></network>
    <pool type='dir'><name>default-pool</name><uuid>{id}</uuid><target><path>/pool</path></target></pool></node>"""

WRITES = {
    "defineXMLFlags", "createXML", "create", "setMetadata", "destroy", "delete", "undefineFlags", "undefine",
}  # fmt: skip


class Crash(BaseException):
    """The process is gone: nothing may catch this."""


class Countdown:
    """Crashes at the nth write, before or after it takes effect; counts them when n is 0."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.writes = 0

    def write(self, call: Any, args: Any) -> Any:
        self.writes += 1
        here = self.writes == self.at
        if here and not self.after:
            raise Crash
        try:
            return call(*args)
        finally:
            if here:
                raise Crash


class Wrapped:
    """A libvirt object, and all that come from it, whose writes a countdown counts."""

    def __init__(self, inner: Any, countdown: Countdown) -> None:
        self._inner = inner
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._inner, name)

        def call(*args: Any) -> Any:
            answer = self._countdown.write(member, args) if name in WRITES else member(*args)
            kept = isinstance(answer, libvirt.virDomain | libvirt.virStoragePool | libvirt.virStorageVol)
            return Wrapped(answer, self._countdown) if kept else answer

        return call


class Harness(LibvirtHarness):
    def __init__(self, connection: Any, other: Path) -> None:
        super().__init__(CONFIG, connection, "test", disk=True)
        self._other = other

    async def other_far_side(self) -> Provider:
        self._other.write_text(OTHER_HOST.format(id=uuid.uuid4()))
        return open_libvirt({**CONFIG, "uri": f"test://{self._other}"}, self.install_id)

    def host(self, countdown: Countdown | None = None) -> Host:
        """The blocking half, in this thread."""
        connection = self.connection if countdown is None else Wrapped(self.connection, countdown)
        return Host(connection, Config.model_validate(CONFIG), self.install_id)

    def fresh(self) -> MachineRequest:
        return self.request(str(uuid.uuid4()), f"crash-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    connection = libvirt.open(URI)
    made = Harness(connection, tmp_path / "other.xml")
    try:
        yield made
    finally:
        await made.aclose()
        connection.close()


@pytest.fixture
def base(harness: Harness) -> Any:
    pool = harness.connection.storagePoolLookupByName(POOL)
    made = pool.createXML(
        "<volume><name>debian.qcow2</name><capacity unit='GiB'>2</capacity>"
        "<target><format type='qcow2'/></target></volume>"
    )
    yield made
    made.delete()


class TestConformance(ProviderConformance):
    @pytest.fixture
    def harness(self, harness: Harness) -> Harness:
        return harness


ENSURE_WRITES = 4
DELETE_WRITES = 5  # the last is `undefine`, for this driver refuses a flag of `undefineFlags`


class TestCrashes:
    def test_the_steps_are_those_that_the_cases_cover(self, harness: Harness) -> None:
        making, deleting = Countdown(), Countdown()
        machine = harness.host(making).ensure(harness.fresh())
        assert harness.host(deleting).delete(machine.id) is Deletion.GONE
        assert (making.writes, deleting.writes) == (ENSURE_WRITES, DELETE_WRITES)

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", range(1, ENSURE_WRITES + 1))
    def test_ensure_completes_what_a_crash_left(self, harness: Harness, step: int, after: bool) -> None:
        want = harness.fresh()
        with pytest.raises(Crash):
            harness.host(Countdown(step, after=after)).ensure(want)
        machine = harness.host().ensure(want)
        assert machine.state is MachineState.RUNNING
        ours = [domain.UUIDString() for domain in harness.connection.listAllDomains() if harness._is_ours(domain)]
        assert ours == [machine.id]
        assert len(harness.disks()) == 1
        again = Countdown()
        assert harness.host(again).ensure(want) == machine
        assert again.writes == 0, "a machine that is made is only looked at"

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", range(1, ENSURE_WRITES + 1))
    async def test_what_a_crash_left_can_be_found_and_deleted(self, harness: Harness, step: int, after: bool) -> None:
        want = harness.fresh()
        with pytest.raises(Crash):
            harness.host(Countdown(step, after=after)).ensure(want)
        left = await harness.leftovers()
        found = harness.host().find(want.token)
        assert (found is None) == (left == []), "whatever exists is seen"
        if found is not None:
            assert harness.host().delete(found.id) is Deletion.GONE
        assert await harness.leftovers() == []

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", range(1, DELETE_WRITES + 1))
    async def test_delete_completes_what_a_crash_left(self, harness: Harness, step: int, after: bool) -> None:
        machine = harness.host().ensure(harness.fresh())
        with pytest.raises(Crash):
            harness.host(Countdown(step, after=after)).delete(machine.id)
        assert harness.host().delete(machine.id) is Deletion.GONE
        assert await harness.leftovers() == []

    async def test_a_machine_that_leaves_is_not_started_again(self, harness: Harness) -> None:
        want = harness.fresh()
        machine = harness.host().ensure(want)
        stopped = 2
        with pytest.raises(Crash):
            harness.host(Countdown(stopped, after=True)).delete(machine.id)
        assert harness.host().ensure(want).state is MachineState.DELETING
        assert not harness.connection.lookupByUUIDString(machine.id).isActive()

    async def test_the_disk_of_a_domain_undefined_by_hand_is_deleted(self, harness: Harness) -> None:
        machine = harness.host().ensure(harness.fresh())
        domain = harness.connection.lookupByUUIDString(machine.id)
        domain.destroy()
        domain.undefine()
        assert harness.disks() != []
        assert await harness.provider.delete(machine.id) is Deletion.GONE
        assert await harness.leftovers() == []


class TestForeign:
    async def test_a_foreign_domain_with_our_name_is_terminal_and_untouched(self, harness: Harness) -> None:
        want = harness.fresh()
        foreign = harness.define_foreign(want.name)
        before = harness.connection.lookupByUUIDString(foreign).XMLDesc()
        with pytest.raises(Terminal, match=want.name):
            await harness.provider.ensure(want)
        assert harness.connection.lookupByUUIDString(foreign).XMLDesc() == before
        assert await harness.leftovers() == []

    async def test_a_foreign_domain_with_our_id_is_terminal_and_untouched(self, harness: Harness) -> None:
        want = harness.fresh()
        mine = machine_id(harness.install_id, want.token)
        harness.connection.defineXML(
            f"<domain type='test'><name>theirs</name><uuid>{mine}</uuid><memory>8192</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        with pytest.raises(Terminal, match="theirs"):
            await harness.provider.ensure(want)
        with pytest.raises(MachineNotFound):
            await harness.provider.delete(str(mine))
        assert not harness.connection.lookupByName("theirs").isActive()

    async def test_another_installs_machine_is_foreign(self, harness: Harness) -> None:
        other = open_libvirt(CONFIG, "another-install")
        try:
            want = harness.fresh()
            machine = await other.ensure(replace(want, tags={**want.tags, keys.TAG_INSTALL: "another-install"}))
            with pytest.raises(MachineNotFound):
                await harness.provider.delete(machine.id)
            assert [seen async for seen in harness.provider.machines()] == []
            assert await other.delete(machine.id) is Deletion.GONE
        finally:
            await other.close()

    async def test_our_own_older_machine_of_the_same_name_is_waited_for(self, harness: Harness) -> None:
        older = harness.fresh()
        await harness.provider.ensure(older)
        with pytest.raises(Retryable):
            await harness.provider.ensure(harness.request(str(uuid.uuid4()), older.name))


class TestStates:
    async def test_a_machine_that_stopped_by_itself_is_stopped_and_stays_so(self, harness: Harness) -> None:
        want = harness.fresh()
        machine = await harness.provider.ensure(want)
        harness.connection.lookupByUUIDString(machine.id).shutdown()
        assert (await harness.provider.get(machine.id)).state is MachineState.STOPPED
        assert (await harness.provider.ensure(want)).state is MachineState.STOPPED

    async def test_an_adopted_machine_is_found_by_its_new_token(self, harness: Harness) -> None:
        foreign = await harness.make_foreign()
        want = harness.fresh()
        await harness.provider.adopt(foreign, want.tags)
        found = await harness.provider.find(want.token)
        assert found is not None
        assert found.id == foreign
        assert found.state is MachineState.STOPPED

    async def test_a_listing_of_several_pages_is_complete(self, harness: Harness, monkeypatch: Any) -> None:
        monkeypatch.setattr("vmpool.providers.libvirt.provider.PAGE", 2)
        made = {(await harness.provider.ensure(harness.fresh())).id for _ in range(5)}
        assert {machine.id async for machine in harness.provider.machines()} == made


class TestTemplates:
    async def test_a_disk_image_gets_a_layer_as_large_as_its_base(self, harness: Harness, base: Any) -> None:
        want = replace(harness.fresh(), image="debian", disk_gib=None)
        machine = await harness.provider.ensure(want)
        pool = harness.connection.storagePoolLookupByName(POOL)
        layer = pool.storageVolLookupByName(volume_name(uuid.UUID(machine.id)))
        assert layer.info()[1] == 2 * GIB
        assert base.path() in layer.XMLDesc()
        xml = harness.connection.lookupByUUIDString(machine.id).XMLDesc()
        assert layer.path() in xml
        assert f"ds=nocloud;h={want.hostname}" in xml
        assert await harness.provider.delete(machine.id) is Deletion.GONE
        assert [volume.name() for volume in pool.listAllVolumes()] == ["debian.qcow2"]

    @pytest.mark.usefixtures("base")
    async def test_a_disk_smaller_than_its_image_is_invalid(self, harness: Harness) -> None:
        want = replace(harness.fresh(), image="debian", disk_gib=1)
        for call in (harness.provider.check, harness.provider.ensure):
            with pytest.raises(InvalidTemplate, match="diskGiB 1"):
                await call(want)
        assert await harness.leftovers() == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"image": "lost"}, r"lost\.qcow2"),
            ({"image": "windows"}, "debian, guest, lost"),
            ({"parameters": {"colour": "red"}}, "colour"),
            ({"parameters": {"machine": "Q 35"}}, "machine"),
            ({"parameters": {"arch": "s390x"}}, "s390x"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    async def test_what_can_never_work_is_said_before_anything_is_made(
        self, harness: Harness, changes: dict[str, Any], said: str
    ) -> None:
        want = replace(harness.fresh(), **changes)
        for call in (harness.provider.check, harness.provider.ensure):
            with pytest.raises(InvalidTemplate, match=said):
                await call(want)
        assert await harness.leftovers() == []

    @pytest.mark.parametrize("field", ["pool", "network"])
    async def test_a_pool_or_network_that_is_not_there_is_an_invalid_config(self, harness: Harness, field: str) -> None:
        provider = open_libvirt({**CONFIG, field: "no-such-thing"}, harness.install_id)
        try:
            with pytest.raises(InvalidConfig, match="no-such-thing"):
                await provider.check(harness.fresh())
        finally:
            await provider.close()
