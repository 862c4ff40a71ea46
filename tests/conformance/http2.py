"""HTTP/2 by clients that others wrote: httpwg's cases, curl, nghttp and h2load, in plaintext and over TLS.

httpwg speaks plaintext only: over TLS it goes through a relay of ours that adds TLS with ALPN h2 and nothing else.
Needs curl, openssl, Debian's nghttp2-client, and cargo, which installs httpwg-cli into the user's cache."""

import asyncio
import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading

from lib import ENGINES, Gateway, Origin, Tally, free_ports

HTTPWG = ("httpwg-cli", "0.2.5")
HTTPWG_CASES = 107
SIZES = (0, 1, 16_384, 16_385, 65_535, 65_536, 1_000_003, 20_000_000)

# Cases of httpwg that fail, each with the reason. One that passes must leave this list.
EXPLAINED = {
    "4. http frames :: invalid header block fragment": "The h2 crate ends the connection as it must, with "
    "PROTOCOL_ERROR where RFC 9113 §4.3 says COMPRESSION_ERROR; only its decoder knows what was wrong.",
    "8. expressing http semantics in http2 :: sends headers frame with pseudo header in trailer": "The h2 crate drops "
    "pseudo-header fields of trailers, which nobody ever sees, where RFC 9113 §8.1 wants the stream reset.",
}

# Cases whose verdict hangs on which of two things the tool sees first: they pass, or its task panics and says nothing.
RACES = {
    "3. starting http2 :: sends invalid connection preface": "In plaintext it is answered in HTTP/1.1, which it may be "
    "meant as (RFC 9113 §3.4 lets the GOAWAY be left out). The tool reads the answer as a frame and panics at its end.",
    "7. error codes :: sends goaway frame with unknown error code": "The client said GOAWAY and has no stream: the h2 "
    "crate ends the connection (RFC 9113 §6.8) whether or not the PING behind it has come.",
}


def cached_tool(package, version, binary):
    """The path of a cargo-installed binary, kept in the user's cache; None where it can neither be found nor built."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.path.join(cache, "ringfort-conformance", f"{package}-{version}")
    path = os.path.join(root, "bin", binary)
    if not os.path.exists(path) and shutil.which("cargo"):
        command = ["cargo", "install", "--quiet", "--locked", "--version", version, "--root", root, package]
        subprocess.run(command, stdin=subprocess.DEVNULL)
    return path if os.path.exists(path) else None


REQUEST = """[req]
distinguished_name = name
x509_extensions = extensions
[name]
[extensions]
basicConstraints = critical,CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1
"""


def certificate(folder):
    """A certificate for localhost that signs itself; the paths of it and of its key."""
    cert, key, config = (os.path.join(folder, name) for name in ("cert.pem", "key.pem", "openssl.cnf"))
    with open(config, "w") as f:
        f.write(REQUEST)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365"]
    command += ["-config", config, "-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def with_tls(cert, key):
    """A port, and the listener on it that serves TLS."""
    (port,) = free_ports(1)
    keys = f'[[listener.tls.certificates]]\ncert = "{cert}"\nkey = "{key}"\n'
    return port, f'[[listener]]\nname = "secure"\nlisten = "127.0.0.1:{port}"\n[listener.tls]\n{keys}'


class TlsRelay:
    """Takes plaintext connections and passes their bytes on over TLS, with ALPN h2. Waits for no message's end."""

    def __init__(self, port, cert):
        self.target = port
        self.context = ssl.create_default_context(cafile=cert)
        self.context.set_alpn_protocols(["h2"])
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = listener.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, args=(listener,), daemon=True).start()

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self, listener):
        asyncio.set_event_loop(self.loop)
        # What either side does to its connection ends the relay of it, and is no news.
        self.loop.set_exception_handler(lambda *_: None)
        self.loop.run_until_complete(asyncio.start_server(self._relay, sock=listener))
        self.loop.run_forever()

    async def _relay(self, *plain):
        try:
            secure = await asyncio.open_connection("127.0.0.1", self.target, ssl=self.context, server_hostname="localhost")
        except OSError:
            return plain[1].close()
        if secure[1].get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            await asyncio.gather(self._pass(plain[0], secure[1]), self._pass(secure[0], plain[1]))
        plain[1].close()
        secure[1].close()

    @staticmethod
    async def _pass(source, sink):
        try:
            while piece := await source.read(1 << 16):
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        sink.close()


