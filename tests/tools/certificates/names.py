"""Alternative names that are no identity (CERT-05 to CERT-10)."""

import der
from forge import (
    ADDRESS, DIRECTORY, DNS, EMAIL, ORDER, OTHER, REGISTERED, SAN, URI, World, leaf_extensions, names, without,
)

GOOD = names((URI, ORDER.encode()))
UTF8_STRING = 0x0C


def with_san(value: bytes):
    return leaf_extensions(value)


def several_uris(world: World) -> None:
    """CERT-06, once more by another hand: the second URI in each form that libraries pass over."""
    seconds = {
        "valid": b"spiffe://corp.example/ns/shop/sa/charge",
        "identical": ORDER.encode(),
        "https": b"https://corp.example/",
        "not_utf8": b"spiffe://corp.example/\xff\xfe",
        "too_long": ORDER.encode() + b"/" + b"x" * 2048,
        "empty": b"",
    }
    for name, second in seconds.items():
        pair = [(URI, ORDER.encode()), (URI, second)]
        world.leaf(f"{name}_second", extensions=with_san(names(*pair)))
        world.leaf(f"{name}_first", extensions=with_san(names(*reversed(pair))))


def san_shapes(world: World) -> None:
    """CERT-07."""
    other = names((URI, b"spiffe://corp.example/ns/shop/sa/charge"))
    uri = der.element(URI, ORDER.encode())
    world.leaf("two_extensions", extensions=[*leaf_extensions(), (SAN, True, other)])
    world.leaf("the_same_extension_twice", extensions=[*leaf_extensions(), (SAN, True, GOOD)])
    world.leaf("two_extensions_one_not_critical", extensions=[*leaf_extensions(), (SAN, False, other)])
    world.leaf("bytes_behind_the_names", extensions=with_san(GOOD + b"\x05\x00"))
    world.leaf("a_byte_behind_the_names", extensions=with_san(GOOD + b"\x00"))
    world.leaf("bytes_among_the_names", extensions=with_san(der.sequence(uri, b"\x05\x00")))
    world.leaf("names_of_indefinite_length", extensions=with_san(der.indefinite(0x30, uri)))
    world.leaf("names_of_padded_length", extensions=with_san(der.padded_length(0x30, uri)))
    constructed = der.element(0xA6, der.element(0x16, ORDER.encode()))
    world.leaf("a_constructed_uri", extensions=with_san(der.sequence(constructed)))
    world.leaf("names_that_are_a_set", extensions=with_san(der.element(0x31, uri)))
    world.leaf("no_names", extensions=with_san(der.sequence()))
    world.leaf("an_empty_value", extensions=with_san(b""))


def ids(world: World) -> None:
    """CERT-08 and CERT-10."""
    path = "/ns/shop/sa/order"
    forms = {
        "nul_at_the_end": ORDER.encode() + b"\0",
        "nul_within": b"spiffe://corp.example\0.evil.example/ns/shop/sa/order",
        "upper_case_scheme": f"SPIFFE://corp.example{path}".encode(),
        "upper_case_host": f"spiffe://CORP.example{path}".encode(),
        "port": f"spiffe://corp.example:8443{path}".encode(),
        "empty_port": f"spiffe://corp.example:{path}".encode(),
        "userinfo": f"spiffe://order@corp.example{path}".encode(),
        "empty_userinfo": f"spiffe://@corp.example{path}".encode(),
        "query": ORDER.encode() + b"?a=b",
        "empty_query": ORDER.encode() + b"?",
        "fragment": ORDER.encode() + b"#a",
        "empty_fragment": ORDER.encode() + b"#",
        "percent_encoded_dot": b"spiffe://corp.example/ns/shop/%2e/order",
        "percent_encoded_slash": b"spiffe://corp.example/ns%2fshop/sa/order",
        "dot_dot": b"spiffe://corp.example/ns/shop/../order",
        "dot": b"spiffe://corp.example/ns/./shop",
        "trailing_slash": ORDER.encode() + b"/",
        "double_slash": b"spiffe://corp.example//ns/shop",
        "not_ascii": "spiffe://corp.example/ns/shöp/sa/order".encode(),
        "latin_1": "spiffe://corp.example/ns/shöp/sa/order".encode("latin-1"),
        "bytes_2049": (ORDER + "/" + "x" * (2048 - len(ORDER))).encode(),
        "https": f"https://corp.example{path}".encode(),
        "no_scheme": f"//corp.example{path}".encode(),
        "no_host": f"spiffe://{path}".encode(),
        "space": b"spiffe://corp.example/ns/shop /sa/order",
        "newline": ORDER.encode() + b"\n",
        "backslash": b"spiffe://corp.example/ns\\shop/sa/order",
        "no_path": b"spiffe://corp.example",
        "only_slash": b"spiffe://corp.example/",
        "empty": b"",
    }
    for name, uri in forms.items():
        world.leaf(name, extensions=with_san(names((URI, uri))))
    longest = (ORDER + "/" + "x" * (2047 - len(ORDER))).encode()
    world.leaf("bytes_2048", "accept", extensions=with_san(names((URI, longest))))


def other_kinds(world: World) -> None:
    """CERT-05, CERT-09: an identity in a name of another kind is none; beside a URI it changes nothing (X5-02)."""
    text = ORDER.encode()
    upn = der.oid("1.3.6.1.4.1.311.20.2.3") + der.element(0xA0, der.element(UTF8_STRING, text))
    directory = der.name(ORDER)
    kinds = {
        "dns": (DNS, text),
        "email": (EMAIL, text),
        "other_name": (OTHER, upn),
        "directory_name": (DIRECTORY, directory),
        "address": (ADDRESS, bytes([10, 0, 0, 1])),
        "registered_id": (REGISTERED, der.content(der.oid("1.3.6.1.5.5.7.3.1"))),
    }
    for kind, name in kinds.items():
        world.leaf(kind, extensions=with_san(names(name)))
    world.leaf("no_san", extensions=without(leaf_extensions(), SAN))
    subject = der.name(ORDER)
    world.leaf("common_name", subject=subject, extensions=without(leaf_extensions(), SAN))
    world.leaf("common_name_and_dns", subject=subject, extensions=with_san(names((DNS, b"corp.example"))))
    beside = [(DNS, b"order.example"), (EMAIL, b"a@b.example"), kinds["address"], kinds["other_name"]]
    world.leaf("uri_beside_others", "accept", extensions=with_san(names(*beside, (URI, text))))
    world.leaf("uri_before_others", "accept", extensions=with_san(names((URI, text), *beside)))


GROUPS = {"several_uris": several_uris, "san_shapes": san_shapes, "ids": ids, "other_kinds": other_kinds}
