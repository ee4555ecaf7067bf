"""What a leaf says of itself, and how it is written (CERT-11, CERT-12, CERT-14, CERT-20, CERT-22, CERT-25)."""

import der
from forge import (
    CLIENT_AUTH, CONSTRAINTS, ISSUER_KEY_ID, ORDER, PURPOSES, SERVER_AUTH, URI, USAGE, Authority, World, body, constraints, leaf_extensions,
    names, new_key, pkcs8_of, purposes, signed, spki_of, usage, without,
)

UNKNOWN = "1.3.6.1.4.1.55555.1"


def replaced(oid: str, critical: bool, value: bytes):
    return [*without(leaf_extensions(), oid), (oid, critical, value)]


def usages(world: World) -> None:
    """CERT-11."""
    world.leaf("authority", extensions=replaced(CONSTRAINTS, True, constraints(True)))
    world.leaf("authority_of_paths", extensions=replaced(CONSTRAINTS, True, constraints(True, 0)))
    world.leaf("cert_sign", extensions=replaced(USAGE, True, usage(0x84)))
    world.leaf("crl_sign", extensions=replaced(USAGE, True, usage(0x82)))
    world.leaf("no_usage", extensions=without(leaf_extensions(), USAGE))
    world.leaf("no_digital_signature", extensions=replaced(USAGE, True, usage(0x20)))
    world.leaf("empty_usage", extensions=replaced(USAGE, True, der.element(0x03, b"\0")))
    world.leaf("usage_not_critical", extensions=replaced(USAGE, False, usage(0x80)))
    world.leaf("usage_with_set_padding", extensions=replaced(USAGE, True, der.element(0x03, b"\x07\x84")))
    world.leaf("no_basic_constraints", "accept", extensions=without(leaf_extensions(), CONSTRAINTS))


def stated_purposes(world: World) -> None:
    """CERT-12. Which role a single purpose fits is told by the test."""
    forms = {
        "email": ["1.3.6.1.5.5.7.3.4"],
        "code_signing": ["1.3.6.1.5.5.7.3.3"],
        "any": ["2.5.29.37.0"],
        "only_client": [CLIENT_AUTH],
        "only_server": [SERVER_AUTH],
    }
    for name, stated in forms.items():
        world.leaf(name, extensions=replaced(PURPOSES, False, purposes(*stated)))
    world.leaf("none", extensions=replaced(PURPOSES, False, der.sequence()))
    world.leaf("absent", "accept", extensions=without(leaf_extensions(), PURPOSES))
    both = purposes(SERVER_AUTH, CLIENT_AUTH, "1.3.6.1.5.5.7.3.4")
    world.leaf("both_and_more", "accept", extensions=replaced(PURPOSES, False, both))
    world.leaf("both_critical", "accept", extensions=replaced(PURPOSES, True, both))


def unknown_extensions(world: World) -> None:
    """CERT-20, of a leaf."""
    world.leaf("critical", extensions=[*leaf_extensions(), (UNKNOWN, True, der.null())])
    world.leaf("not_critical", "accept", extensions=[*leaf_extensions(), (UNKNOWN, False, der.null())])
    explicit = der.sequence(der.oid(UNKNOWN), der.boolean(False), der.octets(der.null()))
    known = [der.sequence(der.oid(oid), der.boolean(True) if critical else b"", der.octets(value))
             for oid, critical, value in leaf_extensions()]
    field = der.element(0xA3, der.sequence(*known, explicit))
    world.leaf("default_written_out", extensions=field)


def serials(world: World) -> None:
    """CERT-22."""
    forms = {
        "zero": der.integer(0),
        "negative": der.integer(-1),
        "negative_long": der.element(0x02, b"\xff" + b"\x80" * 8),
        "bytes_21": der.element(0x02, b"\x01" * 21),
        "leading_zero": der.element(0x02, b"\0\x01"),
        "empty": der.element(0x02),
    }
    for name, serial in forms.items():
        world.leaf(name, serial=serial)
    world.leaf("one", "accept", serial=der.integer(1))
    world.leaf("bytes_20", "accept", serial=der.element(0x02, b"\x7f" * 20))
    for turn in ("first", "second"):
        key_id = der.sequence(der.element(0x80, world.issuer.key_id()))
        extensions = [*leaf_extensions(), (ISSUER_KEY_ID, False, key_id)]
        world.leaf(f"same_serial_{turn}", "accept", serial=der.integer(77), extensions=extensions)


