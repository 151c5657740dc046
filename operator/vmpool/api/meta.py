"""What every kind shares: the base model, durations, sizes, bounded strings, validation rules."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import durationpy
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel


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


DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"


def parse_duration(value: Any) -> Any:
    """Turn a Go-style duration (``1h30m``) into a timedelta; anything but a string passes through."""
    if isinstance(value, str):
        try:
            return durationpy.from_str(value)
        except durationpy.DurationError as error:
            raise ValueError(f"not a duration like 90s, 15m or 2h: {value!r}") from error
    return value


def format_duration(value: timedelta) -> str:
    """Write a timedelta Go-style: ``2h``, ``1m30s``, ``500ms``."""
    return str(durationpy.to_str(value))


def duration(at_least: str, at_most: str) -> Any:
    """Return the type of a duration field with bounds, checked by the API server and on reading alike."""
    low, high = parse_duration(at_least), parse_duration(at_most)

    def within(value: timedelta) -> timedelta:
        if not low <= value <= high:
            raise ValueError(f"must be between {at_least} and {at_most}, is {format_duration(value)}")
        return value

    schema = {
        "type": "string",
        "format": "duration",
        "pattern": DURATION_PATTERN,
        "maxLength": 32,
        "x-kubernetes-validations": [
            Rule(
                rule=f"self >= duration('{at_least}') && self <= duration('{at_most}')",
                message=f"must be a duration between {at_least} and {at_most}",
            ).wire()
        ],
    }
    return Annotated[
        timedelta,
        BeforeValidator(parse_duration),
        AfterValidator(within),
        PlainSerializer(format_duration, return_type=str),
        WithJsonSchema(schema),
    ]


def format_time(moment: datetime) -> str:
    """Write a time as Kubernetes does: UTC, microseconds, ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[
    datetime,
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]

SIZE_PATTERN = r"^[1-9][0-9]{0,6}(Mi|Gi)$"
MIB_PER_GIB = 1024


def mebibytes(size: str) -> int:
    """Return how many MiB a size such as ``512Mi`` or ``2Gi`` is."""
    number = int(size[:-2])
    return number * MIB_PER_GIB if size.endswith("Gi") else number


Size = Annotated[str, Field(pattern=SIZE_PATTERN, max_length=9)]

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

OwnerName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=52)]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]
Uid = Annotated[str, Field(min_length=1, max_length=64)]
Word = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=1024)]

_PERCENT = r"^(100|[1-9]?[0-9])%$"


def _int_or_percent(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a number or a percentage such as 25%")  # pydantic wants it
    if isinstance(value, str) and not (value.endswith("%") and value[:-1].isdigit() and int(value[:-1]) <= 100):
        raise ValueError("must be a percentage between 0% and 100%")
    if isinstance(value, int) and value < 0:
        raise ValueError("must not be negative")
    return value


IntOrPercent = Annotated[
    int | str,
    BeforeValidator(_int_or_percent),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 4,
            "x-kubernetes-validations": [
                Rule(
                    rule=f"type(self) == int ? self >= 0 && self <= 10000 : self.matches('{_PERCENT}')",
                    message="must be a number from 0 to 10000 or a percentage from 0% to 100%",
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
