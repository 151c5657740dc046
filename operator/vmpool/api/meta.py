"""What every kind shares: the base model, durations, sizes, bounded strings, validation rules."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import durationpy
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from vmpool.api.keys import MAX_OWNER_NAME


class Shape(BaseModel):
    """Base of all shapes: frozen, camelCase on the wire, docstrings become ``kubectl explain`` text.

    Unknown fields are ignored on reading: an object stored under a newer CRD must stay readable. The API server
    refuses them on writing (strict field validation).
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def wire(self) -> dict[str, Any]:
        """Return the JSON form: camelCase, times and durations as text, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


RULES = "x-kubernetes-validations"
"""Where a schema node has its rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL validation rule of a CRD schema node."""

    rule: str
    message: str
    field_path: str = ""
    reason: str = "FieldValueInvalid"
    optional_old_self: bool = False

    def wire(self) -> dict[str, Any]:
        """Return it as ``x-kubernetes-validations`` wants it."""
        made: dict[str, Any] = {"rule": self.rule, "message": self.message, "reason": self.reason}
        if self.field_path:
            made["fieldPath"] = self.field_path
        if self.optional_old_self:
            made["optionalOldSelf"] = True
        return made


@dataclass(frozen=True, slots=True)
class Matching:
    """Annotation of a string field: it must match ``pattern`` as a whole; ``message`` says so in plain words.

    A CEL rule rather than ``pattern`` in the schema: the API server then answers with the sentence, not with the
    regular expression.
    """

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler(schema)
        return {**made, RULES: [Rule(rule=self.rule(), message=self.message).wire()]}

    def rule(self, value: str = "self") -> str:
        """Return the pattern as a CEL expression on ``value``."""
        return f"{value}.matches(r'^({self.pattern})$')"

    def matches(self, value: str) -> bool:
        """Whether the whole of ``value`` matches."""
        return re.fullmatch(self.pattern, value) is not None

    def check(self, value: str) -> str:
        """Return ``value``. Raises ValueError with the message when it does not match."""
        if not self.matches(value):
            raise ValueError(f"{self.message}, is {value!r}")
        return value


DURATION = Matching(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", "must be a duration such as 90s, 15m or 2h")
_UNITS = (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000))
_MICROSECOND = timedelta(microseconds=1)


def parse_duration(value: Any) -> Any:
    """Turn a Go-style duration (``1h30m``) into a timedelta; anything but a string passes through.

    Raises ValueError for a string that is none. Units are h, m, s and ms, as the API server takes them from us.
    """
    if isinstance(value, str):
        try:
            return durationpy.from_str(DURATION.check(value))
        except durationpy.DurationError as error:
            raise ValueError(f"{DURATION.message}, is {value!r}") from error
    return value


def format_duration(value: timedelta) -> str:
    """Write a timedelta Go-style and exactly: ``2h``, ``1m30s``, ``500ms``, ``0s``."""
    left = abs(value) // _MICROSECOND
    parts = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    if left:
        parts.append(f"{left / 1000:g}ms")
    return ("-" if value < timedelta() else "") + ("".join(parts) or "0s")


def duration(at_least: str, at_most: str) -> Any:
    """Return the type of a duration field with bounds, checked by the API server and on reading alike.

    The schema has no ``format: duration``: the server's own idea of one also takes ``PT1H`` and ``1 day``.
    """
    low, high = parse_duration(at_least), parse_duration(at_most)
    message = f"must be a duration between {at_least} and {at_most}, such as 90s, 15m or 2h"

    def parse(value: Any) -> Any:
        try:
            return parse_duration(value)
        except ValueError as error:
            raise ValueError(f"{message}, is {value!r}") from error

    def within(value: timedelta) -> timedelta:
        if not low <= value <= high:
            raise ValueError(f"{message}, is {format_duration(value)}")
        return value

    rule = f"{DURATION.rule()} && duration(self) >= duration('{at_least}') && duration(self) <= duration('{at_most}')"
    schema = {
        "type": "string",
        "maxLength": 32,
        RULES: [Rule(rule=rule, message=message).wire()],
    }
    return Annotated[
        timedelta,
        BeforeValidator(parse),
        AfterValidator(within),
        PlainSerializer(format_duration, return_type=str),
        WithJsonSchema(schema),
    ]


def format_time(moment: datetime) -> str:
    """Write a time as Kubernetes does: UTC, microseconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[
    AwareDatetime,
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]

MIB_PER_GIB = 1024


def mebibytes(size: str) -> int:
    """Return how many MiB a size such as ``512Mi`` or ``2Gi`` is."""
    number = int(size[:-2])
    return number * MIB_PER_GIB if size.endswith("Gi") else number


Size = Annotated[
    str,
    Field(min_length=1, max_length=9),
    Matching(r"[1-9][0-9]{0,6}(Mi|Gi)", "must be a size from 1Mi to 9999999Gi, such as 512Mi or 4Gi"),
]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL = Matching(_LABEL, "must be lower-case letters, digits and dashes, with no dash at either end")
SUBDOMAIN = Matching(
    rf"{_LABEL}(\.{_LABEL})*", "must be words of lower-case letters, digits and inner dashes, joined by dots"
)

OwnerName = Annotated[str, Field(min_length=1, max_length=MAX_OWNER_NAME), LABEL]
ObjectName = Annotated[str, Field(min_length=1, max_length=253), SUBDOMAIN]
Uid = Annotated[str, Field(min_length=1, max_length=64)]
Word = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=1024)]
Fingerprint = Annotated[
    str, Field(min_length=1, max_length=16), Matching(r"[0-9a-f]+", "must be lower-case hexadecimal digits")
]
"""What stands for failures that are alike."""

MAX_COUNT = 1_000_000
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""How many of something were seen: bounded far above what can be, so that the truth can always be written."""
Generation = Annotated[int, Field(ge=-1, le=2**31 - 1)]
"""A metadata.generation; -1 before the first look."""

MAX_AMOUNT = 10_000
_PERCENT = Matching(r"(100|[1-9]?[0-9])%", f"must be a number from 0 to {MAX_AMOUNT} or a percentage from 0% to 100%")


def _int_or_percent(value: Any) -> Any:
    if isinstance(value, str) and _PERCENT.matches(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_AMOUNT:
        return value
    raise ValueError(f"{_PERCENT.message}, is {value!r}")


IntOrPercent = Annotated[
    int | str,
    BeforeValidator(_int_or_percent),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 4,
            RULES: [
                Rule(
                    rule=f"type(self) == int ? self >= 0 && self <= {MAX_AMOUNT} : {_PERCENT.rule()}",
                    message=_PERCENT.message,
                ).wire()
            ],
        }
    ),
]


def resolve(amount: int | str, whole: int, *, round_up: bool) -> int:
    """Return an int-or-percent of ``whole`` as a number, rounded as a Deployment does it."""
    if isinstance(amount, int):
        return amount
    share = int(amount[:-1]) * whole
    return -(-share // 100) if round_up else share // 100
