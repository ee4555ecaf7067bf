"""Attacks below a connection: forged addresses, tokens that are not ours, junk. Prints one JSON line.

    quic_raw.py MODE --host H --port P [--count N] [--rate N]

`initials` and `junk` need root; answers to forged addresses must be routed here for `initials` to count them.
"""

import argparse
import json
import os
import random
import socket
import ssl
import struct
import threading
import time

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

MIN_INITIAL = 1200
# What begins a handshake is a full flight; a Retry, a refusal or a reset is far shorter.
FLIGHT = 1000


def initial(token=b""):
    """A connection and its first datagram, in good order."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["weft/1"], server_name="label.local.weft", verify_mode=ssl.CERT_NONE,
        token=token,
    )
    connection = QuicConnection(configuration=configuration)
    connection.connect(("192.0.2.1", 1), now=time.monotonic())
    return connection, connection.datagrams_to_send(now=time.monotonic())[0][0]


def udp(args):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((args.host, args.port))
    sock.settimeout(1.0)
    return sock


def exchange(sock, datagram, wait=1.0):
    """Sends one datagram; what comes back within `wait`."""
    sock.send(datagram)
    back, end = [], time.monotonic() + wait
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            back.append(sock.recv(65536))
        except (TimeoutError, ConnectionRefusedError):
            break
    return back


def retry_token(sock):
    """The token of the Retry that answers a first packet; empty without one."""
    for packet in exchange(sock, initial()[1], 0.5):
        if packet[0] & 0xF0 == 0xF0:
            at = 6 + packet[5]
            return packet[at + 1 + packet[at] : -16]
    return b""


def begins(sock, token):
    """Whether a first packet with `token` begins a handshake: a whole flight comes back for its connection ID."""
    connection, datagram = initial(token)
    mine = bytes([len(connection.host_cid)]) + connection.host_cid
    back = exchange(sock, datagram)
    return any(len(packet) >= FLIGHT and packet[5:].startswith(mine) for packet in back)


def tokens(args):
    """Each use of a Retry token, and whether it began a handshake."""
    sock = udp(args)
    good = retry_token(sock)
    used, again = begins(sock, good), begins(sock, good)
    elsewhere = begins(udp(args), retry_token(sock))
    cut = begins(sock, retry_token(sock)[:-3])
    token = bytearray(retry_token(sock))
    token[len(token) // 2] ^= 1
    flipped, made_up = begins(sock, bytes(token)), begins(sock, os.urandom(len(token)))
    old = retry_token(sock)
    time.sleep(args.seconds)
    expired = begins(sock, old)
    return {
        "retry": bool(good), "used": used, "again": again, "elsewhere": elsewhere, "cut": cut,
        "flipped": flipped, "made_up": made_up, "expired": expired,
    }


def silent(args):
    """A caller that never proves its address: how much it is sent for one datagram."""
    sock, datagram = udp(args), initial()[1]
    back = exchange(sock, datagram.ljust(args.size, b"\0"), 4.0)
    return {"sent_bytes": max(len(datagram), args.size), "back_bytes": sum(map(len, back)), "datagrams": len(back)}


class Counter(threading.Thread):
    """Counts the UDP payload that comes from the victim to whatever address."""

    def __init__(self, host, port):
        super().__init__(daemon=True)
        self.source, self.port, self.bytes, self.over = socket.inet_aton(host), port, 0, False
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        self.sock.settimeout(0.2)

    def run(self):
        while not self.over:
            try:
                packet = self.sock.recv(65536)
            except TimeoutError:
                continue
            ours = packet[9] == 17 and packet[12:16] == self.source and packet[20:22] == self.port.to_bytes(2, "big")
            self.bytes += struct.unpack("!H", packet[24:26])[0] - 8 if ours else 0


def forged(source, source_port, args, payload):
    """An IPv4 packet with UDP in it; the kernel fills in length and checksum of IP, UDP goes without one."""
    udp_part = struct.pack("!HHHH", source_port, args.port, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source, socket.inet_aton(args.host))
    return ip + udp_part


def initials(args):
    """First packets from forged addresses all over 10.128.0.0/9, at a rate."""
    lot = [initial()[1] for _ in range(args.different)]
    counter = Counter(args.host, args.port)
    counter.start()
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    print(json.dumps({"ready": True}), flush=True)
    began, sent = time.monotonic(), 0
    for n in range(args.count):
        source = bytes([10, 128 + random.randrange(128), random.randrange(256), random.randrange(1, 255)])
        raw.sendto(forged(source, 1024 + n % 60000, args, lot[n % len(lot)]), (args.host, 0))
        sent += len(lot[n % len(lot)])
        ahead = n / args.rate - (time.monotonic() - began)
        if ahead > 0.002:
            time.sleep(ahead)
    seconds = time.monotonic() - began
    time.sleep(1.5)
    counter.over = True
    return {"sent_bytes": sent, "back_bytes": counter.bytes, "seconds": round(seconds, 2), "count": args.count}


def junk(args):
    """Whatever is not QUIC, or nearly."""
    sock = udp(args)
    good = initial()[1]
    without_fixed_bit = bytes([good[0] & ~0x40]) + good[1:]
    kinds = [
        b"", b"\0", good[: MIN_INITIAL - 1], os.urandom(1200), bytes([0xC0]) + os.urandom(1300), without_fixed_bit,
        good + os.urandom(200), b"\xc0" + b"\xff\0\0\x1d" + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + bytes(1200),
        bytes([0x40]) + os.urandom(60), good[:5] + bytes([255]) + good[6:],
    ]
    sent = back = datagrams = 0
    for n in range(args.count):
        payload = kinds[n % len(kinds)]
        if payload[:1] == b"\x40":
            payload = bytes([0x40]) + os.urandom(60)
        try:
            sent += sock.send(payload)
        except (ConnectionRefusedError, BlockingIOError):
            pass
        if n % 20 == 0:
            sock.settimeout(0.001)
            try:
                while True:
                    back += len(sock.recv(65536))
                    datagrams += 1
            except (TimeoutError, ConnectionRefusedError):
                pass
    end = time.monotonic() + 3
    while time.monotonic() < end:
        sock.settimeout(0.2)
        try:
            back += len(sock.recv(65536))
            datagrams += 1
        except (TimeoutError, ConnectionRefusedError):
            pass
    return {"sent_bytes": sent, "back_bytes": back, "datagrams": datagrams, "count": args.count}


def versions(args):
    """Packets of an unknown version: how many answers, how long each."""
    sock = udp(args)
    payload = b"\xc0" + b"\xff\0\0\x1d" + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + bytes(1177)
    longest = answers = 0
    for _ in range(args.count):
        sock.send(payload)
    for packet in exchange(sock, payload, 1.0):
        answers, longest = answers + 1, max(longest, len(packet))
    return {"sent": len(payload), "answers": answers, "longest": longest}


MODES = {f.__name__: f for f in (tokens, silent, initials, junk, versions)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5000)
    parser.add_argument("--different", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    print(json.dumps({"mode": args.mode, **MODES[args.mode](args)}), flush=True)


if __name__ == "__main__":
    main()
