//! The certificate that all proxies of a run present: one leaf on P-256, made at start. Never kept: it goes
//! with the folder that holds it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;

/// The name that the certificate covers: server name and Host of every request.
pub const NAME: &str = "bench.test";

/// Where the certificate of a run lies in `folder`.
pub fn certificate_file(folder: &Path) -> PathBuf {
    folder.join("bench.pem")
}

/// Where its key lies.
pub fn key_file(folder: &Path) -> PathBuf {
    folder.join("bench.key")
}

/// Certificate and key in one file, as HAProxy wants them.
pub fn bundle_file(folder: &Path) -> PathBuf {
    folder.join("bench-with-key.pem")
}

/// Makes a certificate and its key, and writes the three files.
pub fn make(folder: &Path) -> io::Result<CertificateDer<'static>> {
    let (certificate, key) = issue()?;
    fs::write(certificate_file(folder), certificate.pem())?;
    write_secret(&key_file(folder), &key.serialize_pem())?;
    write_secret(&bundle_file(folder), &(certificate.pem() + &key.serialize_pem()))?;
    Ok(certificate.der().clone())
}

/// A certificate for [`NAME`] that signs itself, and its key.
pub(crate) fn issue() -> io::Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
    let params = CertificateParams::new([NAME.to_owned()]).map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    Ok((certificate, key))
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
