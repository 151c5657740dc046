"""A pool of real QEMU machines, from ``kubectl apply`` to the last lease: the main job, with nothing simulated."""

import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator

import pytest

from tests.guests import IMAGE, Config, LibvirtHarness
from tests.operators import Operator, manifest
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev import guest as guests

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.e2e

BOOT_SECONDS = 240.0
"""Five guests under emulation on a loaded machine; alone it takes about ten seconds."""
GONE_SECONDS = 60.0


@pytest.fixture
async def host(libvirt_config: Config) -> AsyncIterator[LibvirtHarness]:
    """The libvirt host as a witness that does not go through the plug-in."""
    connection = libvirt.open(libvirt_config["uri"])
    made = LibvirtHarness(libvirt_config, connection, "qemu", disk=True)
    try:
        yield made
    finally:
        await made.aclose()
        connection.close()


def pool_manifest(config: Config) -> str:
    """A provider and a pool of guests with a disk each, as JSON: kubectl takes it like YAML."""
    provider = {
        "apiVersion": keys.API_VERSION,
        "kind": "VMProvider",
        "metadata": {"name": "host"},
        "spec": {"type": "libvirt", "config": config, "observe": {"interval": "2s"}, "limits": {"operate": 2}},
    }
    pool = {
        "apiVersion": keys.API_VERSION,
        "kind": "VMPool",
        "metadata": {"name": "real"},
        "spec": {
            "replicas": 3,
            "template": {"image": IMAGE, "memory": f"{guests.MEMORY_MIB}Mi", "disk": "1Gi"},
            "providers": [{"name": "host"}],
            "readiness": {"tcpSocket": {"port": guests.PORT}, "timeout": "10m", "interval": "5s"},
        },
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [provider, pool]})


async def test_real_guests_boot_answer_scale_and_leave_nothing(
    operator: Operator, kubectl: Kubectl, namespace: str, libvirt_config: Config, host: LibvirtHarness
) -> None:
    operator.start()
    manifest(kubectl, namespace, pool_manifest(libvirt_config))
    await _ready(kubectl, namespace, 3)
    first = _answers(kubectl, namespace)
    assert len(first) == 3
    assert len(_domains(host)) == 3

    kubectl("scale", "vmpool/real", "--replicas=5", "-n", namespace)
    await _ready(kubectl, namespace, 5)
    assert first.items() <= _answers(kubectl, namespace).items(), "scaling up left the first three alone"

    kubectl("scale", "vmpool/real", "--replicas=2", "-n", namespace)
    await _ready(kubectl, namespace, 2)
    await until(lambda: len(_domains(host)) == 2, deadline=GONE_SECONDS, what="three domains are gone")
    assert len(_answers(kubectl, namespace)) == 2

    kubectl("delete", "vmpool", "real", "-n", namespace, "--timeout=120s")
    assert kubectl("get", "pvm", "-n", namespace, "-o", "name") == ""
    assert _domains(host) == []
    assert host.disks() == []
    assert host.leases() == []
    kubectl("delete", "vmprovider", "host", "-n", namespace, "--timeout=30s")


async def test_a_guest_that_dies_is_replaced(
    operator: Operator, kubectl: Kubectl, namespace: str, libvirt_config: Config, host: LibvirtHarness
) -> None:
    operator.start()
    manifest(kubectl, namespace, pool_manifest(libvirt_config).replace('"replicas": 3', '"replicas": 1'))
    await _ready(kubectl, namespace, 1)
    (victim,) = _answers(kubectl, namespace)
    domain = host.connection.lookupByName(victim)
    domain.destroy()
    await until(
        lambda: _answers(kubectl, namespace).keys() - {victim}, deadline=BOOT_SECONDS, what="a successor answers"
    )
    reasons = kubectl("get", "vmpool", "real", "-n", namespace, "-o", "jsonpath={.status.recentFailures[*].errorClass}")
    assert reasons in ("MachineFailed", "NotAnswering"), reasons
    kubectl("delete", "vmpool", "real", "-n", namespace, "--timeout=120s")
    assert _domains(host) == []
    assert host.leases() == []


async def _ready(kubectl: Kubectl, namespace: str, count: int) -> None:
    def reached() -> bool:
        path = "jsonpath={.status.readyReplicas}/{.status.replicas}/{.status.desiredReplicas}"
        return kubectl("get", "vmpool", "real", "-n", namespace, "-o", path) == f"{count}/{count}/{count}"

    await until(reached, deadline=BOOT_SECONDS, what=f"{count} real machines are ready")


def _answers(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    """What each Ready VM that answers says over TCP, by name: its own host name.

    One that does not answer is left out: a guest that died stands as Ready until the next look at it, and how its
    address fails then (refused, no route, silence) depends on how far its network is taken down.
    """
    items = json.loads(kubectl("get", "pvm", "-n", namespace, "-o", "json"))["items"]
    found = {}
    for vm in items:
        if vm["status"]["phase"] == "Ready":
            address = vm["status"]["addresses"][0]
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{address}:{guests.PORT}/", timeout=10) as answer,
            ):
                found[vm["metadata"]["name"]] = answer.read().decode().strip()
    assert all(name == said for name, said in found.items()), found
    return found


def _domains(host: LibvirtHarness) -> list[str]:
    """Names of the domains that were not there before the test."""
    return [domain.name() for domain in host.connection.listAllDomains() if domain.UUIDString() not in host._before]
