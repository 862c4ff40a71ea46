//! Certificates for tests: authorities, leaves, chains and revocation lists, made when a test runs.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RevokedCertParams,
    SerialNumber, SignatureAlgorithm, date_time_ymd,
};

use super::certificates::Certificate;

/// Within the validity of everything made here: 2030-01-01.
pub(crate) const NOW_UNIX_S: i64 = 1_893_456_000;
/// 2040-01-01, when everything made here has ended unless it says another year.
pub(crate) const END_UNIX_S: i64 = 2_208_988_800;

/// A key of a kind.
pub(crate) fn key(rsa: bool) -> KeyPair {
    let kind: &'static SignatureAlgorithm = if rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
    KeyPair::generate_for(kind).unwrap()
}

/// Valid from 2020 to 2040.
pub(crate) fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

/// Chain and key as PEM.
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Pair {
    /// Signed by itself.
    pub(crate) fn of(names: &[&str]) -> Self {
        Self::with(&params("leaf", names), false)
    }

    pub(crate) fn with(params: &CertificateParams, rsa: bool) -> Self {
        let key = key(rsa);
        Self { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    pub(crate) fn parse(&self) -> Arc<Certificate> {
        Arc::new(Certificate::from_pem(self.chain.as_bytes(), self.key.as_bytes()).unwrap())
    }
}

/// Signs others.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self { issuer: CertifiedIssuer::self_signed(Self::params(name), key(false)).unwrap() }
    }

    /// Signed by this one.
    pub(crate) fn below(&self, name: &str) -> Self {
        Self { issuer: CertifiedIssuer::signed_by(Self::params(name), key(false), &self.issuer).unwrap() }
    }

    /// The same authority by a certificate that is valid until another year.
    pub(crate) fn until(&self, year: i32) -> Self {
        let key = KeyPair::from_pem(&self.issuer.key().serialize_pem()).unwrap();
        let mut params = Self::params("until");
        params.not_after = date_time_ymd(year, 1, 1);
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Signed by this one; the chain is the leaf alone.
    pub(crate) fn issue(&self, params: &CertificateParams) -> Pair {
        let key = key(false);
        Pair { chain: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// A revocation list, due again in 2031.
    pub(crate) fn revoke(&self, serial_numbers: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2031, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serial_numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}
