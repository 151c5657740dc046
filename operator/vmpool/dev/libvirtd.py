"""A libvirt host on this machine for the demo and the tests: an isolated network and a folder of disks.

It uses the libvirt daemon that runs, and starts one where none does (a container, a machine without systemd).
Everything has one name of our own, so ``start`` and ``stop`` are safe to repeat after a kill at any point, and
nothing that somebody else made is touched. Needs root and Debian's or a like distribution's packages.
"""

import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

from vmpool.dev.errors import ComponentFailed, DevError
from vmpool.dev.files import locked
from vmpool.dev.processes import ProcessId, end, marked, spawn

URI = "qemu:///system"
IMAGES = Path("/var/lib/libvirt/images")
"""Where QEMU, under a user of its own, may read: home and temporary folders are mostly closed to it."""
PACKAGES = {
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "dnsmasq": "dnsmasq-base",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
}
"""What has to be installed, and the Debian package that brings it."""

START_SECONDS = 30.0
STOP_SECONDS = 15.0
CALL_SECONDS = 60.0
POLL_SECONDS = 0.1
LEASE_MINUTES = 2
"""The shortest lease that libvirt allows: an address that nobody gives back is free again soon."""
SUBNETS = [ipaddress.IPv4Network(f"192.168.{number}.0/24") for number in range(200, 251)]

