"""TLS from files that change: certificates are renewed while the process runs, and no connection ends for that.

A changed pair is loaded into the context that is in use: handshakes from then on show the new certificate, connections
that are open keep what they agreed on. A pair that does not fit is left alone, logged, and looked at again.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from vmpool.settings import GatewaySettings
from vmpool.telemetry import logs

log = logs.get(__name__)

_Seen = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its chain, and its key, as PEM files."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a server's context, TLS 1.2 or newer. Raises ValueError that names the setting and the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for setting, path in (("tls_certificate", self.certificate), ("tls_key", self.key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from None
        try:
            self._load(context)
        except (OSError, ValueError) as error:
            both = f"{self.certificate} (tls_certificate) and {self.key} (tls_key)"
            raise ValueError(f"{both} are no certificate with its unencrypted key, in PEM: {error}") from None
        return context

    def seen(self) -> _Seen:
        """Return what tells one state of the files from another. Raises OSError when one is missing."""
        states = (os.stat(path) for path in (self.certificate, self.key))
        return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)

    async def follow(self, context: ssl.SSLContext, seen: _Seen, pause: float) -> None:
        """Look every ``pause`` seconds whether the files differ from ``seen``, and load them then. Never returns."""
        wrong: _Seen = ()
        while True:
            await asyncio.sleep(pause)
            try:
                now = self.seen()
            except OSError as error:
                log.warning("certificate_missing", error=str(error))
                continue
            if now in (seen, wrong):
                continue
            try:
                # Into one of its own first: half of a pair would be the end of the context in use.
                self.context()
                self._load(context)
            except (OSError, ValueError) as error:
                wrong = now
                log.error("certificate_kept", error=str(error))
                continue
            seen = now
            log.info("certificate_loaded", file=str(self.certificate))

    def _load(self, context: ssl.SSLContext) -> None:
        # With a password that is none, so that nobody is asked for one at the terminal.
        context.load_cert_chain(self.certificate, self.key, password="")


def pair_of(own: GatewaySettings) -> Pair | None:
    """Return the files that the settings name; None for plain HTTP. Raises ValueError when one of two is missing."""
    if not own.tls_certificate and not own.tls_key:
        return None
    if not own.tls_certificate or not own.tls_key:
        missing = "tls_key" if own.tls_certificate else "tls_certificate"
        raise ValueError(f"{missing}: not given, but TLS needs both tls_certificate and tls_key")
    return Pair(Path(own.tls_certificate), Path(own.tls_key))
