"""Signing requests that ask for too much or prove nothing (CERT-30)."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

import der
from forge import ECDSA_SHA256, World, authority, new_key, spki_of

CHALLENGE = x509.ObjectIdentifier("1.2.840.113549.1.9.7")


def request(key, *extensions, digest=hashes.SHA256(), name=None, challenge=None) -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    if challenge:
        builder = builder.add_attribute(CHALLENGE, challenge)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


def by_hand(key, version=0, spki=None, tail=b"", attributes=der.element(0xA0)) -> bytes:
    info = der.sequence(der.integer(version), der.name(None), spki or spki_of(key), attributes, tail)
    return der.sequence(info, ECDSA_SHA256, der.bits(key.sign(info, ec.ECDSA(hashes.SHA256()))))


def asked(_: World) -> list[dict]:
    key = new_key()
    uris = [x509.UniformResourceIdentifier("spiffe://corp.example/ns/evil/sa/root"), x509.DNSName("evil.example")]
    flags = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"], False
    )
    signs = x509.KeyUsage(True, key_cert_sign=True, crl_sign=True, **flags)
    good = request(key)
    info, algorithm, signature = der.children(der.content(good))
    flipped = signature[:-1] + bytes([signature[-1] ^ 1])
    other = der.children(der.content(by_hand(new_key())))[2]
    stolen = by_hand(key, spki=spki_of(new_key()))
    accepted = {
        "plain": good,
        "extra_names": request(key, (x509.SubjectAlternativeName(uris), True), name="evil"),
        "authority": request(key, (x509.BasicConstraints(True, 5), True), (signs, True)),
        "purposes": request(key, (x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.3")]), True)),
        "big_attribute": request(key, challenge=b"x" * 7000),
        "p384": request(ec.generate_private_key(ec.SECP384R1()), digest=hashes.SHA384()),
        "ed25519": request(ed25519.Ed25519PrivateKey.generate(), digest=None),
    }
    refused = {
        "huge_attribute": request(key, challenge=b"x" * 8192),
        "wrong_signature": der.sequence(info, algorithm, flipped),
        "signature_of_another_request": der.sequence(info, algorithm, other),
        "empty_signature": der.sequence(info, algorithm, der.bits(b"")),
        "key_of_somebody_else": stolen,
        "rsa_1024": request(rsa.generate_private_key(65537, 1024)),
        "rsa_2048": request(rsa.generate_private_key(65537, 2048)),
        "p224": request(ec.generate_private_key(ec.SECP224R1())),
        "secp256k1": request(ec.generate_private_key(ec.SECP256K1())),
        "p521": request(ec.generate_private_key(ec.SECP521R1())),
        "sha1": sha1_signed(key),
        "version_2": by_hand(key, version=1),
        "trailing_byte": good + b"\0",
        "trailing_element": by_hand(key, tail=der.null()),
        "indefinite_length": der.indefinite(0x30, info, algorithm, signature),
        "attributes_of_indefinite_length": by_hand(key, attributes=der.indefinite(0xA0)),
        "a_certificate": certificate(),
        "empty": b"\x30\x00",
    }
    told = lambda expect, made: [{"name": name, "expect": expect, "request": der_} for name, der_ in made.items()]
    return told("accept", accepted) + told("refuse", refused)


def sha1_signed(key) -> bytes:
    algorithm = der.sequence(der.oid("1.2.840.10045.4.1"))
    info = der.sequence(der.integer(0), der.name(None), spki_of(key), der.element(0xA0))
    return der.sequence(info, algorithm, der.bits(key.sign(info, ec.ECDSA(hashes.SHA1()))))


def certificate() -> bytes:
    return authority("not a request").certificate


GROUPS = {"requests": asked}
