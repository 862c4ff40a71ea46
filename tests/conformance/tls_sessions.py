"""What TLS sessions do beyond their handshake, seen by openssl and curl: resumption and what it must not open, early
data, renegotiation, endings, passing TLS on, TLS to endpoints. On both engines."""

import contextlib
import os
import re
import socket
import ssl
import tempfile

from curl import curl
from lib import ENGINES, Origin, Stream, Tally, read_body, read_head
from session_file import with_early_data
from tls_gateway import Certificates, Server, TlsGateway, request, s_client

VERSIONS = ("-tls1_2", "-tls1_3")
UNRECOGNIZED_NAME = 112


class Suite:
    def __init__(self, tally, engine, gateway, certs, origin, folder):
        self.tally, self.engine, self.gateway, self.certs = tally, engine, gateway, certs
        self.origin, self.folder = origin, folder
        self.port, self.ca = gateway.ports, certs.path("servers")

    def check(self, name, good, why=""):
        self.tally.check(f"tls {self.engine:8} {name}", good, why)

    def connect(self, listener, *args, **kwargs):
        return s_client(self.port[listener], *args, **{"ca": self.ca, **kwargs})

    def file(self, name):
        return os.path.join(self.folder, f"{self.engine}-{name}")

    def resumption(self):
        """A ticket opens the listener and the name it was given for, and nothing else."""
        for version in VERSIONS:
            path = self.file("session")
            got = self.connect("disable", version, "-sess_out", path)
            self.check(f"{version} a first session is new", got.served and got.resumed is False, got.why())
            for listener, name, resumed in (
                ("disable", "a.test", True),
                ("disable", "b.test", False),
                ("disable", None, False),
                ("twin", "a.test", False),
                ("no-tickets", "a.test", False),
                ("permissive", "a.test", False),
            ):
                got = self.connect(listener, version, "-sess_in", path, name=name)
                words = "is resumed" if resumed else "is a full handshake"
                name = f"{version} a ticket of disable for a.test, on {listener} for {name}, {words}"
                self.check(name, got.served and got.resumed is resumed, got.why())
            got = self.connect("strict", version, "-sess_in", path)
            self.check(f"{version} no ticket stands for a certificate", not got.served and got.alert == 116, got.why())
            self._without_tickets(version)
            self._of_a_client(version)
        self._by_identifier()
        count = self.gateway.metric("ringfort_tls_resumed_total")
        self.check("resumed sessions are counted", count == 2 * len(VERSIONS), count)

    def _without_tickets(self, version):
        path = self.file("no-session")
        self.connect("no-tickets", version, "-sess_out", path)
        if os.path.exists(path):
            got = self.connect("no-tickets", version, "-sess_in", path)
            self.check(f"{version} without tickets nothing is resumed", got.served and got.resumed is False, got.why())
            os.remove(path)
        else:
            self.check(f"{version} without tickets none is given", True)

    def _by_identifier(self):
        """TLS 1.2's other resumption: what a session needs is kept by its client alone, so no identifier is given."""
        got = self.connect("disable", "-tls1_2", "-no_ticket")
        given = re.findall(r"Session-ID: (\w*)$", got.text, re.MULTILINE)
        self.check("-tls1_2 no identifier is given to resume by", got.served and given == [""], f"{given} {got.why()}")

    def _of_a_client(self, version):
        """What a certificate opened stays open to its holder's ticket, and that opens no more."""
        path = self.file("client-session")
        first = self.connect("strict", version, *self.certs.pair("client"), "-sess_out", path)
        again = self.connect("strict", version, "-sess_in", path)
        self.check(f"{version} a client's ticket resumes", first.served and again.served and again.resumed is True, again.why())
        got = self.connect("permissive", version, "-sess_in", path)
        self.check(f"{version} a ticket of strict is none on permissive", got.served and got.resumed is False, got.why())

    def early_data(self):
        """A ticket allows none; a client that sends it all the same is served after the handshake alone."""
        session, data = self.file("early-session"), self.file("early-data")
        self.connect("disable", "-tls1_3", "-sess_out", session)
        with open(data, "wb") as f:
            f.write(request("a.test", "/early"))
        got = self.connect("disable", "-tls1_3", "-sess_in", session, "-early_data", data, path="/late")
        self.check("a ticket allows no early data", "Early data was not sent" in got.text and got.served, got.why())
        for groups in ("X25519", "P-384:X25519"):
            self.connect("disable", "-tls1_3", "-sess_out", session)
            with_early_data(session)
            self.origin.forget()
            args = ("-tls1_3", "-groups", groups, "-sess_in", session, "-early_data", data)
            got = self.connect("disable", *args, path="/late")
            good = "Early data was rejected" in got.text and got.served and got.resumed is True
            self.check(f"early data is refused, {groups}", good, got.why())
            seen = [target for _, target in self.origin.seen()]
            self.check(f"early data reaches nobody, {groups}", seen == [b"/late"], seen)

    def renegotiation(self):
        got = self.connect("disable", "-tls1_2", said=b"R\n")
        good = "RENEGOTIATING" in got.text and "no renegotiation" in got.text
        self.check("renegotiation is refused", good, got.why())
        got = self.connect("disable", "-tls1_3", said=b"K\n")
        good = "KEYUPDATE" in got.text and "error" not in got.text
        self.check("a key update is taken", good, got.why())

    def endings(self):
        """close_notify, both ways and whoever begins; the version, the suite and the secrets play no part."""
        for version in VERSIONS:
            got = self.connect("disable", version, "-msg")
            good = got.served and got.find(r"^<<< .*(close_notify)") and "unexpected eof" not in got.text
            self.check(f"{version} the gateway says that its stream is whole", good, got.why())
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(("127.0.0.1", self.port["disable"]), timeout=5) as plain:
                tls = context.wrap_socket(plain, server_hostname="a.test", suppress_ragged_eofs=False)
                tls.sendall(b"GET /target HTTP/1.1\r\nHost: a.test\r\n\r\n")
                stream = Stream(tls)
                head = read_head(stream)
                body = head and read_body(stream, head[1])
                try:
                    tls.unwrap()
                    why = ""
                except (ssl.SSLError, OSError) as error:
                    why = str(error)
                self.check(f"{version.name} a client's close_notify is answered", body == b"ok\n" and not why, (head, why))

    def passthrough(self):
        """The origin's own certificate, session and demand for a certificate reach the client untouched."""
        for version in VERSIONS:
            path = self.file("passed")
            args = (version, *self.certs.pair("client"))
            got = self.connect("passthrough", *args, "-sess_out", path, name="c.test")
            good = got.served and got.find(r"^subject=CN = (\S+)") == "c"
            self.check(f"{version} c.test is passed on", good, got.why())
            got = self.connect("passthrough", *args, "-sess_in", path, name="C.Test", host="c.test")
            self.check(f"{version} the origin's session is resumed", got.served and got.resumed is True, got.why())
            got = self.connect("passthrough", version, name="c.test")
            self.check(f"{version} the origin refuses whom it does not know", not got.served and got.alert, got.why())
            for name in ("d.test", "sub.c.test", None):
                got = self.connect("passthrough", version, name=name)
                self.check(f"{version} {name} is no name to pass on", not got.served and got.alert == UNRECOGNIZED_NAME, got.why())

    def upstream(self, expected):
        for name, served in expected:
            code, out, err = curl("--write-out", "%{http_code}", "--output", os.devnull, f"http://127.0.0.1:{self.gateway.web}/{name}/")
            self.check(f"an endpoint of TLS {name}", out == (b"200" if served else b"502"), (code, out, err))

    def by_curl(self):
        at = lambda listener, path: (f"https://a.test:{self.port[listener]}{path}", "--resolve", f"a.test:{self.port[listener]}:127.0.0.1")
        trust = ("--cacert", self.ca)
        mine = ("--cert", self.certs.path("client"), "--key", self.certs.path("client", "key"))
        for version in ("1.2", "1.3"):
            how = (f"--tlsv{version}", "--tls-max", version, "--http1.1")
            for listener in ("disable", "permissive", "strict", "rsa"):
                more = mine if listener == "strict" else ()
                for size in (1, 16_384, 16_385, 5_000_003):
                    code, out, err = curl(*how, *trust, *more, *at(listener, f"/bytes/{size}"))
                    self.check(f"curl {version} {listener} GET of {size} bytes", (code, len(out)) == (0, size), (code, len(out), err))
            path = self.file("body")
            with open(path, "wb") as f:
                f.write(os.urandom(3_000_001))
            for extra in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")):
                code, out, err = curl(*how, *trust, "--data-binary", f"@{path}", *extra, *at("disable", "/echo"))
                with open(path, "rb") as f:
                    self.check(f"curl {version} POST {extra}", code == 0 and out == f.read(), (code, len(out), err))
            # By version: the handshake fails, what comes is an alert, a certificate is asked for.
            code, out, err = curl(*how, *trust, *at("strict", "/target"))
            self.check(f"curl {version} strict without a certificate", code in (35, 56, 98) and not out, (code, out, err))
            code, out, err = curl(*how, *at("disable", "/target"))
            self.check(f"curl {version} does not trust the test authority", code == 60, (code, err))
        url, *resolve = at("disable", "/n/1")
        code, out, err = curl(*trust, "--write-out", " %{num_connects}\n", *([url] * 10), *resolve)
        connects = [int(line.split()[-1]) for line in out.decode().splitlines() if line.startswith(" ")]
        self.check("curl 10 requests in one session", (code, sum(connects)) == (0, 1), (code, connects, err))
        self._plaintext()

    def _plaintext(self):
        for listener, good in (
            ("permissive", lambda code, out: (code, out) == (0, b"ok\n")),
            ("strict", lambda code, out: code == 56 and not out),
            ("disable", lambda code, out: code != 0 and b"HTTP" not in out),
        ):
            code, out, err = curl(f"http://127.0.0.1:{self.port[listener]}/target")
            self.check(f"plaintext on {listener}", good(code, out), (code, out, err))


