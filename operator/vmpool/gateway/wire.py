"""From what a handler says to bytes: indented JSON as VMPooler writes it, packed where that is worth it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.web_response import ContentCoding

JSON = "application/json"
TEXT = "text/plain"
SERVER = "vmpool"
PACK_FROM_BYTES = 1400
"""Smaller answers fit into one packet anyway."""

_GZIP = re.compile(r"(?:^|,)\s*(?:gzip|x-gzip|\*)\s*(?:;\s*q=([\d.]+)\s*)?(?=,|$)", re.IGNORECASE)


def document(body: Any) -> bytes:
    """Return indented JSON. Characters that no UTF-8 can hold, which headers and paths can bring, become ``?``."""
    try:
        return orjson.dumps(body, option=orjson.OPT_INDENT_2)
    except TypeError:
        return json.dumps(body, indent=2, ensure_ascii=False).encode(errors="replace")


def accepts_gzip(header: str) -> bool:
    """Say whether an Accept-Encoding header allows gzip."""
    found = _GZIP.search(header)
    if found is None:
        return False
    try:
        return float(found[1] or 1) > 0
    except ValueError:
        return False


def response(
    request: web.BaseRequest, status: int, body: Any, headers: Mapping[str, str], text: str = ""
) -> web.Response:
    """Return what is sent for an answer or a refusal; ``text`` is sent in the place of ``body``."""
    content = text.encode(errors="replace") if text else document(body)
    answer = web.Response(
        body=content,
        status=status,
        content_type=TEXT if text else JSON,
        # VMPooler's JSON has no charset: the standard knows only one.
        charset="utf-8" if text else None,
    )
    # aiohttp would tell its version and Python's.
    answer.headers["Server"] = SERVER
    for name, value in headers.items():
        answer.headers[name] = value
    if len(content) >= PACK_FROM_BYTES:
        answer.headers["Vary"] = "Accept-Encoding"
        if accepts_gzip(request.headers.get("Accept-Encoding", "")):
            answer.enable_compression(ContentCoding.gzip)
    return answer
