"""Plug-in ``libvirt``: real machines on one libvirt host, each a domain with a copy-on-write disk.

Belongs here: ``config`` (settings and template parameters), ``domain`` (names, XML and tags; pure), ``leases``
(giving DHCP leases back), ``host`` (the steps, blocking), ``lane`` (threads and the connection), ``faults``
(libvirt's errors in our words) and ``provider`` (the protocol). Everything ever made hangs off a domain that
carries our tags: it is defined before its disk exists and undefined after its disk is gone, so a crash at any
point leaves nothing that a listing does not show.
"""

from vmpool.providers.base import Provider, Session
from vmpool.providers.errors import InvalidConfig
from vmpool.providers.libvirt.config import Config

__all__ = ["Config", "LibvirtPlugin"]


class LibvirtPlugin:
    """The entry point ``libvirt`` of ``vmpool.providers``."""

    name = "libvirt"
    Config = Config

    def open(self, session: Session) -> Provider:
        """Return a provider for one libvirt host; connects at its first call.

        Raises InvalidConfig when libvirt's Python binding is not installed.
        """
        # The binding needs libvirt's C library, so it is an extra that only users of this plug-in install.
        try:
            from vmpool.providers.libvirt.provider import LibvirtProvider
        except ImportError as error:
            raise InvalidConfig(f"install vmpool[libvirt] to use this provider: {error}") from error
        assert isinstance(session.config, Config)
        return LibvirtProvider(session.config, session.install_id)
