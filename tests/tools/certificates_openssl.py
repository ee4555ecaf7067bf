"""What OpenSSL says of chains: one line for each, `ok` or why not.

    python tests/tools/certificates_openssl.py FILE

FILE: the time in seconds since 1970 (8 bytes, big-endian), then chains. A chain is the number of its certificates (1
byte) and each with its length (4 bytes, big-endian). The first chain is the one trusted root.
"""

import datetime
import struct
import sys
import warnings

from OpenSSL import crypto

warnings.simplefilter("ignore")


def chains(data: bytes):
    position = 0
    while position < len(data):
        count, position = data[position], position + 1
        chain = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", data, position)
            chain.append(data[position + 4 : position + 4 + length])
            position += 4 + length
        yield chain


def read(der: bytes) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_ASN1, der)


def verdict(store: crypto.X509Store, chain: list[bytes]) -> str:
    try:
        leaf, *above = [read(der) for der in chain]
        crypto.X509StoreContext(store, leaf, above).verify_certificate()
    except (crypto.Error, crypto.X509StoreContextError, ValueError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return "ok"


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    (now,) = struct.unpack_from(">Q", data)
    (root, *above), *rest = chains(data[8:])
    if above:
        sys.exit("one root is trusted")
    store = crypto.X509Store()
    store.add_cert(read(root))
    store.set_time(datetime.datetime.fromtimestamp(now, datetime.timezone.utc))
    for chain in rest:
        print(verdict(store, chain))


main()
