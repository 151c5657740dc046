"""Give a DHCP lease back to the network's own DHCP server.

libvirt has no call for it: a lease outlives its domain until it expires, an hour by default, and a pool that
recycles its machines would run out of addresses. So we send what the guest would have sent had it been asked to
leave: a DHCPRELEASE. It must come in through the network's bridge, which only works on the libvirt host itself.
"""

import socket
import struct
from dataclasses import dataclass

SERVER_PORT = 67

_HEADER = "!BBBBIHH4s4s4s4s16s64s128s"
_REQUEST, _ETHERNET, _MAC_LENGTH = 1, 1, 6
_COOKIE = bytes((99, 130, 83, 99))
_MESSAGE_TYPE, _SERVER_ID, _END = 53, 54, 255
_RELEASE = 7


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that the network's DHCP server keeps for a network card."""

    mac: str
    address: str
    expires: int
    """Seconds since the epoch; 0 for never."""


def release_packet(lease: Lease, server: str) -> bytes:
    """Return a DHCPRELEASE (RFC 2131) for an IPv4 lease of the DHCP server at the address ``server``."""
    mac = bytes.fromhex(lease.mac.replace(":", ""))
    client, nobody = socket.inet_aton(lease.address), bytes(4)
    header = struct.pack(
        _HEADER, _REQUEST, _ETHERNET, _MAC_LENGTH, 0, 0, 0, 0, client, nobody, nobody, nobody, mac, b"", b""
    )
    options = bytes((_MESSAGE_TYPE, 1, _RELEASE, _SERVER_ID, 4)) + socket.inet_aton(server) + bytes((_END,))
    return header + _COOKIE + options


def release(lease: Lease, server: str, bridge: str) -> None:
    """Send the release through ``bridge``; whether the server took it shows in its list of leases.

    Raises OSError when the bridge is not on this host, or this process may not use it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        sender.sendto(release_packet(lease, server), (server, SERVER_PORT))
