"""Rights that no request shows: the server's admission asks for them while it judges a request for another right."""

import json
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from tests.api import Api, Json, Objects
from tests.rights.grants import Granted, Right
from tests.rights.house import House, api_of
from tests.waiting import until
from vmpool.api import keys

OPERATORS = frozenset({Granted("ClusterRole vmpool-operator", Right(keys.GROUP, "vmpools/finalizers", "update"))})
"""Asked for by the plug-in OwnerReferencesPermissionEnforcement."""
GATEWAYS = frozenset(
    {
        Granted("ClusterRole vmpool-gateway", Right(keys.GROUP, "vmpools", "claim")),
        Granted("Role vmpool-gateway", Right(keys.GROUP, "vmclaims", "stamp")),
    }
)
"""Asked for by our policy vmpool-claims."""


@dataclass(frozen=True)
class Witnessed:
    """An object as a part of us has made it."""

    plural: str
    object: Json

    def again(self) -> Json:
        """The same under another name, as it was sent."""
        meta = self.object["metadata"]
        kept = {name: meta[name] for name in ("labels", "annotations", "finalizers", "ownerReferences") if name in meta}
        return {
            "apiVersion": self.object["apiVersion"],
            "kind": self.object["kind"],
            "metadata": {"name": f"again-{secrets.token_hex(3)}", **kept},
            "spec": {name: value for name, value in self.object["spec"].items() if name != "claim"},
        }


async def needed(house: House, part: str, made: Witnessed, rights: Iterable[Granted]) -> None:
    """Fail unless the server takes the object from a part's account, and refuses it without any one of these rights."""
    async with as_account(house, part) as api:
        objects = api.kind(made.plural, made.object["metadata"]["namespace"])
        await _answers(objects, made, 201, "with all of its rights")
        for one in sorted(rights):
            role = _role(house, one)
            _put(house, role, _without(role, one.right))
            await _answers(objects, made, 403, f"without {one}")
            _put(house, role, role["rules"])
            await _answers(objects, made, 201, f"with {one} again")


@asynccontextmanager
async def as_account(house: House, part: str) -> AsyncIterator[Api]:
    """The API server as the account of a part sees it."""
    kubeconfig = yaml.safe_load(house.account(part).read_text())
    async with api_of(house.plane, kubeconfig["users"][0]["user"]["token"]) as api:
        yield api


async def _answers(objects: Objects, made: Witnessed, status: int, when: str) -> None:
    async def so() -> bool:
        return (await objects.create(made.again(), dryRun="All")).status == status

    await until(so, what=f"the server answers {status} {when}")


def _role(house: House, one: Granted) -> Json:
    kind, name = one.role.split(" ", 1)
    where = ["-n", house.namespace] if kind == "Role" else []
    found: Json = json.loads(house.kubectl("get", kind, name, *where, "-o", "json"))
    return found


def _put(house: House, role: Json, rules: list[Any]) -> None:
    where = ["-n", house.namespace] if role["kind"] == "Role" else []
    patch = json.dumps({"rules": rules})
    house.kubectl("patch", role["kind"], role["metadata"]["name"], *where, "--type=merge", "-p", patch)


def _without(role: Json, right: Right) -> list[Json]:
    """The rules of a role without one right; each rule must hold it alone, or beside others of the same resource."""
    rules = []
    for rule in role["rules"]:
        if right.group in rule["apiGroups"] and right.resource in rule["resources"] and right.verb in rule["verbs"]:
            assert rule["resources"] == [right.resource], f"it would take other rights along: {rule}"
            rule = {**rule, "verbs": [verb for verb in rule["verbs"] if verb != right.verb]}
        if rule["verbs"]:
            rules.append(rule)
    assert rules != role["rules"], f"{role['metadata']['name']} does not grant {right}"
    return rules