def encodings(world: World) -> None:
    """CERT-25 and CERT-07, of the certificate around the names."""
    v1 = {"version": b"", "extensions": b"", "subject": der.name(ORDER)}
    world.leaf("version_1", **v1)
    world.leaf("version_1_with_extensions", version=b"")
    world.leaf("version_1_written_out", version=der.element(0xA0, der.integer(0)))
    world.leaf("version_2", version=der.element(0xA0, der.integer(1)))
    world.leaf("version_4", version=der.element(0xA0, der.integer(3)))
    world.leaf("an_element_behind_the_extensions", tail=der.null())
    world.leaf("unique_ids", extensions=der.element(0x81, b"\0\1") + world_extensions())
    world.leaf("the_extensions_twice", extensions=world_extensions() * 2)
    key = new_key()
    good = signed(world.issuer, body(world.issuer, spki_of(key)))
    signed_part, algorithm, signature = der.children(der.content(good))

    def add(name: str, leaf: bytes) -> None:
        world.add(name, [leaf, world.issuer.certificate], pkcs8_of(key))

    add("a_byte_behind_the_certificate", good + b"\0")
    add("two_certificates_in_one", good + world.issuer.certificate)
    add("a_certificate_of_indefinite_length", der.indefinite(0x30, signed_part, algorithm, signature))
    add("a_certificate_of_padded_length", der.padded_length(0x30, signed_part, algorithm, signature))
    add("a_certificate_cut_short", good[:-1])
    add("an_empty_certificate", b"\x30\x00")
    add("a_public_key_alone", spki_of(key))
    other = der.sequence(der.oid("1.2.840.10045.4.3.3"))
    add("another_algorithm_outside", der.sequence(signed_part, other, signature))
    add("parameters_of_the_algorithm", der.sequence(signed_part, der.sequence(der.content(algorithm), der.null()), signature))
    flipped = signature[:-1] + bytes([signature[-1] ^ 1])
    add("a_changed_signature", der.sequence(signed_part, algorithm, flipped))
    ber_part = der.indefinite(0x30, der.content(signed_part))
    add("a_signed_part_of_indefinite_length", signed(world.issuer, ber_part))
    world.leaf("in_order", "accept")


def world_extensions() -> bytes:
    listed = [der.sequence(der.oid(oid), der.boolean(True) if critical else b"", der.octets(value))
              for oid, critical, value in leaf_extensions()]
    return der.element(0xA3, der.sequence(*listed))


def own_signatures(world: World) -> None:
    """CERT-14: who vouches for himself."""
    key = new_key()
    itself = Authority(b"", der.name("order"), key)
    leaf = signed(itself, body(itself, spki_of(key), subject=der.name("order")))
    world.add("self_signed", [leaf], pkcs8_of(key))
    world.add("self_signed_beside_the_issuer", [leaf, world.issuer.certificate], pkcs8_of(key))
    impostor = Authority(b"", world.root.name, key)
    named = signed(impostor, body(impostor, spki_of(key), subject=world.root.name))
    world.add("self_signed_with_the_name_of_the_root", [named], pkcs8_of(key))
    world.add("root_as_leaf", [world.root.certificate], pkcs8_of(world.root.key))
    world.add("issuer_as_leaf", [world.issuer.certificate], pkcs8_of(world.issuer.key))
    with_path = leaf_extensions(names((URI, ORDER.encode())))
    with_path = [*without(without(with_path, CONSTRAINTS), USAGE), (CONSTRAINTS, True, constraints(True)), (USAGE, True, usage(0x84))]
    both = signed(impostor, body(impostor, spki_of(key), subject=world.root.name, extensions=with_path))
    world.add("leaf_and_root_in_one", [both], pkcs8_of(key))


GROUPS = {
    "usages": usages,
    "purposes": stated_purposes,
    "unknown_extensions": unknown_extensions,
    "serials": serials,
    "encodings": encodings,
    "own_signatures": own_signatures,
}
