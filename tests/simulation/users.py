"""People and the gateway: what happens to the pools from outside, each deed one or a few real requests."""

from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

import orjson

from tests.objects import vm_claim
from tests.simulation.api import KINDS, MERGE, Answer
from tests.simulation.net import Party, client_of
from tests.simulation.story import NAMESPACE, new_pool
from vmpool.api import keys
from vmpool.api.vm import Claim
from vmpool.engine import binding
from vmpool.engine.facts import vm_facts
from vmpool.engine.world import VM_INDEXES
from vmpool.kube.errors import KubeError
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.kube.resource import Json
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM

if TYPE_CHECKING:
    from tests.simulation.run import Site

LIFETIME = timedelta(minutes=1)


class Users:
    """Everybody who is not the operator."""

    def __init__(self, site: "Site", random: Random) -> None:
        self._site, self._random = site, random
        self._gateway = Party("gateway")
        self._client = client_of(site, self._gateway)
        self._vms = Mirror(self._client, Selection(POOLEDVMS), vm_facts, MirrorSettings(), VM_INDEXES)
        self._out: dict[str, VM] = {}
        """VMs that are checked out, by uid."""
        self._count = 0

    async def do(self, deed: str) -> None:
        """Do one thing; what the servers refuse is refused."""
        self._site.tell(f"{deed}")
        await getattr(self, f"_{deed}")()

    def send(self, method: str, plural: str, name: str = "", body: object = None) -> Answer:
        """Send one request as kubectl does, without any misfortune."""
        path = f"/apis/{keys.API_VERSION}/namespaces/{NAMESPACE}/{plural}{f'/{name}' if name else ''}"
        data = None if body is None else orjson.dumps(body)
        answer = self._site.api.handle(method, path, {}, data, MERGE if method == "PATCH" else "", who="user")
        self._site.tell(f"  {answer[0]} user {method} {plural}/{name} {(data or b'').decode()[:100]}")
        return answer

    def create(self, body: Json) -> None:
        """Make an object."""
        plural = next(plural for plural, kind in KINDS.items() if kind == body["kind"])
        self.send("POST", plural, body=body)

    def _some(self, plural: str) -> Json | None:
        found = [one for one in self._site.api.all(plural) if "deletionTimestamp" not in one["metadata"]]
        return self._random.choice(found) if found else None

    def _patch_pool(self, spec: Json) -> None:
        found = self._some("vmpools")
        if found is not None:
            self.send("PATCH", "vmpools", found["metadata"]["name"], {"spec": spec})

    async def _scale(self) -> None:
        found = self._some("vmpools")
        if found is not None:
            replicas = self._random.randint(0, min(3, found["spec"]["maxVMs"]))
            self.send("PATCH", "vmpools", found["metadata"]["name"], {"spec": {"replicas": replicas}})

    async def _template(self) -> None:
        self._count += 1
        self._patch_pool({"template": {"image": f"debian-{self._count}"}})

    async def _pause(self) -> None:
        self._patch_pool({"paused": self._random.random() < 0.5})

    async def _delete_pool(self) -> None:
        found = self._some("vmpools")
        if found is not None:
            self.send("DELETE", "vmpools", found["metadata"]["name"], {})

    async def _make_pool(self) -> None:
        self.create(new_pool(self._random, self._random.choice(["web", "db"])))

    async def _delete_vm(self) -> None:
        found = self._some("pooledvms")
        if found is not None:
            self.send("DELETE", "pooledvms", found["metadata"]["name"], {})

    async def _claim(self) -> None:
        self._count += 1
        spec: Json = {
            "requests": [{"pool": self._random.choice(["web", "web", "db"]), "count": self._random.randint(1, 2)}],
            "lifetime": "1m",
            "ttlAfterFinished": "5s",
        }
        if self._random.random() < 0.3:
            spec["deadline"] = "10s"
        self.create(vm_claim(f"build-{self._count}", **spec))

    async def _drop_claim(self) -> None:
        found = self._some("vmclaims")
        if found is not None:
            self.send("DELETE", "vmclaims", found["metadata"]["name"], {})

    async def _redrive(self) -> None:
        found = self._some("deadletters")
        if found is not None:
            action = self._random.choice(["redrive", "redrive", "discard"])
            self.send("PATCH", "deadletters", found["metadata"]["name"], {"spec": {"action": action}})

    # --- the cloud's side ----------------------------------------------------------------------------------------

    async def _vanish(self) -> None:
        alive = [one for one in self._site.cloud.alive() if one.alive]
        if alive:
            machine = self._random.choice(alive)
            self._site.tell(f"  {machine.id} vanishes")
            self._site.cloud.vanish(machine)

    async def _die(self) -> None:
        alive = [one for one in self._site.cloud.alive() if one.alive]
        if alive:
            self._site.cloud.die(self._random.choice(alive))

    async def _hold(self) -> None:
        """Stop a replica for a while: nothing reaches it."""
        replica = self._random.choice(self._site.replicas)
        replica.held_until = self._site.loop.time() + self._random.uniform(0.5, 6.0)

    async def _kill(self) -> None:
        self._site.kill(self._random.choice(self._site.replicas))

    # --- the gateway ---------------------------------------------------------------------------------------------

    async def _checkout(self) -> None:
        """Bind a VM as the gateway does, by a picture that may be old."""
        try:
            if self._random.random() < 0.7:
                await self._look()
            free = [
                entry.fact
                for entry in self._vms
                if entry.fact is not None and entry.fact.phase == Phase.READY and entry.fact.claim is None
            ]
            if not free:
                return
            vm, now = self._random.choice(free), self._site.now()
            self._count += 1
            wish = Claim(id=f"rest-{self._count}", owner="alice", bound_at=now, expires_at=now + LIFETIME)
            won = await binding.bind(self._client, self._vms, vm, wish)
        except KubeError:
            return
        if won is not None:
            self._site.witness.hand_out(won.uid, wish.id)
            self._out[won.uid] = won

    async def _look(self) -> None:
        async for page in self._client.list_pages(POOLEDVMS, None):
            for item in page.items:
                self._vms.saw(item)

    async def _release(self) -> None:
        await self._of_owner(release=True)

    async def _extend(self) -> None:
        await self._of_owner(release=False)

    async def _of_owner(self, *, release: bool) -> None:
        if not self._out:
            return
        uid = self._random.choice(sorted(self._out))
        now = self._site.now()
        try:
            if release:
                await binding.release(self._client, self._vms, self._out.pop(uid), now)
            else:
                await binding.extend(self._client, self._vms, self._out[uid], now + LIFETIME)
        except (KubeError, binding.ClaimGone):
            return

    async def calm(self) -> None:
        """Stop asking for anything: pools are not paused any more, and everybody gives back what they have."""
        for found in self._site.api.all("vmpools"):
            if found["spec"].get("paused"):
                self.send("PATCH", "vmpools", found["metadata"]["name"], {"spec": {"paused": False}})
        while self._out:
            await self._release()