def httpwg(tally, tool, name, port):
    """Each case is a check: it passes, or its failure is explained."""
    command = [tool, "--address", f"127.0.0.1:{port}", "--frame-timeout", "1000"]
    environment = dict(os.environ, SEQUENTIAL="1", RUST_LOG="error", NO_COLOR="1")
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr.decode(errors="replace"))
    verdicts = re.findall(r"^(✅ Test passed|❌ Test failed): RFC 9113 :: (.*)$", text, re.M)
    good = 0
    for verdict, case in sorted(verdicts, key=lambda one: one[1]):
        passed = verdict.endswith("passed")
        good += passed
        if passed and case in EXPLAINED:
            tally.check(f"{name} {case}", False, "it passes now: take it from the list of those that do not")
        elif not passed and case not in EXPLAINED:
            why = re.search(re.escape(case) + r"\s+0: (.*)", text)
            tally.check(f"{name} {case}", False, why.group(1) if why else "failed")
    judged = {case for _, case in verdicts}
    lacking = HTTPWG_CASES - len(judged | RACES.keys())
    tally.check(f"{name} {good} of {HTTPWG_CASES} cases pass", good + len(RACES.keys() - judged) >= 104, text[-2000:])
    tally.check(f"{name} every case has its verdict", lacking == 0, f"{lacking} lack it: {text[-2000:]}")


def run(command, **kwargs):
    """Exit code, output and what was said."""
    done = subprocess.run(command, capture_output=True, timeout=120, **kwargs)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def curl(tally, name, base, args, folder):
    """curl as a client of HTTP/2: bodies of many sizes both ways, no body, many at once on one connection."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*", *args]
    code, out, err = run([*command, "--write-out", "%{http_version} %{http_code}", f"{base}/hello?x=1"])
    tally.check(f"{name} GET", (code, out) == (0, b"GET /hello?x=1 0\n2 200"), (code, out, err))
    code, out, err = run([*command, "--head", f"{base}/bytes/12345"])
    tally.check(f"{name} HEAD", code == 0 and out.startswith(b"HTTP/2 200") and b"content-length: 12345" in out, (code, out, err))
    code, out, err = run([*command, "--request-target", "*", "-X", "OPTIONS", "--write-out", "%{http_code}", "-o", os.devnull, base])
    tally.check(f"{name} OPTIONS *", code == 0 and out[:1] == b"2", (code, out, err))
    for size in SIZES:
        path = os.path.join(folder, f"body-{size}")
        if not os.path.exists(path):
            with open(path, "wb") as f:
                f.write(os.urandom(size))
        with open(path, "rb") as f:
            wanted = hashlib.sha256(f.read()).digest()
        for how, extra in (("length", ()), ("no length", ("-H", "Content-Length:")), ("100-continue", ("-H", "Expect: 100-continue"))):
            code, out, err = run([*command, "--data-binary", f"@{path}", *extra, f"{base}/echo"])
            good = code == 0 and hashlib.sha256(out).digest() == wanted
            tally.check(f"{name} POST of {size} bytes, {how}", good, (code, len(out), err))
        code, out, err = run([*command, f"{base}/chunked/{size}"])
        tally.check(f"{name} GET of {size} bytes", (code, len(out)) == (0, size), (code, len(out), err))
    if "--http2" in args:  # With prior knowledge curl 7.88 fails to use a connection twice, whatever the server.
        urls = [f"{base}/n/{n}" for n in range(50)]
        code, out, err = run([*command, "--parallel", "--parallel-max", "50", "--write-out", " %{num_connects}\n", *urls])
        connects = [int(line.split()[-1]) for line in out.decode().splitlines() if line.startswith(" ")]
        good = code == 0 and out.count(b"GET /n/") == 50 and sum(connects) == 1
        tally.check(f"{name} 50 requests at once on one connection", good, (code, connects, err))


def nghttp(tally, name, base, folder):
    """nghttp2's client: its verbose log tells every frame."""
    code, out, err = run(["nghttp", "--no-verify-peer", f"{base}/bytes/100000"])
    tally.check(f"{name} GET", (code, len(out)) == (0, 100_000), (code, len(out), err))
    path = os.path.join(folder, "body-1000003")
    for how, extra in (("DATA", ()), ("padded", ("--padding=100",)), ("100-continue", ("--expect-continue",)), ("trailers", ("--trailer=x-sum: 1",))):
        code, out, err = run(["nghttp", "--no-verify-peer", *extra, "--data", path, f"{base}/echo"])
        with open(path, "rb") as f:
            tally.check(f"{name} POST, {how}", code == 0 and out == f.read(), (code, len(out), err))
    code, out, err = run(["nghttp", "--no-verify-peer", "--verbose", "--null-out", "--multiply=50", "--window-bits=16", f"{base}/bytes/70000"])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.decode(errors="replace"))
    good = code == 0 and text.count(":status: 200") == 50 and "RST_STREAM" not in text
    tally.check(f"{name} 50 streams in a small window", good, (code, text.count(":status: 200"), err))
    tally.check(f"{name} no GOAWAY but the client's own", "recv GOAWAY" not in text, "")


