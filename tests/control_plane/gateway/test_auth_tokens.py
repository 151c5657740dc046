"""Tokens of several gateways on a real API server: made, found, used, revoked, rotated, and none ever lost."""

import asyncio
import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
import structlog

from tests.control_plane.gateway.auth_help import account, client_as, gateways, own, running, secrets_of, tokens_of
from tests.kube_help import client_to
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.answers import Refusal
from vmpool.gateway.auth import entries
from vmpool.gateway.auth.caller import rest_identity
from vmpool.gateway.auth.tokens import Tokens
from vmpool.gateway.context import TokenFacts
from vmpool.kube.errors import KubeError
from vmpool.kube.kinds import SECRETS

pytestmark = pytest.mark.control_plane

ALICE = rest_identity("alice", ("ops",))
BOB = rest_identity("bob")


async def found(book: Tokens, token: str) -> TokenFacts:
    """The token, once its gateway has heard of it."""
    return await until(lambda: book.find(token), what="the token to be known")


async def put(plane: ControlPlane, namespace: str, token: str, facts: TokenFacts, key: bytes) -> str:
    """Keep a token of any age, as a gateway would have; its Secret is there. Returns its digest."""
    digest = entries.digest_of(key, token)
    async with client_to(plane) as client:
        patch = {"data": {digest: entries.encode(facts)}}
        await client.patch_merge(SECRETS, namespace, entries.secret_of(digest), patch)
    return digest


def key_of(kubectl: Kubectl, namespace: str) -> bytes:
    return b64decode(secrets_of(kubectl, namespace)[keys.TOKEN_KEY_SECRET]["current"])


def make_secrets(kubectl: Kubectl, namespace: str) -> None:
    """All of them, empty, as the chart may make them."""
    names = [keys.TOKEN_KEY_SECRET, *(f"{keys.TOKEN_SECRET_PREFIX}{digit}" for digit in entries.DIGITS)]
    items = [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}} for name in names]
    manifest = {"apiVersion": "v1", "kind": "List", "items": items}
    kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(manifest))


