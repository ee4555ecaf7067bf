"""Chains: long, wide, out of order, under authorities that may not sign (CERT-13, CERT-17 to CERT-21)."""

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

import der
from forge import HOUR, NOW, Authority, World, authority, body, leaf_extensions, new_key, pkcs8_of, signed, spki_of

PADDING = "1.3.6.1.4.1.55555.2"
MAX_CHAIN_BYTES = 16 * 1024


def below(world: World, name: str, issuer: Authority, above: list[bytes], expect: str = "refuse", **parts) -> None:
    key = new_key()
    leaf = signed(issuer, body(issuer, spki_of(key), **parts))
    world.add(name, [leaf, *above], pkcs8_of(key), expect)


def tower(root: Authority, count: int) -> tuple[Authority, list[bytes]]:
    """`count` intermediates, each under the one before; the lowest and all of them, lowest first."""
    issuer, above = root, []
    for level in range(count):
        issuer = authority(f"level {level}", issuer)
        above.insert(0, issuer.certificate)
    return issuer, above


def padded(octets: int):
    return [*leaf_extensions(), (PADDING, False, der.octets(b"\0" * octets))]


def of_length(world: World, target: int) -> tuple[bytes, bytes]:
    """A leaf that makes the chain exactly `target` bytes. A signature has 70 to 72, so it is tried."""
    key, padding = new_key(), target - len(world.issuer.certificate) - 600
    for _ in range(500):
        leaf = signed(world.issuer, body(world.issuer, spki_of(key), serial=der.integer(9), extensions=padded(padding)))
        missing = target - len(leaf) - len(world.issuer.certificate)
        if missing == 0:
            return leaf, pkcs8_of(key)
        padding += missing
    raise RuntimeError("no signature of the right length in 500")


def lengths(world: World) -> None:
    """CERT-17."""
    for count in (1, 4, 5, 8, 9, 50):
        issuer, above = tower(world.root, count)
        below(world, f"intermediates_{count}", issuer, above, "accept" if count <= 4 else "refuse")
    below(world, "directly_under_the_root", world.root, [], "accept")
    for target in (MAX_CHAIN_BYTES - 1, MAX_CHAIN_BYTES, MAX_CHAIN_BYTES + 1):
        leaf, key = of_length(world, target)
        expect = "accept" if target <= MAX_CHAIN_BYTES else "refuse"
        world.add(f"bytes_{target}", [leaf, world.issuer.certificate], key, expect)
    below(world, "kib_60_in_one", world.issuer, [world.issuer.certificate], extensions=padded(60 * 1024))
    # More than one handshake message may hold.
    below(world, "kib_64_in_one", world.issuer, [world.issuer.certificate], extensions=padded(64 * 1024))


def explosions(world: World) -> None:
    """CERT-17: authorities of one name that vouch for each other, so that every one may be above every other."""
    for count, crossed in (("100", 100), ("4", 4)):
        keys = [new_key() for _ in range(min(crossed, 8))]
        certificates, last = [], None
        for number in range(crossed):
            signer = Authority(b"", der.name("crossed"), keys[(number + 1) % len(keys)])
            last = authority_like(signer, keys[number % len(keys)])
            certificates.append(last)
        lowest = Authority(last, der.name("crossed"), keys[(crossed - 1) % len(keys)])
        below(world, f"crossed_{count}", lowest, certificates)
    one_key = new_key()
    itself = Authority(b"", der.name("crossed"), one_key)
    below(world, "one_key_4_times", itself, [authority_like(itself, one_key) for _ in range(4)])


def authority_like(issuer: Authority, key) -> bytes:
    """An authority named as its issuer is: what the builder of a library would not make."""
    extensions = [
        ("2.5.29.19", True, der.sequence(der.boolean(True))),
        ("2.5.29.15", True, der.bits(b"\x06", 1)),
    ]
    return signed(issuer, body(issuer, spki_of(key), subject=issuer.name, extensions=extensions))


def orders(world: World) -> None:
    """CERT-18."""
    issuer, above = tower(world.root, 3)
    other = authority("independent stranger")
    expired = authority("expired stranger", valid=(NOW - 3 * HOUR, NOW - HOUR))
    below(world, "reversed", issuer, above[::-1], "accept")
    below(world, "duplicated", issuer, [above[0], *above], "accept")
    below(world, "unrelated_extra", issuer, [*above, other.certificate], "accept")
    below(world, "unrelated_first", issuer, [other.certificate, *above], "accept")
    below(world, "root_included", issuer, [*above, world.root.certificate], "accept")
    below(world, "expired_extra", issuer, [*above, expired.certificate], "accept")
    below(world, "malformed_extra", issuer, [*above, b"\x30\x03\x02\x01\x01"])
    below(world, "one_missing", issuer, [above[0], above[2]])
    below(world, "none_at_all", issuer, [])
    key = new_key()
    leaf = signed(issuer, body(issuer, spki_of(key)))
    world.add("leaf_last", [*above, leaf], pkcs8_of(key))
    world.add("leaf_twice", [leaf, leaf, *above], pkcs8_of(key), "accept")


