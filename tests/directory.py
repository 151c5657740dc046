"""A real LDAP directory for the tests: slapd on loopback with a throw-away database."""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import until
from vmpool.dev import credentials

SLAPD = shutil.which("slapd") or "/usr/sbin/slapd"
SLAPADD = shutil.which("slapadd") or "/usr/sbin/slapadd"
SCHEMAS = Path("/etc/ldap/schema")
MODULES = Path("/usr/lib/ldap")
STOP_SECONDS = 30
GUARDED = '"$0" "$@" & server=$!; cat >/dev/null; kill $server; wait $server'
"""Ends the server with our end of its standard input: also when a test run is killed."""

SUFFIX = "dc=vmpool,dc=test"
PEOPLE = f"ou=people,{SUFFIX}"
ROBOTS = f"ou=robots,{SUFFIX}"
ACCOUNT = f"cn=search,{SUFFIX}"
ACCOUNT_PASSWORD = "account-secret"
STRANGE = "a,b+c*(d)\\e"
"""A login of characters that mean something in filters and names."""

ENTRIES = rf"""dn: {SUFFIX}
objectClass: dcObject
objectClass: organization
o: vmpool
dc: vmpool

dn: {PEOPLE}
objectClass: organizationalUnit
ou: people

dn: {ROBOTS}
objectClass: organizationalUnit
ou: robots

dn: {ACCOUNT}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: search
userPassword: {ACCOUNT_PASSWORD}

dn: uid=alice,{PEOPLE}
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: Example
mail: alice@example.org
userPassword: alice-secret

dn: uid=strange,{PEOPLE}
objectClass: inetOrgPerson
uid: strange
uid: {STRANGE}
cn: Strange
sn: Example
userPassword: strange-secret

dn: uid=a\2Cb\2Bc*(d)\5Ce,{ROBOTS}
objectClass: inetOrgPerson
uid: {STRANGE}
cn: Strange
sn: Example
userPassword: strange-secret

dn: uid=robot,{ROBOTS}
objectClass: inetOrgPerson
uid: robot
cn: Robot
sn: Example
userPassword: robot-secret

dn: uid=hidden,{PEOPLE}
objectClass: inetOrgPerson
uid: hidden
cn: Hidden
sn: Example
userPassword: hidden-secret

dn: uid=twin,{PEOPLE}
objectClass: inetOrgPerson
uid: twin
cn: Twin
sn: Example
userPassword: twin-secret

dn: uid=twin,{ROBOTS}
objectClass: inetOrgPerson
uid: twin
cn: Twin
sn: Example
userPassword: twin-secret
"""


@dataclass(frozen=True)
class Directory:
    """A running slapd. Its certificate is for 127.0.0.1 and localhost; it listens on 127.0.0.2 too."""

    port: int
    tls_port: int
    authority: Path
    account_password_file: Path

    @property
    def url(self) -> str:
        """For StartTLS."""
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """With TLS from the start."""
        return f"ldaps://127.0.0.1:{self.tls_port}"


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    """A directory that speaks TLS."""
    yield from _directory(tmp_path_factory.mktemp("directory"), tls=True)


@pytest.fixture(scope="session")
def plain_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    """A directory that knows no TLS."""
    yield from _directory(tmp_path_factory.mktemp("plain"), tls=False)


def _directory(folder: Path, *, tls: bool) -> Iterator[Directory]:
    _skip_unless_possible()
    made = credentials.ensure(folder / "credentials")
    port, tls_port = _free_port(), _free_port()
    config = folder / "slapd.conf"
    config.write_text(_config(folder, made if tls else None))
    (folder / "db").mkdir()
    subprocess.run([SLAPADD, "-f", str(config)], input=ENTRIES, text=True, check=True, capture_output=True)
    account = folder / "account-password"
    account.write_text(ACCOUNT_PASSWORD + "\n")
    urls = [f"ldap://{host}:{port}" for host in ("127.0.0.1", "127.0.0.2")]
    urls += [f"ldaps://{host}:{tls_port}" for host in ("127.0.0.1", "127.0.0.2")] if tls else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", GUARDED, SLAPD, "-d", "0", "-f", str(config), "-h", " ".join(urls)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        asyncio.run(until(lambda: _listens(port), what=f"slapd to listen (its log: {folder / 'log'})"))
        yield Directory(port, tls_port, made.authority, account)
    finally:
        process.communicate(timeout=STOP_SECONDS)


def _skip_unless_possible() -> None:
    for file in (Path(SLAPD), Path(SLAPADD), SCHEMAS / "core.schema"):
        if not file.exists():
            pytest.skip(f"no LDAP server: {file} is missing (Debian: apt install slapd)")
    if importlib.util.find_spec("bonsai") is None:
        pytest.skip("no LDAP library: pip install 'vmpool[ldap]'")


def _config(folder: Path, made: credentials.Credentials | None) -> str:
    lines = [f"include {SCHEMAS / name}.schema" for name in ("core", "cosine", "inetorgperson")]
    lines += [f"modulepath {MODULES}", "moduleload back_mdb"] if MODULES.exists() else []
    lines += [f"pidfile {folder / 'pid'}"]
    if made is not None:
        lines += [
            f"TLSCACertificateFile {made.authority}",
            f"TLSCertificateFile {made.certificate('kube-apiserver')}",
            f"TLSCertificateKeyFile {made.key('kube-apiserver')}",
        ]
    lines += [
        # As many directories are set up: a bind with a name and no password succeeds, as nobody.
        "allow bind_anon_cred bind_anon_dn",
        "database mdb",
        f"suffix {SUFFIX}",
        f"directory {folder / 'db'}",
        "maxsize 16777216",
        f'access to attrs=userPassword by anonymous auth by dn.exact="{ACCOUNT}" none',
        f'access to dn.exact="uid=hidden,{PEOPLE}" by * none',
        f'access to * by dn.exact="{ACCOUNT}" read',
    ]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
