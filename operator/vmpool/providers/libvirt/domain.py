"""A machine as libvirt spells it: its names, its XML and the record that it carries. Pure.

All names follow from the install and the PooledVM's uid, so that whoever repeats a step, after whatever crash,
finds what the step before made.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from xml.etree import ElementTree as ET

from vmpool.api import keys
from vmpool.providers.base import MachineRequest
from vmpool.providers.libvirt.config import DiskImage, KernelImage, Parameters

NAMESPACE = "https://vmpool.dev/xmlns/machine/1"
"""Of our element in a domain's metadata; the only place where our tags live."""
PREFIX = "vmpool"
VOLUME_FORMAT = "qcow2"

_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE)
_CPU_MODES = {"kvm": "host-model", "qemu": "maximum"}
"""Without a mode libvirt takes a CPU of 2003 on which current distributions refuse to boot."""


class Phase(StrEnum):
    """How far our own work on a machine is; libvirt cannot tell one never started from one that stopped."""

    MAKING = "making"
    MADE = "made"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Record:
    """What we wrote on a domain. A domain without it, or with another install's, is not ours."""

    tags: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    phase: Phase = Phase.MADE

    def of(self, install_id: str) -> bool:
        """Whether the domain belongs to this install."""
        return self.tags.get(keys.TAG_INSTALL) == install_id


@dataclass(frozen=True, slots=True)
class Description:
    """The parts of a domain's XML that we read back."""

    record: Record | None
    macs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything that goes into the XML of a new domain."""

    id: uuid.UUID
    want: MachineRequest
    image: KernelImage | DiskImage
    parameters: Parameters
    domain_type: str
    network: str
    disk: str | None
    """Absolute path of the root disk, or None for a guest without one."""


def machine_id(install_id: str, token: str) -> uuid.UUID:
    """Return the domain UUID of the machine for this token: always the same, never another's."""
    return uuid.uuid5(_UUIDS, f"{install_id}/{token}")


def volume_name(machine: uuid.UUID) -> str:
    """Return the name of the machine's disk; only we make volumes with this name."""
    return f"vmpool-{machine}.{VOLUME_FORMAT}"


def mac_address(machine: uuid.UUID) -> str:
    """Return the machine's MAC address: locally administered, 40 bits from its id.

    With QEMU's usual 24 bits a few thousand machines on one network would already share some.
    """
    return ":".join(["52", *(f"{byte:02x}" for byte in hashlib.sha256(machine.bytes).digest()[:5])])


def domain_xml(plan: Blueprint) -> str:
    """Return the XML of a new domain, with its record in phase MAKING."""
    want = plan.want
    root = ET.Element("domain", type=plan.domain_type)
    _text(root, "name", want.name)
    _text(root, "uuid", str(plan.id))
    record = Record(tags=want.tags, hostname=want.hostname, phase=Phase.MAKING)
    _append_record(ET.SubElement(root, "metadata"), record)
    _text(root, "memory", str(want.memory_mib), unit="MiB")
    _text(root, "vcpu", str(want.cpus))
    if isinstance(plan.image, DiskImage):
        # cloud-init's NoCloud source takes the host name from here, so no seed disk is needed.
        sysinfo = ET.SubElement(root, "sysinfo", type="smbios")
        system = ET.SubElement(sysinfo, "system")
        _text(system, "entry", f"ds=nocloud;h={want.hostname}", name="serial")
    _append_boot(ET.SubElement(root, "os"), plan)
    if mode := _CPU_MODES.get(plan.domain_type):
        ET.SubElement(root, "cpu", mode=mode)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _append_devices(ET.SubElement(root, "devices"), plan)
    return serialize(root)


def volume_xml(name: str, capacity: int, backing: tuple[str, str] | None) -> str:
    """Return the XML of a disk of ``capacity`` bytes, over the base (path, format) if there is one."""
    root = ET.Element("volume")
    _text(root, "name", name)
    _text(root, "capacity", str(capacity), unit="bytes")
    _text(root, "allocation", "0", unit="bytes")
    ET.SubElement(ET.SubElement(root, "target"), "format", type=VOLUME_FORMAT)
    if backing is not None:
        path, image_format = backing
        store = ET.SubElement(root, "backingStore")
        _text(store, "path", path)
        ET.SubElement(store, "format", type=image_format)
    return serialize(root)


def record_xml(record: Record) -> str:
    """Return the element for libvirt's ``setMetadata``, which adds the namespace itself."""
    root = ET.Element("machine", phase=record.phase, hostname=record.hostname)
    for name, value in sorted(record.tags.items()):
        ET.SubElement(root, "tag", name=name, value=value)
    return serialize(root)


def read_domain(xml: str) -> Description:
    """Return what a domain's XML says of its record and its network cards."""
    root = parse(xml)
    found = root.find(f"metadata/{{{NAMESPACE}}}machine")
    cards = root.findall("devices/interface/mac")
    return Description(
        record=None if found is None else _read_record(found),
        macs=tuple(card.get("address", "").lower() for card in cards),
    )


def parse(xml: str) -> ET.Element:
    """Parse XML that libvirt wrote."""
    return ET.fromstring(xml)  # noqa: S314 - libvirt serialized it, so it holds neither DTD nor entities


def serialize(element: ET.Element) -> str:
    """Return an element as libvirt wants to read it."""
    return ET.tostring(element, encoding="unicode")


def _read_record(element: ET.Element) -> Record:
    tags = element.findall(f"{{{NAMESPACE}}}tag")
    phase = element.get("phase", Phase.MADE)
    return Record(
        tags={tag.get("name", ""): tag.get("value", "") for tag in tags},
        hostname=element.get("hostname", ""),
        phase=Phase(phase) if phase in set(Phase) else Phase.MADE,
    )


def _append_record(metadata: ET.Element, record: Record) -> None:
    element = parse(record_xml(record))
    element.set(f"xmlns:{PREFIX}", NAMESPACE)
    for part in element.iter():
        part.tag = f"{PREFIX}:{part.tag}"
    metadata.append(element)


def _append_boot(os: ET.Element, plan: Blueprint) -> None:
    kind = {"arch": plan.parameters.arch, "machine": plan.parameters.machine}
    _text(os, "type", "hvm", **{name: value for name, value in kind.items() if value is not None})
    if isinstance(plan.image, KernelImage):
        _text(os, "kernel", plan.image.kernel)
        _text(os, "initrd", plan.image.initrd)
        words = (plan.image.cmdline, plan.parameters.cmdline, f"systemd.hostname={plan.want.hostname}")
        _text(os, "cmdline", " ".join(word for word in words if word))
    else:
        ET.SubElement(os, "boot", dev="hd")
        ET.SubElement(os, "smbios", mode="sysinfo")


def _append_devices(devices: ET.Element, plan: Blueprint) -> None:
    if plan.disk is not None:
        # By path, not by pool and volume: AppArmor's helper does not resolve the latter.
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type=VOLUME_FORMAT, discard="unmap")
        ET.SubElement(disk, "source", file=plan.disk)
        ET.SubElement(disk, "target", dev="vda", bus="virtio")
    card = ET.SubElement(devices, "interface", type="network")
    ET.SubElement(card, "mac", address=mac_address(plan.id))
    ET.SubElement(card, "source", network=plan.network)
    ET.SubElement(card, "model", type="virtio")
    ET.SubElement(devices, "serial", type="pty")
    # Without entropy a fresh guest waits minutes before its SSH server has keys.
    source = ET.SubElement(devices, "rng", model="virtio")
    _text(source, "backend", "/dev/urandom", model="random")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
