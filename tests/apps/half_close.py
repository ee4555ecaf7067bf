"""Half-closed connections, both ways round.

usage: half_close.py PORT reads    reads to the end of the input, then answers `COUNT SHA256`
       half_close.py PORT writes   sends 1 MiB and ends its output, then reads to the end of the input
                                   and prints `COUNT SHA256` on its own standard output
"""

import hashlib
import socket
import sys


def drain(connection):
    count, digest = 0, hashlib.sha256()
    while data := connection.recv(65536):
        count += len(data)
        digest.update(data)
    return f"{count} {digest.hexdigest()}\n"


def serve(connection, mode):
    if mode == "reads":
        connection.sendall(drain(connection).encode())
    else:
        connection.sendall(bytes(1 << 20))
        connection.shutdown(socket.SHUT_WR)
        print(drain(connection), end="", flush=True)


def main():
    port, mode = int(sys.argv[1]), sys.argv[2]
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                serve(connection, mode)
            except OSError as error:
                # Who only looks whether the port is open goes again at once.
                print(error, file=sys.stderr, flush=True)


main()
