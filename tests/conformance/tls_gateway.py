"""The gateway with TLS listeners of every kind, the certificates that it takes, and openssl's client."""

import os
import re
import subprocess
import time
from dataclasses import dataclass

from lib import Gateway, free_ports
from pki import Authority

# The keys of [listener.tls], by the listener's name.
CLIENTS = 'client_ca = "{dir}/clients.pem"\nclient_crl = "{dir}/clients.crl"'
LISTENERS = {
    "disable": ("a,r,b", ""),
    "permissive": ("a,r", 'mtls = "permissive"\n' + CLIENTS),
    "strict": ("a,r", 'mtls = "strict"\n' + CLIENTS),
    "twin": ("a,r,b", ""),
    "no-tickets": ("a,r,b", "session_tickets = false"),
    "modern": ("a,r", 'version_min = "1.3"'),
    "rsa": ("r", ""),
}


class Certificates:
    """Those of the gateway (`a`, `b`, `r`), and of clients good and bad."""

    def __init__(self, folder):
        self.dir = folder
        self.servers = Authority(folder, "servers")
        self.servers.issue("a", "DNS:a.test")
        self.servers.issue("r", "DNS:a.test", "rsa")
        self.servers.issue("b", "DNS:b.test")
        self.servers.issue("c", "DNS:c.test")
        clients = Authority(folder, "clients")
        identity = "URI:spiffe://a.test/client"
        clients.issue("client", identity)
        clients.issue("client-rsa", identity, "rsa")
        clients.issue("expired", identity, dates=("20200101", "20210101"))
        clients.issue("early", identity, dates=("20400101", "20410101"))
        clients.issue("server-only", identity, usage="serverAuth")
        clients.issue("revoked", identity)
        clients.revoke("revoked")
        Authority(folder, "strangers").issue("foreign", identity)

    def path(self, name, kind="pem"):
        return os.path.join(self.dir, f"{name}.{kind}")

    def pair(self, name):
        """Arguments of openssl's and curl's clients that present a certificate."""
        return ("-cert", self.path(name), "-key", self.path(name, "key"))


class TlsGateway(Gateway):
    """Listeners as in `LISTENERS`, and `passthrough` that sends c.test to `origins["c"]`; `origins` of other names are
    clusters reached over TLS under `/NAME/`."""

    def __init__(self, engine, origin_port, certs, origins=None, extra="", **kwargs):
        origins = origins or {}
        names = [*LISTENERS, "passthrough"]
        self.ports = dict(zip(names, free_ports(len(names))))
        text = [extra]
        for name, (servers, keys) in LISTENERS.items():
            text.append(f'[[listener]]\nname = "{name}"\nlisten = "127.0.0.1:{self.ports[name]}"\n[listener.tls]')
            text.append(keys.replace("{dir}", certs.dir))
            for server in servers.split(","):
                text.append(f'[[listener.tls.certificates]]\ncert = "{certs.path(server)}"\nkey = "{certs.path(server, "key")}"')
        port = self.ports["passthrough"]
        text.append(f'[[listener]]\nname = "passthrough"\nlisten = "127.0.0.1:{port}"\nprotocol = "tls-passthrough"')
        route = 'listener = "passthrough"\nhosts = ["c.test"]\ncluster = "c"'
        text.append(f'[[route]]\n{route}\n[[cluster]]\nname = "c"\nendpoints = ["127.0.0.1:{origins.get("c", origin_port)}"]')
        for name in origins.keys() - {"c"}:
            text.append(f'[[route]]\npath_prefix = "/{name}/"\ncluster = "{name}"')
            text.append(f'[[cluster]]\nname = "{name}"\nendpoints = ["127.0.0.1:{origins[name]}"]\n[cluster.tls]')
            text.append(f'ca = "{certs.path("servers")}"\nserver_name = "c.test"')
            text.append(f'cert = "{certs.path("client")}"\nkey = "{certs.path("client", "key")}"')
        super().__init__(engine, origin_port, "\n".join(text) + "\n", **kwargs)

    def metric(self, name, label=""):
        """Sum of a metric's samples whose labels contain `label`."""
        lines = self.admin("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(name + r"[{ ]", line) and label in line)


@dataclass
class Outcome:
    """What `openssl s_client` ended with."""

    code: int
    text: str

    def find(self, pattern):
        found = re.search(pattern, self.text, re.M)
        return found.group(1).strip() if found else None

    @property
    def alert(self):
        """The number of the alert received, if one was."""
        found = self.find(r"SSL alert number (\d+)")
        return None if found is None else int(found)

    @property
    def served(self):
        return re.search(r"HTTP/1\.[01] 200 (OK|ok)", self.text) is not None

    @property
    def agreed(self):
        """Version, suite, group and kind of certificate."""
        group = self.find(r"^Server Temp Key: (?:ECDH, )?([^,]+),")
        return self.find(r"^New, (TLSv[^,]+),"), self.find(r"Cipher is (\S+)"), group, self.find(r"^Peer signature type: (\S+)")

    @property
    def resumed(self):
        return {"New": False, "Reused": True}.get(self.find(r"^(New|Reused), TLS"))

    def why(self):
        errors = [line for line in self.text.splitlines() if "error" in line or "alert" in line]
        return f"exit {self.code}, agreed {self.agreed}, served {self.served}, {errors[-3:] or self.text[-300:]}"


def request(host, path="/target"):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def s_client(port, *args, name="a.test", host=None, path="/target", ca=None, said=None):
    """One connection by openssl that asks for `path` of `host`, which is `name` where absent, and waits for the end; or
    says what its command line takes."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"]
    command += ["-servername", name] if name else ["-noservername"]
    command += ["-CAfile", ca, "-verify_return_error"] if ca else []
    if said is None:
        command += ["-ign_eof", "-nocommands"]
        said = request(host or name or "a.test", path)
    try:
        done = subprocess.run([*command, *args], input=said, capture_output=True, timeout=20)
        return Outcome(done.returncode, (done.stdout + b"\n" + done.stderr).decode("latin-1"))
    except subprocess.TimeoutExpired as expired:
        seen = (expired.stdout or b"") + (expired.stderr or b"")
        return Outcome(-1, seen.decode("latin-1") + "\nerror: it did not end within 20 s")


class Server:
    """`openssl s_server`, which answers every request with a page of its own."""

    def __init__(self, certs, name, *args):
        (self.port,) = free_ports(1)
        command = ["openssl", "s_server", "-accept", f"127.0.0.1:{self.port}", "-www", "-quiet", *certs.pair(name), *args]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def wait_for_port(port, within=5.0):
    """Until somebody listens there. Asks the kernel: a connection made for that would be served."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        with open("/proc/net/tcp") as f:
            if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in f):
                return
        time.sleep(0.01)
    raise RuntimeError(f"nobody listens at {port}")
