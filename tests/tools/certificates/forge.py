"""Certificates made with Python's `cryptography`: authorities by its builder, leaves part by part."""

import datetime
import os
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import der

ORDER = "spiffe://corp.example/ns/shop/sa/order"
HOUR = datetime.timedelta(hours=1)
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)

SAN, USAGE, CONSTRAINTS, PURPOSES = "2.5.29.17", "2.5.29.15", "2.5.29.19", "2.5.29.37"
NAME_CONSTRAINTS, KEY_ID, ISSUER_KEY_ID = "2.5.29.30", "2.5.29.14", "2.5.29.35"
SERVER_AUTH, CLIENT_AUTH = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"

ECDSA_SHA256 = der.sequence(der.oid("1.2.840.10045.4.3.2"))
OTHER, EMAIL, DNS, DIRECTORY, URI, ADDRESS, REGISTERED = 0xA0, 0x81, 0x82, 0xA4, 0x86, 0x87, 0x88


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def spki_of(key) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def pkcs8_of(key) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain)


def names(*general_names: tuple[int, bytes]) -> bytes:
    return der.sequence(*(der.element(tag, content) for tag, content in general_names))


def purposes(*dotted: str) -> bytes:
    return der.sequence(*(der.oid(purpose) for purpose in dotted))


def constraints(authority: bool, path_length: int | None = None) -> bytes:
    parts = [der.boolean(True)] if authority else []
    if path_length is not None:
        parts.append(der.integer(path_length))
    return der.sequence(*parts)


def usage(octet: int) -> bytes:
    """digitalSignature 0x80, keyCertSign 0x04, cRLSign 0x02."""
    unused = (octet & -octet).bit_length() - 1
    return der.bits(bytes([octet]), unused)


def extension(oid: str, critical: bool, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.boolean(True) if critical else b"", der.octets(value))


def leaf_extensions(san: bytes | None = None) -> list[tuple[str, bool, bytes]]:
    """What a leaf in order says, in this order; `san` in place of its one name."""
    return [
        (CONSTRAINTS, True, constraints(False)),
        (USAGE, True, usage(0x80)),
        (PURPOSES, False, purposes(SERVER_AUTH, CLIENT_AUTH)),
        (SAN, True, names((URI, ORDER.encode())) if san is None else san),
    ]


def without(extensions, oid):
    return [found for found in extensions if found[0] != oid]


@dataclass
class Authority:
    """Somebody who signs: a certificate, its subject and its key."""

    certificate: bytes
    name: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, body: bytes) -> bytes:
        return self.key.sign(body, ec.ECDSA(hashes.SHA256()))

    def key_id(self) -> bytes:
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest


def authority(common_name, issuer=None, uri="spiffe://corp.example", **more) -> Authority:
    """A root, or an intermediate under `issuer`, in order, as the builder of `cryptography` makes it.

    `more`: path_length, extensions (those of the builder), key, valid (a pair of moments), signs (keyCertSign).
    """
    key = more.get("key") or new_key()
    before, after = more.get("valid", (NOW - 2 * HOUR, NOW + 2 * HOUR))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer_name = x509.Name.from_rfc4514_string(f"CN={common_name}") if issuer is None else _name_of(issuer)
    flags = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"], False
    )
    signs = more.get("signs", True)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(before)
        .not_valid_after(after)
        .add_extension(x509.BasicConstraints(more.get("ca", True), more.get("path_length")), True)
        .add_extension(x509.KeyUsage(not signs, key_cert_sign=signs, crl_sign=signs, **flags), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if uri is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
    for value, critical in more.get("extensions", []):
        builder = builder.add_extension(value, critical)
    signed = builder.sign(key if issuer is None else issuer.key, hashes.SHA256())
    return Authority(signed.public_bytes(serialization.Encoding.DER), signed.subject.public_bytes(), key)


def _name_of(issuer: Authority) -> x509.Name:
    return x509.load_der_x509_certificate(issuer.certificate).subject


def body(issuer: Authority, spki: bytes, **parts) -> bytes:
    """The signed part of a leaf. Each of `parts` replaces one part in order: version, serial, algorithm,
    issuer_name, subject, before, after, extensions (a list or the whole field), tail (bytes behind it all)."""
    extensions = parts.get("extensions")
    if extensions is None:
        extensions = leaf_extensions()
    if not isinstance(extensions, bytes):
        listed = der.sequence(*(extension(*one) for one in extensions))
        extensions = der.element(0xA3, listed)
    serial = 1 + int.from_bytes(os.urandom(15), "big")
    return der.sequence(
        parts.get("version", der.element(0xA0, der.integer(2))),
        parts.get("serial", der.integer(serial)),
        parts.get("algorithm", ECDSA_SHA256),
        parts.get("issuer_name", issuer.name),
        der.sequence(der.utc(parts.get("before", NOW - HOUR)), der.utc(parts.get("after", NOW + HOUR))),
        parts.get("subject", der.name(None)),
        spki,
        extensions,
        parts.get("tail", b""),
    )


def signed(issuer: Authority, signed_part: bytes, algorithm: bytes = ECDSA_SHA256) -> bytes:
    return der.sequence(signed_part, algorithm, der.bits(issuer.sign(signed_part)))


@dataclass
class World:
    """A root that the victim trusts, an intermediate under it, and the cases made so far."""

    root: Authority
    issuer: Authority
    cases: list[dict] = field(default_factory=list)

    @classmethod
    def new(cls) -> "World":
        root = authority("independent root")
        return cls(root, authority("independent issuer", root))

    def add(self, name: str, chain: list[bytes], key=None, expect: str = "refuse") -> None:
        """A case. Without `key` the attacker signs the handshake with nothing of worth."""
        self.cases.append({"name": name, "expect": expect, "chain": chain, "key": key})

    def leaf(self, name: str, expect: str = "refuse", key=None, **parts) -> None:
        """A case of one bent leaf under the intermediate."""
        key = key or new_key()
        whole = signed(self.issuer, body(self.issuer, spki_of(key), **parts))
        self.add(name, [whole, self.issuer.certificate], pkcs8_of(key), expect)
