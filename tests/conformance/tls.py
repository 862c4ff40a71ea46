"""TLS by clients written by others, openssl and curl: versions, suites, groups, certificates on both sides, names,
resumption, endings; what must fail fails with its alert. On both engines."""

import concurrent.futures
import subprocess
import tempfile

from lib import ENGINES, Origin, Tally
from tls_gateway import Certificates, TlsGateway, s_client

SUITES_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
SUITES_12 = tuple(
    f"ECDHE-{kind}-{cipher}"
    for kind in ("ECDSA", "RSA")
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
)
# As openssl is asked for them, and as it tells of them.
GROUPS = {"X25519": "X25519", "P-256": "prime256v1", "P-384": "secp384r1"}
# TLS 1.3 leaves the kind of certificate to the signatures that the client takes.
SIGNATURES = {"ECDSA": "ecdsa_secp256r1_sha256", "RSA": "rsa_pss_rsae_sha256"}
MODES = ("disable", "permissive", "strict")
# Alert numbers of RFC 8446 §6.
HANDSHAKE_FAILURE, CERTIFICATE_REVOKED, CERTIFICATE_EXPIRED, UNSUPPORTED_CERTIFICATE = 40, 44, 45, 43
UNKNOWN_CA, PROTOCOL_VERSION, CERTIFICATE_REQUIRED, NO_APPLICATION_PROTOCOL = 48, 70, 116, 120
WEAK = "DEFAULT:@SECLEVEL=0"


def hybrid():
    """The group with ML-KEM, where this openssl knows it (3.5 and later); `cargo test --test it tls` has it always."""
    args = ["openssl", "s_client", "-groups", "X25519MLKEM768", "-connect", "127.0.0.1:1"]
    said = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True).stderr
    return {} if b"SSL_CONF_cmd" in said else {"X25519MLKEM768": "X25519MLKEM768"}


