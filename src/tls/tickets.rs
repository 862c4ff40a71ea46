//! Session tickets that any worker can resume: the secret is the process's, made and rotated by the control thread and
//! handed to every worker; a listener's key is derived from it and from the listener's name and client-certificate
//! policy, so that a ticket opens no listener but its own, and none whose policy has changed since (CVE-2025-23419).
//! The server name is bound by rustls, which refuses to resume a session under another one.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use rustls::server::ProducesTickets;

/// Seconds after which a secret is replaced. It opens tickets for as long again, so a ticket lives at least this long.
pub const ROTATION_S: u32 = 6 * 3_600;

const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

/// One secret of the process. Its name stands in clear in front of every ticket.
#[derive(Clone)]
struct Secret {
    name: [u8; NAME_BYTES],
    secret: [u8; SECRET_BYTES],
}

/// The secrets of one period: one makes tickets, the one before still opens them.
#[derive(Clone)]
pub struct TicketKeys {
    current: Secret,
    previous: Option<Secret>,
}

/// The system gave no random bytes.
#[derive(Debug)]
pub struct NoRandom;

impl TicketKeys {
    /// # Errors
    /// Where the system gives no randomness.
    pub fn new() -> Result<Self, NoRandom> {
        Ok(Self { current: Secret::random()?, previous: None })
    }

    /// The next period's.
    ///
    /// # Errors
    /// As `new`; the present ones stay good then.
    pub fn rotated(&self) -> Result<Self, NoRandom> {
        Ok(Self { current: Secret::random()?, previous: Some(self.current.clone()) })
    }

    /// The secrets, for a process that goes on with them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all = [Some(&self.current), self.previous.as_ref()];
        all.into_iter().flatten().flat_map(|secret| [&secret.name[..], &secret.secret[..]].concat()).collect()
    }

    /// What `to_bytes` gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut all = bytes.chunks(NAME_BYTES + SECRET_BYTES).map(|bytes| {
            let (name, secret) = bytes.split_at_checked(NAME_BYTES)?;
            Some(Secret { name: name.try_into().ok()?, secret: secret.try_into().ok()? })
        });
        let keys =
            Self { current: all.next()??, previous: all.next().map_or(Some(None), |last| last.map(Some))? };
        all.next().is_none().then_some(keys)
    }
}

impl fmt::Debug for TicketKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

impl Secret {
    fn random() -> Result<Self, NoRandom> {
        let mut secret = Self { name: [0; NAME_BYTES], secret: [0; SECRET_BYTES] };
        rand::fill(&mut secret.name).map_err(|_| NoRandom)?;
        rand::fill(&mut secret.secret).map_err(|_| NoRandom)?;
        Ok(secret)
    }

    fn derive(&self, purpose: &[u8]) -> Option<Key> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let derived = hmac::sign(&secret, purpose);
        let key = UnboundKey::new(&AES_256_GCM_SIV, derived.as_ref()).ok()?;
        Some(Key { name: self.name, key: LessSafeKey::new(key) })
    }
}

/// A secret as one listener uses it.
struct Key {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl Key {
    /// `name ‖ nonce ‖ ciphertext ‖ tag`. With GCM-SIV a nonce that came twice would show only whether two sessions
    /// were alike.
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let overhead = NAME_BYTES + NONCE_LEN + AES_256_GCM_SIV.tag_len();
        let mut ticket = Vec::with_capacity(overhead + plain.len());
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (head, body) = ticket.split_at_mut(NAME_BYTES + NONCE_LEN);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(&head[..NAME_BYTES]), body).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, nonce: [u8; NONCE_LEN], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let len = self.key.open_in_place(nonce, Aad::from(&self.name[..]), &mut sealed).ok()?.len();
        sealed.truncate(len);
        Some(sealed)
    }
}

/// Makes and opens the tickets of one listener on one worker.
pub struct Ticketer {
    purpose: Vec<u8>,
    /// The one that makes tickets, and the one before. Locked by its worker alone: rustls asks for a type that could
    /// be shared.
    keys: Mutex<[Option<Key>; 2]>,
}

impl Ticketer {
    pub fn new(listener: &str, policy_digest: &[u8; 32], keys: &TicketKeys) -> Self {
        let mut purpose = b"ringfort session ticket 1\0".to_vec();
        purpose.extend_from_slice(policy_digest);
        purpose.extend_from_slice(listener.as_bytes());
        let this = Self { purpose, keys: Mutex::new([None, None]) };
        this.set_keys(keys);
        this
    }

    pub fn set_keys(&self, keys: &TicketKeys) {
        let current = keys.current.derive(&self.purpose);
        let previous = keys.previous.as_ref().and_then(|secret| secret.derive(&self.purpose));
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = [current, previous];
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        ROTATION_S
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys[0].as_ref()?.seal(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().flatten().find(|key| key.name == *name)?.open(*nonce, sealed)
    }
}

impl fmt::Debug for Ticketer {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> TicketKeys {
        TicketKeys::new().expect("randomness")
    }

    #[test]
    fn another_worker_opens_the_ticket_and_another_listener_or_policy_does_not() {
        let keys = keys();
        let ticket = Ticketer::new("web", &[1; 32], &keys).encrypt(b"session").expect("a ticket");
        assert_eq!(Ticketer::new("web", &[1; 32], &keys).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(Ticketer::new("strict", &[1; 32], &keys).decrypt(&ticket), None);
        assert_eq!(Ticketer::new("web", &[2; 32], &keys).decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_outlives_one_rotation_and_no_second() {
        let first = keys();
        let ticketer = Ticketer::new("web", &[0; 32], &first);
        let ticket = ticketer.encrypt(b"session").expect("a ticket");
        let second = first.rotated().expect("randomness");
        ticketer.set_keys(&second);
        assert!(ticketer.decrypt(&ticket).is_some());
        assert_ne!(ticketer.encrypt(b"session").expect("a ticket")[..NAME_BYTES], ticket[..NAME_BYTES]);
        ticketer.set_keys(&second.rotated().expect("randomness"));
        assert!(ticketer.decrypt(&ticket).is_none());
    }

    #[test]
    fn secrets_go_on_in_another_process() {
        let first = keys();
        let second = first.rotated().expect("randomness");
        let ticket = Ticketer::new("web", &[0; 32], &first).encrypt(b"session").expect("a ticket");
        for keys in [&first, &second] {
            let bytes = keys.to_bytes();
            let again = TicketKeys::from_bytes(&bytes).expect("whole");
            assert!(Ticketer::new("web", &[0; 32], &again).decrypt(&ticket).is_some());
            assert!(TicketKeys::from_bytes(&bytes[1..]).is_none());
            assert!(TicketKeys::from_bytes(&[&bytes[..], &bytes, &bytes].concat()).is_none());
        }
        assert!(TicketKeys::from_bytes(&[]).is_none());
    }

    proptest! {
        #[test]
        fn no_ticket_that_was_changed_opens(position in 0usize..60, bit in 0u8..8) {
            let ticketer = Ticketer::new("web", &[0; 32], &keys());
            let mut ticket = ticketer.encrypt(b"session").expect("a ticket");
            let position = position % ticket.len();
            ticket[position] ^= 1 << bit;
            prop_assert!(ticketer.decrypt(&ticket).is_none());
        }

        #[test]
        fn no_bytes_of_a_stranger_open(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Ticketer::new("web", &[0; 32], &keys()).decrypt(&bytes).is_none());
        }
    }
}
