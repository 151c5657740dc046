"""Who is let in, with every provider, on a real API server; and that no secret ever leaves."""

import asyncio
import json
import logging
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests import directory as ldap
from tests.control_plane.gateway.auth_help import account, all_closed, own, running
from tests.directory import Directory, directory
from tests.kube_help import client_to, proxy_to
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.api.pool import VMPoolSpec, VMPoolStatus
from vmpool.dev.plane import ControlPlane
from vmpool.engine.reviews import AccessReviews
from vmpool.gateway.answers import Refusal
from vmpool.gateway.auth import gatekeeper as gatekeepers
from vmpool.gateway.auth.caller import ANONYMOUS, Caller, Identity, rest_identity
from vmpool.gateway.auth.gatekeeper import AuthGatekeeper
from vmpool.gateway.auth.passwords import Cost
from vmpool.gateway.auth.static import hash_password
from vmpool.kube.client import Client
from vmpool.plan.snapshot import PoolFacts
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry.gateway import GatewayMetrics

__all__ = ["directory"]

pytestmark = pytest.mark.control_plane

CHEAP = Cost(2**14, 8, 1)
PASSWORD = "pass:wörd"
TOKEN = gatekeepers.TOKEN_HEADER


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def pool(namespace: str, name: str = "small") -> PoolFacts:
    return PoolFacts("uid", namespace, name, 1, VMPoolSpec.model_construct(), VMPoolStatus.model_construct())


def made(client: Client, namespace: str, settings: GatewaySettings) -> AuthGatekeeper:
    return gatekeepers.build(client, Settings(namespace=namespace), settings, GatewayMetrics(), AccessReviews(client))


@asynccontextmanager
async def keeping(plane: ControlPlane, namespace: str, **settings: Any) -> AsyncIterator[AuthGatekeeper]:
    """A gatekeeper that runs."""
    async with all_closed(), client_to(plane) as client:
        keeper = made(client, namespace, own(**settings))
        assert keeper.tokens is not None
        async with running(keeper.tokens):
            yield keeper
        await keeper.close()


def counted(keeper: AuthGatekeeper, how: str, result: str) -> float:
    return keeper._metrics.logins.labels(how, result)._value.get()


async def refused(question: Any, status: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await question
    assert caught.value.status == status, caught.value.body
    return caught.value


@pytest.fixture
def users(tmp_path: Path) -> dict[str, Any]:
    """Settings with users in a file: alice of ops, bob."""
    file = tmp_path / "users"
    file.write_text(f"alice:{hash_password(PASSWORD, CHEAP)}:ops\nbob:{hash_password('bobs', CHEAP)}\n")
    return {"auth": "static", "users_file": str(file)}


async def test_without_users_everybody_is_anonymous(plane: ControlPlane, namespace: str) -> None:
    async with client_to(plane) as client:
        keeper = made(client, namespace, own())
        assert not keeper.configured
        assert keeper.tokens is None
        assert keeper.healthy() == ""
        for headers in ({}, {TOKEN: "x"}, basic("alice", "x")):
            assert await keeper.caller(headers) == ANONYMOUS
            await refused(keeper.login(headers), 404)
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await keeper.close()


async def test_from_password_to_token_to_caller(plane: ControlPlane, namespace: str, users: dict[str, Any]) -> None:
    async with keeping(plane, namespace, **users) as keeper:
        alice = await keeper.login(basic("alice", PASSWORD))
        assert alice == rest_identity("alice", ("ops",))
        assert keeper.tokens is not None
        token = await keeper.tokens.create(alice)
        caller = await keeper.caller({TOKEN: token})
        (facts,) = keeper.tokens.of(alice)
        assert caller == Caller(alice, facts.id)
        assert counted(keeper, "password", "ok") == counted(keeper, "token", "ok") == 1
        await keeper.tokens.write_used()
        assert keeper.tokens.of(alice)[0].last_used is not None, "a request is a use"
        await refused(keeper.caller({"Authorization": f"Bearer {token}"}), 401)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("alice", "wrong"),
        basic("alice", ""),
        basic("Alice", PASSWORD),
        basic("nobody", PASSWORD),
        basic("", PASSWORD),
        {"Authorization": "Basic"},
        {"Authorization": "Basic ????"},
        {"Authorization": "Basic " + b64encode(b"alice").decode()},
        {"Authorization": "Basic " + b64encode(b"\xff:\xff").decode()},
        {"Authorization": "Basic " + b64encode(b"alice:" + b"x" * 10_000).decode()},
        {"Authorization": "Basic \udcff"},
        {"Authorization": f"Bearer {PASSWORD}"},
        {TOKEN: PASSWORD},
    ],
)
async def test_every_wrong_login_gets_the_same_answer(
    plane: ControlPlane, namespace: str, users: dict[str, Any], headers: dict[str, str]
) -> None:
    async with client_to(plane) as client:
        keeper = made(client, namespace, own(**users))
        refusal = await refused(keeper.login(headers), 401)
        assert refusal.body == {"ok": False}
        assert refusal.headers == {"WWW-Authenticate": 'Basic realm="Authentication required"'}
        await keeper.close()


