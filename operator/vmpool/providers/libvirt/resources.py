"""What a machine uses besides its domain: its disk in the storage pool, its leases on the network."""

import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import libvirt

from vmpool.providers.errors import InvalidConfig, InvalidTemplate
from vmpool.providers.libvirt.config import DiskImage, KernelImage
from vmpool.providers.libvirt.domain import parse, volume_name, volume_xml
from vmpool.providers.libvirt.faults import tolerated
from vmpool.providers.libvirt.leases import Lease, release

GIB = 2**30
FILE_POOLS = {"dir", "fs", "netfs"}
"""Kinds of storage pools that keep a volume in a file, which a copy-on-write disk has to be."""

Leases = Mapping[str, list[Lease]]
"""Leases by MAC address, the one that lasts longest first."""


@dataclass(frozen=True, slots=True)
class Disks:
    """The machines' disks in one storage pool. Nothing but ``volume_name`` volumes is ever written."""

    connection: libvirt.virConnect
    pool: str

    def plan(self, machine: uuid.UUID, image: KernelImage | DiskImage, gib: int | None) -> tuple[str, str] | None:
        """Return the (path, volume XML) of the machine's disk, or None for a guest that has none.

        Raises InvalidTemplate when the base volume is missing or larger than the disk, InvalidConfig when the
        storage pool keeps no files.
        """
        if isinstance(image, KernelImage) and gib is None:
            return None
        pool = self._pool()
        name = volume_name(machine)
        path = f"{self._folder(pool)}/{name}"
        if isinstance(image, KernelImage):
            assert gib is not None
            return path, volume_xml(name, gib * GIB, None)
        base = pool.storageVolLookupByName(image.volume)
        base_bytes: int = base.info()[1]
        capacity = base_bytes if gib is None else gib * GIB
        if capacity < base_bytes:
            raise InvalidTemplate(f"diskGiB {gib} is less than the {base_bytes} bytes of image {image.volume}")
        return path, volume_xml(name, capacity, (base.path(), image.format))

    def ensure(self, machine: uuid.UUID, xml: str) -> None:
        """Make the machine's disk unless it is there."""
        pool = self._pool()
        with tolerated(libvirt.VIR_ERR_NO_STORAGE_VOL):
            pool.storageVolLookupByName(volume_name(machine))
            return
        with tolerated(libvirt.VIR_ERR_STORAGE_VOL_EXIST):
            pool.createXML(xml)

    def delete(self, machine: uuid.UUID) -> None:
        """Delete the machine's disk if it has one."""
        with tolerated(libvirt.VIR_ERR_NO_STORAGE_VOL):
            self._pool().storageVolLookupByName(volume_name(machine)).delete()

    def _pool(self) -> libvirt.virStoragePool:
        return self.connection.storagePoolLookupByName(self.pool)

    def _folder(self, pool: libvirt.virStoragePool) -> str:
        root = parse(pool.XMLDesc())
        folder = root.findtext("target/path")
        if root.get("type") not in FILE_POOLS or folder is None:
            raise InvalidConfig(f"storage pool {self.pool} is of type {root.get('type')}, not one of {FILE_POOLS}")
        return folder


@dataclass(frozen=True, slots=True)
class Network:
    """The network that every machine is on."""

    connection: libvirt.virConnect
    name: str

    def check(self) -> None:
        """Raise InvalidConfig, as libvirt's own error, when there is no such network."""
        self.connection.networkLookupByName(self.name)

    def leases(self) -> Leases:
        """Return all leases; none where the network is gone or knows no DHCP."""
        found: dict[str, list[Lease]] = {}
        with tolerated(libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_SUPPORT):
            for entry in self.connection.networkLookupByName(self.name).DHCPLeases():
                lease = Lease(entry["mac"].lower(), entry["ipaddr"], entry["expirytime"])
                found.setdefault(lease.mac, []).append(lease)
        for leases in found.values():
            leases.sort(key=lambda lease: lease.expires or float("inf"), reverse=True)
        return found

    def release(self, macs: Collection[str]) -> None:
        """Ask the DHCP server for the leases of these network cards back, where that is possible.

        It is not for a remote host, whose bridges are not ours to use: there a lease lasts until it expires.
        """
        mine = [lease for mac in macs for lease in self.leases().get(mac, [])]
        if not mine or not self._is_local():
            return
        network = self.connection.networkLookupByName(self.name)
        server = parse(network.XMLDesc()).find("ip/dhcp/..")
        if server is None:
            return
        for lease in mine:
            # An IPv6 lease, or a bridge in another network namespace: it has to expire, too.
            with suppress(OSError):
                release(lease, server.get("address", ""), network.bridgeName())

    def _is_local(self) -> bool:
        uri = urlsplit(self.connection.getURI())
        return uri.hostname is None and "+" not in uri.scheme.replace("+unix", "")
