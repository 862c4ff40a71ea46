"""Replays the scored cases of Http11Probe through the gateway to an origin that counts. Each case is sent alone and
with a request behind it: no case may get another outcome than it expects, and no request that was refused may be seen
by the origin, nor one hidden in another."""

import json
import os
import re
import sys

from lib import ENGINES, ROOT, Gateway, Origin, Tally, responses

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"
HEAD = b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n"
LONG = 100_000

# Cases whose bytes were cut or lost where they were recorded, made again from their descriptions.
RESTORED = {
    "MAL-NON-ASCII-URL": b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    "MAL-URL-OVERLONG-UTF8": b"GET /\xc0\xaf HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    "MAL-NON-ASCII-HEADER-NAME": HEAD + b"X-T\xc3\xabst: value\r\n\r\n",
    "MAL-LONG-URL": b"GET /" + b"A" * LONG + b" HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    "MAL-LONG-HEADER-VALUE": HEAD + b"X-Big: " + b"B" * LONG + b"\r\n\r\n",
    "MAL-MANY-HEADERS": HEAD + b"".join(b"X-H-%d: value\r\n" % n for n in range(10_000)) + b"\r\n",
    "MAL-LONG-HEADER-NAME": HEAD + b"A" * LONG + b": value\r\n\r\n",
    "MAL-LONG-METHOD": b"A" * LONG + b" / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    "MAL-CHUNK-EXT-64K": b"POST / HTTP/1.1\r\nHost: localhost:8080\r\nTransfer-Encoding: chunked\r\n\r\n5;ext="
    + b"a" * 65_536
    + b"\r\nhello\r\n0\r\n\r\n",
}


def meets(expected, statuses, end):
    """Whether the first status, or the end without one, is what `expected` says in words such as
    `400/501 or close`, `2xx + close`, `!101`."""
    expected = expected.replace("(pass)", "").replace("(warn)", "")
    if not statuses:
        return end in re.split(r"[ /,]+", expected)
    status = str(statuses[0])
    if expected.startswith("!"):
        return status != expected[1:]
    if "+ close" in expected and end != "close":
        return False
    words = re.findall(r"\b\d(?:\d\d|xx)\b", expected)
    return any(word == status or (word.endswith("xx") and word[0] == status[0]) for word in words)


def judge(case, data, origin, gateway):
    """Why the case fails; empty when it passes."""
    # What is incomplete waits for its deadline: a second shows that nothing comes at once.
    waits = "timeout" in case["expected"] or "close" in case["expected"]
    for name, behind in (("alone", b""), ("followed", HIDDEN)):
        origin.forget()
        got, end = responses(data + behind, 2.0 if waits else 1.0, gateway.web, linger=0.25)
        statuses = [status for status, _ in got]
        seen = origin.seen()
        targets = [target for _, target in seen]
        # A request that is merely incomplete takes what follows as its own: only the case alone is judged by status.
        if not behind and not meets(case["expected"], statuses, end):
            return f"{name}: expected {case['expected']}, got {statuses} {end}", statuses, end
        good = sum(1 for status in statuses if status // 100 == 2)
        if len(seen) > good:
            return f"{name}: the origin saw {targets}, the client {statuses}", statuses, end
        if statuses and statuses[0] >= 400 and len(statuses) == 1 and seen:
            return f"{name}: refused with {statuses[0]}, but the origin saw {targets}", statuses, end
        if targets.count(b"/hidden") > sum(1 for _, body in got if body and b" /hidden " in body):
            return f"{name}: a hidden request reached the origin", statuses, end
        if not behind:
            alone = (statuses, end)
    return "", *alone


def main():
    with open(os.path.join(ROOT, "tests", "data", "http11probe-cases.json")) as f:
        cases = [case for case in json.load(f)["cases"] if case["scored"]]
    tally = Tally()
    for engine in ENGINES:
        origin = Origin()
        with Gateway(engine, origin.port) as gateway:
            if gateway.ready_after is None:
                tally.check(f"probe {engine}", False, "the gateway did not start: " + gateway.log())
                continue
            for case in cases:
                data = RESTORED.get(case["id"]) or case["rawRequest"].encode("latin-1")
                why, statuses, end = judge(case, data, origin, gateway)
                got = ",".join(map(str, statuses)) or end
                tally.check(f"probe {engine:8} {case['id']:34} {got:9} ({case['expected']})", not why, why)
            tally.check(f"probe {engine}: it still serves", bool(responses(HIDDEN, 1.0, gateway.web)[0]))
            tally.check(f"probe {engine}: it ends well", gateway.stop() == 0, "exit code")
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
