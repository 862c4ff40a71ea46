"""Faults that need tools: system calls made to fail (strace), a memory cgroup, few descriptors, a storm of connects,
a clock that jumps (faketime). The rows R15, R18, R19, R23 and R28 of the fault catalogue, on the release build."""

import glob
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from email.utils import parsedate_to_datetime

from lib import (
    BINARY,
    ENGINES,
    Gateway,
    Origin,
    Stream,
    Tally,
    anonymous_bytes,
    config,
    cpu_seconds,
    free_ports,
    read_body,
    read_head,
    responses,
    value,
)
from tls_gateway import Certificates, TlsGateway, s_client
from tls_peers import hello, until_the_end

GET = b"GET /target HTTP/1.1\r\nHost: a.test\r\n\r\n"


def strace(*injections):
    """The command that runs what follows it with these injections, in all its processes and threads."""
    names = sorted({name for injection in injections for name in injection.split(":")[0].split(",")})
    wrapper = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=" + ",".join(names), "--seccomp-bpf"]
    for injection in injections:
        wrapper += ["-e", "inject=" + injection]
    return wrapper


def strace_works():
    done = subprocess.run(["strace", "-f", "-qq", "-o", os.devnull, "true"], capture_output=True) if shutil.which("strace") else None
    return done is not None and done.returncode == 0


def traffic_is_right(gateway, rounds=15):
    """Why the traffic is wrong; empty when every byte came back."""
    for n in range(rounds):
        size = 1 + n * 9_000
        body = os.urandom(size)
        request = b"POST /echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size
        got, end = responses(request + body, 20.0, gateway.web)
        if [status for status, _ in got] != [200] or got[0][1] != body:
            return f"round {n}: {[status for status, _ in got]} {end}"
        request = b"GET /bytes/%d HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n" % size
        got, end = responses(request, 20.0, gateway.web)
        if [(status, len(text or b"")) for status, text in got] != [(200, size)]:
            return f"round {n}: {[status for status, _ in got]} {end}"
    return ""


def refused_rings(tally):
    """R18: io_uring_setup is refused, as by a container's seccomp filter or by the sysctl."""
    origin = Origin()
    for errno in ("EPERM", "ENOSYS", "ENOMEM"):
        wrapper = strace(f"io_uring_setup:error={errno}")
        with Gateway("auto", origin.port, wrapper=wrapper) as gateway:
            name = f"R18 io_uring_setup {errno}: auto falls back"
            if gateway.ready_after is None:
                tally.check(name, False, gateway.log())
                continue
            tally.check(name, gateway.workers()[0]["engine"] == "epoll", gateway.workers())
            tally.check(f"{name} and serves", not traffic_is_right(gateway, 3), traffic_is_right(gateway, 3))
            log = gateway.log()
            tally.check(f"{name} and says why", "io_uring_setup" in log and errno in log, log)
        folder = gateway.dir
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "ringfort.toml")
        with open(path, "w") as f:
            f.write(config("io_uring", origin.port, *free_ports(2)))
        started = time.monotonic()
        done = subprocess.run([*wrapper, BINARY, "run", "--config", path], capture_output=True, timeout=20)
        took = time.monotonic() - started
        text = (done.stdout + done.stderr).decode()
        shutil.rmtree(folder)
        name = f"R18 io_uring_setup {errno}: engine io_uring"
        tally.check(f"{name} exits 2", done.returncode == 2, (done.returncode, text))
        tally.check(f"{name} within one second", took < 1.0, f"{took:.2f} s")
        good = "io_uring_setup" in text and errno in text and "epoll" in text
        tally.check(f"{name} names cause and cure", good, text)


