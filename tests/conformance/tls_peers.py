"""Clients that misuse TLS, byte by byte: old versions, records too long, empty, split or without end, floods, silence.
Each is told by an alert or cut off, none is served, none makes the gateway hang or grow. On both engines."""

import os
import socket
import ssl
import struct
import tempfile
import time

from lib import ENGINES, Origin, Tally, anonymous_bytes, responses
from tls_gateway import Certificates, TlsGateway

ALERT, HANDSHAKE, DATA, CHANGE_CIPHER_SPEC = 21, 22, 23, 20
SERVER_HELLO = 2
HANDSHAKE_TIMEOUT_S = 2.0
# What comes sooner was not left to a deadline.
AT_ONCE_S = 1.5
EXTRA = "[timeouts]\nhandshake_timeout_ms = 2000\nwrite_stall_timeout_ms = 1500\nheader_timeout_ms = 1500\n"
# Alert numbers of RFC 8446 §6.
UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, HANDSHAKE_FAILURE = 10, 20, 22, 40
ILLEGAL_PARAMETER, DECODE_ERROR, PROTOCOL_VERSION = 47, 50, 70
GOOD_SUITES = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F)
OLD_SUITES = {
    "RC4": (0x0005, 0xC007, 0xC011),
    "3DES": (0x000A, 0xC008, 0xC012),
    "DES and export": (0x0009, 0x0003, 0x0008, 0x0014),
    "NULL": (0x0001, 0x0002, 0x003B, 0xC006, 0xC010),
    "anonymous": (0x0018, 0x0034, 0x00A6, 0xC018),
    "RSA key exchange": (0x002F, 0x0035, 0x009C, 0x009D),
    "CBC": (0xC009, 0xC00A, 0xC013, 0xC014, 0xC023, 0xC027),
    "GREASE": (0x0A0A, 0x1A1A),
}


def vector(data, size=2):
    return len(data).to_bytes(size, "big") + data


def record(kind, data, version=0x0301):
    return struct.pack(">BHH", kind, version, len(data)) + data


def hello_message(suites=GOOD_SUITES, version=0x0303, versions=(), name=b"a.test", compression=b"\0"):
    """A ClientHello with a share of X25519 that nobody has the secret of."""
    u16s = lambda values: b"".join(struct.pack(">H", v) for v in values)
    extensions = [
        (0, vector(b"\0" + vector(name))),
        (10, vector(u16s((0x001D, 0x0017)))),
        (11, b"\1\0"),
        (13, vector(u16s((0x0403, 0x0804, 0x0401)))),
    ]
    if versions:
        extensions.append((43, vector(u16s(versions), 1)))
        extensions.append((51, vector(u16s((0x001D,)) + vector(os.urandom(32)))))
    body = struct.pack(">H", version) + os.urandom(32) + vector(b"", 1) + vector(u16s(suites)) + vector(compression, 1)
    body += vector(b"".join(struct.pack(">H", kind) + vector(data) for kind, data in extensions))
    return b"\1" + vector(body, 3)


def hello(**how):
    return record(HANDSHAKE, hello_message(**how))


def sslv2_hello():
    body = b"\1\0\2" + struct.pack(">HHH", 9, 0, 16) + b"\x07\0\xc0\x05\0\x80\x01\0\x80" + os.urandom(16)
    return struct.pack(">H", 0x8000 | len(body)) + body


class Ended:
    """What came back until the end."""

    def __init__(self, data, how, took):
        self.data, self.how, self.took = data, how, took
        self.records, at = [], 0
        while at + 5 <= len(data):
            size = int.from_bytes(data[at + 3 : at + 5], "big")
            self.records.append((data[at], data[at + 5 : at + 5 + size]))
            at += 5 + size

    @property
    def alert(self):
        found = [body[1] for kind, body in self.records if kind == ALERT and len(body) == 2]
        return found[-1] if found else None

    @property
    def accepted(self):
        return any(kind == HANDSHAKE and body[:1] == bytes([SERVER_HELLO]) for kind, body in self.records)

    def __str__(self):
        return f"{self.how} after {self.took:.2f} s, alert {self.alert}, {[kind for kind, _ in self.records]}, {self.data[:60]!r}"


