//! `[listener.tls]` and `[cluster.tls]`. Notes which files are named, and where; opens none.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::{Files, tell};
use crate::config::node::{Node, Text, shorten};
use crate::config::problem::{Finding, Findings, Span};
use crate::config::values;
use crate::proxy::snapshot::EndpointAddress;
use crate::tls::{CertificateFiles, ClientSpec, MtlsMode, ServerNameSource, ServerSpec, VersionMin};

/// Pairs of one listener.
const CERTIFICATES_MAX: usize = 4_096;

/// What a listener's `tls` asks for. `None`: plaintext, or an error among the findings.
pub(super) fn server(
    listener: &Node<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<ServerSpec> {
    let key = listener.key_span("tls")?;
    if listener.text("protocol").is_some_and(|protocol| protocol.text == "tls-passthrough") {
        let what = "a listener of protocol \"tls-passthrough\" decrypts nothing and has no use for \"tls\"";
        let cure = "remove it, or set protocol = \"http\" to decrypt here";
        findings.push(Finding::error(&key, what).cure(cure));
        return None;
    }
    let node = listener.table("tls");
    let certificates = certificates(&node, &key, files, findings);
    let mtls = match node.text("mtls").map(|text| text.text) {
        Some("strict") => MtlsMode::Strict,
        Some("permissive") => MtlsMode::Permissive,
        _ => MtlsMode::Disable,
    };
    let client_ca = file(&node, "client_ca", files, findings);
    let client_crl = file(&node, "client_crl", files, findings);
    check_client_trust(&node, mtls, findings);
    Some(ServerSpec {
        certificates,
        mtls,
        client_ca,
        client_crl,
        session_tickets: node.boolean("session_tickets").unwrap_or(true),
        version_min: version_min(&node),
    })
}

fn certificates(
    node: &Node<'_>,
    key: &Span,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Vec<CertificateFiles> {
    let pairs = node.tables("certificates");
    if !node.has("certificates") || node.is_empty_list("certificates") {
        let span = if node.has("certificates") { node.value_span("certificates") } else { key.clone() };
        let finding = Finding::error(&span, "TLS without a certificate: no handshake can succeed");
        let cure = "add certificates = [{ cert = \"server.pem\", key = \"server.key\" }]";
        findings.push(finding.cure(cure).absence());
    }
    if let Some(pair) = pairs.get(CERTIFICATES_MAX) {
        let what = format!("more than {CERTIFICATES_MAX} certificates on one listener");
        findings.push(Finding::error(&pair.span(), what).cure("split the listener"));
    }
    let mut list: Vec<CertificateFiles> = Vec::new();
    for pair in pairs.iter().take(CERTIFICATES_MAX) {
        let files = (file(pair, "cert", files, findings), file(pair, "key", files, findings));
        // One that is missing is told already.
        let (Some(cert), Some(key)) = files else { continue };
        let files = CertificateFiles { cert, key };
        if list.contains(&files) {
            let what = format!("the certificate \"{}\" is there twice", files.cert.display());
            findings.push(Finding::warning(&pair.span(), what).cure("remove one"));
            continue;
        }
        list.push(files);
    }
    list
}

/// Client certificates need an authority, and an authority is of no use unless they are asked for.
fn check_client_trust(node: &Node<'_>, mtls: MtlsMode, findings: &mut Findings) {
    // A word that is none is told already, and may have meant another.
    let is_off = node.text("mtls").is_none_or(|mtls| mtls.text == "disable");
    if mtls == MtlsMode::Disable && is_off {
        for key in ["client_ca", "client_crl"] {
            if let Some(span) = node.key_span(key) {
                let what = format!("\"{key}\" has no effect: no client certificate is asked for");
                let cure = "set mtls = \"strict\" or \"permissive\", or remove it";
                findings.push(Finding::warning(&span, what).cure(cure));
            }
        }
    } else if mtls != MtlsMode::Disable && !node.has("client_ca") {
        let span = node.value_span("mtls");
        let what = "client certificates are asked for, but there is no authority that they could lead to";
        findings.push(Finding::error(&span, what).cure("add client_ca = \"client-ca.pem\"").absence());
    }
}

/// What a cluster's `tls` asks for. `None`: plaintext, or an error among the findings.
pub(super) fn client(
    cluster: &Node<'_>,
    endpoints: &[EndpointAddress],
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<ClientSpec> {
    let key = cluster.key_span("tls")?;
    let node = cluster.table("tls");
    let ca = file(&node, "ca", files, findings);
    let (cert, own_key) = (file(&node, "cert", files, findings), file(&node, "key", files, findings));
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if node.has(one) && !node.has(other) {
            let what = format!("\"{one}\" without \"{other}\"");
            let span = node.key_span(one).unwrap_or_else(|| key.clone());
            let cure = format!(
                "add {other} = \"gateway.{}\", or remove {one}",
                if other == "key" { "key" } else { "pem" }
            );
            findings.push(Finding::error(&span, what).cure(cure).absence());
        }
    }
    let identities = node.texts("expect_identity");
    if node.is_empty_list("expect_identity") {
        let finding = Finding::error(&node.value_span("expect_identity"), "an empty list of identities");
        findings.push(finding.cure("leave \"expect_identity\" out to check the endpoint's name instead"));
    }
    if let (Some(span), false) = (node.key_span("expect_identity"), node.has("ca")) {
        let what = "\"expect_identity\" without \"ca\": any public authority could vouch for the identity";
        findings.push(Finding::error(&span, what).cure("add ca = \"mesh-ca.pem\"").absence());
    }
    let identity = |text: &Text<'_>| tell(values::identity(text.text), &text.span, findings);
    let expect_identity = identities.iter().filter_map(identity).collect();
    let server_name = server_name(&node, &key, endpoints, findings)?;
    let certificate = cert.zip(own_key).map(|(cert, key)| CertificateFiles { cert, key });
    let version_min = version_min(&node);
    Some(ClientSpec { ca, certificate, server_name, expect_identity, version_min })
}

/// The name to send and to look for: as written, else the one host name of the endpoints.
fn server_name(
    node: &Node<'_>,
    key: &Span,
    endpoints: &[EndpointAddress],
    findings: &mut Findings,
) -> Option<ServerNameSource> {
    if let Some(text) = node.text("server_name") {
        return tell(values::server_name(text.text), &text.span, findings).map(ServerNameSource::Fixed);
    }
    let host = |endpoint: &EndpointAddress| match endpoint {
        EndpointAddress::Name { host, .. } => Some(host.clone()),
        EndpointAddress::Socket(_) => None,
    };
    let mut hosts: Vec<Option<Box<str>>> = endpoints.iter().map(host).collect();
    hosts.dedup();
    match &hosts[..] {
        // None of them could be read: told already.
        [] | [None] => Some(ServerNameSource::Address),
        [Some(host)] if let Ok(name) = ServerName::try_from(host.to_string()) => {
            Some(ServerNameSource::Fixed(name))
        }
        // The identity is looked at, and no name.
        _ if node.has("expect_identity") => Some(ServerNameSource::Address),
        _ => {
            let what = "the endpoints have no one name that could be looked for in their certificates";
            let cure = "add server_name = \"origin.internal\", or make a cluster of each name";
            findings.push(Finding::error(key, what).cure(cure).absence());
            None
        }
    }
}

fn version_min(node: &Node<'_>) -> VersionMin {
    match node.text("version_min").map(|text| text.text) {
        Some("1.3") => VersionMin::Tls13,
        _ => VersionMin::Tls12,
    }
}

/// The path of a file that is named, from the folder of the configuration.
fn file(node: &Node<'_>, key: &str, files: &mut Files<'_>, findings: &mut Findings) -> Option<PathBuf> {
    let text = node.text(key)?;
    if text.text.is_empty() || text.text.contains('\0') {
        let what = format!("\"{key}\" names no file: \"{}\"", shorten(text.text));
        findings.push(Finding::error(&text.span, what).cure("write the path of a PEM file"));
        return None;
    }
    Some(files.named(&text))
}
