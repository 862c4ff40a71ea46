"""testssl.sh, a scanner written by others (Debian's package testssl.sh), against a TLS listener: protocols, suites,
forward secrecy, preferences, certificates, vulnerabilities. No finding may be above LOW but those stated here. It looks
no name up and calls nobody. It does not judge the site's header fields (its option -h): those are the origin's."""

import json
import os
import shutil
import subprocess
import tempfile
import time

from lib import Origin, Tally
from tls_gateway import Certificates, TlsGateway

CHECKS = ("--protocols", "--std", "--pfs", "--server-preference", "--server-defaults", "--vulnerable")
OFFLINE = ("--nodns", "none", "--ip", "127.0.0.1")
ACCEPTED = {"OK", "INFO", "LOW"}
# Findings above LOW that say nothing against the gateway: how they begin, how grave they may be, and the reason.
STATED = (
    ("cert_revocation", "HIGH", "the test authority has no address where it would tell of revocations"),
    ("sessionresumption_ticket", "WARN", "the scanner often leaves before a ticket of TLS 1.3 came; tls_sessions waits for it"),
)
# A scan that skipped one of these has judged nothing.
REQUIRED = (
    *("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "ALPN", "cipherlist_NULL", "cipherlist_aNULL"),
    *("cipherlist_EXPORT", "cipherlist_LOW", "cipherlist_3DES_IDEA", "cipherlist_AVERAGE", "cipherlist_STRONG", "PFS"),
    *("PFS_ECDHE_curves", "cipher_order", "protocol_negotiated", "sessionresumption_ticket", "cert_trust <cert#1>"),
    *("cert_chain_of_trust <cert#2>", "heartbleed", "CCS", "ticketbleed", "ROBOT", "secure_renego"),
    *("secure_client_renego", "CRIME_TLS", "BREACH", "POODLE_SSL", "fallback_SCSV", "SWEET32", "FREAK", "DROWN"),
    *("LOGJAM", "BEAST", "LUCKY13", "RC4"),
)
# What testssl.sh judges mildly, and the gateway promises outright. Resumption by identifier is not among it: over TLS 1.3
# the scanner takes a ticket for one, where the ticket comes before it leaves. tls_sessions asks over TLS 1.2.
PROMISED = {
    "TLS1": "not offered",
    "TLS1_1": "not offered",
    "cipherlist_AVERAGE": "not offered",
    "cipherlist_3DES_IDEA": "not offered",
    "cipher_order": "server",
    "PFS_ECDHE_curves": "prime256v1 secp384r1 X25519",
}


def scan(port, authority, folder):
    """testssl.sh's findings, and what it printed."""
    path = os.path.join(folder, "findings.json")
    command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", *OFFLINE, "--connect-timeout", "5"]
    command += ["--openssl-timeout", "10", "--add-ca", authority, "--jsonfile", path, *CHECKS, f"https://a.test:{port}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=400)
    try:
        with open(path) as f:
            return json.load(f), done.stdout.decode()
    except (OSError, ValueError) as error:
        return [], f"{error}: {(done.stdout + done.stderr).decode()[-2000:]}"


def main():
    tally = Tally()
    if not shutil.which("testssl"):
        tally.not_run("testssl", "testssl (Debian's package testssl.sh) is missing")
        tally.end()
    # The scanner cannot tell the engines apart: the records are the same. One is enough.
    with tempfile.TemporaryDirectory() as folder:
        certs = Certificates(folder)
        with TlsGateway("auto", Origin().port, certs) as gateway:
            if gateway.ready_after is None:
                tally.check("testssl", False, "the gateway did not start: " + gateway.log())
                tally.end()
            started = time.monotonic()
            findings, said = scan(gateway.ports["disable"], certs.path("servers"), folder)
            took = time.monotonic() - started
            found = {finding["id"]: finding for finding in findings}
            for name, finding in found.items():
                stated = (why for start, most, why in STATED if name.startswith(start) and finding["severity"] == most)
                reason = next(stated, None)
                good = finding["severity"] in ACCEPTED or reason is not None
                text = f"testssl {name}: {finding['severity']}" + (f" (stated: {reason})" if reason else "")
                tally.check(text, good, finding["finding"])
            missing = [name for name in REQUIRED if name not in found]
            tally.check(f"testssl made its {len(REQUIRED)} checks in {took:.0f} s", not missing, f"{missing}: {said[-1500:]}")
            for name, wanted in PROMISED.items():
                got = found.get(name, {}).get("finding", "nothing")
                tally.check(f"testssl {name} is {wanted!r}", got.strip() == wanted, got)
    tally.end()


if __name__ == "__main__":
    main()
