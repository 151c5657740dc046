"""Real machines for the tests: a libvirt host of the run's own, a guest that boots in seconds, and a harness.

``libvirt_host`` starts what is missing and removes it all at the end of the run, also of a killed one; a run on a
machine that cannot have it skips with the reason. ``LibvirtHarness`` serves the conformance suite on any libvirt
driver.
"""

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vmpool
from vmpool.api import keys
from vmpool.dev import guest as guests
from vmpool.dev import libvirtd
from vmpool.dev.files import locked
from vmpool.dev.guest import Guest, GuestMissing
from vmpool.dev.libvirtd import LibvirtHost
from vmpool.providers.base import MachineRequest, Provider, Session
from vmpool.providers.libvirt import LibvirtPlugin
from vmpool.providers.registry import parse_config

if TYPE_CHECKING:
    import libvirt

NAME = "vmpool-test"
LOCK = Path(tempfile.gettempdir()) / f"{NAME}.lock"
LOCK_SECONDS = 600.0
"""For one run to wait for another: they share the host's name."""
REMOVE = f"""
import pathlib, sys
from vmpool.dev.files import locked
from vmpool.dev.libvirtd import LibvirtHost
with locked(pathlib.Path(sys.argv[1]), deadline={LOCK_SECONDS}, on_wait=lambda: None):
    LibvirtHost({NAME!r}).stop()
"""
IMAGE = "guest"
NOBODY = "qemu+tcp://127.0.0.1:1/system"
"""A libvirt host where nobody listens."""

Config = dict[str, Any]


@pytest.fixture(scope="session")
def libvirt_host() -> Iterator[LibvirtHost]:
    """Daemons, an isolated network and a storage pool that are gone after the run."""
    pytest.importorskip("libvirt")
    if reason := libvirtd.missing():
        pytest.skip(f"no real machines: {reason}")
    host = LibvirtHost(NAME)
    with locked(LOCK, deadline=LOCK_SECONDS, on_wait=lambda: None):
        guard = _guard()
        try:
            host.stop()  # what a killed run may have left
            host.start()
            yield host
        finally:
            host.stop()
            guard.kill()
            guard.communicate()


@pytest.fixture(scope="session")
def guest(libvirt_host: LibvirtHost) -> Guest:
    """A kernel and an initial RAM disk where QEMU may read them."""
    try:
        return guests.build(libvirt_host.folder)
    except GuestMissing as error:
        pytest.skip(f"no real machines: {error}")


@pytest.fixture(scope="session")
def libvirt_config(libvirt_host: LibvirtHost, guest: Guest) -> Config:
    """``VMProvider.spec.config`` for this host; its image ``guest`` answers HTTP with its host name."""
    image = {"kernel": str(guest.kernel), "initrd": str(guest.initrd), "cmdline": guest.cmdline}
    return {
        "uri": libvirtd.URI,
        "pool": libvirt_host.name,
        "network": libvirt_host.name,
        "images": {IMAGE: image},
    }


def open_libvirt(config: Config, install_id: str) -> Provider:
    """Open a session the way the operator does."""
    plugin = LibvirtPlugin()
    return plugin.open(Session(parse_config(plugin, config), {}, install_id))


class LibvirtHarness:
    """What the conformance suite wants to know about a libvirt host, seen past the plug-in."""

    listing_size = 4
    deadline = 30.0

    def __init__(self, config: Config, connection: "libvirt.virConnect", domain_type: str, *, disk: bool) -> None:
        self.config = config
        self.connection = connection
        self.install_id = f"conformance-{uuid.uuid4().hex[:8]}"
        self.provider = open_libvirt(config, self.install_id)
        self._domain_type = domain_type
        self._disk_gib = 1 if disk else None
        self._before = {domain.UUIDString() for domain in connection.listAllDomains()}

    def request(self, token: str, name: str) -> MachineRequest:
        """A small guest that boots."""
        return MachineRequest(
            token=token,
            name=name,
            hostname=name,
            image=IMAGE,
            cpus=1,
            memory_mib=guests.MEMORY_MIB,
            disk_gib=self._disk_gib,
            parameters={},
            tags={keys.TAG_INSTALL: self.install_id, keys.TAG_UID: token, keys.TAG_POOL: "team-a/small"},
        )

    def invalid_template_request(self) -> MachineRequest:
        """An image that the config does not name."""
        want = self.request(str(uuid.uuid4()), "no-such-image")
        return replace(want, image="no-such-image")

    async def new_session(self) -> Provider:
        """Another connection to the same host."""
        return open_libvirt(self.config, self.install_id)

    async def other_far_side(self) -> Provider | None:
        """A session of libvirt's in-memory driver that started from a file; the caller gave one, or none."""
        return None

    async def break_credentials(self) -> Provider | None:
        """Not for root at a local socket."""
        return None

    async def unreachable(self) -> Provider:
        """A port where nobody listens."""
        return open_libvirt({**self.config, "uri": NOBODY}, self.install_id)

    async def make_foreign(self) -> str:
        """A domain without our record."""
        return self.define_foreign(f"foreign-{uuid.uuid4().hex[:8]}")

    def define_foreign(self, name: str) -> str:
        """Define, but do not start, a domain of somebody else."""
        xml = f"""<domain type='{self._domain_type}'><name>{name}</name><memory unit='MiB'>16</memory>
            <os><type>hvm</type></os></domain>"""
        made: str = self.connection.defineXML(xml).UUIDString()
        return made

    async def exists(self, machine_id: str) -> bool:
        """Whether the host has this domain."""
        return machine_id in {domain.UUIDString() for domain in self.connection.listAllDomains()}

    async def leftovers(self) -> list[str]:
        """Domains of this install, disks of ours, and leases that no running domain holds."""
        running = [domain.XMLDesc() for domain in self.connection.listAllDomains()]
        ours = [domain.name() for domain in self.connection.listAllDomains() if self._is_ours(domain)]
        leases = [lease["mac"] for lease in self.leases() if not any(lease["mac"] in xml for xml in running)]
        return ours + self.disks() + leases

    def disks(self) -> list[str]:
        """Names of the volumes that the plug-in made."""
        pool = self.connection.storagePoolLookupByName(self.config["pool"])
        return [name for name in pool.listVolumes() if name.startswith("vmpool-")]

    def leases(self) -> list[dict[str, Any]]:
        """The network's leases; the in-memory driver has none."""
        if self._domain_type == "test":
            return []
        network = self.connection.networkLookupByName(self.config["network"])
        found: list[dict[str, Any]] = network.DHCPLeases()
        return found

    async def lose_next_reply(self) -> bool:
        """libvirt has no such switch; the crash tests cut between any two steps instead."""
        return False

    async def aclose(self) -> None:
        """Remove every domain and disk made since the start, whoever made it."""
        await self.provider.close()
        for domain in self.connection.listAllDomains():
            if domain.UUIDString() not in self._before:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        pool = self.connection.storagePoolLookupByName(self.config["pool"])
        for name in self.disks():
            pool.storageVolLookupByName(name).delete()

    def _is_ours(self, domain: "libvirt.virDomain") -> bool:
        return self.install_id in domain.XMLDesc()


def _guard() -> subprocess.Popen[bytes]:
    """A process that removes the host when ours is killed: its standard input ends with us."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'cat >/dev/null; exec "$0" -c "$1" "$2"', sys.executable, REMOVE, str(LOCK)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(vmpool.__file__).parent.parent)},
        start_new_session=True,
    )
