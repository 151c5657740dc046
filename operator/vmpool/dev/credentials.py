"""Keys, certificates, tokens and kubeconfigs of one control plane, all of its own making.

One authority signs every serving certificate and etcd's one client certificate. People and controllers prove
themselves to the API server with random tokens; a certificate opens nothing there.
"""

import base64
import ipaddress
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vmpool.dev.errors import DevError
from vmpool.dev.files import draft_of, private_folder, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LIFETIME = timedelta(days=3650)
CLOCK_SKEW = timedelta(minutes=5)
TOKEN_BYTES = 32
SERVICE_IP = "10.0.0.1"
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
SERVER_IPS = ("127.0.0.1", SERVICE_IP)
ADMIN = "vmpool-dev-admin"


@dataclass(frozen=True)
class Credentials:
    """The files in the credentials folder, each of mode 0600."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that verifies every server here."""
        return self.folder / "ca.crt"

    @property
    def service_account_key(self) -> Path:
        """Signs and verifies service account tokens."""
        return self.folder / "service-accounts.key"

    @property
    def token_file(self) -> Path:
        """The API server's table of tokens, users and groups."""
        return self.folder / "tokens.csv"

    @property
    def admin_token(self) -> Path:
        """The token of the one who may do everything."""
        return self.folder / "admin.token"

    @property
    def controller_manager_token(self) -> Path:
        """The token of kube-controller-manager."""
        return self.folder / "controller-manager.token"

    def certificate(self, name: str) -> Path:
        """The certificate of one component."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The private key of one component."""
        return self.folder / f"{name}.key"


def ensure(folder: Path) -> Credentials:
    """Return the credentials in ``folder``, made on the first call: all of them or none.

    Raises DevError without the package `cryptography`.
    """
    if not folder.exists():
        draft = draft_of(folder)
        shutil.rmtree(draft, ignore_errors=True)
        _create(Credentials(private_folder(draft)))
        draft.rename(folder)
    return Credentials(folder)


def kubeconfig(*, url: str, authority: Path, token: Path) -> str:
    """A kubeconfig with everything inside, so that it works wherever it is copied."""
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "vmpool-dev",
        "clusters": [
            {
                "name": "vmpool-dev",
                "cluster": {
                    "server": url,
                    "certificate-authority-data": base64.b64encode(authority.read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": "vmpool-dev", "user": {"token": token.read_text()}}],
        "contexts": [{"name": "vmpool-dev", "context": {"cluster": "vmpool-dev", "user": "vmpool-dev"}}],
    }
    return yaml.safe_dump(document, sort_keys=False)


def _create(files: Credentials) -> None:
    try:
        authority = _Authority()
    except ImportError as missing:
        raise DevError("certificates need a package that is not here: pip install 'vmpool[dev]'") from missing
    write_private(files.authority, authority.certificate_pem)
    for name in ("etcd", "etcd-client", "kube-apiserver", "kube-controller-manager"):
        certificate, key = authority.issue(name)
        write_private(files.certificate(name), certificate)
        write_private(files.key(name), key)
    write_private(files.service_account_key, _key_pem(_new_key()))
    admin, controllers = secrets.token_urlsafe(TOKEN_BYTES), secrets.token_urlsafe(TOKEN_BYTES)
    write_private(files.admin_token, admin)
    write_private(files.controller_manager_token, controllers)
    write_private(
        files.token_file,
        f'{admin},{ADMIN},{ADMIN},"system:masters"\n'
        f"{controllers},system:kube-controller-manager,system:kube-controller-manager\n",
    )


class _Authority:
    """Signs certificates that pass OpenSSL's strict checks, which Python's Kubernetes client applies."""

    def __init__(self) -> None:
        from cryptography import x509

        self._key = _new_key()
        name = _name("vmpool-dev-authority")
        draft = _draft(name, name, self._key)
        draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        draft = draft.add_extension(_key_usage(signs_certificates=True), critical=True)
        self._certificate = draft.sign(self._key, _digest())

    @property
    def certificate_pem(self) -> bytes:
        return _certificate_pem(self._certificate)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Certificate and key, PEM, for a server on the loopback address; etcd's also serve as client."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID as Use

        key = _new_key()
        hosts: list[x509.GeneralName] = [x509.DNSName(host) for host in SERVER_NAMES]
        hosts += [x509.IPAddress(ipaddress.ip_address(address)) for address in SERVER_IPS]
        # etcd's own gateway dials etcd with the serving certificate.
        uses = [Use.SERVER_AUTH, Use.CLIENT_AUTH] if name.startswith("etcd") else [Use.SERVER_AUTH]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        draft = _draft(_name(name), self._certificate.subject, key)
        draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        draft = draft.add_extension(_key_usage(signs_certificates=False), critical=True)
        draft = draft.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        draft = draft.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        draft = draft.add_extension(issuer, critical=False)
        return _certificate_pem(draft.sign(self._key, _digest())), _key_pem(key)


def _draft(subject: "x509.Name", issuer: "x509.Name", key: "ec.EllipticCurvePrivateKey") -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_key() -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _digest() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _certificate_pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: "ec.EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    # kube-apiserver and kube-controller-manager read service account keys in the traditional format only.
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
