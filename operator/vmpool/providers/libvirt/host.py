"""The steps on one libvirt host. Every call blocks; run them in a ``Lane``.

Making: define the domain with its record, make the disk, start, write down that it is made. Deleting: write down
that it leaves, stop it, delete the disk, give its leases back, undefine. Each step finds its own effect when it
is repeated, and the domain with its record is there from the first step to the last.
"""

import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import libvirt

from vmpool.api import keys
from vmpool.providers.base import Deletion, Machine, MachineRequest
from vmpool.providers.errors import InvalidTemplate, MachineNotFound, Retryable, Terminal
from vmpool.providers.libvirt import domain
from vmpool.providers.libvirt.config import Config, DomainType, Parameters
from vmpool.providers.libvirt.domain import Blueprint, Description, Phase, Record
from vmpool.providers.libvirt.faults import tolerated
from vmpool.providers.libvirt.resources import Disks, Leases, Network
from vmpool.providers.libvirt.states import machine_state

_UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
_HARDWARE_VIRTUALIZATION = {"vmx", "svm"}


class Host:
    """One libvirt host as one install sees it, over one connection."""

    def __init__(self, connection: libvirt.virConnect, config: Config, install_id: str) -> None:
        self.connection = connection
        self.network = Network(connection, config.network)
        self._disks = Disks(connection, config.pool)
        self._config = config
        self._install_id = install_id
        self._capabilities = domain.parse(connection.getCapabilities())

    def identity(self) -> str:
        """Return the host's UUID with the driver and its path; for a session also whose it is.

        On hardware whose firmware has no UUID, libvirtd makes one up at every start: set ``host_uuid_source`` or
        ``host_uuid`` in its configuration, or each restart looks like another host.
        """
        # libvirt's in-memory driver has no host UUID.
        host = self._capabilities.findtext("host/uuid") or self.connection.getHostname()
        uri = urlsplit(self.connection.getURI())
        owner = f":{uri.username or os.getuid()}" if uri.path == "/session" else ""
        return f"libvirt:{host}:{self.connection.getType().lower()}{uri.path}{owner}"

    def check(self, want: MachineRequest) -> None:
        """Raise InvalidTemplate or InvalidConfig when this request can never work."""
        self._plan(want)
        self.network.check()

    def ensure(self, want: MachineRequest) -> Machine:
        """Make the machine; or complete it, or just return it, when it was begun for this token before."""
        made = self._lookup(domain.machine_id(self._install_id, want.token))
        if made is None or self._record_for(made, want).phase is Phase.MAKING:
            made = self._make(made, want)
        return self._machine(made, self.network.leases())

    def get(self, machine_id: str) -> Machine:
        """Return one machine of ours. Raises MachineNotFound."""
        found = self._lookup(_uuid(machine_id))
        if found is None:
            raise _unknown(machine_id)
        return self._machine(found, self.network.leases())

    def find(self, token: str) -> Machine | None:
        """Return the machine with this token: the one made for it, or one that was adopted for it."""
        leases = self.network.leases()
        made = self._lookup(domain.machine_id(self._install_id, token))
        if made is not None:
            for machine in self.describe([made], leases):
                if machine.token == token:
                    return machine
        return next((one for one in self.describe(self.domains(), leases) if one.token == token), None)

    def domains(self) -> list[libvirt.virDomain]:
        """Return every domain of the host, foreign ones too."""
        return list(self.connection.listAllDomains())

    def describe(self, domains: Iterable[libvirt.virDomain], leases: Leases) -> list[Machine]:
        """Return those of ``domains`` that are ours and still there."""
        machines = []
        for one in domains:
            with suppress(MachineNotFound), tolerated(libvirt.VIR_ERR_NO_DOMAIN):
                machines.append(self._machine(one, leases))
        return machines

    def adopt(self, machine_id: str, tags: Mapping[str, str]) -> Machine:
        """Put tags on any machine. Raises MachineNotFound when there is none with this id."""
        found = self._lookup(_uuid(machine_id))
        if found is None:
            raise _unknown(machine_id)
        record = _read(found).record or Record()
        self._write(found, replace(record, tags={**record.tags, **tags}))
        return self._machine(found, self.network.leases())

    def delete(self, machine_id: str) -> Deletion:
        """Take the machine apart, its domain last; GONE once the host shows nothing of it any more.

        The disks that an adopted machine brought along are not deleted: they were not made with it.
        Raises MachineNotFound for a foreign one.
        """
        try:
            machine = uuid.UUID(machine_id)
        except ValueError:
            return Deletion.GONE
        leaving = self._lookup(machine)
        macs = {domain.mac_address(machine)}
        if leaving is not None:
            with tolerated(libvirt.VIR_ERR_NO_DOMAIN):
                macs.update(self._stop(leaving))
        # Also without a domain: somebody may have undefined it by hand.
        self.network.release(macs)
        self._disks.delete(machine)
        if macs & self.network.leases().keys():
            return Deletion.STARTED
        if leaving is not None:
            with tolerated(libvirt.VIR_ERR_NO_DOMAIN):
                _undefine(leaving)
        return Deletion.GONE

    def _plan(self, want: MachineRequest) -> tuple[Blueprint, str | None]:
        """Return what to define and the XML of the disk to make, if any."""
        image = self._config.images.get(want.image)
        if image is None:
            known = ", ".join(sorted(self._config.images))
            raise InvalidTemplate(f"image {want.image!r} is not one of this provider's: {known}")
        parameters = Parameters.parse(want.parameters)
        machine = domain.machine_id(self._install_id, want.token)
        disk = self._disks.plan(machine, image, want.disk_gib)
        path, xml = disk or (None, None)
        domain_type = self._domain_type(parameters.arch)
        return Blueprint(machine, want, image, parameters, domain_type, self._config.network, path), xml

    def _make(self, begun: libvirt.virDomain | None, want: MachineRequest) -> libvirt.virDomain:
        plan, disk_xml = self._plan(want)
        made = begun or self._define(plan)
        if disk_xml is not None:
            self._disks.ensure(plan.id, disk_xml)
        if not made.isActive():
            made.create()
        self._write(made, replace(self._record_for(made, want), phase=Phase.MADE))
        return made

    def _define(self, plan: Blueprint) -> libvirt.virDomain:
        name = plan.want.name
        with tolerated(libvirt.VIR_ERR_NO_DOMAIN):
            taken = self.connection.lookupByName(name)
            record = _read(taken).record
            if record is not None and record.of(self._install_id):
                raise Retryable(f"domain {name} ({taken.UUIDString()}) is another machine of ours, not gone yet")
            raise Terminal(f"domain {name} ({taken.UUIDString()}) exists and is not ours")
        return self.connection.defineXMLFlags(domain.domain_xml(plan), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def _record_for(self, made: libvirt.virDomain, want: MachineRequest) -> Record:
        """Return the domain's record. Raises Terminal when it is not the machine of this request."""
        record = _read(made).record
        if record is None or not record.of(self._install_id):
            raise Terminal(f"domain {made.name()} ({made.UUIDString()}) has the id of this machine and is not ours")
        if record.tags.get(keys.TAG_UID) != want.token:
            raise Terminal(f"domain {made.name()} ({made.UUIDString()}) was adopted for another PooledVM")
        return record

    def _domain_type(self, arch: str | None) -> str:
        """Return the domain type to use for an architecture; None means the host's own."""
        arch = arch or self._capabilities.findtext("host/cpu/arch", "")
        guests = self._capabilities.iterfind(f"guest[os_type='hvm']/arch[@name='{arch}']/domain")
        offered = [guest.get("type", "") for guest in guests]
        if not offered:
            raise InvalidTemplate(f"this host runs no guests of the architecture {arch}")
        if self._config.domain_type is not DomainType.AUTO:
            return self._config.domain_type
        if "kvm" in offered and self._has_hardware_virtualization():
            return "kvm"
        return "qemu" if "qemu" in offered else offered[0]

    def _has_hardware_virtualization(self) -> bool:
        cpu = self._capabilities.find("host/cpu")
        assert cpu is not None, "a host that offers KVM describes its CPU"
        # The CPU's own description names only what its model does not imply.
        expanded = self.connection.baselineCPU(
            [domain.serialize(cpu)], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
        )
        features = {feature.get("name") for feature in domain.parse(expanded).iterfind("feature")}
        return not features.isdisjoint(_HARDWARE_VIRTUALIZATION)

    def _lookup(self, machine: uuid.UUID) -> libvirt.virDomain | None:
        with tolerated(libvirt.VIR_ERR_NO_DOMAIN):
            return self.connection.lookupByUUIDString(str(machine))
        return None

    def _stop(self, leaving: libvirt.virDomain) -> tuple[str, ...]:
        """Stop a machine of ours for good; return the MAC addresses of its network cards."""
        seen = _read(leaving)
        if seen.record is None or not seen.record.of(self._install_id):
            raise _unknown(leaving.UUIDString())
        if seen.record.phase is not Phase.LEAVING:
            self._write(leaving, replace(seen.record, phase=Phase.LEAVING))
        if leaving.isActive():
            with tolerated(libvirt.VIR_ERR_OPERATION_INVALID):
                leaving.destroy()
        return seen.macs

    def _write(self, machine: libvirt.virDomain, record: Record) -> None:
        active = libvirt.VIR_DOMAIN_AFFECT_LIVE if machine.isActive() else 0
        stored = libvirt.VIR_DOMAIN_AFFECT_CONFIG if machine.isPersistent() else 0
        machine.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            domain.record_xml(record),
            domain.PREFIX,
            domain.NAMESPACE,
            active | stored,
        )

    def _machine(self, seen: libvirt.virDomain, leases: Leases) -> Machine:
        """Describe a machine of ours. Raises MachineNotFound for a foreign one."""
        description = _read(seen)
        record = description.record
        if record is None or not record.of(self._install_id):
            raise _unknown(seen.UUIDString())
        state, message = machine_state(record.phase, *seen.state())
        return Machine(
            id=seen.UUIDString(),
            name=seen.name(),
            state=state,
            tags=record.tags,
            addresses=tuple(lease.address for mac in description.macs for lease in leases.get(mac, [])),
            message=message,
        )


def _read(machine: libvirt.virDomain) -> Description:
    return domain.read_domain(machine.XMLDesc())


def _undefine(machine: libvirt.virDomain) -> None:
    with tolerated(libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT):
        machine.undefineFlags(_UNDEFINE_ALL)
        return
    # A driver that does not know one of the flags has nothing of that kind to remove either.
    machine.undefine()


def _uuid(machine_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(machine_id)
    except ValueError as error:
        raise _unknown(machine_id) from error


def _unknown(machine_id: str) -> MachineNotFound:
    return MachineNotFound(f"no machine {machine_id} of this install on the host")
