"""DER by hand (X.690), and what DER forbids: what no library writes must be written here."""


def length(count: int) -> bytes:
    if count < 0x80:
        return bytes([count])
    octets = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def element(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes([tag]) + length(len(content)) + content


def indefinite(tag: int, *parts: bytes) -> bytes:
    """BER with the indefinite form of the length, which DER forbids."""
    return bytes([tag, 0x80]) + b"".join(parts) + b"\0\0"


def padded_length(tag: int, *parts: bytes) -> bytes:
    """A length of one octet more than needed, which DER forbids."""
    content = b"".join(parts)
    octets = len(content).to_bytes(3, "big")
    return bytes([tag, 0x83]) + octets + content


def sequence(*parts: bytes) -> bytes:
    return element(0x30, *parts)


def integer(value: int) -> bytes:
    return element(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def bits(content: bytes, unused: int = 0) -> bytes:
    return element(0x03, bytes([unused]), content)


def octets(content: bytes) -> bytes:
    return element(0x04, content)


def boolean(value: bool) -> bytes:
    return element(0x01, b"\xff" if value else b"\0")


def null() -> bytes:
    return element(0x05)


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = b""
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        content += bytes(reversed(groups))
    return element(0x06, content)


def name(common_name: str | None) -> bytes:
    """A distinguished name of one common name, or of nothing."""
    if common_name is None:
        return sequence()
    text = element(0x0C, common_name.encode())
    return sequence(element(0x31, sequence(oid("2.5.4.3"), text)))


def utc(moment) -> bytes:
    return element(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())


def first_length(bytes_: bytes) -> int:
    """How long the first element of `bytes_` is, with tag and length."""
    if bytes_[1] < 0x80:
        return 2 + bytes_[1]
    count = bytes_[1] & 0x7F
    return 2 + count + int.from_bytes(bytes_[2 : 2 + count], "big")


def children(content: bytes) -> list[bytes]:
    """The elements in `content`, each with tag and length."""
    found = []
    while content:
        end = first_length(content)
        found.append(content[:end])
        content = content[end:]
    return found


def content(whole: bytes) -> bytes:
    """What is in one element."""
    return whole[2:] if whole[1] < 0x80 else whole[2 + (whole[1] & 0x7F) :]
