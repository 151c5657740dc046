"""A release of the chart whose pods are processes of this machine, with the chart's accounts and no other rights."""

import json
import secrets
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.api import Api
from tests.chart.helm import CHART, Helm
from tests.chart.test_running import Release
from tests.faults.rig.trial import SETTINGS
from tests.gateways import Gateway
from tests.objects import vm_claim
from tests.operators import Operator
from tests.planes import Kubectl
from tests.rights.audit import AuditLog
from tests.rights.grants import Granted, Request, grants
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

OPERATOR_SETTINGS = {**SETTINGS, "VMPOOL_CLAIM_POLICY_MARGIN_SECONDS": "0"}
SERVED = ("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")


@dataclass
class House:
    """One release, what runs of it, and what it has asked the API server for."""

    plane: ControlPlane
    log: AuditLog
    cluster: Helm
    kubectl: Kubectl
    namespace: str
    folder: Path
    api: Api
    processes: list[Operator | Gateway] = field(default_factory=list)

    async def install(self, values: dict[str, Any], *, command: str = "install") -> None:
        """Install the chart, or upgrade the release; wait until it is served."""
        # The definitions stay behind a release; the next one on this server has another namespace.
        more = ("--take-ownership", "--force-conflicts") if command == "install" else ()
        self.cluster.run(command, "vmpool", str(CHART), f"--namespace={self.namespace}", *more, values=values)
        self.kubectl(*SERVED)
        await served(self.api, self.namespace)

    def operator(self, **settings: str) -> Operator:
        """Start an operator as a pod of the release would run it."""
        release, folder = self._release()
        own = {"VMPOOL_POD_UID": folder.name, **settings}
        environment = {**release.environment("operator"), **OPERATOR_SETTINGS, **own}
        return self._started(Operator(release.account("operator"), folder, **environment))

    def gateway(self, api_url: str = "", **settings: str) -> Gateway:
        """Start a gateway likewise; ``api_url`` is a detour to the API server."""
        release, folder = self._release()
        kubeconfig = release.account("gateway")
        if api_url:
            kubeconfig.write_text(kubeconfig.read_text().replace(self.plane.url, api_url))
        return self._started(Gateway(kubeconfig, folder, **{**release.environment("gateway"), **settings}))

    def helm(self, *args: str) -> str:
        """Run Helm on the release's namespace; return what it says."""
        return self.cluster.run(*args, f"--namespace={self.namespace}").stdout

    def token(self, account: str) -> str:
        """Return a token of an account of the release's namespace."""
        return self.kubectl("create", "token", account, "-n", self.namespace).strip()

    def account(self, part: str) -> Path:
        """Return a kubeconfig of the account that the chart made for a part."""
        release, _ = self._release()
        return release.account(part)

    def requests(self, part: str) -> list[Request]:
        """Return what the account of a part has asked for so far."""
        return self.log.requests(f"system:serviceaccount:{self.namespace}:vmpool-{part}")

    def granted(self, part: str) -> list[Granted]:
        """Return every right that this account has by any binding there is, as the server holds them."""
        return grants(self._roles(f"vmpool-{part}"))

    def close(self) -> None:
        """End every process."""
        for one in self.processes:
            one.kill()

    def _roles(self, account: str) -> Iterable[dict[str, Any]]:
        for kind in ("clusterrolebindings", "rolebindings"):
            for binding in json.loads(self.kubectl("get", kind, "-A", "-o", "json"))["items"]:
                subjects = [one for one in binding.get("subjects") or () if one["kind"] == "ServiceAccount"]
                if (self.namespace, account) not in {(one["namespace"], one["name"]) for one in subjects}:
                    continue
                where = ["-n", binding["metadata"]["namespace"]] if kind == "rolebindings" else []
                ref = binding["roleRef"]
                yield json.loads(self.kubectl("get", ref["kind"], ref["name"], *where, "-o", "json"))

    def _release(self) -> tuple[Release, Path]:
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        return Release(self.plane, self.kubectl, self.namespace, folder), folder

    def _started(self, made: Any) -> Any:
        self.processes.append(made)
        made.start()
        return made


async def served(api: Api, namespace: str) -> None:
    """Wait until VMClaims can be made: the policies learn of a new kind a moment after everybody else."""
    claims = api.kind("vmclaims", namespace)

    async def made() -> bool:
        return (await claims.create(vm_claim("probe"), dryRun="All")).status == 201

    await until(made, deadline=60, what="VMClaims can be made")


@asynccontextmanager
async def api_of(plane: ControlPlane, token: str = "") -> AsyncIterator[Api]:
    """The API server as the owner of a token sees it; as administrator without one."""
    trust = ssl.create_default_context(cafile=str(plane.ca))
    async with aiohttp.ClientSession(
        plane.url,
        connector=aiohttp.TCPConnector(ssl=trust, limit=0),
        headers={"Authorization": f"Bearer {token or plane.token}"},
        timeout=aiohttp.ClientTimeout(total=60),
    ) as session:
        yield Api(session)