async def test_a_wrong_token_is_refused_and_an_unknown_one_waits(
    plane: ControlPlane, namespace: str, users: dict[str, Any]
) -> None:
    async with client_to(plane) as client:
        early = made(client, namespace, own(**users, retry_after_seconds=7))
        assert early.healthy()
        refusal = await refused(early.caller({TOKEN: "x" * 50}), 503)
        assert refusal.headers == {"Retry-After": "7"}
        await refused(early.caller({}), 401)
        await early.close()
    async with keeping(plane, namespace, **users) as keeper:
        for wrong in ("", "x", "x" * 50, "\udcff", "x" * 100_000, "ü" * 50):
            refusal = await refused(keeper.caller({TOKEN: wrong}), 401)
            assert refusal.body == {"ok": False}


async def test_a_token_ends_with_its_user_and_with_its_time(
    plane: ControlPlane, namespace: str, users: dict[str, Any]
) -> None:
    async with keeping(plane, namespace, **users, token_days=1e-9) as keeper:
        assert keeper.tokens is not None
        expired = await keeper.tokens.create(rest_identity("alice"))
        await refused(keeper.caller({TOKEN: expired}), 401)
        assert counted(keeper, "token", "expired") == 1
    async with keeping(plane, namespace, **users) as keeper:
        assert keeper.tokens is not None
        for stranger in (rest_identity("carol"), Identity("alice", "alice")):
            token = await keeper.tokens.create(stranger)
            await refused(keeper.caller({TOKEN: token}), 401)


async def test_too_many_logins_at_once(plane: ControlPlane, namespace: str, users: dict[str, Any]) -> None:
    async with client_to(plane) as client:
        keeper = made(client, namespace, own(**users, logins_waiting=2))
        results = await asyncio.gather(*(keeper.login(basic("bob", "bobs")) for _ in range(6)), return_exceptions=True)
        assert [type(result) for result in results] == [Identity] * 2 + [Refusal] * 4
        assert {result.status for result in results if isinstance(result, Refusal)} == {503}
        assert await keeper.login(basic("bob", "bobs")) == rest_identity("bob")
        await keeper.close()


async def test_after_a_change_of_provider_no_token_stands_for_a_namesake(
    plane: ControlPlane, namespace: str, users: dict[str, Any], directory: Directory
) -> None:
    async with keeping(plane, namespace, **ldap_settings(directory)) as keeper:
        assert keeper.tokens is not None
        token = await keeper.tokens.create(await keeper.login(basic("alice", "alice-secret")))
        assert (await keeper.caller({TOKEN: token})).user == "vmpool:alice"
    async with keeping(plane, namespace, **users) as keeper:
        assert keeper.tokens is not None
        await refused(keeper.caller({TOKEN: token}), 401)
        assert keeper.valid(token) is None
        alice = await keeper.login(basic("alice", PASSWORD))
        assert alice.user == "vmpool:alice"
        assert keeper.tokens.of(alice) == []


# --- Kubernetes ----------------------------------------------------------------------------------


