"""An archive of dead letters in an S3-compatible bucket: an object a batch, by day."""

import gzip
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import obstore
import orjson
from obstore.exceptions import BaseError
from obstore.store import S3Store

from vmpool.api.deadletterqueue import Bucket
from vmpool.engine.archive import SUFFIX, ArchiveError, Secrets, day_of
from vmpool.kube.errors import KubeError
from vmpool.kube.resource import Json

if TYPE_CHECKING:
    from obstore.store import S3Config

KEYS = {"accessKeyId": "access_key_id", "secretAccessKey": "secret_access_key"}
MESSAGE_MAX = 300
BATCH_DIGITS = 20


class BucketArchive:
    """``<prefix><namespace>/<queue>/<YYYY-MM-DD>/<batch>-<count>.jsonl.gz``, by the day of the failure in UTC.

    ``batch`` is a hash of what it holds: one that is stored again after a lost answer replaces itself, and no other.
    """

    def __init__(self, spec: Bucket, namespace: str, queue: str, secrets: Secrets, *, timeout: timedelta) -> None:
        self._spec = spec
        self._place = f"{spec.prefix}{namespace}/{queue}/"
        self._secrets = secrets
        self._timeout = timeout
        self._store: Any = None

    async def check(self) -> None:
        """Return when the bucket answers and lets us look into it. Raises ArchiveError when not."""
        await self._guarded(lambda store: obstore.list(store, prefix=self._place, chunk_size=1).__anext__())

    async def store(self, letters: Sequence[Json]) -> None:
        """Put the letters into the bucket, an object a day. Raises ArchiveError."""
        by_day: defaultdict[str, list[Json]] = defaultdict(list)
        for letter in letters:
            by_day[day_of(letter)].append(letter)
        for day, of_day in sorted(by_day.items()):
            key = f"{self._place}{day}/{_batch(of_day)}-{len(of_day)}{SUFFIX}"
            lines = b"".join(orjson.dumps(letter) + b"\n" for letter in of_day)
            await self._guarded(partial(obstore.put_async, path=key, file=gzip.compress(lines)))

    async def _guarded(self, work: Callable[[Any], Awaitable[object]]) -> None:
        """Do something with the bucket; after an error the credentials are read anew."""
        try:
            self._store = self._store or await self._open()
            await work(self._store)
        except StopAsyncIteration:
            pass
        except (BaseError, KubeError, OSError, ValueError) as error:
            self._store = None
            why = str(error).splitlines()[0][:MESSAGE_MAX] if str(error) else type(error).__name__
            raise ArchiveError(f"archive bucket {self._spec.bucket}: {why}") from error

    async def _open(self) -> Any:
        spec = self._spec
        found = await self._secrets(spec.secret_ref.name) if spec.secret_ref is not None else {}
        if spec.secret_ref is not None and (missing := sorted(KEYS.keys() - found.keys())):
            raise ValueError(f"Secret {spec.secret_ref.name} lacks {' and '.join(missing)}")
        known: dict[str, Any] = {KEYS[name]: found[name] for name in KEYS if name in found}
        if spec.endpoint is not None:
            known["endpoint"] = spec.endpoint
        # One try each: the queue's own pauses say when the next one comes.
        return S3Store(
            spec.bucket,
            config=cast("S3Config", known),
            region=spec.region,
            virtual_hosted_style_request=spec.endpoint is None,
            client_options={"allow_http": (spec.endpoint or "").startswith("http://"), "timeout": self._timeout},
            retry_config={"max_retries": 0, "retry_timeout": self._timeout},
        )


def _batch(letters: Sequence[Json]) -> str:
    """Return what stands for exactly these versions of these letters."""
    versions = (f"{one['metadata']['uid']}/{one['metadata'].get('resourceVersion', '')}" for one in letters)
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:BATCH_DIGITS]
