//! Seeds from the kernel's generator. Never used for keys: TLS draws its own.

/// A seed for `base::random::Random`.
pub fn seed() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and the length are those of a local array.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled == bytes.len().cast_signed() {
        u64::from_ne_bytes(bytes)
    } else {
        // A sandbox may forbid getrandom. These seeds spread choices and keep no secret: the clock will do.
        super::clock::now().nanos()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_seeds_differ() {
        assert_ne!(super::seed(), super::seed());
    }
}
