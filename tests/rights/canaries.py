"""Secrets that nobody may ever show, and every way in which one could be written."""

import base64
import gzip
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.rights.house import House

EVERY_KIND = (
    "vmpools,pooledvms,vmproviders,vmclaims,deadletters,deadletterqueues,purgepolicies,healthpolicies,"
    "events,configmaps,leases,deployments,replicasets,pods,services"
)
"""All that people without a right on Secrets may read."""


def spellings(secret: str) -> set[str]:
    """Return a secret as it stands, in hexadecimal, in a URL, and within base64 of something longer."""
    raw = secret.encode()
    found = {secret, secret.upper(), secret[::-1], raw.hex(), quote(secret, safe="")}
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The digits at either end depend on what stands beside it.
            text = encode(b"\0" * shift + raw).decode().rstrip("=")
            found.add(text[2 * shift : -2])
    return found


@dataclass
class Aviary:
    """The canaries of one test, by what they are."""

    birds: dict[str, str] = field(default_factory=dict)

    def plant(self, what: str) -> str:
        """Return a new secret that can be told from everything else."""
        self.birds[what] = f"canary{secrets.token_hex(12)}"
        return self.birds[what]

    def add(self, what: str, secret: str) -> None:
        """Watch for a secret that somebody else has made."""
        self.birds[what] = secret

    def escaped(self, shown: Mapping[str, str]) -> list[str]:
        """Return which of them stand where, among texts by where they were found."""
        return [
            f"{what} is shown in {where}: {_around(text, word)}"
            for what, secret in self.birds.items()
            for word in spellings(secret)
            for where, text in shown.items()
            if word in text
        ]


def _around(text: str, word: str) -> str:
    at = text.index(word)
    return text[max(0, at - 100) : at + len(word) + 20]


def of_process(pid: int) -> dict[str, str]:
    """Return what every user of the machine, and every tool that lists processes, can read of a process."""
    return {
        f"{what} of {pid}": Path(f"/proc/{pid}/{what}").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
        for what in ("cmdline", "environ", "comm")
    }


def of_cluster(house: House) -> dict[str, str]:
    """Return every object but Secrets."""
    return {"objects": house.kubectl("get", EVERY_KIND, "-A", "-o", "yaml", "--show-managed-fields")}


def of_archive(folder: Path) -> dict[str, str]:
    """Return what is in the files of an archive."""
    return {f"archive {file.name}": gzip.decompress(file.read_bytes()).decode() for file in folder.rglob("*.gz")}
