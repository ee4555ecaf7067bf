"""Speaks RESP to a redis server and checks every single reply.

usage: redis_check.py HOST PORT COUNT     sets COUNT keys in pipelines of 100, then reads them back
"""

import socket
import sys


def command(*words):
    parts = [f"*{len(words)}\r\n"] + [f"${len(word)}\r\n{word}\r\n" for word in words]
    return "".join(parts).encode()


def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connection = socket.create_connection((host, port), timeout=30)
    replies = connection.makefile("rb")
    for start in range(0, count, 100):
        keys = range(start, min(start + 100, count))
        connection.sendall(b"".join(command("SET", f"key:{key}", f"value-{key * 7919}") for key in keys))
        for key in keys:
            reply = replies.readline()
            assert reply == b"+OK\r\n", (key, reply)
        connection.sendall(b"".join(command("GET", f"key:{key}") for key in keys))
        for key in keys:
            value = f"value-{key * 7919}".encode()
            reply = replies.readline() + replies.readline()
            assert reply == b"$%d\r\n%s\r\n" % (len(value), value), (key, reply)
    print(f"{2 * count} replies right")


main()
