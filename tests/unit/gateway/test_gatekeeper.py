"""What a token of ours still stands for, and whom a login can never make."""

from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.objects import Json
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import held, put_vm, stored
from vmpool.api import keys
from vmpool.gateway import tokens as endpoints
from vmpool.gateway.answers import Refusal
from vmpool.gateway.auth import entries
from vmpool.gateway.auth.base import AuthProvider
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.gateway.auth.gatekeeper import TOKEN_HEADER, AuthGatekeeper
from vmpool.gateway.auth.tokens import Tokens
from vmpool.gateway.context import Gateway, TokenFacts
from vmpool.kube.mirror import Mirror
from vmpool.settings import Settings

KEY = b64encode(b"k" * entries.KEY_BYTES).decode()
NOW = datetime.now(UTC).replace(microsecond=0)
BOB = rest_identity("bob")


class People(AuthProvider):
    """Vouches for whom the test names."""

    def __init__(self) -> None:
        self.known = {"bob": BOB}

    async def login(self, login: str, password: str) -> Identity | None:
        # As a directory reads a full-width colon.
        return rest_identity(login.replace("\uff1a", ":"))

    async def bearer(self, token: str) -> Identity | None:
        return None

    def current(self, identity: Identity) -> Identity | None:
        return self.known.get(identity.login)

    async def close(self) -> None:
        return None


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of(auth="static")
    yield made
    await made.client.close()


@pytest.fixture
def book(gateway: Gateway) -> Tokens:
    made = Tokens(gateway.client, Settings(namespace="ci"), gateway.own, gateway.metrics)
    made._key.saw(secret(keys.TOKEN_KEY_SECRET, {"current": KEY}))
    return made


@pytest.fixture
def keeper(gateway: Gateway, book: Tokens) -> AuthGatekeeper:
    made = AuthGatekeeper(People(), book, gateway.own, gateway.metrics, gateway.reviews)
    gateway.gatekeeper = made
    return made


def secret(name: str, data: dict[str, str]) -> Json:
    return {**stored({"metadata": {"name": name}}, name), "data": data}


def kept(book: Tokens, id_: str, provider: str, expires: datetime | None = None) -> str:
    """Put bob's token into the book as the Secret would hold it, and return its text."""
    token = entries.new_token()
    digest = entries.digest_of(b"k" * entries.KEY_BYTES, token)
    facts = TokenFacts(id_, BOB, NOW, None, expires, provider)
    name = entries.secret_of(digest)
    shelf = book._shelves[name]
    held_by_it = {} if (entry := shelf.by_uid(name)) is None or entry.fact is None else entry.fact.entries
    others = {one.digest: one.raw for one in held_by_it.values()}
    shelf.saw(secret(name, {**others, digest: entries.encode(facts)}))
    return token


@pytest.mark.parametrize("provider", ["ldap", "kubernetes", "none", ""])
async def test_a_token_that_another_provider_vouched_for_is_none(
    book: Tokens, keeper: AuthGatekeeper, provider: str
) -> None:
    mine, strange = kept(book, "mine", "static"), kept(book, "strange", provider)
    assert (await keeper.caller({TOKEN_HEADER: mine})).token_id == "mine"
    assert [facts.id for facts in book.of(BOB)] == ["mine"], "nor is it listed or counted"
    assert book.find(strange) is None
    assert keeper.valid(strange) is None
    with pytest.raises(Refusal):
        await keeper.caller({TOKEN_HEADER: strange})


async def test_a_token_is_valid_while_its_user_is_known(book: Tokens, keeper: AuthGatekeeper) -> None:
    people: Any = keeper._provider
    token, old = kept(book, "one", "static"), kept(book, "old", "static", NOW - timedelta(days=1))
    assert keeper.valid(old) is None
    people.known["bob"] = rest_identity("bob", ("dev",))
    found = keeper.valid(token)
    assert found is not None
    assert (found.id, found.identity.groups) == ("one", (keys.REST_GROUP, "vmpool:dev")), "as known now"
    people.known.clear()
    assert keeper.valid(token) is None


async def test_the_token_of_a_user_who_is_gone_is_not_shown(
    gateway: Gateway, book: Tokens, keeper: AuthGatekeeper
) -> None:
    people: Any = keeper._provider
    token = kept(book, "one", "static")
    async with served(*endpoints.ROUTES, gateway=gateway) as client:
        assert (await client.get(f"/api/v3/token/{token}")).status == 200
        people.known.clear()
        assert (await client.get(f"/api/v3/token/{token}")).status == 404


async def test_the_vms_of_a_token_are_found_without_a_look_at_all(
    gateway: Gateway, book: Tokens, keeper: AuthGatekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = kept(book, "one", "static")
    for name, of in (("b", "one"), ("a", "one"), ("c", "two"), ("d", "")):
        put_vm(gateway, name, phase="Claimed", claim=held(BOB.user, tokenId=of))
    put_vm(gateway, "e", phase="Claimed", claim=held(BOB.user, tokenId="one", releasedAt="2026-01-01T00:00:00Z"))
    put_vm(gateway, "f")

    def all_of_them(_: Mirror[Any]) -> None:
        raise AssertionError("every VM is looked at")

    async with served(*endpoints.ROUTES, gateway=gateway) as client:
        monkeypatch.setattr(Mirror, "__iter__", all_of_them)
        answer = await (await client.get(f"/api/v3/token/{token}")).json()
    assert answer[token]["vms"] == {"running": ["a", "b"]}


async def test_making_tokens_counts_as_creation() -> None:
    async with served(*endpoints.ROUTES, rate_limits=True, rate_creation=1, rate_per_address=5) as client:
        assert [(await client.post("/api/v3/token")).status for _ in range(3)] == [200, 429, 429]
        assert (await client.get("/api/v3/token")).status != 429


async def test_no_login_makes_a_user_of_kubernetes(keeper: AuthGatekeeper) -> None:
    def basic(login: str) -> dict[str, str]:
        return {"Authorization": "Basic " + b64encode(f"{login}:x".encode()).decode()}

    assert await keeper.login(basic("alice")) == rest_identity("alice")
    with pytest.raises(Refusal) as caught:
        await keeper.login(basic("kubernetes\uff1aalice"))
    assert caught.value.status == 401
