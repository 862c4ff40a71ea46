"""Authorities and certificates by openssl(1), in a folder of their own, as an operator would have them."""

import os
import subprocess

KINDS = {
    "ec": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "rsa": ("-newkey", "rsa:2048"),
}

CONFIG = """[ca]
default_ca = test
[test]
database = {dir}/index
new_certs_dir = {dir}
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
default_crl_days = 3650
rand_serial = yes
crlnumber = {dir}/crlnumber
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
"""


def openssl(*args, **kwargs):
    """Its standard output; raises with what it said where it fails."""
    done = subprocess.run(["openssl", *args], capture_output=True, stdin=subprocess.DEVNULL, **kwargs)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(args)}: {done.stderr.decode()}")
    return done.stdout


class Authority:
    """`FOLDER/NAME.pem`, and what it signs beside it as `LEAF.pem` and `LEAF.key`."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.state = os.path.join(folder, name + ".d")
        os.mkdir(self.state)
        for file, text in (("index", ""), ("crlnumber", "01\n")):
            with open(os.path.join(self.state, file), "w") as f:
                f.write(text)
        self.config = os.path.join(self.state, "openssl.cnf")
        with open(self.config, "w") as f:
            f.write(CONFIG.format(dir=self.state))
        openssl(
            *("req", "-x509", "-config", self.config, *KINDS["ec"], "-nodes", "-days", "3650", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-addext", "subjectKeyIdentifier=hash", "-keyout", self.path(name, "key"), "-out", self.path(name)),
        )

    def path(self, name, kind="pem"):
        return os.path.join(self.folder, f"{name}.{kind}")

    def issue(self, name, names, kind="ec", usage="serverAuth,clientAuth", dates=None):
        """`names` is a subjectAltName as openssl writes it. `dates`: from and to as YYYYMMDD; from now for a year where
        absent. Returns the paths of certificate and key."""
        request = os.path.join(self.state, name + ".csr")
        cert, key = self.path(name), self.path(name, "key")
        openssl(
            *("req", "-new", "-config", self.config, *KINDS[kind], "-nodes", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={names}", "-addext", f"extendedKeyUsage={usage}"),
            *("-addext", "keyUsage=critical,digitalSignature", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", key, "-out", request),
        )
        when = ("-days", "365") if dates is None else ("-startdate", dates[0] + "000000Z", "-enddate", dates[1] + "000000Z")
        openssl(*self._ca(), "-in", request, "-out", cert, *when, "-notext")
        os.chmod(key, 0o600)
        return cert, key

    def revoke(self, *names):
        """A revocation list that names these leaves, at the path returned."""
        for name in names:
            openssl(*self._ca(), "-revoke", self.path(name))
        path = self.path(self.name, "crl")
        openssl(*self._ca(), "-gencrl", "-out", path)
        return path

    def _ca(self):
        keys = ("-cert", self.path(self.name), "-keyfile", self.path(self.name, "key"))
        return ("ca", "-batch", "-config", self.config, *keys)