class Suite:
    def __init__(self, tally, engine, gateway, certs):
        self.tally, self.engine, self.gateway, self.certs = tally, engine, gateway, certs
        self.port, self.ca = gateway.ports, certs.path("servers")

    def check(self, name, good, why=""):
        self.tally.check(f"tls {self.engine:8} {name}", good, why)

    def connect(self, listener, *args, **kwargs):
        return s_client(self.port[listener], *args, **{"ca": self.ca, **kwargs})

    def all(self, cases):
        """Runs (name, function, judge), a few at a time, and tells of them in order."""
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for (name, _, judge), outcome in zip(cases, pool.map(lambda case: case[1](), cases)):
                self.check(name, judge(outcome), outcome.why())

    def matrix(self, groups):
        """Every suite with every group, each kind of certificate, on each mode of mutual TLS."""
        rows = []
        for suite in SUITES_13:
            for kind, signatures in SIGNATURES.items():
                rows.append(("TLSv1.3", suite, kind, ("-tls1_3", "-ciphersuites", suite, "-sigalgs", signatures)))
        for suite in SUITES_12:
            rows.append(("TLSv1.2", suite, suite.split("-")[1], ("-tls1_2", "-cipher", suite)))
        cases = []
        for version, suite, kind, args in rows:
            for asked, told in groups.items():
                if version == "TLSv1.2" and told == "X25519MLKEM768":
                    continue
                if version == "TLSv1.2" and kind == "ECDSA":
                    # The client's groups bound its certificates too (RFC 8422 §5.1): the one that was made for these
                    # tests is of P-256, which the gateway then prefers to P-384.
                    if told == "secp384r1":
                        continue
                    asked = "P-256" if asked == "P-256" else f"{asked}:P-256"
                for mode in MODES:
                    for client in (None, "client", "client-rsa"):
                        cases.append(self._row(version, suite, kind, (*args, "-groups", asked), told, mode, client))
        self.all(cases)

    def _row(self, version, suite, kind, args, group, mode, client):
        # The client's own signature is bounded by -sigalgs too.
        more = self.certs.pair(client) if client else ()
        more += ("-client_sigalgs", ":".join(SIGNATURES.values())) if client else ()
        wanted = (version, suite, group, "RSA-PSS" if kind == "RSA" else kind)
        name = f"{version} {suite} {group} {mode} with {client or 'no'} certificate"
        if mode == "strict" and not client:
            return name, lambda: self.connect(mode, *args), lambda got: not got.served and got.alert == CERTIFICATE_REQUIRED
        return name, lambda: self.connect(mode, *args, *more), lambda got: got.served and got.code == 0 and got.agreed == wanted

    def refusals(self):
        """Versions, suites, protocols and groups that are not spoken."""
        # Without signature_algorithms, which TLS 1.1 does not have, rustls comes to this alert before it asks for the
        # version. `tls_peers` sees protocol_version.
        rows = [(f"TLS 1.{n}", (f"-tls1{'_1' * n}", "-cipher", WEAK), HANDSHAKE_FAILURE) for n in (0, 1)]
        for name, ciphers in (
            ("suites without encryption", "NULL:@SECLEVEL=0"),
            ("anonymous suites", "ADH:AECDH:@SECLEVEL=0"),
            ("CBC suites", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA"),
            ("suites without forward secrecy", "AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA"),
            ("finite-field suites", "DHE-RSA-AES128-GCM-SHA256"),
            ("CCM suites", "ECDHE-ECDSA-AES128-CCM:ECDHE-ECDSA-AES128-CCM8:@SECLEVEL=0"),
        ):
            rows.append((name, ("-tls1_2", "-cipher", ciphers), HANDSHAKE_FAILURE))
        for version in ("-tls1_2", "-tls1_3"):
            rows.append((f"{version} only groups that nobody has", (version, "-groups", "P-521"), HANDSHAKE_FAILURE))
            rows.append((f"{version} no protocol in common", (version, "-alpn", "spdy/3,imap"), NO_APPLICATION_PROTOCOL))
        rows.append(("CCM suites of TLS 1.3", ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"), HANDSHAKE_FAILURE))
        cases = []
        for name, args, alert in rows:
            for mode in ("disable", "permissive"):
                cases.append((f"{name} on {mode}", lambda m=mode, a=args: self.connect(m, *a), lambda got, n=alert: not got.served and got.alert == n))
        modern = lambda *args: (lambda: self.connect("modern", *args))
        cases.append(("TLS 1.2 where 1.3 is the least", modern("-tls1_2"), lambda got: not got.served and got.alert == PROTOCOL_VERSION))
        cases.append(("TLS 1.3 where it is the least", modern("-tls1_3"), lambda got: got.served and got.agreed[0] == "TLSv1.3"))
        only_rsa = lambda: self.connect("rsa", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256")
        cases.append(("ECDSA alone where only RSA is served", only_rsa, lambda got: not got.served and got.alert == HANDSHAKE_FAILURE))
        self.all(cases)

    def client_certificates(self):
        """Those that are not to be trusted fail the handshake, with the alert that says why, also where none is needed."""
        cases = []
        for who, alert in (
            ("expired", CERTIFICATE_EXPIRED),
            ("early", CERTIFICATE_EXPIRED),
            ("foreign", UNKNOWN_CA),
            ("revoked", CERTIFICATE_REVOKED),
            ("server-only", UNSUPPORTED_CERTIFICATE),
        ):
            for version in ("-tls1_2", "-tls1_3"):
                for mode in ("permissive", "strict"):
                    run = lambda m=mode, v=version, w=who: self.connect(m, v, *self.certs.pair(w))
                    name = f"{version} {who} client certificate on {mode}"
                    cases.append((name, run, lambda got, n=alert: not got.served and got.alert == n))
                run = lambda v=version, w=who: self.connect("disable", v, *self.certs.pair(w))
                cases.append((f"{version} {who} client certificate where none is asked for", run, lambda got: got.served))
        self.all(cases)

    def names(self):
        """The certificate by the name asked for; the first where no name is known."""
        cases = []
        for asked, cn in (("a.test", "a"), ("b.test", "b"), ("B.TEST", "b"), ("unknown.test", "a"), ("a.b.test", "a"), (None, "a")):
            for version in ("-tls1_2", "-tls1_3"):
                run = lambda n=asked, v=version, h=cn: self.connect("disable", v, name=n, host=f"{h}.test")
                judge = lambda got, cn=cn: got.served and got.find(r"^subject=CN = (\S+)") == cn
                cases.append((f"{version} certificate for {asked}", run, judge))
        for version in ("-tls1_2", "-tls1_3"):
            run = lambda v=version: self.connect("disable", v, "-alpn", "spdy/3,http/1.1")
            cases.append((f"{version} ALPN", run, lambda got: got.served and got.find(r"ALPN protocol: (\S+)") == "http/1.1"))
        self.all(cases)



def main():
    tally = Tally()
    groups = GROUPS | hybrid()
    with tempfile.TemporaryDirectory() as folder:
        certs = Certificates(folder)
        for engine in ENGINES:
            with TlsGateway(engine, Origin().port, certs) as gateway:
                if gateway.ready_after is None:
                    tally.check(f"tls {engine}", False, "the gateway did not start: " + gateway.log())
                    continue
                suite = Suite(tally, engine, gateway, certs)
                suite.matrix(groups)
                suite.refusals()
                suite.client_certificates()
                suite.names()
                suite.check("it ends well", gateway.stop() == 0, "exit code")
    tally.end()


if __name__ == "__main__":
    main()