_DAEMONS = ("libvirtd", "virtlogd")
_MARKER = "libvirt"
"""One for all hosts of ours: they share the daemons, and the last one ends them."""
_LOCK = Path("/run/lock/vmpool-libvirt.lock")
LOCK_SECONDS = 120.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""libvirtd looks for dnsmasq and iptables there."""
_LOG_SOCKET = Path("/run/libvirt/virtlogd-sock")
_MACHINE_ID = Path("/etc/machine-id")
_ROUTES = Path("/proc/net/route")


def missing() -> str | None:
    """Return why this machine cannot be a libvirt host, or None when it can."""
    if os.geteuid() != 0:
        return "libvirt's system instance needs root"
    absent = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    return f"not installed (Debian packages): {', '.join(sorted(absent))}" if absent else None


class LibvirtHost:
    """A network and a storage pool called ``name``, and the daemons where none run."""

    def __init__(self, name: str) -> None:
        """Take a name of at most 15 characters: the bridge has it, too."""
        self.name = name
        self.folder = IMAGES / name
        """For files that a guest starts from; goes with ``stop``."""
        self._disks = self.folder / "disks"

    def start(self) -> None:
        """Have the daemons, the network and the storage pool running.

        Raises DevError with the end of the log, or with libvirt's own words, when that fails.
        """
        with _alone():
            self._start()

    def stop(self) -> None:
        """Remove every machine on our network, the network, all disks, and the daemons that nobody uses any more.

        Only daemons that one of us started are ended. Raises DevError when something of it stays.
        """
        with _alone():
            if self.folder.exists():
                self._stop()

    def _start(self) -> None:
        self._disks.mkdir(parents=True, exist_ok=True)
        # Bits given to mkdir are cut by the umask, and QEMU has to get through here.
        self.folder.chmod(0o711)
        self._disks.chmod(0o711)
        self._start_daemons()
        self._have("net", self._network_xml)
        self._have("pool", self._pool_xml)

    def _stop(self) -> None:
        # A daemon that died took no machine with it: only another one can find and end those.
        self._start_daemons()
        for domain in self._domains():
            self._drop("destroy", domain)
            self._drop("undefine", domain, "--managed-save", "--snapshots-metadata", "--nvram")
        for kind in ("pool", "net"):
            self._drop(f"{kind}-destroy", self.name)
            self._drop(f"{kind}-undefine", self.name)
            if self.name in _virsh(f"{kind}-list", "--all", "--name").split():
                raise DevError(f"{kind} {self.name} cannot be removed; look with: virsh {kind}-list --all")
        if not _used():
            for name in _DAEMONS:
                for process in list(marked(_MARKER, {name})):
                    end(process, grace=STOP_SECONDS)
        # Last, because it says that there may be something to remove.
        shutil.rmtree(self.folder)

    def _start_daemons(self) -> None:
        if _answers():
            return
        if not _accepts(_LOG_SOCKET):
            self._spawn("virtlogd")
        configuration = self.folder / "libvirtd.conf"
        configuration.write_text(_configuration())
        process = self._spawn("libvirtd", "--config", str(configuration))
        deadline = time.monotonic() + START_SECONDS
        while not _answers():
            if not process.alive or time.monotonic() > deadline:
                raise ComponentFailed(
                    f"libvirtd does not answer at {URI}:\n{self._log('libvirtd').read_text()[-2000:]}"
                )
            time.sleep(POLL_SECONDS)

    def _spawn(self, name: str, *arguments: str) -> ProcessId:
        argv = [_program("env"), f"PATH={_PATH}", _program(name), *arguments]
        return spawn(argv, log=self._log(name), marker=_MARKER)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _have(self, kind: str, definition: Callable[[], str]) -> None:
        """Define the network or the pool unless it is, and start it unless it runs."""
        if self.name not in _virsh(f"{kind}-list", "--all", "--name").split():
            _virsh(f"{kind}-define", "/dev/stdin", stdin=definition())
        if self.name not in _virsh(f"{kind}-list", "--name").split():
            _virsh(f"{kind}-start", self.name)

    def _domains(self) -> Iterator[str]:
        for domain in _virsh("list", "--all", "--uuid").split():
            with suppress(DevError):  # gone meanwhile
                root = ET.fromstring(_virsh("dumpxml", domain))  # noqa: S314 - written by libvirt
                networks = root.iterfind("devices/interface/source")
                if self.name in {source.get("network") for source in networks}:
                    yield domain

    def _drop(self, *arguments: str) -> None:
        with suppress(DevError):  # not running, or gone already
            _virsh(*arguments)

    def _network_xml(self) -> str:
        taken = list(_routed())
        subnet = next((one for one in SUBNETS if not any(one.overlaps(other) for other in taken)), None)
        if subnet is None:
            raise DevError(f"no free subnet between {SUBNETS[0]} and {SUBNETS[-1]}")
        root = ET.Element("network")
        ET.SubElement(root, "name").text = self.name
        # Without <forward> it is isolated: guests reach this machine and each other, and nothing else.
        ET.SubElement(root, "bridge", name=self.name, stp="off", delay="0")
        ET.SubElement(root, "dns", enable="no")
        address = ET.SubElement(root, "ip", address=str(subnet[1]), netmask=str(subnet.netmask))
        dhcp = ET.SubElement(address, "dhcp")
        addresses = ET.SubElement(dhcp, "range", start=str(subnet[2]), end=str(subnet[-2]))
        ET.SubElement(addresses, "lease", expiry=str(LEASE_MINUTES), unit="minutes")
        return ET.tostring(root, encoding="unicode")

    def _pool_xml(self) -> str:
        root = ET.Element("pool", type="dir")
        ET.SubElement(root, "name").text = self.name
        ET.SubElement(ET.SubElement(root, "target"), "path").text = str(self._disks)
        return ET.tostring(root, encoding="unicode")


def _configuration() -> str:
    """Return libvirtd's settings: defaults, and a host UUID that a restart keeps.

    Without a BIOS that has one, libvirtd would make a new one up at every start.
    """
    with suppress(OSError):
        if len(_MACHINE_ID.read_text().strip()) == 32:
            return 'host_uuid_source = "machine-id"\n'
    return ""


def _alone() -> AbstractContextManager[None]:
    """Keep one host from ending the daemons on which another just starts."""
    return locked(_LOCK, deadline=LOCK_SECONDS, on_wait=lambda: None)


def _used() -> bool:
    """Whether anybody's machine, network or storage pool is active."""
    listings = (("list", "--name"), ("net-list", "--name"), ("pool-list", "--name"))
    return any(_virsh(*listing).strip() for listing in listings)


def _answers() -> bool:
    with suppress(DevError):
        _virsh("uri")
        return True
    return False


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(path))
        return True
    return False


def _routed() -> Iterator[ipaddress.IPv4Network]:
    """Yield the networks that this machine has routes to, the default route left out."""
    for line in _ROUTES.read_text().splitlines()[1:]:
        fields = line.split()
        # The kernel prints network byte order read as a little-endian number.
        address, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        if mask:
            yield ipaddress.IPv4Network((address, mask.bit_count()))


def _virsh(*arguments: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            [_program("virsh"), "--quiet", "--connect", URI, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=CALL_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise DevError(f"virsh {' '.join(arguments)} did not end within {CALL_SECONDS:g} s") from error
    if done.returncode != 0:
        raise DevError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DevError(f"{name} is not installed (Debian: {PACKAGES.get(name, name)})")
    return found
