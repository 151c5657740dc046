"""What was given to us as a secret is shown nowhere, whatever goes wrong and whoever repeats it."""

import asyncio
import base64
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.clouds import SimCloud
from tests.crash.site import Site
from tests.directory import ACCOUNT, SUFFIX, Directory, directory
from tests.faults.scenarios.users import put, wait
from tests.gateways import Gateway
from tests.operators import Operator
from tests.rest import Rest, RestAnswer, rest_client
from tests.rights import doings
from tests.rights.canaries import Aviary, of_archive, of_cluster, of_process, spellings
from tests.rights.house import House
from tests.rights.parrot import BUCKET, CREATES, EVERYTHING, Parrot, parrot
from tests.waiting import until
from vmpool.gateway.auth.passwords import hash_password

__all__ = ["directory"]

pytestmark = pytest.mark.control_plane

LOUD = {"VMPOOL_LOG_LEVEL": "debug"}
QUEUE = "failures"


def test_a_canary_is_known_in_every_spelling() -> None:
    """The check itself: each way of writing it down is found, and something else is not."""
    aviary = Aviary()
    bird = aviary.plant("key")
    for around in ("", "a", "ab", "user:"):
        written = base64.b64encode(f"{around}{bird}{around}".encode()).decode()
        assert aviary.escaped({"there": written}), around
    for written in (f"x{bird}y", bird.encode().hex(), bird.upper()):
        assert aviary.escaped({"there": written}) != []
    assert aviary.escaped({"there": secrets.token_hex(500)}) == []
    assert all(len(word) > 20 for word in spellings(bird))


async def test_the_operator_shows_no_secret(house: House, simcloud: SimCloud, tmp_path: Path) -> None:
    aviary, archive = Aviary(), tmp_path / "archive"
    archive.mkdir()
    await house.install({"gateway": {"enabled": False}, "simcloud": {"enabled": False}})
    operator = house.operator(**LOUD)
    await operator.ready(60)
    site = await doings.place(house, simcloud, house.namespace)
    key = aviary.plant("the provider's key")
    assert simcloud.call("PUT", f"/v1/tenants/{site.tenant.name}", {"key": key})[0] < 300
    async with parrot(simcloud.url) as bird:
        site = replace(site, tenant=replace(site.tenant, key=key), endpoint=bird.url)
        await _letters(site, aviary, bird, archive)
        await _bucket(site, aviary, bird)
        shown = await _told(operator, "/healthz", "/readyz", "/metrics")
    shown |= of_cluster(house) | of_archive(archive) | of_process(operator.pid)
    # There was something to be shown, and it was asked for where it would stand.
    assert any(key in said for said in bird.heard)
    assert sum(where.startswith("archive ") for where in shown) > 0
    assert "***" in shown["objects"], "the words that held the key are told, without it"
    assert "***" in "".join(text for where, text in shown.items() if where.startswith("archive "))
    assert aviary.escaped(shown) == []


async def _letters(site: Site, aviary: Aviary, bird: Parrot, archive: Path) -> None:
    """Everything fails in every way, in words that repeat the key; the letters of it go into an archive."""
    await put(site, "deadletterqueues", "DeadLetterQueue", QUEUE, poison={"failures": 0})
    retry = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
    await site.build(1, deadLetterQueue=QUEUE, retry=retry, limits={"quarantined": 0})
    await site.full(1)
    for status in (*EVERYTHING, *CREATES):
        bird.angry, bird.refused = status, 0
        (await site.pools.merge("web", {"spec": {"replicas": 2}})).ok()
        await wait(partial(_refused, bird), f"the operator hears {status}")
        bird.angry = 0
        (await site.pools.merge("web", {"spec": {"replicas": 1}})).ok()
        await site.full(1)
    # A machine that fails, and says why in the same words.
    bird.talkative = True
    (vm,) = await site.objects()
    site.cloud.fate(vm["status"]["machineId"], "fail")

    async def replaced() -> bool:
        return vm["metadata"]["uid"] not in {one["metadata"]["uid"] for one in await site.objects()}

    await wait(replaced, "the VM of a failed machine is replaced")
    bird.talkative = False
    letters, queues = (site.api.kind(plural, site.namespace) for plural in ("deadletters", "deadletterqueues"))
    assert (await letters.list()).ok()["items"]
    (await queues.merge(QUEUE, {"spec": {"ttl": "1s", "archive": {"folder": str(archive)}}})).ok()

    async def archived() -> bool:
        return not (await letters.list()).ok()["items"] and bool(of_archive(archive))

    await wait(archived, "the letters are in the archive")


async def _refused(bird: Parrot) -> bool:
    return bird.refused > 1


async def _bucket(site: Site, aviary: Aviary, bird: Parrot) -> None:
    """A bucket lets nobody in, and repeats what it was shown."""
    keys = {"accessKeyId": aviary.plant("the bucket's key id"), "secretAccessKey": aviary.plant("the bucket's key")}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "stringData": keys}
    (await site.api.kind("secrets", site.namespace, api="/api/v1").create(body)).ok()
    s3 = {"endpoint": bird.url, "bucket": BUCKET, "secretRef": {"name": "bucket"}}
    await put(site, "deadletterqueues", "DeadLetterQueue", "remote", archive={"s3": s3})
    queues = site.api.kind("deadletterqueues", site.namespace)

    async def said() -> bool:
        conditions = (await queues.get("remote")).ok().get("status", {}).get("conditions", ())
        return any(one["type"] == "Archiving" and one["status"] == "False" for one in conditions)

    await wait(said, "the bucket is known to let nobody in")
    assert any(keys["accessKeyId"] in one for one in bird.heard)


