"""What the libvirt plug-in writes and reads, without libvirt: names, XML, records, packets, settings."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api import keys
from vmpool.dev import guest
from vmpool.providers.base import MachineRequest
from vmpool.providers.errors import InvalidConfig, InvalidTemplate
from vmpool.providers.libvirt import LibvirtPlugin
from vmpool.providers.libvirt.config import Config, DiskImage, KernelImage, Parameters
from vmpool.providers.libvirt.domain import (
    NAMESPACE,
    Blueprint,
    Phase,
    Record,
    domain_xml,
    mac_address,
    machine_id,
    read_domain,
    record_xml,
    volume_name,
    volume_xml,
)
from vmpool.providers.libvirt.leases import Lease, release_packet
from vmpool.providers.registry import parse_config

TOKEN = "0b4a2f3e-9f6c-4c8e-a8a6-2f3b1c5d7e9f"
ID = machine_id("install-1", TOKEN)
TAGS = {keys.TAG_INSTALL: "install-1", keys.TAG_UID: TOKEN, keys.TAG_POOL: "team-a/small"}
WANT = MachineRequest(
    token=TOKEN,
    name="small-x7k2",
    hostname="small-x7k2.example.org",
    image="guest",
    cpus=2,
    memory_mib=512,
    disk_gib=None,
    parameters={},
    tags=TAGS,
)
KERNEL = KernelImage(kernel="/boot/kernel", initrd="/boot/initrd", cmdline="console=ttyS0")
PLAN = Blueprint(ID, WANT, KERNEL, Parameters(), "qemu", "lan", None)


def test_names_follow_from_install_and_token_alone() -> None:
    assert machine_id("install-1", TOKEN) == ID
    assert machine_id("install-2", TOKEN) != ID
    assert machine_id("install-1", str(uuid.uuid4())) != ID
    assert volume_name(ID) == f"vmpool-{ID}.qcow2"


@given(st.uuids())
def test_mac_addresses_are_local_and_of_one_station(machine: uuid.UUID) -> None:
    parts = [int(part, 16) for part in mac_address(machine).split(":")]
    assert len(parts) == 6
    assert parts[0] & 0b11 == 0b10, "locally administered, not multicast"
    assert parts[0] != 0xFE, "libvirt keeps these for its own end of the wire"


def test_ten_thousand_machines_have_ten_thousand_mac_addresses() -> None:
    macs = {mac_address(machine_id("install-1", str(number))) for number in range(10_000)}
    assert len(macs) == 10_000


def test_a_kernel_guest() -> None:
    root = ET.fromstring(domain_xml(PLAN))
    assert root.get("type") == "qemu"
    assert (root.findtext("name"), root.findtext("uuid")) == ("small-x7k2", str(ID))
    assert (root.findtext("memory"), root.findtext("vcpu")) == ("512", "2")
    assert root.findtext("os/kernel") == "/boot/kernel"
    assert root.findtext("os/cmdline") == "console=ttyS0 systemd.hostname=small-x7k2.example.org"
    assert root.find("devices/disk") is None
    card = root.find("devices/interface")
    assert card is not None
    assert [part.attrib for part in card][:2] == [{"address": mac_address(ID)}, {"network": "lan"}]


def test_a_disk_guest_boots_its_layer_and_learns_its_name_from_the_bios() -> None:
    plan = replace(PLAN, image=DiskImage(volume="debian.qcow2"), disk="/pool/disk.qcow2")
    root = ET.fromstring(domain_xml(plan))
    assert root.find("os/kernel") is None
    assert root.findtext("sysinfo/system/entry") == "ds=nocloud;h=small-x7k2.example.org"
    assert root.find("os/smbios[@mode='sysinfo']") is not None
    assert root.find("devices/disk/source[@file='/pool/disk.qcow2']") is not None


def test_parameters_choose_the_machine_and_extend_the_command_line() -> None:
    parameters = Parameters.parse({"arch": "x86_64", "machine": "q35", "cmdline": "debug=1"})
    root = ET.fromstring(domain_xml(replace(PLAN, parameters=parameters)))
    kind = root.find("os/type")
    assert kind is not None
    assert kind.attrib == {"arch": "x86_64", "machine": "q35"}
    assert root.findtext("os/cmdline") == "console=ttyS0 debug=1 systemd.hostname=small-x7k2.example.org"


def test_a_new_domain_carries_its_record_from_the_first_step() -> None:
    description = read_domain(domain_xml(PLAN))
    assert description.record == Record(TAGS, WANT.hostname, Phase.MAKING)
    assert description.macs == (mac_address(ID),)


names = st.from_regex(r"[a-z][a-z-]{0,20}", fullmatch=True)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xD7FF), max_size=40)


@given(st.dictionaries(names, texts, max_size=5), texts, st.sampled_from(Phase))
def test_a_record_reads_back_as_it_was_written(tags: dict[str, str], hostname: str, phase: Phase) -> None:
    record = Record(tags, hostname, phase)
    element = record_xml(record).replace("<machine", f'<machine xmlns="{NAMESPACE}"', 1)
    assert read_domain(f"<domain><metadata>{element}</metadata></domain>").record == record


@pytest.mark.parametrize(
    "metadata",
    ["", "<metadata/>", "<metadata><machine xmlns='https://example.org/other'/></metadata>"],
    ids=["none", "empty", "another's"],
)
def test_a_domain_without_our_element_has_no_record(metadata: str) -> None:
    assert read_domain(f"<domain>{metadata}</domain>").record is None


def test_a_record_of_a_later_version_still_tells_whose_it_is() -> None:
    element = f"<machine xmlns='{NAMESPACE}' phase='resizing'><tag name='{keys.TAG_INSTALL}' value='me'/></machine>"
    record = read_domain(f"<domain><metadata>{element}</metadata></domain>").record
    assert record is not None
    assert record.of("me")
    assert not record.of("you")
    assert record.phase is Phase.MADE


def test_a_layer_names_its_base() -> None:
    root = ET.fromstring(volume_xml("disk.qcow2", 2**30, ("/pool/base.raw", "raw")))
    assert root.findtext("capacity") == str(2**30)
    assert root.findtext("backingStore/path") == "/pool/base.raw"
    assert root.find("backingStore/format[@type='raw']") is not None
    assert ET.fromstring(volume_xml("disk.qcow2", 2**30, None)).find("backingStore") is None


def test_a_release_is_what_the_guest_would_have_sent() -> None:
    packet = release_packet(Lease("52:00:11:22:33:44", "192.168.200.57", 0), "192.168.200.1")
    assert len(packet) == 236 + 4 + 10
    assert packet[:4] == b"\x01\x01\x06\x00"
    assert packet[12:16] == bytes((192, 168, 200, 57))
    assert packet[28:34] == bytes.fromhex("520011223344")
    assert packet[236:] == b"\x63\x82\x53\x63" + b"\x35\x01\x07" + b"\x36\x04" + bytes((192, 168, 200, 1)) + b"\xff"


IMAGES = {"guest": {"kernel": "/kernel", "initrd": "/initrd"}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "images"),
        ({"images": {}}, "images"),
        ({"images": {"guest": {"kernel": "boot/kernel", "initrd": "/initrd"}}}, "kernel"),
        ({"images": {"guest": {"volume": "../etc/passwd"}}}, "volume"),
        ({"images": {"guest": {"volume": "a", "kernel": "/k"}}}, "images"),
        ({"images": IMAGES, "colour": "red"}, "colour"),
        ({"images": IMAGES, "domainType": "xen"}, "domainType"),
        ({"images": IMAGES, "uri": "/var/run/libvirt"}, "uri"),
    ],
)
def test_settings_that_make_no_sense_are_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        parse_config(LibvirtPlugin(), config)


def test_every_setting_is_described() -> None:
    for model in (Config, KernelImage, DiskImage, Parameters):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InvalidTemplate, match="colour"):
        Parameters.parse({"colour": "red"})


def test_an_archive_is_what_the_kernel_unpacks() -> None:
    entries = [("bin", 0o040755, b""), ("bin/sh", 0o120777, b"busybox"), ("dev/console", 0o020600, b"5:1")]
    read = list(_members(guest.archive(entries)))
    assert [(name, mode, content) for name, mode, content, _ in read] == [
        ("bin", 0o040755, b""),
        ("bin/sh", 0o120777, b"busybox"),
        ("dev/console", 0o020600, b""),
        ("TRAILER!!!", 0, b""),
    ]
    assert read[2][3] == (5, 1)


def _members(archive: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, size, major, minor, name_size = (fields[number] for number in (1, 6, 9, 10, 11))
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = -(-(at + 110 + name_size) // 4) * 4
        yield name, mode, archive[start : start + size], (major, minor)
        at = -(-(start + size) // 4) * 4
