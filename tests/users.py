"""Users of a real API server and their rights, and a control plane that holds them to our admission policies."""

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from multidict import CIMultiDict

from tests.api import REQUEST_TIMEOUT_SECONDS, Api, Json
from tests.objects import thing
from tests.planes import Kubectl, install_crds, kubectl_of, throwaway_plane
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.binaries import Binaries
from vmpool.dev.credentials import kubeconfig
from vmpool.dev.plane import ControlPlane

DEPLOY = Path(__file__).parent.parent / "deploy"
ADMISSION = DEPLOY / "admission"
RBAC = DEPLOY / "rbac"
RBAC_API = "rbac.authorization.k8s.io"
EVERYBODY = "system:authenticated"
"""The group that the server adds to every user's."""
MAKE_CLAIMS = ("create", "get", "list", "watch", "patch", "update", "delete")


@dataclass(frozen=True)
class User:
    """Somebody whom the administrator's token is used to act as; no name and no groups is the administrator."""

    name: str = ""
    groups: tuple[str, ...] = ()

    @property
    def headers(self) -> CIMultiDict[str]:
        """What makes a request this user's."""
        pairs = [("Impersonate-User", self.name)] if self.name else []
        return CIMultiDict([*pairs, *(("Impersonate-Group", group) for group in self.groups)])

    @property
    def all_groups(self) -> list[str]:
        """The groups as the server sees them."""
        return list(dict.fromkeys((*self.groups, EVERYBODY)))


ADMIN = User()


class Users:
    """Sessions of users with one server; all end together."""

    def __init__(self, plane: ControlPlane, stack: AsyncExitStack) -> None:
        self._plane = plane
        self._stack = stack
        self._sessions: dict[User, Api] = {}

    async def api(self, user: User = ADMIN) -> Api:
        """Return the API server as this user sees it."""
        if user not in self._sessions:
            trust = ssl.create_default_context(cafile=str(self._plane.ca))
            headers = user.headers
            headers["Authorization"] = f"Bearer {self._plane.token}"
            session = aiohttp.ClientSession(
                self._plane.url,
                connector=aiohttp.TCPConnector(ssl=trust),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
            )
            self._sessions[user] = Api(await self._stack.enter_async_context(session))
        return self._sessions[user]

    async def may(self, user: User, verb: str, resource: str, namespace: str, name: str = "") -> bool:
        """Ask the server whether RBAC gives this user a right on one of our kinds."""
        plural, _, subresource = resource.partition("/")
        asked = {"group": keys.GROUP, "resource": plural, "subresource": subresource, "verb": verb, "name": name}
        spec = {
            "user": user.name,
            "groups": user.all_groups,
            "resourceAttributes": {**asked, "namespace": namespace},
        }
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = await (await self.api()).call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer.ok()["status"]["allowed"])


@asynccontextmanager
async def users_of(plane: ControlPlane) -> AsyncIterator[Users]:
    """Sessions with a control plane."""
    async with AsyncExitStack() as stack:
        yield Users(plane, stack)


def rule(resource: str, verbs: Sequence[str], *names: str) -> Json:
    """One rule of a role on a kind of ours; of all its objects unless some are named."""
    made: Json = {"apiGroups": [keys.GROUP], "resources": [resource], "verbs": list(verbs)}
    return {**made, "resourceNames": list(names)} if names else made


def grant(namespace: str, name: str, rules: Sequence[Json], *, user: str = "", group: str = "") -> list[Json]:
    """A Role and its RoleBinding for one user or one group."""
    metadata = {"name": name, "namespace": namespace}
    subject = {"apiGroup": RBAC_API, "kind": "User" if user else "Group", "name": user or group}
    return [
        {"apiVersion": f"{RBAC_API}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC_API}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": RBAC_API, "kind": "Role", "name": name},
            "subjects": [subject],
        },
    ]


def apply(kubectl: Kubectl, items: Sequence[Json], *options: str) -> None:
    """Apply objects as administrator."""
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(items)})
    kubectl("apply", "--server-side", "--force-conflicts", *options, "-f", "-", input=body)


def account(kubectl: Kubectl, plane: ControlPlane, namespace: str, role: str, folder: Path) -> Path:
    """Make a service account with the rights that we ship as ``role``, and no others; return its kubeconfig."""
    file = RBAC / f"{role.removeprefix('vmpool-')}.yaml"
    kubectl("apply", "--server-side", "--force-conflicts", "-n", namespace, "-f", str(file))
    kubectl("create", "serviceaccount", role, "-n", namespace)
    subject = f"--serviceaccount={namespace}:{role}"
    kubectl("create", "clusterrolebinding", f"{role}-{namespace}", f"--clusterrole={role}", subject)
    kubectl("create", "rolebinding", role, "-n", namespace, f"--role={role}", subject)
    token = folder / f"{role}-{namespace}.token"
    token.write_text(kubectl("create", "token", role, "-n", namespace, "--duration=24h").strip())
    path = folder / f"{role}-{namespace}.kubeconfig"
    path.write_text(kubeconfig(url=plane.url, authority=plane.ca, token=token))
    return path


def wish(name: str, *pools: str | tuple[str, str], **spec: object) -> Json:
    """A VMClaim for one VM of each pool, which is a name, or a namespace and a name; ``spec`` on top."""
    requests = [{"pool": one} if isinstance(one, str) else {"namespace": one[0], "pool": one[1]} for one in pools]
    return thing("VMClaim", name, {"requests": requests, **spec})


async def held_to_policies(users: Users, namespace: str) -> None:
    """Wait until the server lets nobody claim in another's name, and fills in who asks."""
    claims = (await users.api()).kind("vmclaims", namespace)

    async def judged() -> bool:
        return (await claims.create(wish("probe", "web", requester="somebody-else"), dryRun="All")).status == 403

    async def filled() -> bool:
        answer = await claims.create(wish("probe", "web"), dryRun="All")
        return answer.status == 201 and bool(answer.body["spec"].get("requester"))

    await until(judged, what="ValidatingAdmissionPolicy vmpool-claims is in force")
    await until(filled, what="MutatingAdmissionPolicy vmpool-requester is in force")


async def permitted(users: Users, rights: Mapping[User, tuple[str, str, str, str]]) -> None:
    """Wait until the server knows each user's right: verb, resource, namespace, name."""
    for user, right in rights.items():

        async def known(user: User = user, right: tuple[str, str, str, str] = right) -> bool:
            return await users.may(user, *right)

        await until(known, what=f"{user.name} may {right}")


@pytest.fixture(scope="module")
def guarded_plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane of its own with our policies and roles as we ship them.

    The policies hold for a whole cluster: on the plane of the other tests they would judge everybody's VMClaims. It
    ends with its module: an idle server takes its part of the processor for as long as the run lasts.
    """
    with throwaway_plane(plane_binaries) as made:
        run = kubectl_of(made)
        install_crds(run)
        run("apply", "--server-side", "-f", str(ADMISSION), "-f", str(RBAC / "claimer.yaml"))
        yield made


@pytest.fixture(scope="module")
def guarded_kubectl(guarded_plane: ControlPlane) -> Kubectl:
    """kubectl for the guarded plane, as administrator."""
    return kubectl_of(guarded_plane)


@pytest.fixture
async def users(guarded_plane: ControlPlane) -> AsyncIterator[Users]:
    """Users of the guarded plane; the policies are in force."""
    async with users_of(guarded_plane) as made:
        await held_to_policies(made, "default")
        yield made
