//! PEM sections of one kind out of a file's bytes, which may be empty, cut or anything at all.

use rustls::pki_types::pem::{self, PemObject};

use super::fault::{Cause, Fault, Part};

/// All sections of the kind `T`, at least one. Other sections and text between them are passed over.
pub(super) fn sections<T: PemObject>(bytes: &[u8], part: Part) -> Result<Vec<T>, Fault> {
    let fault = |cause| Fault::new(part, cause);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(fault(Cause::Empty));
    }
    let mut sections = Vec::new();
    for section in T::pem_slice_iter(bytes) {
        sections.push(section.map_err(|error| fault(cause(error)))?);
    }
    if sections.is_empty() { Err(fault(Cause::Missing)) } else { Ok(sections) }
}

fn cause(error: pem::Error) -> Cause {
    match error {
        pem::Error::MissingSectionEnd { .. } => Cause::Cut,
        // Its own text shows the line, which may be a part of a key.
        pem::Error::IllegalSectionStart { .. } => Cause::NotPem("a section's first line is malformed".into()),
        pem::Error::Base64Decode(_) => Cause::NotPem("a section is not base64".into()),
        error => Cause::NotPem(error.to_string()),
    }
}
