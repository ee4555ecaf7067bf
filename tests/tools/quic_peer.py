"""A QUIC peer that is not quinn, and sends what a good peer never would.

`Peer` drives an aioquic connection over a UDP socket of its own, without asyncio, so that a test decides what
goes out. It can complete a handshake in good order (with a certificate that the mesh trusts) and then add any
frame to any packet number space, behind the back of aioquic's own state.
"""

import os
import socket
import ssl
import time
from random import Random

from aioquic import tls
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.stream import QuicStream

SPACES = {
    "initial": (tls.Epoch.INITIAL, QuicPacketType.INITIAL),
    "handshake": (tls.Epoch.HANDSHAKE, QuicPacketType.HANDSHAKE),
    "data": (tls.Epoch.ONE_RTT, QuicPacketType.ONE_RTT),
}


def var(number):
    """A QUIC variable-length integer."""
    return encode_uint_var(number)


def stream(stream_id, data=b"", offset=0, fin=False):
    """A STREAM frame with offset and length."""
    return 0x0E | int(fin), var(stream_id) + var(offset) + var(len(data)) + data


def header(label, service="charge", namespace="shop", port=80):
    """The first bytes of a flow: version, length, fields in ascending order."""
    fields = [namespace.encode(), service.encode(), port.to_bytes(2, "big"), label.encode(), b"\x01"]
    body = b"".join(bytes([kind]) + len(v).to_bytes(2, "big") + v for kind, v in enumerate(fields, 1))
    return b"\x01" + len(body).to_bytes(2, "big") + body


class Connection(QuicConnection):
    """aioquic's connection with transport parameters to be bent, and streams that it did not open itself."""

    bend_parameters = staticmethod(lambda parameters: parameters)

    def _get_or_create_stream(self, frame_type, stream_id):
        if stream_id not in self._streams:
            credit = self.configuration.max_stream_data
            self._streams[stream_id] = QuicStream(
                stream_id=stream_id, max_stream_data_local=credit, max_stream_data_remote=credit
            )
        return self._streams[stream_id]

    def _assert_stream_can_send(self, frame_type, stream_id):
        pass

    def _assert_stream_can_receive(self, frame_type, stream_id):
        pass

    def _serialize_transport_parameters(self):
        return self.bend_parameters(super()._serialize_transport_parameters())


class Peer:
    """One connection to one victim."""

    def __init__(self, args, **overrides):
        self.target = (args.host, args.port)
        self.configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["weft/1"], server_name=args.sni, verify_mode=ssl.CERT_NONE,
            max_data=1 << 30, max_stream_data=1 << 26, idle_timeout=30,
        )
        if args.chain:
            self.configuration.load_cert_chain(args.chain, args.key)
        for name, value in overrides.items():
            setattr(self.configuration, name, value)
        self.tickets = []
        self.connection = Connection(
            configuration=self.configuration, session_ticket_handler=self.tickets.append
        )
        self.socket = None
        self.sent = self.received = self.answers = 0
        self.versions_offered = None
        self.rebind()
        self.done = self.closed = None
        self.data = {}
        self.muted = False
        # What becomes of a datagram, either way: a list of none, the same, or another.
        self.fate = lambda datagram: [datagram]

    def rebind(self):
        """Goes on from another port."""
        family = socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.setblocking(False)
        self.socket.connect(self.target)

    def start(self):
        """Sends the first flight."""
        self.connection.connect(self.target, now=time.monotonic())
        self.flush()
        return self

    def connect(self, within=5.0):
        """Completes the handshake; whether it did (or why not: see `closed`)."""
        self.start()
        self.pump(within, lambda: self.done or self.closed)
        return bool(self.done) and not self.closed

    def flush(self):
        for data, _ in self.connection.datagrams_to_send(now=time.monotonic()):
            self.put(data)

    def put(self, datagram):
        for datagram in self.fate(datagram):
            try:
                self.socket.send(datagram)
                self.sent += len(datagram)
            except (BlockingIOError, ConnectionRefusedError):
                pass

    def poll(self, wait=0.0):
        """Takes what has arrived, or waits for it."""
        end = time.monotonic() + wait
        while True:
            try:
                data = self.socket.recv(65536)
            except ConnectionRefusedError:
                continue
            except BlockingIOError:
                if time.monotonic() >= end:
                    break
                time.sleep(0.001)
                continue
            end = 0
            self.received += len(data)
            self.answers += 1
            for data in self.fate(data):
                self.connection.receive_datagram(data, self.target, now=time.monotonic())
        timer = self.connection.get_timer()
        if timer is not None and timer <= time.monotonic():
            self.connection.handle_timer(now=time.monotonic())
        self.events()

    def events(self):
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.done = event
            elif isinstance(event, events.StreamDataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        # aioquic tells of the end only when it has drained.
        self.closed = self.connection._close_event

    def pump(self, seconds, until=lambda: False):
        """Lets the connection work; with `muted` it hears and acknowledges nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            self.poll(0.02)
            if not self.muted:
                self.flush()
        return until()

    def send(self, *frames, space="data"):
        """Puts `frames`, as (type, bytes), into packets of one space and sends them at once."""
        queue = list(frames)
        while queue:
            builder = self._builder()
            epoch, kind = SPACES[space]
            try:
                builder.start_packet(kind, self.connection._cryptos[epoch])
                while queue:
                    number, payload = queue[0]
                    builder.start_frame(number, capacity=len(payload) + 8).push_bytes(payload)
                    queue.pop(0)
            except QuicPacketBuilderStop:
                pass
            datagrams, _ = builder.flush()
            self.connection._packet_number = builder.packet_number
            for datagram in datagrams:
                self.put(datagram)

    def _builder(self):
        it = self.connection
        return QuicPacketBuilder(
            host_cid=it.host_cid, is_client=True, max_datagram_size=it._max_datagram_size,
            packet_number=it._packet_number, peer_cid=it._peer_cid.cid, peer_token=it._peer_token,
            spin_bit=False, version=it._version,
        )

    def outcome(self, **more):
        """What a test looks at."""
        closed = self.closed
        return {
            "handshake": bool(self.done),
            "code": closed.error_code if closed else None,
            "frame": closed.frame_type if closed else None,
            "reason": closed.reason_phrase if closed else "",
            "sent": self.sent, "received": self.received, "cpu_ms": int(time.process_time() * 1000), **more,
        }


def one_in(number, change, seed):
    """Does `change` to one datagram in `number`, at random but from a seed."""
    draws = Random(seed)
    return lambda datagram: change(datagram, draws) if draws.randrange(number) == 0 else [datagram]


def lose(_datagram, _draws):
    """The network loses it."""
    return []


def bend(datagram, draws):
    """The network flips a bit of it."""
    bent = bytearray(datagram)
    bent[draws.randrange(len(bent))] ^= 1 << draws.randrange(8)
    return [bytes(bent)]


def parameter(number, value):
    """One transport parameter."""
    return var(number) + var(len(value)) + value


def without(parameters, number):
    """The parameters without one of them."""
    kept, buffer = b"", Buffer(data=parameters)
    while not buffer.eof():
        one, length = buffer.pull_uint_var(), buffer.pull_uint_var()
        value = buffer.pull_bytes(length)
        if one != number:
            kept += parameter(one, value)
    return kept


def random(count):
    """That many random bytes."""
    return os.urandom(count)
