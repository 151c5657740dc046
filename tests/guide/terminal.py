"""What an operator types: manifests that are applied, and whole lines of a shell with kubectl and vmpool in it."""

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.api import Json
from tests.clouds import SimCloud, Tenant
from tests.control_plane.operator.stage import DEADLINE, IMAGE, QUICK_RETRY
from tests.objects import thing
from tests.waiting import until
from vmpool.dev.plane import ControlPlane, kubectl_call

LINE_SECONDS = 60


class Typed:
    """Somebody at a terminal; their kubeconfig names the namespace, so no command has to."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        argv, environment = kubectl_call(plane.home, ())
        config = folder / "kubeconfig"
        self._environment = {**environment, "COLUMNS": "200", "NO_COLOR": "1"}
        vmpool = shlex.join([sys.executable, "-m", "vmpool"])
        self._head = f'set -o pipefail; kubectl() {{ {shlex.join(argv)} "$@"; }}; vmpool() {{ {vmpool} "$@"; }}; '
        config.write_text(self.shell("kubectl config view --raw --flatten"))
        self._environment["KUBECONFIG"] = str(config)
        self.shell(f"kubectl config set-context --current --namespace={namespace}")

    def shell(self, line: str, *, code: int = 0, text: str | None = None) -> str:
        """Run one line as bash does and return what it prints; fails unless it ends with ``code``."""
        done = subprocess.run(
            ["/bin/bash", "-c", self._head + line],
            env=self._environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=LINE_SECONDS,
        )
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def apply(self, *objects: Json) -> None:
        """Apply manifests as ``kubectl apply -f`` does."""
        self.shell("kubectl apply -f -", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, what: str) -> Json:
        """One object, or a list of them, as ``kubectl get`` prints it in JSON."""
        return dict(json.loads(self.shell(f"kubectl get {what} -o json")))

    def items(self, what: str) -> list[Json]:
        """The objects of a list."""
        return list(self.get(what)["items"])

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """``until`` for fixtures, which are no coroutines."""

        async def work() -> Any:
            return await until(condition, deadline=DEADLINE, what=what)

        return asyncio.run(work())


def pool_of(cloud: SimCloud, tenant: Tenant, name: str, **spec: Any) -> list[Json]:
    """The manifests of a pool, of a provider for it alone, and of the provider's Secret, all of one name."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"apiKey": tenant.key}}
    provider = {
        "type": "simulated",
        "config": {"endpoint": cloud.url},
        "secretRef": {"name": name},
        "circuitBreaker": {"failures": 5, "pause": "1s"},
        "observe": {"interval": "1s"},
    }
    base = {"replicas": 1, "template": {"image": IMAGE}, "providers": [{"name": name}], "retry": QUICK_RETRY}
    return [secret, thing("VMProvider", name, provider), thing("VMPool", name, {**base, **spec})]
