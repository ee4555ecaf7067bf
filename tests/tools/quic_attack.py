"""Attacks of the catalogue (QUIC-*, TLS-*) by a peer that is authenticated, or tries to be.

`quic_attack.py NAME --host H --port P --sni S [--chain F --key F] [--label L] [--count N]` prints one JSON line: how
the connection ended (code, frame type, reason), bytes both ways, CPU. The test that starts it knows what is right.
"""

import argparse
import json
import socket
import time
from collections import deque

from quic_peer import Peer, bend, header, lose, one_in, parameter, random, stream, var, without

from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite, Epoch

PING, ACK, RESET, STOP, CRYPTO, NEW_TOKEN = 0x01, 0x02, 0x04, 0x05, 0x06, 0x07
# A flood that is not cut by then never is.
FLOOD_SECONDS = 20
NEW_ID, RETIRE_ID, CHALLENGE, HANDSHAKE_DONE, DATAGRAM = 0x18, 0x19, 0x1A, 0x1E, 0x31


def frames_once(*frames, wait=2.0, space="data"):
    """An attack that is a few frames behind a good handshake."""

    def attack(args):
        peer = Peer(args)
        if peer.connect():
            peer.send(*frames, space=space)
            peer.pump(wait, lambda: peer.closed)
        return peer.outcome()

    return attack


def flood(make, wait=3.0, batch=20, of_flows=False):
    """An attack that repeats frames: `make(n)` gives the nth ones; of flows as many as it is allowed."""

    def attack(args):
        peer = Peer(args)
        sent = 0
        if peer.connect():
            end = time.monotonic() + FLOOD_SECONDS
            lots, moved = deque(maxlen=8), time.monotonic()
            while sent < args.count and not peer.closed and time.monotonic() < end:
                allowed = peer.connection._remote_max_streams_bidi if of_flows else args.count
                until = min(sent + batch, args.count, allowed)
                lot = [frame for n in range(sent, until) for frame in make(n)]
                if lot:
                    lots.append(lot)
                    moved = time.monotonic()
                elif time.monotonic() - moved > 0.1:
                    # A lot that was lost holds the credit for the next: nobody repeats these frames but we.
                    for lost in lots:
                        peer.send(*lost)
                    moved = time.monotonic()
                peer.send(*lot)
                sent = until
                peer.poll(0.001 if not lot else 0)
                peer.flush()
            peer.pump(wait, lambda: peer.closed)
        return peer.outcome(flooded=sent)

    return attack


def parameters(bend):
    """A handshake with bent transport parameters."""

    def attack(args):
        peer = Peer(args)
        peer.connection.bend_parameters = bend
        peer.connect(3.0)
        peer.pump(1.0, lambda: peer.closed)
        return peer.outcome()

    return attack


def good(args):
    """The control: a flow that is served."""
    peer = Peer(args)
    if peer.connect():
        peer.send(stream(0, header(args.label, port=args.service_port) + b"ping"))
        # The acceptance comes first, and may come alone.
        peer.pump(5.0, lambda: peer.closed or peer.data.get(0, b"").endswith(b"ping"))
    return peer.outcome(echo=peer.data.get(0, b"").endswith(b"ping"), tickets=len(peer.tickets))


def transfer(flows=1, octets=200_000, change=None, new_keys=False, within=30.0, **overrides):
    """A peer in good order: flows that carry bytes there and back, over a network that does its worst."""

    def attempt(args):
        peer = Peer(args, **overrides)
        if change:
            peer.fate = one_in(10, change, args.seed)
        began, whole = time.monotonic(), 0
        if peer.connect(within):
            payload = random(octets)
            first = header(args.label, port=args.service_port)
            ids = [4 * n for n in range(flows)]
            for stream_id in ids:
                peer.connection.send_stream_data(stream_id, first + payload)
            is_whole = lambda stream_id: peer.data.get(stream_id, b"").endswith(payload)
            if new_keys:
                peer.flush()
                peer.pump(1.0, lambda: peer.data.get(0))
                peer.connection.request_key_update()
            peer.pump(within, lambda: peer.closed or all(map(is_whole, ids)))
            whole = sum(map(is_whole, ids))
        cipher = peer.connection.tls.key_schedule.cipher_suite.name if peer.done else None
        return peer.outcome(whole=whole, cipher=cipher, seconds=round(time.monotonic() - began, 2))

    return attempt


def other_protocol(args):
    peer = Peer(args, alpn_protocols=["h3"])
    peer.connect()
    return peer.outcome()


def no_protocol(args):
    peer = Peer(args, alpn_protocols=None)
    peer.connect()
    return peer.outcome()


def no_certificate(args):
    args.chain = None
    peer = Peer(args)
    peer.connect()
    peer.pump(2.0, lambda: peer.closed)
    return peer.outcome(data=len(peer.data))


