"""What is sent to a directory, without one: settings, escapes, logins."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.gateway.auth.ldap import LdapSettings, canonical, direct_dn, escaped, search_filter
from vmpool.settings import GatewaySettings

SYSTEM_CA = ssl.get_default_verify_paths().cafile
GOOD = {"auth": "ldap", "ldap_url": "ldap://ldap.example.org", "ldap_base": "dc=example,dc=org"}


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Settings that are right, with a file of authorities that is a real one."""
    if SYSTEM_CA is None:
        pytest.skip("this system has no file of trusted authorities")
    (tmp_path / "password").write_text("secret\n")
    return {**GOOD, "ldap_ca_file": SYSTEM_CA}


def settings(given: dict[str, Any]) -> LdapSettings:
    return LdapSettings.of(GatewaySettings(**given))


def test_good_settings(good: dict[str, Any], tmp_path: Path) -> None:
    made = settings(
        good
        | {
            "ldap_base": "ou=a,dc=x; ou=b,dc=x ;",
            "ldap_user_attribute": "uid, mail",
            "ldap_bind_dn": "cn=search,dc=x",
            "ldap_bind_password_file": str(tmp_path / "password"),
        }
    )
    assert made.url == "ldap://ldap.example.org:389"
    assert made.bases == ("ou=a,dc=x", "ou=b,dc=x")
    assert made.attributes == ("uid", "mail")
    assert made.bind_password() == "secret"
    assert "secret" not in repr(made)
    assert settings(good | {"ldap_url": "ldaps://[::1]"}).url == "ldaps://[::1]:636"
    assert settings(good | {"ldap_url": "ldaps://h:7/"}).url == "ldaps://h:7"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ldap_url": ""}, "ldap_url must be"),
        ({"ldap_url": "http://h"}, "ldap_url must be .*, not 'http://h'"),
        ({"ldap_url": "ldap://"}, "ldap_url must be"),
        ({"ldap_url": "ldap://h:99999"}, "ldap_url must be"),
        ({"ldap_url": "ldap://h/dc=x"}, "the base DN is ldap_base"),
        ({"ldap_url": "ldap://cn=x:hush@h"}, "without a user"),
        ({"ldap_url": "ldapi:///run/x"}, "ldap_url must be"),
        ({"ldap_base": " ; "}, "ldap_base must name at least one"),
        ({"ldap_user_attribute": "uid,(x"}, r"ldap_user_attribute '\(x'"),
        ({"ldap_user_attribute": ","}, "1 to 16 combinations, not 1 times 0"),
        ({"ldap_base": ";".join("abcde"), "ldap_user_attribute": "a,b,c,d"}, "not 5 times 4"),
        ({"ldap_bind_dn": "cn=x"}, "ldap_bind_password_file is missing"),
        ({"ldap_bind_password_file": "x"}, "ldap_bind_dn is missing"),
        ({"ldap_bind_dn": "cn=x", "ldap_bind_password_file": "/none"}, "'/none' cannot be read"),
        ({"ldap_bind_dn": "cn=x", "ldap_bind_password_file": "/dev/null"}, "'/dev/null' is empty"),
        ({"ldap_ca_file": "/none"}, "ldap_ca_file '/none' holds no certificates"),
        ({"ldap_ca_file": "/dev/null"}, "ldap_ca_file '/dev/null' holds no certificates"),
    ],
)
def test_bad_settings_are_named(good: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        settings(good | change)
    assert "hush" not in str(caught.value)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_nothing_that_means_anything_is_left(text: str) -> None:
    safe = escaped(text)
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@\\")
    parts = safe.split("\\")
    raw = parts[0].encode() + b"".join(bytes([int(part[:2], 16)]) + part[2:].encode() for part in parts[1:])
    assert raw.decode() == text


def test_filters_and_names() -> None:
    assert search_filter("*)(uid=*", ("uid",)) == r"(uid=\2a\29\28uid\3d\2a)"
    assert search_filter("bob", ("uid", "mail")) == "(|(uid=bob)(mail=bob))"
    assert direct_dn("bob,ou=x", "uid", "dc=y") == r"uid=bob\2cou\3dx,dc=y"
    assert direct_dn(" #b", "uid", "dc=y") == r"uid=\20\23b,dc=y"


@pytest.mark.parametrize(
    ("login", "name"),
    [
        ("Alice", "alice"),
        ("ＡＬＩＣＥ", "alice"),
        ("Straße", "strasse"),
        ("a b", "a b"),
        ("*", "*"),
        ("", None),
        (" alice", None),
        ("alice ", None),
        ("a  b", None),
        ("a\u00a0 b", None),
        ("al\0ice", None),
        ("al\nice", None),
        ("a\udcff", None),
        ("a" * 129, None),
    ],
)
def test_one_way_to_write_a_login(login: str, name: str | None) -> None:
    assert canonical(login) == name


@given(st.text(max_size=40))
def test_what_is_canonical_stays_so(text: str) -> None:
    name = canonical(text)
    assert name is None or canonical(name) == name
