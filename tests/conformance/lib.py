"""What the conformance scripts share: the gateway as a process, a counting origin, a strict reader of responses, and
the tally. Needs nothing but Python's standard library."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.environ.get("RINGFORT") or os.path.join(ROOT, "target", "release", "ringfort")
ENGINES = ("io_uring", "epoll")


class Tally:
    """Counts checks, prints each on a line, ends with `N passed, N failed`."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, name, good, why=""):
        if good:
            self.passed += 1
            print(f"ok      {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}: {why}", flush=True)

    def not_run(self, name, why):
        """A check that this machine cannot make is said, and fails where nothing may be skipped (CI=true)."""
        if os.environ.get("CI") == "true":
            self.check(name, False, f"could not be run: {why}")
        else:
            print(f"NOT RUN {name}: {why}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


GIVEN = set()


def free_ports(count):
    """Ports of 127.0.0.1 that nobody listens on, none given before: who asked may not listen yet."""
    held, ports = [], []
    while len(ports) < count:
        held.append(socket.create_server(("127.0.0.1", 0)))
        port = held[-1].getsockname()[1]
        if port not in GIVEN:
            GIVEN.add(port)
            ports.append(port)
    for s in held:
        s.close()
    return ports


def config(engine, origin_port, web, admin, extra="", workers=""):
    """Everything that comes to one listener goes to one origin; `/target` is answered by the gateway itself."""
    return f"""[workers]
cpus = "0"
engine = "{engine}"
{workers}
[admin]
listen = "127.0.0.1:{admin}"
socket = "admin.sock"
{extra}
[[listener]]
name = "web"
listen = "127.0.0.1:{web}"
protocol = "http"
[[route]]
path = "/target"
respond = {{ status = 200, body = "ok\\n" }}
[[route]]
cluster = "site"
[[cluster]]
name = "site"
endpoints = ["127.0.0.1:{origin_port}"]
"""


class Gateway:
    """`ringfort run` on a configuration of its own, under a wrapper such as strace where one is given."""

    def __init__(self, engine, origin_port, extra="", workers="", wrapper=(), preexec=None, ready_within=10.0):
        self.web, self.admin_port = free_ports(2)
        self.dir = tempfile.mkdtemp(prefix="ringfort-conformance-")
        path = os.path.join(self.dir, "ringfort.toml")
        with open(path, "w") as f:
            f.write(config(engine, origin_port, self.web, self.admin_port, extra, workers))
        self.log_path = os.path.join(self.dir, "log")
        self.wrapped = bool(wrapper)
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [*wrapper, BINARY, "run", "--config", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=preexec
            )
        started = time.monotonic()
        self.ready_after = None
        while time.monotonic() - started < ready_within and self.process.poll() is None:
            if self.admin("/readyz")[0] == 200:
                self.ready_after = time.monotonic() - started
                break
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        with open(self.log_path) as f:
            return f.read()

    def admin(self, path):
        """Status and text of a GET on the admin port; (0, cause) when there is no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, ""
        except OSError as e:
            return 0, str(e)

    def workers(self):
        return json.loads(self.admin("/workers")[1])["workers"]

    def supervisor(self):
        return children(self.process.pid)[0] if self.wrapped else self.process.pid

    def data_process(self):
        return children(self.supervisor())[0]

    def stop(self):
        """SIGTERM, then SIGKILL for what is left of it; returns the exit code."""
        started = tree(self.process.pid)
        try:
            os.kill(self.supervisor(), signal.SIGTERM)
        except (IndexError, ProcessLookupError):
            pass
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = None
            for pid in reversed(started):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
        return code


def children(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as f:
                    if f.read().rsplit(")", 1)[1].split()[1] == str(pid):
                        found.append(int(name))
            except OSError:
                pass
    return found


def tree(pid):
    found = [pid]
    for known in found:
        found.extend(children(known))
    return found


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid):
    """User memory of a process."""
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon:"))


class Stream:
    """A buffered socket with a deadline for each wait."""

    def __init__(self, sock, timeout=5.0):
        self.sock = sock
        self.buf = bytearray()
        sock.settimeout(timeout)

    def fill(self):
        piece = self.sock.recv(1 << 16)
        self.buf += piece
        return len(piece)

    def until(self, mark, limit=1 << 20):
        """Bytes up to and with `mark`; None when the stream ends before."""
        scanned = 0
        while True:
            at = self.buf.find(mark, max(0, scanned - len(mark)))
            if at >= 0:
                return self._take(at + len(mark))
            scanned = len(self.buf)
            if scanned > limit or not self.fill():
                return None

    def exactly(self, n):
        while len(self.buf) < n:
            if not self.fill():
                return None
        return self._take(n)

    def _take(self, n):
        out = bytes(self.buf[:n])
        del self.buf[:n]
        return out


def read_head(stream):
    """Start line and fields (names in lower case); None at the end of the stream."""
    head = stream.until(b"\r\n\r\n")
    if head is None:
        return None
    lines = head[:-4].split(b"\r\n")
    fields = [tuple(part.strip() for part in line.split(b":", 1)) for line in lines[1:]]
    return lines[0], [(f[0].lower(), f[1] if len(f) > 1 else b"") for f in fields]


def value(fields, name):
    return next((v for n, v in fields if n == name), None)


def read_body(stream, fields):
    """The body by its framing; None when the stream ends before the body does."""
    if value(fields, b"transfer-encoding") is not None:
        body = bytearray()
        while True:
            line = stream.until(b"\r\n")
            if line is None:
                return None
            size = int(line.strip(), 16)
            if size == 0:
                break
            piece = stream.exactly(size + 2)
            if piece is None or not piece.endswith(b"\r\n"):
                return None
            body += piece[:-2]
        while True:
            line = stream.until(b"\r\n")
            if line is None:
                return None
            if line == b"\r\n":
                return body
    return stream.exactly(int(value(fields, b"content-length") or 0))


class Origin:
    """Answers each whole request with its method, target and body length; keeps method and target of each."""

    def __init__(self):
        self.lock = threading.Lock()
        self.requests = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self):
        with self.lock:
            self.requests = []

    def seen(self):
        with self.lock:
            return list(self.requests)

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        stream = Stream(sock, timeout=60.0)
        try:
            while self._one(sock, stream):
                pass
        except (OSError, ValueError):
            pass
        sock.close()

    def _one(self, sock, stream):
        head = read_head(stream)
        if head is None:
            return False
        line, fields = head
        if value(fields, b"expect") is not None:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(stream, fields)
        if body is None:
            return False
        method, target = line.split(b" ")[:2]
        with self.lock:
            self.requests.append((method, target))
        number = target.rsplit(b"/", 1)[-1]
        reply = b"x" * int(number) if target.startswith(b"/bytes/") else b"%s %s %d\n" % (method, target, len(body))
        if target.startswith(b"/chunked/"):
            payload = b"x" * int(number)
            pieces = [payload[i : i + 9000] for i in range(0, len(payload), 9000)]
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces)
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
            return True
        if target.startswith(b"/echo"):
            reply = body
        out = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply)
        sock.sendall(out if method == b"HEAD" else out + reply)
        return True


def responses(data, timeout, port, linger=None):
    """Sends bytes on one connection; returns the final responses' (status, body), and how it ended: `close`
    or `timeout`. Behind the first response the end or another one is awaited for `linger` seconds only."""
    out = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        stream = Stream(sock, timeout)
        try:
            sock.sendall(data)
        except OSError:
            pass  # It may answer and close before it took everything.
        try:
            while True:
                head = read_head(stream)
                if head is None:
                    return out, "close"
                status = int(head[0].split(b" ")[1])
                if status // 100 == 1:
                    continue
                body = b"" if status in (204, 304) or data.startswith(b"HEAD ") else read_body(stream, head[1])
                out.append((status, body))
                sock.settimeout(linger or timeout)
        except socket.timeout:
            return out, "timeout"
        except OSError:
            return out, "close"

