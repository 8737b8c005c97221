"""Rules for callback URLs: https to public addresses only. Checked at the POST of a call and at each send.

A callback URL comes from a client, so it may point anywhere: at the metadata service, into a private network,
at a name whose DNS answer changes between check and connect. When the call is placed, syntax and IP literals are
checked, and host names if they resolve in time. The decisive check is made at each send: the connection goes to an
address that was just checked, and to no other (webhook_dispatch/transport.py).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORTS = frozenset({443})

# Host name and port → all its addresses. Raises OSError (TimeoutError is one) without an answer.
LookUp = Callable[[str, int], list[str]]

# The rest of IPv6 is local, multicast, mapped IPv4 or unassigned
# (https://www.iana.org/assignments/ipv6-address-space).
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")

# Networks that `ipaddress` of some Python version reports as public and that are not
# (https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry). Those that embed an
# IPv4 address may be translated to it by a gateway.
_NOT_PUBLIC = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # IETF protocols
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.IPv6Network("2001::/23"),  # Teredo (carries IPv4), benchmarks, ORCHID
    ipaddress.IPv6Network("2002::/16"),  # 6to4 (carries IPv4)
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)


class AddressRefusedError(ValueError):
    """The URL or address may not be called; the message gives the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """ports: the allowed ones, 443 unless an operator lists others. loopback: allow http://127.0.0.1, the local
    stack's own receiver; never set on AWS."""

    ports: frozenset[int] = DEFAULT_PORTS
    loopback: bool = False


def callback_policy(environment: Mapping[str, str]) -> Policy:
    """CALLBACK_PORTS: the operator's list, `443,8443`. ALLOW_LOOPBACK_CALLBACKS: the local stack only.

    The latter takes effect only if AWS is emulated on loopback, so it cannot be set in a deployment.
    """
    ports = environment.get("CALLBACK_PORTS", "")
    emulated = urlsplit(environment.get("AWS_ENDPOINT_URL", "")).hostname in ("127.0.0.1", "localhost")
    return Policy(
        ports=frozenset(int(port) for port in ports.split(",") if port.strip()) or DEFAULT_PORTS,
        loopback=emulated and environment.get("ALLOW_LOOPBACK_CALLBACKS") == "1",
    )


def check_url(url: str, policy: Policy) -> None:
    """Raises AddressRefusedError when the URL may not be called; does not resolve its host name."""
    if any(ord(char) <= 32 or ord(char) == 127 for char in url) or "\\" in url:
        raise AddressRefusedError("must not hold white space, control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise AddressRefusedError("is not a valid URL") from exc
    host = parts.hostname
    if not host:
        raise AddressRefusedError("must be an absolute https URL")
    if policy.loopback and _is_loopback(host):
        if parts.scheme not in ("http", "https"):
            raise AddressRefusedError("must be an absolute https URL")
        return
    _check_public_url(parts, host, port, policy)


def _check_public_url(parts: SplitResult, host: str, port: int | None, policy: Policy) -> None:
    if parts.scheme != "https":
        raise AddressRefusedError("must be an absolute https URL")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise AddressRefusedError("must not carry a user name or password")
    if (443 if port is None else port) not in policy.ports:
        raise AddressRefusedError(f"must use port {', '.join(map(str, sorted(policy.ports)))}")
    if not host.isascii():
        raise AddressRefusedError("must write its host name in ASCII (punycode)")
    if "[" in parts.netloc or _is_literal(host):
        raise AddressRefusedError("must name a host, not an IP address")
    labels = host.split(".")
    if len(labels) < 2 or len(host) > 253 or not all(_is_label(label) for label in labels):
        raise AddressRefusedError("must name a public host")
    if labels[-1] in ("local", "localhost", "internal", "localdomain", "home", "lan", "arpa"):
        raise AddressRefusedError("must name a public host")


def check_addresses(addresses: Iterable[str], policy: Policy) -> list[str]:
    """The addresses of a host, if every one is public (one private among public ones is an attack).

    Raises AddressRefusedError otherwise, and for an empty list.
    """
    found = list(addresses)
    if not found:
        raise AddressRefusedError("names a host that has no address")
    for address in found:
        if not is_public(address) and not (policy.loopback and _is_loopback(address)):
            raise AddressRefusedError("names a host with an address that is not public")
    return found


def check_name(url: str, policy: Policy, look_up: LookUp) -> None:
    """Raises AddressRefusedError when the host name of this URL (which passed `check_url`) resolves to an address
    that is not public.

    A name that does not resolve in time passes: the decisive check is made at every connection.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if policy.loopback and _is_loopback(host):
        return
    try:
        found = look_up(host, parts.port or 443)
    except OSError:
        return
    if found:
        check_addresses(found, policy)


def is_public(address: str) -> bool:
    """Whether this IP address is public."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _IPV6_UNICAST:
        return False
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, from the system's resolver. Raises OSError when it has no answer."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def resolve_within(seconds: float) -> LookUp:
    """`resolve` with a time-out in seconds, after which it raises TimeoutError.

    getaddrinfo cannot be canceled, so it runs in a thread that may outlive the time-out. The pool is small: while
    all its threads hang, later look-ups time out.
    """
    threads = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="look-up")

    def look_up(host: str, port: int) -> list[str]:
        answer = threads.submit(resolve, host, port)
        try:
            return answer.result(seconds)
        finally:
            answer.cancel()

    return look_up


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return True
    # The system's resolver also reads 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1: a name whose last
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
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