def h2load(tally, name, base, requests, *args):
    code, out, err = run(["h2load", "--requests", str(requests), *args])
    text = out.decode(errors="replace")
    counts = re.search(r"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    good = code == 0 and counts and [int(n) for n in counts.groups()] == [requests, requests, 0, 0, 0]
    statuses = re.search(r"status codes: (\d+) 2xx", text)
    tally.check(f"{name} {requests} requests {' '.join(args[:-1])}", bool(good and statuses and int(statuses[1]) == requests), (code, text, err))


def clients(tally, name, base, args, folder):
    if shutil.which("curl"):
        curl(tally, f"{name} curl", base, args, folder)
    else:
        tally.not_run(f"{name} curl", "curl is missing")
    if not shutil.which("nghttp") or not shutil.which("h2load"):
        return tally.not_run(f"{name} nghttp, h2load", "nghttp2-client is missing")
    nghttp(tally, f"{name} nghttp", base, folder)
    h2load(tally, f"{name} h2load", base, 5_000, "-c", "16", "-m", "100", f"{base}/bytes/100")
    h2load(tally, f"{name} h2load", base, 2_000, "-c", "64", "-m", "1", f"{base}/target")
    body = os.path.join(folder, "body-65536")
    h2load(tally, f"{name} h2load", base, 1_000, "-c", "4", "-m", "10", "-w", "16", "-W", "18", "-d", body, f"{base}/echo")


def main():
    tally = Tally()
    tool = cached_tool(*HTTPWG, "httpwg")
    with tempfile.TemporaryDirectory() as folder:
        cert, key = certificate(folder)
        for engine in ENGINES:
            origin = Origin()
            secure, listener = with_tls(cert, key)
            with Gateway(engine, origin.port, extra=listener) as gateway:
                if gateway.ready_after is None:
                    tally.check(f"http2 {engine}", False, "the gateway did not start: " + gateway.log())
                    continue
                name = f"http2 {engine:8}"
                if tool is None:
                    tally.not_run(f"{name} httpwg", f"{HTTPWG[0]} {HTTPWG[1]} could not be installed with cargo")
                else:
                    httpwg(tally, tool, f"{name} httpwg h2c", gateway.web)
                    relay = TlsRelay(secure, cert)
                    httpwg(tally, tool, f"{name} httpwg TLS", relay.port)
                    relay.close()
                clients(tally, f"{name} h2c", f"http://127.0.0.1:{gateway.web}", ("--http2-prior-knowledge",), folder)
                clients(tally, f"{name} TLS", f"https://localhost:{secure}", ("--http2", "--cacert", cert), folder)
                tally.check(f"{name} nothing in the log", "panic" not in gateway.log(), gateway.log()[-2000:])
    tally.end()


if __name__ == "__main__":
    main()
