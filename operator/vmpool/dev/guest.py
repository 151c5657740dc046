"""The smallest real guest: the distribution's own cloud kernel and an initramfs made here, in memory.

It boots in about three seconds under plain emulation with 128 MiB, takes its address by DHCP, tells the DHCP server
its host name, and answers HTTP on port 8080 with that name. Needs no image, no download and no root: a readable
kernel with its modules, and a static busybox. Used by the demo and the tests alike.
"""

import gzip
import hashlib
import lzma
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmpool.dev.errors import DevError

PORT = 8080
"""Where the guest answers HTTP with its host name."""
MEMORY_MIB = 128
CMDLINE = "console=ttyS0 quiet panic=-1"
"""``panic=-1``: a guest whose init failed ends at once instead of standing there as if it ran."""

KERNELS = "vmlinuz-*cloud*"
MODULES = ("virtio_pci", "virtio_net", "button", "evdev")
"""The network card, and what the ACPI power button needs."""
TOOLS = ["sh", "mount", "insmod", "cat", "hostname", "ip", "udhcpc", "httpd", "acpid", "poweroff", "sleep"]

INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
for word in $(cat /proc/cmdline); do
  case $word in systemd.hostname=*) hostname ${word#*=};; esac
done
hostname > /www/index.html
ip link set lo up
ip link set eth0 up
httpd -p 8080 -h /www
acpid -l /dev/null
udhcpc -b -t 20 -T 1 -i eth0 -x hostname:$(hostname) -s /udhcpc
echo guest $(hostname) is up
while true; do sleep 3600; done
"""
LEASED = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
[ -z "$router" ] || ip route add default via $router
"""
POWER_BUTTON = """#!/bin/sh
poweroff -f
"""

_INTERPRETER = 3
"""The program header (PT_INTERP) that only dynamically linked programs have."""
_DIRECTORY, _FILE, _SYMLINK, _DEVICE = 0o040755, 0o100755, 0o120777, 0o020600


class GuestMissing(DevError):
    """This machine lacks a part of the guest; the message names it."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Files for a direct kernel boot; copies, so that nobody has to change the owner of the originals."""

    kernel: Path
    initrd: Path
    cmdline: str


def build(folder: Path, *, boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Guest:
    """Return the guest's files in ``folder``, made now unless they are there for this kernel and this script.

    The files are readable by all; whether QEMU may enter ``folder`` is the caller's to see to.
    Raises GuestMissing when the kernel, a module or a static busybox is not installed.
    """
    kernel = _newest_kernel(boot)
    version = kernel.name.removeprefix("vmlinuz-")
    entries = list(_entries(_busybox(), modules / version))
    digest = hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
    guest = Guest(folder / kernel.name, folder / f"initrd-{version}-{digest}.img", CMDLINE)
    folder.mkdir(parents=True, exist_ok=True)
    if not guest.kernel.exists():
        _publish(guest.kernel, kernel.read_bytes())
    if not guest.initrd.exists():
        _publish(guest.initrd, gzip.compress(archive(entries), compresslevel=6, mtime=0))
    return guest


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive of the format ``newc``, the one that the kernel unpacks.

    An entry is (path, mode with file type, content); the content of a character device is ``major:minor``.
    """
    members = [*entries, ("TRAILER!!!", 0, b"")]
    return b"".join(_member(number, *member) for number, member in enumerate(members, start=1))


def _member(number: int, path: str, mode: int, content: bytes) -> bytes:
    major = minor = 0
    if mode == _DEVICE:
        major, minor = (int(part) for part in content.split(b":"))
        content = b""
    name = path.encode() + b"\0"
    links, owner, modified = 1, 0, 0
    fields = (number, mode, owner, owner, links, modified, len(content), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _entries(busybox: Path, modules: Path) -> Iterator[tuple[str, int, bytes]]:
    for directory in ("bin", "dev", "etc", "etc/acpi", "modules", "proc", "sys", "www"):
        yield directory, _DIRECTORY, b""
    yield "dev/console", _DEVICE, b"5:1"
    yield "bin/busybox", _FILE, busybox.read_bytes()
    for tool in TOOLS:
        yield f"bin/{tool}", _SYMLINK, b"busybox"
    order = []
    for source in _load_order(modules):
        order.append(source.name.partition(".ko")[0] + ".ko")
        yield f"modules/{order[-1]}", _FILE, _unpacked(source)
    yield "modules/order", _FILE, "\n".join(order).encode()
    yield "init", _FILE, INIT.encode()
    yield "udhcpc", _FILE, LEASED.encode()
    yield "etc/acpi/PWRF", _DIRECTORY, b""
    yield "etc/acpi/PWRF/00000080", _FILE, POWER_BUTTON.encode()


def _load_order(modules: Path) -> list[Path]:
    """Return the files of MODULES with all they need, needed ones first; those built into the kernel left out."""
    try:
        lines = (modules / "modules.dep").read_text().splitlines()
        builtin = (modules / "modules.builtin").read_text()
    except OSError as error:
        raise GuestMissing(f"the kernel's modules are not installed: {error}") from error
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    by_name = {Path(path).name.partition(".ko")[0].replace("-", "_"): path for path in needs}
    ordered: dict[str, None] = {}
    for name in MODULES:
        if f"/{name}.ko" in builtin:
            continue
        if name not in by_name:
            raise GuestMissing(f"the kernel in {modules} has no module {name}")
        path = by_name[name]
        ordered.update(dict.fromkeys([*reversed(needs[path]), path]))
    return [modules / path for path in ordered]


def _unpacked(module: Path) -> bytes:
    """Return the plain module: busybox ``insmod`` knows no compression."""
    data = module.read_bytes()
    match module.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
    raise GuestMissing(f"cannot unpack the kernel module {module.name}")


def _newest_kernel(boot: Path) -> Path:
    kernels = sorted(boot.glob(KERNELS), key=lambda path: path.stat().st_mtime)
    if not kernels:
        raise GuestMissing(f"no {KERNELS} in {boot} (Debian: linux-image-cloud-amd64)")
    return kernels[-1]


def _busybox() -> Path:
    found = shutil.which("busybox")
    if found is None:
        raise GuestMissing("no busybox (Debian: busybox-static)")
    path = Path(found).resolve()
    if _INTERPRETER in _segment_types(path.read_bytes()):
        raise GuestMissing(f"{path} is not a static busybox (Debian: busybox-static)")
    return path


def _segment_types(elf: bytes) -> set[int]:
    """Return the types of the program headers of a 64-bit little-endian ELF file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise GuestMissing("busybox is not a 64-bit little-endian program")
    (offset,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    return {struct.unpack_from("<I", elf, offset + number * size)[0] for number in range(count)}


def _publish(path: Path, data: bytes) -> None:
    """Write ``path`` in one step, so that a killed build leaves no half file behind."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), 0o644)
    os.replace(partial, path)