def servers(certs):
    """(name, arguments of s_server, whether the gateway is to be served by it)."""
    mutual = ("-Verify", "1", "-CAfile", certs.path("clients"), "-verify_return_error")
    return [
        ("c", ("c", *mutual), None),
        ("v12", ("c", "-tls1_2", *mutual), True),
        ("v13", ("c", "-tls1_3", *mutual), True),
        ("hello-retried", ("c", "-tls1_3", "-groups", "P-384", *mutual), True),
        ("v11", ("c", "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"), False),
        ("cbc", ("c", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"), False),
        ("foreign", ("foreign",), False),
        ("other-name", ("b",), False),
    ]


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        certs = Certificates(folder)
        rows = servers(certs)
        ports = {name: stack.enter_context(Server(certs, *args)).port for name, args, _ in rows}
        for engine in ENGINES:
            origin = Origin()
            with TlsGateway(engine, origin.port, certs, ports) as gateway:
                if gateway.ready_after is None:
                    tally.check(f"tls {engine}", False, "the gateway did not start: " + gateway.log())
                    continue
                suite = Suite(tally, engine, gateway, certs, origin, folder)
                suite.resumption()
                suite.early_data()
                suite.renegotiation()
                suite.endings()
                suite.passthrough()
                suite.upstream([(name, good) for name, _, good in rows if good is not None])
                suite.by_curl()
                suite.check("it ends well", gateway.stop() == 0, "exit code")
    tally.end()


if __name__ == "__main__":
    main()
