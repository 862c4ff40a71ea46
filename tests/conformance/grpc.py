"""gRPC end to end: tonic's client and server with the gateway between them, in plaintext and over TLS on either side.
Needs cargo, which builds tests/grpc, and openssl."""

import os
import socket
import subprocess
import tempfile

from http2 import certificate, with_tls
from lib import ENGINES, ROOT, Gateway, Origin, Tally, free_ports

CRATE = os.path.join(ROOT, "tests", "grpc")
CHECKS = 11
STATUSES = """ok cancelled unknown invalid_argument deadline_exceeded not_found already_exists permission_denied resource_exhausted
failed_precondition aborted out_of_range unimplemented internal unavailable data_loss unauthenticated""".split()


def build():
    """The path of the program; None where it cannot be built."""
    done = subprocess.run(["cargo", "build", "--quiet", "--locked"], cwd=CRATE, stdin=subprocess.DEVNULL)
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(CRATE, "target")
    return os.path.join(target, "debug", "ringfort-grpc") if done.returncode == 0 else None


def clusters(ports, cert, silent):
    """Calls to the listener `over-tls` go up over TLS, those of `/dead/` to an endpoint that nobody listens at, those of
    `/hang/` to one that never answers, all others in plaintext."""
    plain, secure = ports
    (dead,) = free_ports(1)
    return f"""[[route]]
path_prefix = "/hang/"
cluster = "silent"
[[cluster]]
name = "silent"
endpoints = ["127.0.0.1:{silent}"]
protocol = "h2"
[[route]]
path_prefix = "/dead/"
cluster = "dead"
[[cluster]]
name = "dead"
endpoints = ["127.0.0.1:{dead}"]
protocol = "h2"
[[route]]
listener = "over-tls"
cluster = "calls-over-tls"
[[cluster]]
name = "calls-over-tls"
endpoints = ["127.0.0.1:{secure}"]
protocol = "h2"
[cluster.tls]
ca = "{cert}"
server_name = "localhost"
[[route]]
path_prefix = "/echo.Echo/"
cluster = "calls"
[[cluster]]
name = "calls"
endpoints = ["127.0.0.1:{plain}"]
protocol = "h2"
"""


def check(tally, name, program, gateway, count, *args):
    try:
        done = subprocess.run([program, *args], capture_output=True, timeout=120)
        text = (done.stdout + done.stderr).decode(errors="replace")
    except subprocess.TimeoutExpired as expired:
        text = (expired.stdout or b"").decode(errors="replace") + "it did not end within 120 s"
    seen = 0
    for line in text.splitlines():
        verdict, _, rest = line.partition(" ")
        if verdict in ("ok", "FAILED"):
            seen += 1
            tally.check(f"{name} {rest}", verdict == "ok", gateway.log()[-1000:])
    tally.check(f"{name} {count} checks were made", seen == count, text)


def statuses(gateway):
    """Calls counted, by their status."""
    lines = gateway.admin("/metrics")[1].splitlines()
    found = [line for line in lines if line.startswith("ringfort_upstream_grpc_responses_total{")]
    return {line.split('status="')[1].split('"')[0]: float(line.split()[-1]) for line in found if 'cluster="calls"' in line}


def main():
    tally = Tally()
    program = build()
    if program is None:
        tally.not_run("grpc", "cargo is missing or cannot build tests/grpc")
        tally.end()
    with tempfile.TemporaryDirectory() as folder:
        cert, key = certificate(folder)
        server = subprocess.Popen([program, "serve", cert, key], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        ports = [int(port) for port in server.stdout.readline().split()]
        for engine in ENGINES:
            (up_secure,) = free_ports(1)
            secure, listener = with_tls(cert, key)
            over = f'[[listener]]\nname = "over-tls"\nlisten = "127.0.0.1:{up_secure}"\nprotocol = "http"\n'
            origin, silent = Origin(), socket.create_server(("127.0.0.1", 0))
            routes = clusters(ports, cert, silent.getsockname()[1])
            with Gateway(engine, origin.port, extra=listener + over + routes) as gateway:
                name = f"grpc {engine:8}"
                if gateway.ready_after is None:
                    tally.check(name, False, "the gateway did not start: " + gateway.log())
                    continue
                check(tally, f"{name} h2c", program, gateway, CHECKS, "check", f"http://127.0.0.1:{gateway.web}")
                check(tally, f"{name} TLS", program, gateway, CHECKS, "check", f"https://localhost:{secure}", cert)
                check(tally, f"{name} TLS upstream", program, gateway, CHECKS, "check", f"http://127.0.0.1:{up_secure}")
                check(tally, f"{name} h2c", program, gateway, 1, "deadline", f"http://127.0.0.1:{gateway.web}")
                counted = statuses(gateway)
                good = counted.get("ok", 0) > 400 and all(counted.get(status, 0) >= 2 for status in STATUSES)
                tally.check(f"{name} statuses are counted", good, counted)
        server.kill()
        server.wait()
    tally.end()


if __name__ == "__main__":
    main()
