"""Pieces of JSON schema that several tables of routes share."""

from vmpool.gateway.routes import Schema

COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}


def record(required: dict[str, Schema], **optional: Schema) -> Schema:
    """Return the schema of an object with exactly these fields, of which the first are always there."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def table(of: Schema) -> Schema:
    """Return the schema of an object whose names are data."""
    return {"type": "object", "additionalProperties": of}


def refused(**fields: Schema) -> Schema:
    """Return the schema of a refusal that always has these fields; others may stand there as well."""
    return {
        "type": "object",
        "properties": {"ok": {"const": False}, "error": TEXT, **fields},
        "required": ["ok", *fields],
        "additionalProperties": True,
    }