def until_the_end(sock, timeout=5.0):
    """Reads until the peer ends the stream or resets it."""
    started, data = time.monotonic(), bytearray()
    sock.settimeout(timeout)
    how = "closed"
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except TimeoutError:
        how = "open"
    except OSError:
        how = "reset"
    return Ended(bytes(data), how, time.monotonic() - started)


def send(port, *pieces, timeout=5.0):
    """Sends as much as is taken, then waits for the end."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(timeout)
        try:
            for piece in pieces:
                sock.sendall(piece)
        except OSError:
            pass
        return until_the_end(sock, timeout)


class Client:
    """Python's TLS over memory: what it says can be cut and mixed before it goes out."""

    def __init__(self, port, ca, version, name="a.test", certificate=None):
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = context.maximum_version = version
        if certificate:
            context.load_cert_chain(*certificate)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.sock = socket.socket()
        # What the kernel takes for a client that does not read is its own affair, and to be little.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.sock.settimeout(5)
        self.sock.connect(("127.0.0.1", port))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def run(self, step, cut=lambda data: data):
        """Repeats `step` with what comes in, until it needs no more."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                done = None
            self.flush(cut)
            if done is not None:
                return done
            piece = self.sock.recv(1 << 16)
            if not piece:
                raise EOFError("the gateway ended the stream")
            self.incoming.write(piece)

    def flush(self, cut=lambda data: data):
        if self.outgoing.pending:
            self.sock.sendall(cut(self.outgoing.read()))

    def handshake(self, cut=lambda data: data):
        self.run(lambda: self.tls.do_handshake() or True, cut)
        return self

    def get(self, path="/target"):
        self.tls.write(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
        self.flush()
        return self.run(lambda: self.tls.read(1 << 16))


def one_byte_records(data):
    """A flight whose hello comes each byte in a record of its own.

    A hello opens its flight. A later record of that kind is sealed: it may begin with any byte and may not be cut."""
    out, at = bytearray(), 0
    while at < len(data):
        kind, version, size = struct.unpack(">BHH", data[at : at + 5])
        body = data[at + 5 : at + 5 + size]
        is_hello = at == 0 and kind == HANDSHAKE and body[0] == 1
        pieces = [body[i : i + 1] for i in range(size)] if is_hello else [body]
        out += b"".join(record(kind, piece, version) for piece in pieces)
        at += 5 + size
    return bytes(out)


class Suite:
    def __init__(self, tally, engine, gateway, certs):
        self.tally, self.engine, self.gateway, self.certs = tally, engine, gateway, certs
        self.port, self.ca = gateway.ports, certs.path("servers")

    def check(self, name, good, why=""):
        self.tally.check(f"peers {self.engine:8} {name}", good, why)

    def refused(self, name, got, alerts, within=AT_ONCE_S):
        """At once, without a word of a ServerHello, by one of the alerts; None among them lets a cut do."""
        good = got.how != "open" and got.took < within and not got.accepted and got.alert in alerts
        self.check(name, good, got)

    def hellos(self):
        for mode in ("disable", "permissive", "strict"):
            port = self.port[mode]
            for text, how in (
                ("TLS 1.0", {"version": 0x0301}),
                ("TLS 1.1", {"version": 0x0302}),
                ("SSL 3.0", {"version": 0x0300}),
                ("supported versions 1.1 and 1.0", {"versions": (0x0302, 0x0301)}),
                ("a version of the future alone", {"versions": (0x0305,)}),
            ):
                self.refused(f"{text} on {mode}", send(port, hello(**how)), {PROTOCOL_VERSION})
            for text, suites in OLD_SUITES.items():
                self.refused(f"{text} on {mode}", send(port, hello(suites=suites)), {HANDSHAKE_FAILURE})
            self.refused(f"compression alone on {mode}", send(port, hello(compression=b"\1")), {ILLEGAL_PARAMETER})
            self.refused(f"a name with NUL on {mode}", send(port, hello(name=b"a.test\0.b")), {ILLEGAL_PARAMETER, DECODE_ERROR})
            for name in (b"127.0.0.1", b"A.TEST"):
                got = send(port, hello(name=name, versions=(0x0304,)), timeout=0.3)
                self.check(f"{name.decode()} as name on {mode} is answered", got.accepted, got)

    def broken(self):
        any_alert = {UNEXPECTED_MESSAGE, RECORD_OVERFLOW, DECODE_ERROR, PROTOCOL_VERSION, HANDSHAKE_FAILURE, ILLEGAL_PARAMETER}
        big = hello_message() + bytes(20_000)
        for mode in ("disable", "permissive", "strict", "passthrough"):
            port = self.port[mode]
            # What is not TLS has no alert: on permissive it is taken for plaintext, elsewhere it is cut.
            for text, data in (("an SSLv2 hello", sslv2_hello()), ("noise", b"\xff\xfe" * 400), ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")):
                if (mode, text) != ("permissive", "HTTP"):
                    self.refused(f"{text} on {mode}", send(port, data), any_alert | {None})
            overlong = struct.pack(">BHH", HANDSHAKE, 0x0301, (1 << 14) + 257)
            # rustls grants records in the clear 2,048 bytes beyond 2^14 as TLS 1.2 did those encrypted, and then refuses
            # what is in this one.
            overflow = {RECORD_OVERFLOW, DECODE_ERROR, UNEXPECTED_MESSAGE}
            self.refused(f"a record of 2^14+257 on {mode}", send(port, overlong + big[: (1 << 14) + 257]), overflow)
            self.refused(f"the head of a record of 65,535 on {mode}", send(port, struct.pack(">BHH", HANDSHAKE, 0x0301, 65_535)), {RECORD_OVERFLOW, DECODE_ERROR})
            endless = b"\1\xff\xff\xff" + bytes(16_380)
            flood = record(HANDSHAKE, endless) + record(HANDSHAKE, bytes(16_384)) * 100
            self.refused(f"a hello of 16 MiB on {mode}", send(port, flood), any_alert)
            for text, flood in (
                ("empty handshake records", record(HANDSHAKE, b"") * 20_000),
                ("warnings", record(ALERT, b"\1\x5a") * 20_000),
                ("ChangeCipherSpec", record(CHANGE_CIPHER_SPEC, b"\1") * 20_000),
                ("data before the handshake", record(DATA, b"GET / HTTP/1.1\r\n\r\n") * 1_000),
            ):
                self.refused(f"{text} on {mode}", send(port, flood), any_alert | {None})
            # Where TLS is passed on, this is between the client and the origin.
            for text, flood in (
                ("a second hello", hello()),
                ("warnings", record(ALERT, b"\1\x5a") * 20_000),
                ("ChangeCipherSpec", record(CHANGE_CIPHER_SPEC, b"\1") * 20_000),
                ("empty records", record(HANDSHAKE, b"") * 20_000),
            ):
                if mode != "passthrough":
                    got = send(port, hello(versions=(0x0304,)), flood)
                    self.check(f"{text} behind a hello on {mode}", got.how != "open" and got.took < AT_ONCE_S, got)

    def split(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            pair = (self.certs.path("client"), self.certs.path("client", "key"))
            for listener, certificate in (("disable", None), ("permissive", None), ("strict", pair)):
                name = f"{version.name} a hello of one-byte records on {listener}"
                try:
                    with Client(self.port[listener], self.ca, version, certificate=certificate) as client:
                        answer = client.handshake(one_byte_records).get()
                    self.check(name, answer.startswith(b"HTTP/1.1 200"), answer)
                except (OSError, EOFError) as error:
                    self.check(name, False, repr(error))

    def opened(self):
        """What may not come once a session is open: no request is made of it."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for text, data in (
                ("a forged record", record(DATA, os.urandom(64), 0x0303)),
                ("a record of 2^14+257", record(DATA, bytes((1 << 14) + 257), 0x0303)),
                ("the head of a record of 65,535", struct.pack(">BHH", DATA, 0x0303, 65_535)),
                ("a hello in the clear", hello()),
                ("HTTP in the clear", b"GET /stolen HTTP/1.1\r\nHost: a.test\r\n\r\n"),
                ("an alert in the clear", record(ALERT, b"\2\x28", 0x0303)),
                ("empty records in the clear", record(DATA, b"", 0x0303) * 10_000),
            ):
                with Client(self.port["disable"], self.ca, version) as client:
                    answer = client.handshake().get()
                    try:
                        client.sock.sendall(data)
                    except OSError:
                        pass
                    got = until_the_end(client.sock)
                    good = answer.startswith(b"HTTP/1.1 200") and got.how != "open" and got.took < AT_ONCE_S
                    self.check(f"{version.name} {text} after the handshake ends it", good, got)

    def silence(self):
        """Deadlines: of a handshake whatever is missing of it, of a request, of a response that nobody reads."""
        with socket.create_connection(("127.0.0.1", self.port["disable"])) as sock:
            sock.sendall(hello(versions=(0x0304,)))
            got = until_the_end(sock)
            good = got.accepted and got.how != "open" and AT_ONCE_S < got.took < 3 * HANDSHAKE_TIMEOUT_S
            self.check("a handshake that is not finished is cut at its deadline", good, got)
        with socket.create_connection(("127.0.0.1", self.port["disable"])) as sock:
            started = time.monotonic()
            sock.settimeout(0.05)
            drip = record(HANDSHAKE, hello_message())
            try:
                for at in range(len(drip) - 1):
                    sock.sendall(drip[at : at + 1])
                    time.sleep(0.02)
            except OSError:
                pass
            took = time.monotonic() - started
            self.check("a hello that drips is cut at the deadline", took < 3 * HANDSHAKE_TIMEOUT_S, f"{took:.2f} s")
        with Client(self.port["disable"], self.ca, ssl.TLSVersion.TLSv1_3) as client:
            got = until_the_end(client.handshake().sock)
            self.check("a session without a request is ended", got.how != "open" and got.took < 4, got)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self._never_read(version)

    def _never_read(self, version, count=10):
        data = self.gateway.data_process()
        clients = [Client(self.port["disable"], self.ca, version).handshake() for _ in range(count)]
        before = anonymous_bytes(data)
        for client in clients:
            client.tls.write(b"GET /bytes/20000000 HTTP/1.1\r\nHost: a.test\r\n\r\n")
            client.flush()
        peak, end = 0, time.monotonic() + 6
        while time.monotonic() < end and self.gateway.metric("ringfort_connections_active", '"disable"') > 0:
            peak = max(peak, anonymous_bytes(data) - before)
            time.sleep(0.05)
        left = self.gateway.metric("ringfort_connections_active", '"disable"')
        name = f"{version.name} {count} clients that never read"
        self.check(f"{name} are cut off", left == 0, f"{left} are left")
        self.check(f"{name} cost {peak / count / 1024:.0f} KiB each", peak / count < 1 << 20, "more than 1 MiB")
        for client in clients:
            client.sock.close()


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        certs = Certificates(folder)
        for engine in ENGINES:
            origin = Origin()
            with TlsGateway(engine, origin.port, certs, extra=EXTRA) as gateway:
                if gateway.ready_after is None:
                    tally.check(f"peers {engine}", False, "the gateway did not start: " + gateway.log())
                    continue
                suite = Suite(tally, engine, gateway, certs)
                suite.split()
                before = anonymous_bytes(gateway.data_process())
                suite.hellos()
                suite.broken()
                suite.opened()
                grown = anonymous_bytes(gateway.data_process()) - before
                suite.check(f"all that left {grown / 1024:.0f} KiB behind", grown < 4 << 20, "more than 4 MiB")
                suite.check("none of it reached the origin", not origin.seen(), origin.seen())
                suite.silence()
                active = gateway.metric("ringfort_worker_tls_handshakes_active")
                suite.check("no handshake is under way", active == 0, active)
                got, _ = responses(b"GET /target HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", 2.0, gateway.web)
                suite.check("it still serves", [status for status, _ in got] == [200], got)
                suite.check("nothing broke within", "panic" not in gateway.log(), gateway.log()[-2000:])
                suite.check("it ends well", gateway.stop() == 0, "exit code")
    tally.end()


if __name__ == "__main__":
    main()
