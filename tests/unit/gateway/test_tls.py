"""Certificates from files: start-up errors that name the setting, and renewal without a broken moment."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.certificates import issue
from tests.waiting import until
from vmpool.gateway.tls import Pair, pair_of
from vmpool.settings import GatewaySettings

PAUSE = 0.02


class Watched(Pair):
    """Counts how often it was looked at."""

    looks = 0

    def seen(self) -> tuple[tuple[int, int, int], ...]:
        Watched.looks += 1
        return super().seen()


async def looked(times: int = 5) -> None:
    """Wait until the files have been looked at so often again."""
    end = Watched.looks + times
    await until(lambda: Watched.looks >= end, what=f"{times} more looks")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    issue(tmp_path, 1)
    return Watched(tmp_path / "tls.crt", tmp_path / "tls.key")


@asynccontextmanager
async def followed(pair: Pair) -> AsyncIterator[int]:
    """Serve an echo with this pair; yields the port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    context = pair.context()
    following = asyncio.create_task(pair.follow(context, pair.seen(), PAUSE))
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    try:
        async with server:
            yield server.sockets[0].getsockname()[1]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def trust_of(pair: Pair) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pair.certificate))


async def connect(port: int, trust: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=trust)


async def serial(port: int, trust: ssl.SSLContext) -> int:
    _, writer = await connect(port, trust)
    shown = writer.get_extra_info("ssl_object").getpeercert()
    writer.close()
    await writer.wait_closed()
    return int(shown["serialNumber"], 16)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"hello\n")
    return await reader.readline() == b"hello\n"


async def test_a_renewed_certificate_is_shown_and_open_connections_go_on(pair: Pair) -> None:
    before = trust_of(pair)
    async with followed(pair) as port:
        old = await connect(port, before)
        assert await answers(*old)
        issue(pair.certificate.parent, 2)
        after = trust_of(pair)

        async def renewed() -> bool:
            try:
                return await serial(port, after) == 2
            except ssl.SSLCertVerificationError:
                return False

        await until(renewed, what="the new certificate is shown")
        assert await answers(*old)
        old[1].close()
        await old[1].wait_closed()


@pytest.mark.parametrize("damage", ["garbage", "half", "missing"])
async def test_a_pair_that_does_not_fit_is_left_alone_until_it_does(pair: Pair, damage: str) -> None:
    before = trust_of(pair)
    with capture_logs() as logged:
        async with followed(pair) as port:
            if damage == "garbage":
                pair.certificate.write_text("no certificate")
            elif damage == "half":
                key = pair.key.read_bytes()
                issue(pair.certificate.parent, 2)
                pair.key.write_bytes(key)
            else:
                pair.key.unlink()
            word = "certificate_missing" if damage == "missing" else "certificate_kept"
            await until(lambda: any(line["event"] == word for line in logged), what="the damage is noticed")
            assert await serial(port, before) == 1
            await looked()
            kept = sum(line["event"] == "certificate_kept" for line in logged)
            issue(pair.certificate.parent, 3)
            await until(lambda: any(line["event"] == "certificate_loaded" for line in logged), what="it is renewed")
            assert await serial(port, trust_of(pair)) == 3
            await looked()
    # What lasts is logged once, not at every look; "half" is damage for a moment before, too.
    assert kept <= 2
    assert sum(line["event"] == "certificate_loaded" for line in logged) <= 2


def test_old_versions_of_tls_are_refused(pair: Pair) -> None:
    assert pair.context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_errors_at_the_start_name_the_setting_and_the_file(pair: Pair, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pem"
    with pytest.raises(ValueError, match=r"tls_certificate: .*nowhere\.pem cannot be read: No such file"):
        Pair(missing, pair.key).context()
    with pytest.raises(ValueError, match=r"tls_key: .*nowhere\.pem cannot be read"):
        Pair(pair.certificate, missing).context()
    with pytest.raises(ValueError, match=r"tls\.crt \(tls_certificate\) and .*tls\.crt \(tls_key\)"):
        Pair(pair.certificate, pair.certificate).context()
    issue(tmp_path, 4, password=b"secret")
    with pytest.raises(ValueError, match=r"unencrypted key"):
        pair.context()


def test_one_of_two_settings_is_not_enough() -> None:
    with pytest.raises(ValueError, match="tls_key: not given"):
        pair_of(GatewaySettings(tls_certificate="a"))
    with pytest.raises(ValueError, match="tls_certificate: not given"):
        pair_of(GatewaySettings(tls_key="a"))
    assert pair_of(GatewaySettings()) is None
