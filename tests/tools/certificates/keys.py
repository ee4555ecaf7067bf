"""Keys and signatures that are refused or accepted (CERT-15, CERT-16)."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa

import der
from forge import Authority, World, authority, body, new_key, pkcs8_of, signed, spki_of

RSA = der.sequence(der.oid("1.2.840.113549.1.1.1"), der.null())


def rsa_spki(bits: int, exponent: int = 65537) -> bytes:
    """A public key of that size. Nobody has its private half, and none is needed to be refused."""
    modulus = (1 << bits) - 159
    key = der.sequence(der.integer(modulus), der.integer(exponent))
    return der.sequence(RSA, der.bits(key))


def curve_spki(curve: str, octets: int) -> bytes:
    kind = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid(curve))
    return der.sequence(kind, der.bits(b"\x04" + b"\x11" * (2 * octets)))


def refused(world: World) -> None:
    """CERT-15: the key of the leaf."""
    own = new_key()
    point = der.content(der.children(der.content(spki_of(own)))[1])[1:]
    compressed = bytes([2 + (point[-1] & 1)]) + point[1:33]
    p256 = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7"))
    forms = {
        **{f"rsa_{bits}": rsa_spki(bits) for bits in (512, 1024, 1536, 2047, 4097, 8192, 16384)},
        "rsa_exponent_1": rsa_spki(2048, 1),
        "rsa_exponent_3": rsa_spki(2048, 3),
        "rsa_exponent_even": rsa_spki(2048, 65538),
        "rsa_exponent_huge": rsa_spki(2048, (1 << 2040) + 1),
        "rsa_negative_modulus": der.sequence(RSA, der.bits(der.sequence(der.integer(-5), der.integer(65537)))),
        "p224": spki_of(ec.generate_private_key(ec.SECP224R1())),
        "secp256k1": spki_of(ec.generate_private_key(ec.SECP256K1())),
        "p521": spki_of(ec.generate_private_key(ec.SECP521R1())),
        "brainpool_p256": curve_spki("1.3.36.3.3.2.8.1.1.7", 32),
        "compressed_point": der.sequence(p256, der.bits(compressed)),
        "point_off_the_curve": curve_spki("1.2.840.10045.3.1.7", 32),
        "short_point": der.sequence(p256, der.bits(point[:-1])),
        "curve_by_parameters": der.sequence(der.sequence(der.oid("1.2.840.10045.2.1"), der.sequence()), der.bits(point)),
        "dsa": spki_of(dsa.generate_private_key(1024)),
        "x25519": der.sequence(der.sequence(der.oid("1.3.101.110")), der.bits(b"\x09" * 32)),
        "ed448": der.sequence(der.sequence(der.oid("1.3.101.113")), der.bits(b"\x09" * 57)),
        "ml_dsa_44": der.sequence(der.sequence(der.oid("2.16.840.1.101.3.4.3.17")), der.bits(b"\x09" * 1312)),
        "unused_bits": der.sequence(p256, der.bits(point, 1)),
    }
    for name, spki in forms.items():
        whole = signed(world.issuer, body(world.issuer, spki))
        world.add(name, [whole, world.issuer.certificate])


class RsaAuthority(Authority):
    """An authority that signs with PKCS #1 and the hash it is told."""

    digest = hashes.SHA256()

    def sign(self, body: bytes) -> bytes:
        return self.key.sign(body, padding.PKCS1v15(), self.digest)


def pkcs1(dotted: str) -> bytes:
    return der.sequence(der.oid(dotted), der.null())


def weak_signatures(world: World) -> None:
    """CERT-15: the signature on the leaf. The issuer is in order but for what it signs with."""
    key = rsa.generate_private_key(65537, 2048)
    made = authority("independent RSA issuer", world.root, key=key)
    issuer = RsaAuthority(made.certificate, made.name, key)
    own = new_key()

    def add(name: str, algorithm: bytes, signer: Authority, expect: str = "refuse") -> None:
        whole = signed(signer, body(signer, spki_of(own), algorithm=algorithm), algorithm)
        world.add(name, [whole, signer.certificate], pkcs8_of(own), expect)

    for name, digest, dotted, expect in [
        ("md5", hashes.MD5(), "1.2.840.113549.1.1.4", "refuse"),
        ("sha1", hashes.SHA1(), "1.2.840.113549.1.1.5", "refuse"),
        ("sha224", hashes.SHA224(), "1.2.840.113549.1.1.14", "refuse"),
        ("sha256", hashes.SHA256(), "1.2.840.113549.1.1.11", "accept"),
    ]:
        issuer.digest = digest
        add(name, pkcs1(dotted), issuer, expect)
    issuer.digest = hashes.SHA1()
    add("sha1_named_sha256", pkcs1("1.2.840.113549.1.1.11"), issuer)
    ecdsa_sha1 = der.sequence(der.oid("1.2.840.10045.4.1"))
    whole_body = body(world.issuer, spki_of(own), algorithm=ecdsa_sha1)
    signature = world.issuer.key.sign(whole_body, ec.ECDSA(hashes.SHA1()))
    whole = der.sequence(whole_body, ecdsa_sha1, der.bits(signature))
    world.add("ecdsa_sha1", [whole, world.issuer.certificate], pkcs8_of(own))
    none = der.sequence(der.oid("1.2.840.10045.4.3.2"))
    unsigned = body(world.issuer, spki_of(own), algorithm=none)
    world.add("empty_signature", [der.sequence(unsigned, none, der.bits(b"")), world.issuer.certificate], pkcs8_of(own))
    zero = der.sequence(der.integer(0), der.integer(0))
    world.add("zero_signature", [der.sequence(unsigned, none, der.bits(zero)), world.issuer.certificate], pkcs8_of(own))


def accepted(world: World) -> None:
    """CERT-16: every kind of key in the list, as key of a leaf."""
    kinds = {
        "p256": new_key(),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        **{f"rsa_{bits}": rsa.generate_private_key(65537, bits) for bits in (2048, 3072, 4096)},
    }
    for name, key in kinds.items():
        world.leaf(name, "accept", key)


GROUPS = {"refused_keys": refused, "weak_signatures": weak_signatures, "accepted_keys": accepted}