async def test_a_token_of_kubernetes(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    token = account(kubectl, namespace, "ci")
    user = f"system:serviceaccount:{namespace}:ci"
    async with keeping(plane, namespace, auth="kubernetes") as keeper:
        for headers in ({TOKEN: token}, {"Authorization": f"Bearer {token}"}):
            caller = await keeper.caller(headers)
            assert (caller.user, caller.identity.login, caller.token_id) == (user, user, "")
            assert {"system:serviceaccounts", f"system:serviceaccounts:{namespace}"} <= set(caller.groups)
        for name in (user, f"{namespace}:ci"):
            assert (await keeper.login(basic(name, token))).user == user
        # A static token of the server's own, with a user that has no colon.
        assert (await keeper.login(basic("vmpool-dev-admin", plane.token))).user == "vmpool-dev-admin"
        for name in ("ci", f"{namespace}:other", f"other:{namespace}:ci", "admin", "system:admin", ""):
            await refused(keeper.login(basic(name, token)), 401)
        for wrong in (token[:-5] + "AAAAA", "x", "a b", "x" * 20_000, "ü"):
            await refused(keeper.caller({TOKEN: wrong}), 401)
            await refused(keeper.caller({"Authorization": f"Bearer {wrong}"}), 401)
        assert keeper.tokens is not None
        ours = await keeper.tokens.create((await keeper.caller({TOKEN: token})).identity)
        assert (await keeper.caller({TOKEN: ours})).user == user
        theirs = await keeper.tokens.create(rest_identity("alice"))
        await refused(keeper.caller({TOKEN: theirs}), 401)


async def test_a_review_is_asked_for_once(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    token = account(kubectl, namespace, "ci")
    asked: list[str] = []
    async with client_to(plane, on_request=lambda seen: asked.append(seen.plural)) as client:
        keeper = made(client, namespace, own(auth="kubernetes", review_entries=2))
        question = {TOKEN: token}
        results = await asyncio.gather(*(keeper.caller(question) for _ in range(10)))
        assert len(set(results)) == 1
        await keeper.caller(question)
        assert asked == ["tokenreviews"]
        for n in range(5):
            for _ in range(2):
                # Not 401: this gatekeeper does not follow any Secrets, so it could be a token of ours.
                await refused(keeper.caller({TOKEN: f"made-up-{n}"}), 503)
        assert len(asked) == 6, "wrong ones are remembered too"
        await keeper.caller(question)
        assert len(asked) == 6, "and drive no right one out"
        assert keeper._metrics.logins.labels("bearer", "ok")._value.get() == 12
    async with client_to(plane, on_request=lambda seen: asked.append(seen.plural)) as client:
        keeper = made(client, namespace, own(auth="kubernetes", review_seconds=0))
        asked.clear()
        await keeper.caller(question)
        await keeper.caller(question)
        assert len(asked) == 2, "no longer than told"


async def test_a_deleted_account_is_nobody(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    token = account(kubectl, namespace, "ci")
    async with keeping(plane, namespace, auth="kubernetes", review_seconds=0) as keeper:
        await keeper.caller({TOKEN: token})
        kubectl("delete", "serviceaccount", "ci", "-n", namespace)

        async def unknown() -> bool:
            try:
                await keeper.caller({TOKEN: token})
            except Refusal as refusal:
                return refusal.status == 401
            return False

        await until(unknown, what="the account to be unknown")


@asynccontextmanager
async def out_of_reach(
    plane: ControlPlane, namespace: str, folder: Path, **settings: Any
) -> AsyncIterator[AuthGatekeeper]:
    """A gatekeeper whose API server is gone."""
    async with proxy_to(plane) as proxy, client_to(plane, proxy, folder=folder) as client:
        proxy.close_door()
        yield made(client, namespace, own(**settings))


async def test_without_the_api_server_nobody_is_wrong(plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    async with out_of_reach(plane, namespace, tmp_path, auth="kubernetes", retry_after_seconds=9) as keeper:
        for question in (keeper.caller({TOKEN: "abc.def"}), keeper.login(basic("ns:ci", "abc.def"))):
            refusal = await refused(question, 503)
            assert refusal.headers == {"Retry-After": "9"}
            assert refusal.body["error"] == "the auth provider (kubernetes) cannot be asked now"
        assert counted(keeper, "bearer", "error") == counted(keeper, "password", "error") == 1
        refusal = await refused(keeper.may_claim(ANONYMOUS, pool(namespace)), 503)
        assert "who may claim from pool small" in refusal.body["error"]


# --- rights --------------------------------------------------------------------------------------


async def test_who_may_claim(plane: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    rule = {"apiGroups": [keys.GROUP], "resources": ["vmpools"], "resourceNames": ["small"], "verbs": ["claim"]}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "small"},
        "rules": [rule],
    }
    kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(role))
    subjects = ("--user=vmpool:alice", "--group=vmpool:ops")
    kubectl("create", "rolebinding", "small", "--role=small", *subjects, "-n", namespace)
    callers = {name: Caller(rest_identity(name)) for name in ("alice", "bob")}
    callers["carol"] = Caller(rest_identity("carol", ("ops",)))
    async with client_to(plane) as client:
        keeper = made(client, namespace, own())
        may = {name: await keeper.may_claim(caller, pool(namespace)) for name, caller in callers.items()}
        assert may == {"alice": True, "bob": False, "carol": True}
        assert not await keeper.may_claim(callers["alice"], pool(namespace, "large"))
        assert not await keeper.may_claim(callers["alice"], pool("default"))
        assert not await keeper.may_claim(ANONYMOUS, pool(namespace))
        assert await keeper.may_claim(callers["alice"], pool(namespace)), "remembered"
        count = keeper._metrics.reviews.labels
        assert (count("allowed")._value.get(), count("denied")._value.get()) == (2, 4)
        openly = made(client, namespace, own(authorization="open"))
        assert await openly.may_claim(ANONYMOUS, pool(namespace))


# --- LDAP, settings, secrets ---------------------------------------------------------------------


def ldap_settings(server: Directory) -> dict[str, Any]:
    return {
        "auth": "ldap",
        "ldap_url": server.url,
        "ldap_base": f"{ldap.PEOPLE}; {ldap.ROBOTS}",
        "ldap_ca_file": str(server.authority),
        "ldap_timeout_seconds": 20.0,
    }


async def test_users_of_a_directory(plane: ControlPlane, namespace: str, directory: Directory) -> None:
    async with keeping(plane, namespace, **ldap_settings(directory)) as keeper:
        alice = await keeper.login(basic("Alice", "alice-secret"))
        assert alice == rest_identity("alice")
        await refused(keeper.login(basic("alice", "wrong")), 401)
        await refused(keeper.login(basic("alice", "")), 401)
        assert keeper.tokens is not None
        token = await keeper.tokens.create(alice)
        assert (await keeper.caller({TOKEN: token})).user == "vmpool:alice"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"auth": "static"}, "users_file is missing"),
        ({"auth": "static", "users_file": "/none"}, "users_file '/none' cannot be read"),
        ({"auth": "ldap"}, "ldap_url is missing"),
        ({"auth": "ldap", "ldap_url": "ldap://h"}, "ldap_base must name"),
    ],
)
async def test_settings_that_miss_something(
    plane: ControlPlane, namespace: str, settings: dict[str, Any], says: str
) -> None:
    async with client_to(plane) as client:
        with pytest.raises(ValueError, match=says):
            made(client, namespace, own(**settings))


