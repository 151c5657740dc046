"""Writes an image as an archive that containerd and other engines import."""

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

from tests.node.builder import Layer
from tests.node.dockerfile import Stage

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MODE = 0o777


def write(archive: Path, name: str, layers: list[Path], settings: dict[str, Any]) -> None:
    """Write ``archive``, an image of these tar files that is called ``name``, with the settings of its containers."""
    blobs = [(file, _digest(file)) for file in layers]
    root = {"type": "layers", "diff_ids": [f"sha256:{digest}" for _, digest in blobs]}
    machine = ARCHITECTURES[os.uname().machine]
    config = json.dumps({"architecture": machine, "os": "linux", "config": settings, "rootfs": root}).encode()
    described = [_descriptor(LAYER, digest, file.stat().st_size) for file, digest in blobs]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": _of(CONFIG, config), "layers": described}
    ).encode()
    named = {**_of(MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}).encode()
    with tarfile.open(archive, "w") as out:
        for path, content in (("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", index)):
            _add(out, path, content)
        for content in (config, manifest):
            _add(out, f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content)
        for file, digest in blobs:
            out.add(file, f"blobs/sha256/{digest}")


def pack(layer: Layer, folder: Path) -> Path:
    """The tar file of a layer, kept in ``folder`` under its key; the same content gives the same bytes.

    A step that removes files of the layers below is refused: nothing here needs that.
    """
    done = folder / f"{layer.key}.tar"
    if not done.exists():
        draft = folder / f".{layer.key}.draft"
        with tarfile.open(draft, "w") as out:
            for path in sorted(layer.files.rglob("*")):
                info = path.lstat()
                assert not stat.S_ISCHR(info.st_mode), f"{path} is a removal"
                out.add(path, path.relative_to(layer.files).as_posix(), recursive=False, filter=_timeless)
        draft.rename(done)
    return done


def settings(stage: Stage) -> dict[str, Any]:
    """What the last stage of a Dockerfile says of its containers."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **stage.pairs("ENV")}
    return {
        "User": stage.last("USER"),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Entrypoint": stage.listed("ENTRYPOINT"),
        "Cmd": stage.listed("CMD"),
        "Labels": stage.pairs("LABEL"),
        "ExposedPorts": {f"{port}/tcp": {} for port in stage.last("EXPOSE").split()},
    }


def _timeless(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = 0
    return info


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _of(kind: str, content: bytes) -> dict[str, Any]:
    return _descriptor(kind, hashlib.sha256(content).hexdigest(), len(content))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _add(out: tarfile.TarFile, path: str, content: bytes) -> None:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    out.addfile(info, io.BytesIO(content))