def version_2(args):
    """Only QUIC version 2 is offered: the answer is Version Negotiation, and nothing follows."""
    versions = [QuicProtocolVersion.VERSION_2]
    peer = Peer(args, supported_versions=versions, original_version=QuicProtocolVersion.VERSION_2)
    peer.start()
    first = peer.sent
    peer.pump(2.0, lambda: peer.closed)
    return peer.outcome(first=first)


def early_data(args):
    """A second connection with whatever ticket the first one got."""
    first = Peer(args)
    first.connect()
    first.pump(0.5)
    second = Peer(args, session_ticket=first.tickets[0] if first.tickets else None)
    second.connect()
    tls = second.connection.tls
    return second.outcome(tickets=len(first.tickets), resumed=tls.session_resumed)


def wrong_space(args):
    """A STREAM frame in an Initial packet."""
    peer = Peer(args)
    peer.start()
    peer.send(stream(0, b"early"), (0, b"\0" * 1100), space="initial")
    peer.pump(2.0, lambda: peer.closed)
    return peer.outcome()


def key_updates(args):
    """Changes its keys as fast as packets go out."""
    peer = Peer(args)
    updates = 0
    if peer.connect():
        peer.pump(0.3)
        while updates < args.count and not peer.closed:
            peer.connection._cryptos[Epoch.ONE_RTT].update_key()
            peer.send((PING, b""))
            updates += 1
            peer.poll()
        peer.pump(1.0, lambda: peer.closed)
    return peer.outcome(updates=updates)


def migrate(args):
    """Goes on from another port in the middle of a flow."""
    peer = Peer(args)
    before = after = False
    if peer.connect():
        peer.send(stream(0, header(args.label, port=args.service_port) + b"ping"))
        before = peer.pump(3.0, lambda: peer.data.get(0, b"").endswith(b"ping"))
        peer.rebind()
        answers = peer.answers
        for n in range(5):
            peer.send((PING, b""), stream(4 + 4 * n, header(args.label) + b"moved"))
            peer.pump(0.2)
        after = peer.answers > answers
    return peer.outcome(before=before, after=after)


def gaps(args):
    """One byte in two, so that nothing can be put together."""
    return flood(lambda n: [stream(0, b"x", offset=1 + 2 * n)])(args)


def stream_flood(args):
    """Opens flows and ends them at once, within the limit of open ones."""
    return flood(lambda n: [stream(4 * n, b"", fin=True)], batch=60, of_flows=True)(args)


def reset_flood(args):
    """Opens flows with a header and resets them at once."""
    first = header(args.label, port=args.service_port)
    code = var(0) + var(len(first))

    def one(n):
        return [stream(4 * n, first), (RESET, var(4 * n) + code), (STOP, var(4 * n) + var(0))]

    return flood(one, of_flows=True)(args)


def slow_header(args):
    """A byte of a header now and then, and PINGs in between."""
    peer, began, ended = Peer(args), None, None
    if peer.connect():
        first, began = header(args.label), time.monotonic()
        for n in range(args.count):
            peer.send(stream(0, first[n : n + 1], offset=n), (PING, b""))
            peer.pump(0.25, lambda: peer.closed)
            state = peer.connection._streams.get(0)
            if peer.closed or (state and state.receiver.is_finished):
                break
        ended = time.monotonic() - began
    return peer.outcome(seconds=ended, octets=n + 1 if began else 0)


def never_read(args):
    """Asks many flows for data, gives credit for all of it, and acknowledges nothing."""
    peer = Peer(args, idle_timeout=60)
    if peer.connect():
        peer.pump(0.3)
        for n in range(args.count):
            peer.send(stream(4 * n, header(args.label, port=args.service_port) + args.request.encode()))
            peer.poll()
            if n % 50 == 49:
                peer.pump(0.05)
        peer.muted = True
        print(json.dumps({"asked": True}), flush=True)
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and not peer.closed:
            peer.send((PING, b""))
            time.sleep(0.2)
    return peer.outcome()


def many(args):
    """As many handshakes as it can, and stays."""
    peers = []
    for _ in range(args.count):
        peer = Peer(args)
        peer.connect(2.0)
        peers.append(peer)
    for peer in peers:
        peer.pump(0.3, lambda: peer.closed)
    refused = [peer.closed.error_code for peer in peers if peer.closed]
    return peers[0].outcome(open=sum(1 for peer in peers if not peer.closed), refused=refused)


def closed_flood(args):
    """Packets to a connection that it has closed itself."""
    peer = Peer(args)
    answers = 0
    if peer.connect():
        peer.send(stream(0, header(args.label, port=args.service_port) + b"ping"))
        peer.pump(2.0, lambda: peer.data.get(0))
        peer.send((0x1D, var(0) + var(0)))
        time.sleep(0.05)
        peer.poll()
        before = (peer.answers, peer.received, peer.sent)
        for _ in range(args.count):
            peer.send((PING, b"\0" * 40))
        peer.poll(0.5)
        answers, back, out = (now - was for now, was in zip((peer.answers, peer.received, peer.sent), before))
    return peer.outcome(answers=answers, back=back, out=out)


