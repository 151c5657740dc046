"""Ask a directory one question: a process that reads it from standard input, answers on standard output, and ends.

The question and the answer are JSON objects. It imports no other part of vmpool, so that it starts quickly, and is the
only one that imports bonsai; why it is a process stands in ``ldap``. Whoever started it ends it when it takes too long.
"""

import json
import sys
from typing import Any

import bonsai
from bonsai.errors import InvalidDN, NoSuchObjectError, PasswordPolicyError, UnwillingToPerform

WRONG = (bonsai.AuthenticationError, InvalidDN, NoSuchObjectError, UnwillingToPerform, PasswordPolicyError)
"""What a directory says to a bind that is not to be: wrong, no such entry, locked."""

Json = dict[str, Any]


class _NoAnswer(Exception):
    """The directory could not be asked; the message says why, without anything secret."""


def answer(question: Json) -> Json:
    """Return ``result`` right, wrong, ambiguous, or failed with ``why``."""
    try:
        if "account" in question:
            return {"result": _search_and_bind(question)}
        for dn in question["dns"]:
            if _binds(question, dn):
                return {"result": "right"}
    except _NoAnswer as error:
        return {"result": "failed", "why": str(error)}
    return {"result": "wrong"}


def _search_and_bind(question: Json) -> str:
    account = question["account"]
    found: set[str] = set()
    try:
        with _client(question, account["dn"], account["password"]).connect(timeout=question["seconds"]) as connection:
            for base in question["bases"]:
                entries = connection.search(
                    base,
                    bonsai.LDAPSearchScope.SUBTREE,
                    question["filter"],
                    attrlist=["1.1"],
                    timeout=question["seconds"],
                    sizelimit=2,
                )
                found |= {str(entry.dn) for entry in entries}
    except bonsai.errors.SizeLimitError:
        return "ambiguous"
    except WRONG as error:
        raise _NoAnswer(f"the directory refuses ldap_bind_dn or its password ({type(error).__name__})") from None
    except bonsai.LDAPError as error:
        raise _trouble(error) from None
    if len(found) > 1:
        return "ambiguous"
    # Without an entry the same is done with a name that the search has just ruled out: time shall not tell who exists.
    right = _binds(question, next(iter(found), question["decoy"]))
    return "right" if found and right else "wrong"


def _binds(question: Json, dn: str) -> bool:
    """Say whether the password is that of this entry."""
    try:
        _client(question, dn, question["password"]).connect(timeout=question["seconds"]).close()
    except WRONG:
        return False
    except bonsai.LDAPError as error:
        raise _trouble(error) from None
    return True


def _client(question: Json, dn: str, password: str) -> bonsai.LDAPClient:
    # The password goes nowhere without TLS: where StartTLS is refused, connecting fails before the bind.
    client = bonsai.LDAPClient(question["url"], tls=question["url"].startswith("ldap:"))
    client.set_cert_policy("demand")
    client.set_ca_cert(question["ca"])
    client.set_credentials("SIMPLE", user=dn, password=password)
    return client


def _trouble(error: bonsai.LDAPError) -> _NoAnswer:
    return _NoAnswer(f"the directory could not be asked: {error.args[0] if error.args else type(error).__name__}")


if __name__ == "__main__":
    json.dump(answer(json.loads(sys.stdin.buffer.read())), sys.stdout)
