"""Where a webhook may go: https to public addresses only.

A callback URL comes from a client, so it may point anywhere: at the metadata service, into a private network,
at a name that changes its answer between check and connect. It is checked when the call is accepted (syntax
and literals, names where they resolve at once), and bindingly when it is sent: the connection is made to an
address that was just checked, and to no other (transport.py).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORTS = frozenset({443})

# 64:ff9b::/96 and 2002::/16 carry an IPv4 address to whatever a gateway makes of it.
_TRANSLATED = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("2001::/32"),
    ipaddress.IPv6Network("::/96"),
)


class AddressRefused(ValueError):
    """The URL or address may not be called; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """ports: those allowed, 443 unless an operator lists more. loopback: the local stack's own receiver is
    at http://127.0.0.1; never set on AWS."""

    ports: frozenset[int] = DEFAULT_PORTS
    loopback: bool = False


def check_url(url: str, policy: Policy) -> None:
    """Raises AddressRefused when the URL may not be called, whatever its name resolves to."""
    if any(ord(char) <= 32 or ord(char) == 127 for char in url) or "\\" in url:
        raise AddressRefused("must not hold white space, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise AddressRefused("is not a valid URL") from exc
    host = parts.hostname
    if not host:
        raise AddressRefused("must be an absolute https URL")
    if policy.loopback and _is_loopback(host):
        if parts.scheme not in ("http", "https"):
            raise AddressRefused("must be an absolute https URL")
        return
    _check_public_url(parts, host, port, policy)


def _check_public_url(parts: SplitResult, host: str, port: int | None, policy: Policy) -> None:
    if parts.scheme != "https":
        raise AddressRefused("must be an absolute https URL")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise AddressRefused("must not carry a user name or password")
    if (443 if port is None else port) not in policy.ports:
        raise AddressRefused(f"must use port {', '.join(map(str, sorted(policy.ports)))}")
    if not host.isascii():
        raise AddressRefused("must write its host name in ASCII (punycode)")
    if "[" in parts.netloc or _is_literal(host):
        raise AddressRefused("must name a host, not an IP address")
    labels = host.split(".")
    if len(labels) < 2 or len(host) > 253 or not all(_is_label(label) for label in labels):
        raise AddressRefused("must name a public host")
    if labels[-1] in ("local", "localhost", "internal", "localdomain", "home", "lan", "arpa"):
        raise AddressRefused("must name a public host")


def check_addresses(host: str, addresses: Iterable[str], policy: Policy) -> list[str]:
    """The addresses of a host, if every one is public (one private among public ones is an attack).

    Raises AddressRefused otherwise, and when there are none.
    """
    found = list(addresses)
    if not found:
        raise AddressRefused(f"{host} has no address")
    for address in found:
        if not is_public(address) and not (policy.loopback and ipaddress.ip_address(address).is_loopback):
            raise AddressRefused(f"{host} resolves to an address that is not public")
    return found


def is_public(address: str) -> bool:
    """Whether this IP address (without a zone) is one of the public Internet's."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return False
        if any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, by the system's resolver. Raises OSError when it has no answer."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return True
    # The system's resolver also takes 2130706433, 0x7f.1 and 0177.0.0.1 for 127.0.0.1: a name whose last
    # label is a number, in any base, is an address (WHATWG URL, "ends in a number").
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last[:2].lower() == "0x"


def _is_label(label: str) -> bool:
    return (
        1 <= len(label) <= 63
        and all(char.isalnum() or char in "-_" for char in label)
        and not label.startswith("-")
        and not label.endswith("-")
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