def answered(args):
    """PATH_CHALLENGEs, and how much comes back for them."""
    peer = Peer(args)
    if peer.connect():
        peer.pump(0.3)
        before = (peer.received, peer.sent)
        for _ in range(args.count // 20):
            peer.send(*[(CHALLENGE, random(8)) for _ in range(20)])
            peer.poll()
        peer.pump(2.0, lambda: peer.closed)
        return peer.outcome(back=peer.received - before[0], out=peer.sent - before[1])
    return peer.outcome()


def ranges(args):
    """An ACK of packets that were never sent, in as many ranges as a packet holds."""
    payload = var(1 << 20) + var(0) + var(300) + var(0) + (var(0) + var(0)) * 300
    return frames_once((ACK, payload))(args)


ATTACKS = {
    "good": good,
    "transfer": transfer(octets=2_000_000),
    "multiplexing": transfer(flows=100, octets=10_000),
    "chacha20": transfer(cipher_suites=[CipherSuite.CHACHA20_POLY1305_SHA256]),
    "key_update": transfer(octets=500_000, new_keys=True),
    "loss": transfer(change=lose),
    "corruption": transfer(change=bend),
    "other_protocol": other_protocol,
    "no_protocol": no_protocol,
    "no_certificate": no_certificate,
    "version_2": version_2,
    "early_data": early_data,
    "key_updates": key_updates,
    "crypto_at_limit": frames_once((CRYPTO, var(16383) + var(1) + b"x"), wait=0.5),
    "crypto_past_limit": frames_once((CRYPTO, var(16384) + var(1) + b"x")),
    "unknown_frame": frames_once((0x2F, b"")),
    "cut_frame": frames_once((0x0E, var(0) + var(0) + var(4000) + b"x")),
    "wrong_space": wrong_space,
    "handshake_done": frames_once((HANDSHAKE_DONE, b"")),
    "new_token": frames_once((NEW_TOKEN, var(4) + b"abcd")),
    "datagram": frames_once((DATAGRAM, var(4) + b"abcd")),
    "ids_beyond_limit": frames_once(
        *[(NEW_ID, var(8 + n) + var(0) + b"\x08" + random(8) + random(16)) for n in range(20)]
    ),
    "id_flood": flood(lambda n: [(NEW_ID, var(8 + n) + var(8 + n) + b"\x08" + random(8) + random(16))]),
    "retire_unknown": frames_once((RETIRE_ID, var(5000))),
    "challenges": answered,
    "pings": flood(lambda _: [(PING, b"")], batch=400),
    "gaps": gaps,
    "overlaps": frames_once(stream(0, b"aaaa", offset=4), stream(0, b"bbbb", offset=2), wait=0.5),
    "past_stream_window": frames_once(stream(0, b"x", offset=3 << 20)),
    "past_flow_limit": frames_once(stream(4 * 5000, b"x")),
    "final_size": frames_once(stream(0, b"x", offset=9, fin=True), stream(0, b"x", offset=20)),
    "server_stream": frames_once(stream(1, b"x")),
    "acks_of_unsent": frames_once((ACK, var(1 << 20) + var(0) + var(0) + var(0))),
    "ack_ranges": ranges,
    "twice": parameters(lambda p: p + parameter(0x04, var(1000))),
    "exponent": parameters(lambda p: without(p, 0x0A) + parameter(0x0A, var(21))),
    "ack_delay": parameters(lambda p: without(p, 0x0B) + parameter(0x0B, var(1 << 14))),
    "id_limit": parameters(lambda p: without(p, 0x0E) + parameter(0x0E, var(1))),
    "payload": parameters(lambda p: without(p, 0x03) + parameter(0x03, var(1199))),
    "streams": parameters(lambda p: without(p, 0x08) + parameter(0x08, var((1 << 60) + 1))),
    "no_source_id": parameters(lambda p: without(p, 0x0F)),
    "of_a_server": parameters(lambda p: p + parameter(0x02, b"\0" * 16)),
    "cut_short": parameters(lambda p: p[:-1]),
    "huge": parameters(lambda p: p + parameter(0x1F3D, b"\0" * 1024)),
    "migrate": migrate,
    "stream_flood": stream_flood,
    "reset_flood": reset_flood,
    "slow_header": slow_header,
    "never_read": never_read,
    "many": many,
    "closed_flood": closed_flood,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", help="names, with commas between them")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sni", default="label.local.weft")
    parser.add_argument("--chain")
    parser.add_argument("--key")
    parser.add_argument("--label", default="label")
    parser.add_argument("--service-port", type=int, default=80)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--request", default="ping", help="what a flow asks its program for")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    socket.setdefaulttimeout(5)
    for name in args.attacks.split(","):
        outcome = ATTACKS[name](argparse.Namespace(**vars(args)))
        print(json.dumps({"attack": name, **outcome}), flush=True)


if __name__ == "__main__":
    main()