async def test_ldap_without_its_library(
    plane: ControlPlane, namespace: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    async with client_to(plane) as client:
        with pytest.raises(ValueError, match=r"vmpool\[ldap\]"):
            made(client, namespace, own(**ldap_settings(directory)))


async def test_no_secret_is_ever_told(
    plane: ControlPlane,
    kubectl: Kubectl,
    namespace: str,
    directory: Directory,
    users: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in logs at any level, not in what is raised with all its causes, not in what anything looks like."""
    caplog.set_level(logging.DEBUG)
    kubernetes = account(kubectl, namespace, "ci")
    texts: list[str] = []
    secrets = {PASSWORD, "alice-secret", "wrong-secret", ldap.ACCOUNT_PASSWORD, kubernetes, kubernetes + "A"}
    bad_ca = {"ldap_ca_file": "/etc/ssl/certs/ca-certificates.crt"}
    account_settings = {"ldap_bind_dn": ldap.ACCOUNT, "ldap_bind_password_file": str(directory.account_password_file)}

    async def try_all(keeper: AuthGatekeeper) -> None:
        attempts = [keeper.login(basic("alice", secret)) for secret in secrets]
        attempts += [keeper.login(basic(f"{namespace}:ci", secret)) for secret in secrets]
        attempts += [keeper.caller({TOKEN: secret}) for secret in secrets]
        for attempt in attempts:
            try:
                texts.append(repr(await attempt))
            except Refusal as refusal:
                texts.append("".join(traceback.format_exception(refusal)))
                texts.append(repr(refusal.body))
        if keeper.tokens is not None and not keeper.healthy():
            cluster = keeper._own.auth == "kubernetes"
            token = await keeper.tokens.create(Identity("alice", "alice") if cluster else rest_identity("alice"))
            secrets.add(token)
            texts.append(repr(await keeper.caller({TOKEN: token})))
            texts.append(repr(keeper.tokens.look(token)))
        for thing in (keeper, keeper._provider, keeper.tokens):
            texts.append(repr(thing))
            texts.append(repr(getattr(thing, "__dict__", "")))

    with structlog.testing.capture_logs() as logged:
        for settings in (users, {"auth": "kubernetes"}, ldap_settings(directory) | account_settings):
            async with keeping(plane, namespace, **settings) as keeper:
                await try_all(keeper)
        async with client_to(plane) as client:
            await try_all(made(client, namespace, own(**ldap_settings(directory) | account_settings | bad_ca)))
        async with out_of_reach(plane, namespace, tmp_path, auth="kubernetes") as keeper:
            await try_all(keeper)
    everything = "\n".join([*texts, repr(logged), caplog.text])
    assert "auth_failed" in everything, "something was logged"
    for secret in secrets:
        assert secret not in everything
        assert b64encode(secret.encode()).decode() not in everything