async def _told(program: Operator | Gateway, *paths: str) -> dict[str, str]:
    """Return what a process says when it is asked, also by SIGUSR1, and all that it has logged."""
    shown = {}
    for path in paths:
        answer = await asyncio.to_thread(program.http, path)
        shown[path] = answer if isinstance(answer, str) else answer[1]
    os.kill(program.pid, signal.SIGUSR1)
    await until(lambda: '"report_ends"' in program.lines(), what="the report is written")
    return {**shown, "log": program.lines()}


async def test_the_gateway_shows_no_password_and_no_token(house: House, tmp_path: Path) -> None:
    aviary, answers = Aviary(), dict[str, str]()
    await house.install({"simcloud": {"enabled": False}})
    password, wrong = aviary.plant("a user's password"), aviary.plant("a wrong password")
    users = tmp_path / "users"
    users.write_text(f"ann:{hash_password(password)}\n")
    gateway = house.gateway(**LOUD, VMPOOL_GATEWAY_AUTH="static", VMPOOL_GATEWAY_USERS_FILE=str(users))
    await gateway.ready(60)
    async with rest_client(gateway.url) as rest:
        token = await rest.new_token("ann", password)
        aviary.add("a token", token)
        other = aviary.plant("a token that is none")
        calls = {
            "login": rest.post("/token", basic=("ann", wrong)),
            "tokens": rest.get("/token", basic=("ann", password)),
            "unknown user": rest.get("/token", basic=(wrong, password)),
            "wrong token": rest.post("/vm/web", token=other),
            "bearer": rest.get("/vm", headers={"Authorization": f"Bearer {token}"}),
            "in the path": rest.get(f"/token/{other}"),
            "of another": rest.delete(f"/token/{token}", basic=("ann", wrong)),
            "in the query": rest.get(f"/status?token={token}"),
            "as a pool": rest.post(f"/vm/{'x' * 300}?password={password}", token=token),
            "bad body": rest.post("/vm", raw=b'{"' + password.encode(), token=token),
            "no pool": rest.post("/vm/nowhere", token=token),
            "no VM": rest.delete("/vm/nobody", token=token),
        }
        for what, call in calls.items():
            answer = await call
            answers[f"answer to {what}"] = _echoed(answer, other)
        await _deleted(rest, token, password)
    shown = await _told(gateway, "/healthz", "/readyz", "/metrics", "/api/v3/status", "/openapi.json")
    secrets_kept = house.kubectl("get", "secrets", "-n", house.namespace, "-o", "json")
    shown |= {"kept Secrets": secrets_kept} | answers | of_cluster(house) | of_process(gateway.pid)
    assert '"audit"' in shown["log"] or "token_create" in shown["log"], "what people do is written down"
    assert "vmpool-tokens-" in secrets_kept
    assert aviary.escaped(shown) == []


def _echoed(answer: RestAnswer, own: str) -> str:
    """Return an answer without what its own path had said."""
    assert answer.status >= 200
    return answer.text.replace(own, "")


async def _deleted(rest: Rest, token: str, password: str) -> None:
    (await rest.delete(f"/token/{token}", basic=("ann", password))).ok()
    assert (await rest.get("/vm/nobody", token=token)).status in {401, 404}


async def test_a_directorys_passwords_are_shown_to_nobody(house: House, directory: Directory, tmp_path: Path) -> None:
    aviary = Aviary()
    await house.install({"simcloud": {"enabled": False}})
    file = tmp_path / "password"
    file.write_text(aviary.plant("the password of the gateway's account in the directory"))
    password = aviary.plant("a user's password")
    to_directory = {
        **LOUD,
        "VMPOOL_GATEWAY_AUTH": "ldap",
        "VMPOOL_GATEWAY_LDAP_URL": directory.url,
        "VMPOOL_GATEWAY_LDAP_BASE": SUFFIX,
        "VMPOOL_GATEWAY_LDAP_BIND_DN": ACCOUNT,
        "VMPOOL_GATEWAY_LDAP_BIND_PASSWORD_FILE": str(file),
        "VMPOOL_GATEWAY_LDAP_CA_FILE": str(directory.authority),
    }
    gateway = house.gateway(**to_directory)
    known = house.gateway(
        **{**to_directory, "VMPOOL_GATEWAY_LDAP_BIND_PASSWORD_FILE": str(directory.account_password_file)}
    )
    async with _silence() as port:
        hung = house.gateway(**{**to_directory, "VMPOOL_GATEWAY_LDAP_URL": f"ldap://127.0.0.1:{port}"})
        for one in (gateway, known, hung):
            await one.ready(60)
        async with rest_client(gateway.url) as first, rest_client(known.url) as second, rest_client(hung.url) as third:
            assert (await first.post("/token", basic=("alice", password))).status == 503
            assert (await second.post("/token", basic=("alice", password))).status == 401
            login = asyncio.create_task(third.post("/token", basic=("alice", password)))
            child = await until(lambda: _children(hung.pid), what="the login has a process of its own")
            during = {where: text for pid in child for where, text in of_process(pid).items()}
            assert (await login).status == 503
    shown = {f"{where} of {one.pid}": text for one in (gateway, known) for where, text in (await _told(one)).items()}
    shown |= during | of_cluster(house) | of_process(gateway.pid)
    assert any("auth_failed" in text for text in shown.values())
    assert during
    assert aviary.escaped(shown) == []


@asynccontextmanager
async def _silence() -> AsyncIterator[int]:
    """A server that accepts and says nothing; its port."""
    over = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