def failing_calls(tally):
    """R18: the loop's own system calls fail now and then."""
    rows = [("io_uring", call) for call in ("io_uring_enter:error=EINTR:when=5+7", "io_uring_enter:error=EAGAIN:when=6+7",
                                            "io_uring_enter:error=EBUSY:when=9+11")]
    rows += [("epoll", call) for call in ("epoll_wait,epoll_pwait,epoll_pwait2:error=EINTR:when=5+7",
                                          "accept4:error=EMFILE:when=2+2", "accept4:error=ECONNABORTED:when=2+3")]
    for engine, injection in rows:
        name = f"R18 {injection}"
        with Gateway(engine, Origin().port, wrapper=strace(injection)) as gateway:
            if gateway.ready_after is None:
                tally.check(name, False, "not ready: " + gateway.log())
                continue
            why = traffic_is_right(gateway)
            tally.check(name, not why, why + gateway.log()[-2000:])


def clock_jumps(tally):
    """R23: the time of day jumps by an hour and by thirty days, both ways; what counts time by the other clock goes on."""
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not libraries:
        return tally.not_run("R23", "no libfaketime (Debian's package faketime)")
    with tempfile.TemporaryDirectory() as folder:
        offset = os.path.join(folder, "offset")

        def jump(seconds):
            with open(offset + ".new", "w") as f:
                f.write(f"{seconds:+d}\n")
            os.replace(offset + ".new", offset)

        jump(0)
        variables = {
            "LD_PRELOAD": libraries[0],
            "FAKETIME_TIMESTAMP_FILE": offset,
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        for engine in ENGINES:
            os.environ.update(variables)
            try:
                gateway = Gateway(engine, Origin().port)
            finally:
                for name in variables:
                    del os.environ[name]
            with gateway:
                if gateway.ready_after is None:
                    tally.check(f"R23 {engine}", False, gateway.log())
                    continue
                kept = Stream(socket.create_connection(("127.0.0.1", gateway.web)))
                for seconds in (0, 3_600, -3_600, 30 * 86_400, -30 * 86_400, 0):
                    jump(seconds)
                    # A date may be half a second old.
                    time.sleep(0.7)
                    started = time.monotonic()
                    kept.sock.sendall(GET)
                    head = read_head(kept)
                    good = head is not None and b" 200 " in head[0] + b" " and read_body(kept, head[1]) is not None
                    date = value(head[1], b"date").decode() if good else ""
                    off = parsedate_to_datetime(date).timestamp() - time.time() - seconds if date else None
                    took = time.monotonic() - started
                    fresh, _ = responses(GET, 5.0, gateway.web, linger=0.01)
                    right = good and took < 1.0 and abs(off) < 5 and [status for status, _ in fresh] == [200]
                    why = f"kept {good}, {took:.2f} s, date {date} ({off}), new {fresh}"
                    tally.check(f"R23 {engine} {seconds:+d} s", right, why)
        jump(0)


def few_descriptors(tally, engine):
    """R15: 256 descriptors, 400 connections: no spin, those open are served, it recovers."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    name = f"R15 {engine}"
    with Gateway(engine, Origin().port, preexec=limit) as gateway:
        if gateway.ready_after is None:
            return tally.check(name, False, gateway.log())
        first = socket.create_connection(("127.0.0.1", gateway.web))
        crowd = [socket.create_connection(("127.0.0.1", gateway.web)) for _ in range(400)]
        time.sleep(0.3)
        data = gateway.data_process()
        before = cpu_seconds(data)
        time.sleep(2)
        used = (cpu_seconds(data) - before) / 2
        tally.check(f"{name} no spin", used < 0.05, f"{used:.0%} CPU")
        first.sendall(GET)
        first.settimeout(5)
        tally.check(f"{name} open connections are served", first.recv(100).startswith(b"HTTP/1.1 200"))
        tally.check(f"{name} the admin port answers", gateway.admin("/healthz")[0] == 200)
        for sock in crowd:
            sock.close()
        started = time.monotonic()
        got, _ = responses(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 5.0, gateway.web)
        took = time.monotonic() - started
        tally.check(f"{name} recovers within a second", [s for s, _ in got] == [200] and took < 1.0, (got, took))


def memory_group():
    """A memory cgroup of 128 MiB: (path, file of its processes, reader of its count of OOM kills) or None."""
    name = f"ringfort-conformance-{os.getpid()}"
    limit = str(128 << 20)
    for base, limit_file, events in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
        ("/sys/fs/cgroup", "memory.max", "memory.events"),
    ):
        path = os.path.join(base, name)
        try:
            os.mkdir(path)
            with open(os.path.join(path, limit_file), "w") as f:
                f.write(limit)
        except OSError:
            if os.path.isdir(path):
                os.rmdir(path)
            continue

        def kills(path=path, events=events):
            with open(os.path.join(path, events)) as f:
                return next((int(line.split()[1]) for line in f if line.startswith("oom_kill ")), 0)

        return path, os.path.join(path, "cgroup.procs"), kills
    return None


def capped_memory(tally, engine, count=10_000):
    """R19: 10,000 clients that each fill a head's buffer, in 128 MiB: it sheds, and is not killed."""
    name = f"R19 {engine}"
    group = memory_group()
    if group is None:
        return tally.not_run(name, "no memory cgroup can be made here")
    path, procs, kills = group

    def enter():
        with open(procs, "w") as f:
            f.write("0")

    crowd = []
    try:
        with Gateway(engine, Origin().port, "[limits]\nmemory_bytes_max = 67108864\n[timeouts]\nheader_timeout_ms = 60000\n", preexec=enter) as gateway:
            if gateway.ready_after is None:
                return tally.check(name, False, gateway.log())
            data = gateway.data_process()
            part = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Fill: " + b"f" * 15_000
            for _ in range(count):
                sock = socket.socket()
                sock.settimeout(2)
                crowd.append(sock)
                try:
                    sock.connect(("127.0.0.1", gateway.web))
                    sock.sendall(part)
                except OSError:
                    pass
            time.sleep(1)
            tally.check(f"{name} nothing was killed", kills() == 0 and gateway.data_process() == data, f"{kills()} kills")
            tally.check(f"{name} the admin port answers", gateway.admin("/healthz")[0] == 200)
            text = gateway.admin("/metrics")[1]
            shed = [line for line in text.splitlines() if line.startswith("ringfort_shed_total") and not line.endswith(" 0")]
            tally.check(f"{name} it shed", bool(shed), "no ringfort_shed_total above 0")
            for sock in crowd:
                sock.close()
            started = time.monotonic()
            served = False
            while not served and time.monotonic() - started < 5:
                got, _ = responses(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 2.0, gateway.web)
                served = [status for status, _ in got] == [200]
            tally.check(f"{name} it serves again", served)
    finally:
        for sock in crowd:
            sock.close()
        for _ in range(100):
            try:
                os.rmdir(path)
                break
            except OSError:
                time.sleep(0.05)


def storm(tally, engine, count=8_000):
    """R28: thousands connect within a second or so; all are served within two of the last."""
    name = f"R28 {engine}"
    with Gateway(engine, Origin().port) as gateway:
        if gateway.ready_after is None:
            return tally.check(name, False, gateway.log())
        started = time.monotonic()
        crowd, refused = [], 0
        for _ in range(count):
            sock = socket.socket()
            sock.settimeout(10)
            try:
                sock.connect(("127.0.0.1", gateway.web))
                crowd.append(sock)
            except OSError:
                refused += 1
        connected = time.monotonic() - started
        for sock in crowd:
            sock.sendall(GET)
        good = sum(1 for sock in crowd if sock.recv(200).startswith(b"HTTP/1.1 200"))
        served = time.monotonic() - started - connected
        for sock in crowd:
            sock.close()
        tally.check(f"{name} {count} connects in {connected:.2f} s, none refused", refused == 0, f"{refused} refused")
        tally.check(f"{name} all served in {served:.2f} s more", good == count and served < 2.0, f"{good} served")


def idle_cost(tally, engine, count=4_000):
    """An idle connection of a release build costs at most 600 bytes of user memory over 4,000 of them."""
    name = f"idle {engine}"

    def hold(gateway, n):
        socks = []
        for _ in range(n):
            sock = socket.create_connection(("127.0.0.1", gateway.web), timeout=5)
            sock.sendall(GET)
            assert sock.recv(300).startswith(b"HTTP/1.1 200")
            socks.append(sock)
        return socks

    with Gateway(engine, Origin().port) as gateway:
        if gateway.ready_after is None:
            return tally.check(name, False, gateway.log())
        data = gateway.data_process()
        warm = hold(gateway, 100)
        before = anonymous_bytes(data)
        idle = hold(gateway, count)
        each = (anonymous_bytes(data) - before) / count
        tally.check(f"{name} {each:.0f} bytes a connection", each <= 600, "more than 600")
        for sock in warm + idle:
            sock.close()


def settled(gateway, wanted, within=3.0):
    """The number of handshakes under way, once it is as wanted, or at the end of the time."""
    end = time.monotonic() + within
    while True:
        active = gateway.metric("ringfort_worker_tls_handshakes_active")
        if active == wanted or time.monotonic() > end:
            return active
        time.sleep(0.02)


def half_open_handshakes(tally, engine, folder, count=200):
    """200 clients that say nothing, half a hello, or a hello and no more: little memory, and gone by the deadline."""
    name = f"half-open handshakes {engine}"
    certs = Certificates(folder)
    kinds = {"silent": b"", "half a hello": hello(versions=(0x0304,))[:100], "unfinished": hello(versions=(0x0304,))}
    with TlsGateway(engine, Origin().port, certs, extra="[timeouts]\nhandshake_timeout_ms = 4000\n") as gateway:
        if gateway.ready_after is None:
            return tally.check(name, False, gateway.log())
        data, port = gateway.data_process(), gateway.ports["disable"]
        s_client(port)
        for kind, said in kinds.items():
            before, started = anonymous_bytes(data), time.monotonic()
            crowd = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(count)]
            for sock in crowd:
                sock.sendall(said)
            if kind == "unfinished":
                good = all(sock.recv(1) == b"\x16" for sock in crowd)
                tally.check(f"{name}: the server's part came", good)
            active = settled(gateway, count)
            each = (anonymous_bytes(data) - before) / count
            tally.check(f"{name}, {kind}: {active:.0f} under way", active == count, f"{active} of {count}")
            tally.check(f"{name}, {kind}: {each / 1024:.1f} KiB each", each <= 24 << 10, "more than 24 KiB")
            tally.check(f"{name}, {kind}: others are served beside them", s_client(port).served)
            ends = [until_the_end(sock, 10.0) for sock in crowd]
            took = time.monotonic() - started
            open_still = sum(end.how == "open" for end in ends)
            tally.check(f"{name}, {kind}: gone after {took:.1f} s", open_still == 0 and 3.5 < took < 8, f"{open_still} are open")
            active = settled(gateway, 0)
            tally.check(f"{name}, {kind}: none is under way", active == 0, f"{active} are")
            for sock in crowd:
                sock.close()
        kept = gateway.metric("ringfort_tls_handshake_failures_total", "timed_out")
        tally.check(f"{name}: each is counted", kept == 3 * count, f"{kept} of {3 * count}")


def main():
    tally = Tally()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if strace_works():
        refused_rings(tally)
        failing_calls(tally)
    else:
        tally.not_run("R18", "strace is missing or may not trace here")
    clock_jumps(tally)
    for engine in ENGINES:
        few_descriptors(tally, engine)
        with tempfile.TemporaryDirectory() as folder:
            half_open_handshakes(tally, engine, folder)
        if hard >= 11_000:
            capped_memory(tally, engine)
            storm(tally, engine)
            idle_cost(tally, engine)
        else:
            tally.not_run(f"R19, R28, idle {engine}", f"only {hard} descriptors are allowed here")
    tally.end()


if __name__ == "__main__":
    main()
