"""The provider protocol over a ``Host``, whose blocking calls run in a ``Lane``."""

from collections.abc import AsyncIterator, Mapping
from functools import partial

from vmpool.providers.base import Deletion, Machine, MachineRequest
from vmpool.providers.libvirt.config import Config
from vmpool.providers.libvirt.domain import machine_id
from vmpool.providers.libvirt.host import Host
from vmpool.providers.libvirt.lane import Lane, connect

PAGE = 100
"""Machines described in one go of a listing: about a tenth of a second of one thread."""


class LibvirtProvider:
    """One libvirt host. See ``vmpool.providers.base.Provider`` for what each method promises."""

    def __init__(self, config: Config, install_id: str) -> None:
        self._install_id = install_id
        self._lane = Lane(lambda: Host(connect(config.uri), config, install_id))

    async def identity(self) -> str:
        """Return the host's UUID with driver and path."""
        return await self._lane.run(Host.identity)

    async def check(self, want: MachineRequest) -> None:
        """Raise InvalidTemplate for an unknown image, base volume, parameter or architecture, or a small disk."""
        await self._lane.run(lambda host: host.check(want))

    async def ensure(self, want: MachineRequest) -> Machine:
        """Define, give a disk, start; whatever of that is not done yet."""
        machine = str(machine_id(self._install_id, want.token))
        return await self._lane.run(lambda host: host.ensure(want), alone_with=machine)

    async def get(self, machine_id: str) -> Machine:
        """Return one machine by its domain UUID."""
        return await self._lane.run(lambda host: host.get(machine_id))

    async def find(self, token: str) -> Machine | None:
        """Return the machine with this token, half-made ones included."""
        return await self._lane.run(lambda host: host.find(token))

    async def machines(self) -> AsyncIterator[Machine]:
        """Yield all machines of this install, from one listing of the host's domains."""
        domains, leases = await self._lane.run(lambda host: (host.domains(), host.network.leases()))
        for start in range(0, len(domains), PAGE):
            page = domains[start : start + PAGE]
            for machine in await self._lane.run(partial(Host.describe, domains=page, leases=leases)):
                yield machine

    async def adopt(self, machine_id: str, tags: Mapping[str, str]) -> Machine:
        """Write our tags into the domain's metadata."""
        return await self._lane.run(lambda host: host.adopt(machine_id, tags), alone_with=machine_id)

    async def delete(self, machine_id: str) -> Deletion:
        """Remove disk, leases and domain; GONE once all are."""
        return await self._lane.run(lambda host: host.delete(machine_id), alone_with=machine_id)

    async def close(self) -> None:
        """Close the connection and end the threads."""
        await self._lane.close()
