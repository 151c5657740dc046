"""Settings of one libvirt host, and the template parameters that a pool may give."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from vmpool.providers.base import config_error
from vmpool.providers.errors import InvalidTemplate

MAX_IMAGES = 64
MAX_PATH = 1024
MAX_CMDLINE = 1024

Path = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f]+$", max_length=MAX_PATH)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=63)]
VolumeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=255)]
Cmdline = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]*$", max_length=MAX_CMDLINE)]


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class DomainType(StrEnum):
    """Who runs the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    QEMU = "qemu"


class KernelImage(_Model):
    """A guest that starts from a kernel and an initial RAM disk, without a boot loader."""

    kernel: Path = Field(description="Absolute path of the kernel on the libvirt host.")
    initrd: Path = Field(description="Absolute path of the initial RAM disk on the libvirt host.")
    cmdline: Cmdline = Field(
        default="", description="Kernel command line; `systemd.hostname=<host name>` is added to it."
    )


class DiskImage(_Model):
    """A guest that boots from a copy-on-write layer over a volume."""

    volume: VolumeName = Field(description="Name of the base volume in the storage pool; it is never written.")
    format: Literal["qcow2", "raw"] = Field(default="qcow2", description="Format of the base volume.")


class Config(_Model):
    """`VMProvider.spec.config` of the type `libvirt`. It needs no Secret.

    A remote URI authenticates by what its transport finds in the operator's environment: an SSH key for
    `qemu+ssh`, a client certificate for `qemu+tls`.
    """

    uri: str = Field(
        default="qemu:///system",
        pattern=r"^[a-z][a-z0-9]*(\+[a-z0-9]+)?://[\x21-\x7e]*$",
        max_length=255,
        description="Connection URI of the libvirt host.",
    )
    pool: Name = Field(
        default="default",
        description="Storage pool for disks and base volumes; one that keeps files in a folder.",
    )
    network: Name = Field(
        default="default",
        description="Virtual network of the machines. Addresses are read from its DHCP leases.",
    )
    domain_type: DomainType = Field(
        default=DomainType.AUTO,
        description="`kvm`: hardware virtualization. `qemu`: emulation. `auto`: `kvm` if libvirt offers it and the "
        "host's x86 CPU has `vmx` or `svm`, else `qemu`; a host that offers KVM without them can hang.",
    )
    images: dict[Name, KernelImage | DiskImage] = Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description="What `template.image` may name: kernel and initrd, or a base volume.",
    )


class Parameters(_Model):
    """`VMPool.spec.template.parameters` for a libvirt provider."""

    arch: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9_]{1,16}$",
        description="Guest architecture, such as `x86_64`; the host's own by default.",
    )
    machine: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9._-]{1,63}$",
        description="Machine type, such as `q35`; libvirt's choice by default.",
    )
    cmdline: Cmdline = Field(default="", description="Appended to the kernel command line of a kernel image.")

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> "Parameters":
        """Return the checked parameters. Raises InvalidTemplate naming the first wrong one."""
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            raise InvalidTemplate(config_error("template.parameters", list(error.errors()))) from error