def limits(world: World) -> None:
    """CERT-19."""
    short = authority("path length 0", world.root, path_length=0)
    under = authority("under path length 0", short)
    below(world, "path_length_violated", under, [under.certificate, short.certificate])
    below(world, "path_length_kept", short, [short.certificate], "accept")
    leaf_like = authority("no authority", world.root, ca=False, signs=False)
    below(world, "no_authority", leaf_like, [leaf_like.certificate])
    unsigned = authority("may not sign", world.root, signs=False)
    below(world, "no_cert_sign", unsigned, [unsigned.certificate])
    expired = authority("expired", world.root, valid=(NOW - 2 * HOUR, NOW - HOUR))
    below(world, "expired_issuer", expired, [expired.certificate])
    future = authority("not valid yet", world.root, valid=(NOW + HOUR, NOW + 2 * HOUR))
    below(world, "future_issuer", future, [future.certificate])
    svid_key = new_key()
    svid = signed(world.issuer, body(world.issuer, spki_of(svid_key), subject=der.name("svid")))
    holder = Authority(svid, der.name("svid"), svid_key)
    below(world, "signed_by_a_workload", holder, [svid, world.issuer.certificate])


def constrained(world: World) -> None:
    """CERT-20, of an authority, and CERT-13."""
    uri, dns = x509.UniformResourceIdentifier, x509.DNSName

    def add(name: str, value, critical: bool, expect: str = "refuse") -> None:
        issuer = authority(name, world.root, extensions=[(value, critical)])
        below(world, name, issuer, [issuer.certificate], expect)

    add("uri_permitted", x509.NameConstraints([uri("corp.example")], None), True)
    add("uri_permitted_not_critical", x509.NameConstraints([uri("corp.example")], None), False)
    add("uri_excluded", x509.NameConstraints(None, [uri("corp.example")]), True)
    add("uri_excluded_elsewhere", x509.NameConstraints(None, [uri("other.example")]), True)
    add("dns_permitted", x509.NameConstraints([dns("corp.example")], None), True, "accept")
    add("dns_excluded", x509.NameConstraints(None, [dns("corp.example")]), True, "accept")
    unknown = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
    add("unknown_critical", x509.UnrecognizedExtension(unknown, der.null()), True)
    add("unknown", x509.UnrecognizedExtension(unknown, der.null()), False, "accept")
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    email = ExtendedKeyUsageOID.EMAIL_PROTECTION
    add("purpose_email", x509.ExtendedKeyUsage([email]), False)
    add("purpose_any", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)
    add("purpose_both", x509.ExtendedKeyUsage([server, client]), False, "accept")
    add("purpose_only_server", x509.ExtendedKeyUsage([server]), False)
    add("purpose_only_client", x509.ExtendedKeyUsage([client]), False)


def named_authorities(world: World) -> None:
    """CERT-21."""
    for name, uri, expect in [
        ("other_domain", "spiffe://partner.example", "refuse"),
        ("with_a_path", "spiffe://corp.example/ns/shop/sa/ca", "refuse"),
        ("upper_case", "SPIFFE://corp.example", "refuse"),
        ("upper_case_domain", "spiffe://CORP.example", "refuse"),
        ("with_a_port", "spiffe://corp.example:443", "refuse"),
        ("own_domain", "spiffe://corp.example", "accept"),
        ("own_domain_with_slash", "spiffe://corp.example/", "accept"),
        ("no_uri", None, "accept"),
        ("https_uri", "https://pki.corp.example/ca", "accept"),
    ]:
        issuer = authority(name, world.root, uri)
        below(world, name, issuer, [issuer.certificate], expect)
    upper = authority("foreign above", world.root, "spiffe://partner.example")
    lower = authority("own below", upper)
    below(world, "other_domain_further_up", lower, [lower.certificate, upper.certificate])


GROUPS = {
    "lengths": lengths,
    "explosions": explosions,
    "orders": orders,
    "limits": limits,
    "constrained": constrained,
    "named_authorities": named_authorities,
}
