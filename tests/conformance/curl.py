"""A client written by others, curl, against the gateway: methods, bodies of many sizes, versions, path forms."""

import hashlib
import os
import subprocess
import tempfile

from lib import ENGINES, Gateway, Origin, Tally

SIZES = (0, 1, 1023, 16_384, 16_385, 65_536, 1_000_003, 20_000_000)


def curl(*args):
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", "--noproxy", "*", *args], capture_output=True
    )
    return done.returncode, done.stdout, done.stderr.decode()


def status_of(*args):
    """Exit code and the final status of a request whose body is dropped."""
    code, out, err = curl("--output", os.devnull, "--write-out", "%{http_code} %{num_connects}", *args)
    return (code, *out.decode().split()) if code == 0 else (code, err, "")


def run(tally, engine, origin, gateway, folder):
    base = f"http://127.0.0.1:{gateway.web}"
    name = f"curl {engine:8}"
    code, out, err = curl(f"{base}/hello?x=1")
    tally.check(f"{name} GET", (code, out) == (0, b"GET /hello?x=1 0\n"), (code, out, err))
    code, out, err = curl(f"{base}/target")
    tally.check(f"{name} a built-in answer", (code, out) == (0, b"ok\n"), (code, out, err))
    code, out, err = curl("--head", f"{base}/bytes/12345")
    tally.check(f"{name} HEAD", code == 0 and b"12345" in out, (code, out, err))
    code, out, err = curl("--http1.0", f"{base}/bytes/5000")
    tally.check(f"{name} HTTP/1.0", (code, len(out)) == (0, 5000), (code, len(out), err))
    code, out, err = curl("--http1.0", f"{base}/chunked/50000")
    tally.check(f"{name} HTTP/1.0, chunked upstream", (code, len(out)) == (0, 50_000), (code, len(out), err))
    code, out, err = curl("--path-as-is", f"{base}/a/b/../c")
    tally.check(f"{name} --path-as-is", (code, out) == (0, b"GET /a/c 0\n"), (code, out, err))
    code, out, err = curl("--path-as-is", "-w", "%{http_code}", "-o", os.devnull, f"{base}/a%00b")
    tally.check(f"{name} %00 in the path", out == b"400", (code, out, err))
    got = status_of("-X", "OPTIONS", "--request-target", "*", base)
    tally.check(f"{name} OPTIONS *", got[0] == 0 and got[1][0] == "2", got)
    for size in SIZES:
        path = os.path.join(folder, f"body-{size}")
        with open(path, "wb") as f:
            f.write(os.urandom(size))
        with open(path, "rb") as f:
            wanted = hashlib.sha256(f.read()).digest()
        for how, args in (
            ("length", ()),
            ("chunked", ("-H", "Transfer-Encoding: chunked")),
            ("100-continue", ("-H", "Expect: 100-continue")),
        ):
            code, out, err = curl("--data-binary", f"@{path}", *args, f"{base}/echo")
            good = code == 0 and hashlib.sha256(out).digest() == wanted
            tally.check(f"{name} POST of {size} bytes, {how}", good, (code, len(out), err))
        code, out, err = curl(f"{base}/chunked/{size}")
        tally.check(f"{name} GET of {size} bytes, chunked", (code, len(out)) == (0, size), (code, len(out), err))
    code, out, err = curl("--upload-file", path, f"{base}/echo/put")
    tally.check(f"{name} PUT", code == 0 and hashlib.sha256(out).digest() == wanted, (code, len(out), err))
    urls = [f"{base}/n/{n}" for n in range(20)]
    code, out, err = curl("--write-out", " %{num_connects}\n", *urls)
    connects = [int(line.split()[-1]) for line in out.decode().splitlines() if line.startswith(" ")]
    tally.check(f"{name} 20 requests on one connection", (code, sum(connects)) == (0, 1), (code, connects, err))
    code, out, err = curl("--parallel", "--parallel-max", "16", *urls)
    tally.check(f"{name} 20 requests in parallel", code == 0 and out.count(b"GET /n/") == 20, (code, out, err))


def main():
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for engine in ENGINES:
            origin = Origin()
            with Gateway(engine, origin.port) as gateway:
                if gateway.ready_after is None:
                    tally.check(f"curl {engine}", False, "the gateway did not start: " + gateway.log())
                    continue
                run(tally, engine, origin, gateway, folder)
    tally.end()


if __name__ == "__main__":
    main()
