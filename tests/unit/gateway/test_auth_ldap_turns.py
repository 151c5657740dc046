"""Logins that wait behind others for the directory."""

import asyncio
import ssl

import pytest

from vmpool.gateway.auth.base import AuthFailed
from vmpool.gateway.auth.ldap import LdapSettings, LdapUsers
from vmpool.settings import GatewaySettings

pytest.importorskip("bonsai")


async def test_a_login_waits_for_its_turn_only_so_long() -> None:
    authorities = ssl.get_default_verify_paths().cafile
    if authorities is None:
        pytest.skip("this system has no file of trusted authorities")
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        own = GatewaySettings(
            auth="ldap",
            ldap_url=f"ldap://127.0.0.1:{port}",
            ldap_base="dc=example",
            ldap_ca_file=authorities,
            ldap_timeout_seconds=60.0,
            ldap_turn_seconds=0.1,
        )
        users = LdapUsers(LdapSettings.of(own), 1)
        first = asyncio.create_task(users.login("alice", "secret"))
        await connected.wait()
        async with asyncio.timeout(10.0):
            with pytest.raises(AuthFailed, match=r"ldap_turn_seconds \(0.1 s\)"):
                await users.login("bob", "secret")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not users._slots.locked()