async def test_a_token_is_known_at_once_here_and_soon_everywhere(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    async with gateways(plane, namespace, 2) as ((one, two), _):
        before = datetime.now(UTC) - timedelta(seconds=1)
        token = await one.create(ALICE)
        here = one.find(token)
        assert here is not None
        assert here.identity == ALICE
        assert before <= here.created <= datetime.now(UTC)
        assert (here.last_used, here.expires) == (None, None)
        assert await found(two, token) == here
        assert one.of(ALICE) == two.of(ALICE) == [here]
        assert one.of(BOB) == []
        for wrong in ("", token[:-1], token + "a", token.upper(), "a" * 50, here.id, "\udcff" * 50):
            assert one.find(wrong) is None
    kept = secrets_of(kubectl, namespace)
    assert len(kept) == 2, "made on demand"
    assert token not in json.dumps(kept)
    plain = [b64decode(value) for data in kept.values() for value in data.values()]
    assert not any(token.encode() in value for value in plain)


async def test_a_deleted_token_is_gone_at_once_here_and_soon_everywhere(plane: ControlPlane, namespace: str) -> None:
    async with gateways(plane, namespace, 2) as ((one, two), _):
        token, other = await one.create(ALICE), await one.create(ALICE)
        await two.delete(await found(two, token))
        assert two.find(token) is None
        await until(lambda: one.find(token) is None, what="the revocation to be known")
        assert one.find(other) is not None
        assert [facts.id for facts in one.of(ALICE)] == [facts.id for facts in [one.find(other)] if facts]
        await one.delete(TokenFacts("gone", ALICE, datetime.now(UTC)))


async def test_tokens_that_are_made_at_the_same_moment_are_all_kept(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    """From nothing: the gateways also make the Secrets and the key, each for itself."""
    async with gateways(plane, namespace, 3) as (books, _):
        made = await asyncio.gather(*(book.create(ALICE) for book in books for _ in range(20)))
        assert len(set(made)) == 60
        for book in books:
            await until(lambda book=book: all(map(book.find, made)), what="every token to be known")
            assert len(book.of(ALICE)) == 60
    data = secrets_of(kubectl, namespace)
    assert sum(len(held) for name, held in data.items() if name != keys.TOKEN_KEY_SECRET) == 60


async def test_what_was_revoked_is_not_brought_back_by_a_note_of_its_use(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    async with gateways(plane, namespace, 1) as ((book,), _):
        token = await book.create(ALICE)
        facts = book.find(token)
        assert facts is not None
        digest = entries.digest_of(key_of(kubectl, namespace), token)
        # Something must be left in the Secret, or there is no place to bring the token back to.
        stays = json.dumps({"data": {"README": ""}})
        kubectl("patch", "secret", entries.secret_of(digest), "-n", namespace, "-p", stays)
        # The book has not heard of it yet when it writes down the use: no task has had a turn in between.
        book.used(facts)
        kubectl(
            *("patch", "secret", entries.secret_of(digest), "-n", namespace, "--type=json"),
            *("-p", json.dumps([{"op": "remove", "path": f"/data/{digest}"}])),
        )
        assert book.find(token) is not None
        await book.write_used()
        await until(lambda: book.find(token) is None, what="the revocation to be known")
    assert digest not in secrets_of(kubectl, namespace)[entries.secret_of(digest)]


async def test_use_is_noted_in_batches_and_rarely(plane: ControlPlane, namespace: str) -> None:
    async with gateways(plane, namespace, 2) as ((one, two), seen):
        made = [await one.create(ALICE) for _ in range(30)]
        for token in made:
            await found(two, token)
        seen.clear()
        for _ in range(3):
            for token in made:
                one.used(await found(one, token))
        await one.write_used()
        patches = [request for request in seen if request.method == "PATCH"]
        assert 1 <= len(patches) <= 16, "one a Secret"
        for token in made:
            noted = await until(lambda token=token: (heard := two.find(token)) and heard.last_used, what="the note")
            assert abs((datetime.now(UTC) - noted).total_seconds()) < 60
        seen.clear()
        for token in made:
            one.used(await found(one, token))
        await one.write_used()
        assert not [request for request in seen if request.method == "PATCH"], "once an hour"


async def test_one_token_that_is_gone_keeps_no_other_from_being_noted(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    make_secrets(kubectl, namespace)
    async with gateways(plane, namespace, 1) as ((book,), _):
        await book.create(ALICE)
        key = key_of(kubectl, namespace)
        same: list[str] = []
        while len(same) < 3:
            token = entries.new_token()
            if entries.digest_of(key, token).startswith("a"):
                same.append(token)
        for n, token in enumerate(same):
            await put(plane, namespace, token, TokenFacts(f"id{n}", BOB, datetime.now(UTC), provider="none"), key)
        for token in same:
            book.used(await found(book, token))
        gone = entries.digest_of(key, same[1])
        remove = json.dumps([{"op": "remove", "path": f"/data/{gone}"}])
        kubectl("patch", "secret", entries.secret_of(gone), "-n", namespace, "--type=json", "-p", remove)
        await book.write_used()
        for token in (same[0], same[2]):
            assert (await found(book, token)).last_used is not None
        await until(lambda: book.find(same[1]) is None, what="the revocation to be known")


async def test_a_rotated_key_leaves_the_tokens_made_before_until_the_next(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    def rotate() -> None:
        data = secrets_of(kubectl, namespace)[keys.TOKEN_KEY_SECRET]
        patch = {"data": {"current": entries.new_key(), "previous": data["current"]}}
        kubectl("patch", "secret", keys.TOKEN_KEY_SECRET, "-n", namespace, "-p", json.dumps(patch))

    async with gateways(plane, namespace, 2) as ((one, two), _):
        first = await one.create(ALICE)
        rotate()
        new = key_of(kubectl, namespace)
        await until(lambda: one._keys().current == new, what="the new key to be known")
        second = await one.create(ALICE)
        for book in (one, two):
            await found(book, second)
            assert book.find(first) is not None
        rotate()
        for book in (one, two):
            await until(lambda book=book: book.find(first) is None, what="the old key to be forgotten")
            assert book.find(second) is not None


async def test_an_expired_token_is_refused_and_swept(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    make_secrets(kubectl, namespace)
    async with gateways(plane, namespace, 1, token_days=1.0) as ((book,), _):
        valid = await book.create(ALICE)
        facts = book.find(valid)
        assert facts is not None
        assert facts.expires == facts.created + timedelta(days=1)
        key, now = key_of(kubectl, namespace), datetime.now(UTC)
        old = TokenFacts("old", ALICE, now - timedelta(days=9), None, now - timedelta(days=8), "none")
        just = TokenFacts("just", ALICE, now - timedelta(days=1), None, now - timedelta(seconds=1), "none")
        tokens = [entries.new_token(), entries.new_token()]
        for token, expired in zip(tokens, (old, just), strict=True):
            await put(plane, namespace, token, expired, key)
            await until(lambda token=token: book.look(token), what="the expired token to be read")
            assert book.find(token) is None
        assert book.of(ALICE) == [facts]
        assert await book.sweep() == 1, "what has just expired is left for a minute"
        assert book.look(tokens[0]) is None
        assert book.look(tokens[1]) is not None
        assert await book.sweep() == 0
        assert book.find(valid) == facts


async def test_a_user_has_so_many_tokens_and_no_more(plane: ControlPlane, namespace: str) -> None:
    async with gateways(plane, namespace, 1, tokens_per_user=3) as ((book,), _):
        results = await asyncio.gather(*(book.create(ALICE) for _ in range(6)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Refusal)]
        assert len(refused) == 3
        assert {refusal.status for refusal in refused} == {403}
        assert "3 tokens" in refused[0].body["error"]
        await book.create(BOB)
        await book.delete(book.of(ALICE)[0])
        await book.create(ALICE)
        with pytest.raises(Refusal, match="403"):
            await book.create(ALICE)


async def test_a_user_of_too_many_groups_is_told(plane: ControlPlane, namespace: str) -> None:
    async with gateways(plane, namespace, 1) as ((book,), _):
        with pytest.raises(Refusal, match="too many groups"):
            await book.create(rest_identity("alice", tuple(f"group-{n:0100}" for n in range(200))))


async def test_what_cannot_be_read_is_logged_and_hurts_nobody(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    make_secrets(kubectl, namespace)
    async with gateways(plane, namespace, 1) as ((book,), _):
        token = await book.create(ALICE)
        digest = entries.digest_of(key_of(kubectl, namespace), token)
        bad = {digest[0] + "0" * 63: b64encode(b"{}").decode(), "README": b64encode(b"hands off").decode()}
        with structlog.testing.capture_logs() as logged:
            kubectl("patch", "secret", entries.secret_of(digest), "-n", namespace, "-p", json.dumps({"data": bad}))
            await until(lambda: len(logged) == 2, what="both to be named")
        assert {line["event"] for line in logged} == {"token_unreadable"}
        assert book.find(token) is not None
        assert not book.healthy()
        await book.delete(book.of(ALICE)[0])
        assert book.find(token) is None


async def test_secrets_that_are_deleted_take_their_tokens_and_nothing_else(
    plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    async with gateways(plane, namespace, 1) as ((book,), _):
        token = await book.create(ALICE)
        kubectl("delete", "secret", "-n", namespace, "--all")
        await until(lambda: book.find(token) is None, what="the loss to be known")
        await until(lambda: not book.of(ALICE), what="the loss to be known")
        again = await book.create(ALICE)
        assert book.find(again) is not None
        assert book.find(token) is None


async def test_before_the_first_list_nothing_is_promised(plane: ControlPlane, namespace: str) -> None:
    async with client_to(plane) as client:
        book = tokens_of(client, namespace)
        assert book.healthy() == "the tokens have not been read yet"
        with pytest.raises(Refusal, match="503"):
            await book.create(ALICE)


async def test_a_bad_key_is_named(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    async with gateways(plane, namespace, 1) as ((book,), _):
        token = await book.create(ALICE)
        short = {"data": {"current": b64encode(b"short").decode()}}
        kubectl("patch", "secret", keys.TOKEN_KEY_SECRET, "-n", namespace, "-p", json.dumps(short))
        await until(book.healthy, what="the bad key to be noticed")
        assert book.healthy() == (
            f"Secret {namespace}/vmpool-token-key: ValueError: data.current must have at least 32 bytes, not 5"
        )
        assert book.find(token) is None
        with pytest.raises(Refusal, match="503"):
            await book.create(ALICE)


async def test_a_full_secret_is_told(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    make_secrets(kubectl, namespace)
    half = b64encode(b"x" * (512 * 1024 - 5)).decode()
    async with client_to(plane) as client:
        for digit, part in product(entries.DIGITS, "ab"):
            name = f"{keys.TOKEN_SECRET_PREFIX}{digit}"
            await client.patch_merge(SECRETS, namespace, name, {"data": {part: half}})
    async with gateways(plane, namespace, 1) as ((book,), _):
        with pytest.raises(Refusal, match="takes no further tokens") as caught:
            await book.create(ALICE)
        assert caught.value.status == 503
        assert book.of(ALICE) == []


PER_NAME = [keys.TOKEN_KEY_SECRET, *(f"{keys.TOKEN_SECRET_PREFIX}{digit}" for digit in entries.DIGITS)]


@pytest.mark.parametrize("may_create", [True, False])
async def test_rights_to_the_names_alone_suffice(
    plane: ControlPlane, kubectl: Kubectl, namespace: str, tmp_path: Path, may_create: bool
) -> None:
    """As the documentation says: get, list, watch and patch by name; create only where nobody made the Secrets."""
    rules = [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": PER_NAME,
            "verbs": ["get", "list", "watch", "patch"],
        }
    ]
    if may_create:
        rules.append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]})
    else:
        make_secrets(kubectl, namespace)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "gateway"},
        "rules": rules,
    }
    kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(role))
    token_of_account = account(kubectl, namespace, "gateway")
    binding = ("create", "rolebinding", "gateway", "--role=gateway", f"--serviceaccount={namespace}:gateway")
    kubectl(*binding, "-n", namespace)
    async with client_as(plane, token_of_account, tmp_path) as client:
        with pytest.raises(KubeError):
            await client.list_page(SECRETS, namespace)
        book = tokens_of(client, namespace, own())
        async with running(book):
            token = await book.create(ALICE)
            facts = book.find(token)
            assert facts is not None
            book.used(facts)
            await book.write_used()
            assert book.of(ALICE)[0].last_used is not None
            await book.delete(facts)
            assert book.find(token) is None
