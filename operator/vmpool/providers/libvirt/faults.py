"""libvirt's errors in our words.

libvirt has a hundred codes, of which only these say more than "it did not work". A failure to start a guest is
an internal or system error like any other, so those speak of the one request, not of the host's health: only an
error of the connection itself does.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vmpool.providers.errors import (
    CredentialsRefused,
    Exhausted,
    InvalidConfig,
    InvalidTemplate,
    MachineNotFound,
    ProviderError,
    Retryable,
    Unavailable,
)

_MEANING: dict[int, type[ProviderError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: MachineNotFound,
    libvirt.VIR_ERR_AUTH_FAILED: CredentialsRefused,
    libvirt.VIR_ERR_AUTH_CANCELLED: CredentialsRefused,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: CredentialsRefused,
    libvirt.VIR_ERR_ACCESS_DENIED: CredentialsRefused,
    libvirt.VIR_ERR_OPERATION_DENIED: CredentialsRefused,
    libvirt.VIR_ERR_NO_MEMORY: Exhausted,
    libvirt.VIR_ERR_NO_STORAGE_POOL: InvalidConfig,
    libvirt.VIR_ERR_NO_NETWORK: InvalidConfig,
    libvirt.VIR_ERR_NO_STORAGE_VOL: InvalidTemplate,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: InvalidTemplate,
    libvirt.VIR_ERR_INVALID_ARG: InvalidTemplate,
    libvirt.VIR_ERR_NO_SUPPORT: InvalidConfig,
    libvirt.VIR_ERR_OS_TYPE: InvalidTemplate,
    libvirt.VIR_ERR_XML_DETAIL: InvalidTemplate,
    libvirt.VIR_ERR_XML_ERROR: InvalidTemplate,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: InvalidTemplate,
}
_CONNECTION = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
_REFUSED = {errno.EACCES, errno.EPERM}
_BAD_URI = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONF_SYNTAX}


def translate(error: libvirt.libvirtError) -> ProviderError:
    """Return the typed error for a call that failed on an open connection."""
    message = str(error)
    if error.get_error_domain() in _CONNECTION and error.get_error_code() not in _MEANING:
        return Unavailable(message)
    if _errno(error) in _FULL:
        return Exhausted(message)
    return _MEANING.get(error.get_error_code(), Retryable)(message)


def translate_open(error: libvirt.libvirtError, uri: str) -> ProviderError:
    """Return the typed error for a connection that could not be opened."""
    message = f"cannot connect to {uri}: {error}"
    code = error.get_error_code()
    if code in _BAD_URI:
        return InvalidConfig(message)
    if _MEANING.get(code) is CredentialsRefused or _errno(error) in _REFUSED:
        return CredentialsRefused(message)
    return Unavailable(message)


def _errno(error: libvirt.libvirtError) -> int | None:
    """Return the system's own error number, which libvirt carries along for system errors."""
    if error.get_error_code() != libvirt.VIR_ERR_SYSTEM_ERROR:
        return None
    number: int | None = error.get_int1()
    return number


@contextmanager
def tolerated(*codes: int) -> Iterator[None]:
    """Take these codes for success: somebody else, or we before, did the same already."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
