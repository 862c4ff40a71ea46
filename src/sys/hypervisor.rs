//! Who runs this machine, as CPUID tells any process. Decides nothing.

/// The leaf of the hypervisor's signature and features, where there is one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leaves {
    /// Twelve bytes such as `KVMKVMKVM\0\0\0`.
    pub signature: [u8; 12],
    /// EAX and EDX of the leaf behind it.
    pub features: u32,
    pub hints: u32,
}

/// What CPUID answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// There is no hypervisor.
    BareMetal,
    Hypervisor(Leaves),
    /// This architecture has no CPUID for processes.
    CannotAsk,
}

/// Asks this machine. A hypervisor that shows several interfaces is told by KVM's or Xen's, if one of them is there: both
/// stand behind that of Hyper-V, a page further on, where Windows guests are expected.
pub fn ask() -> Answer {
    #[cfg(target_arch = "x86_64")]
    return x86::ask();
    #[cfg(not(target_arch = "x86_64"))]
    return Answer::CannotAsk;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Answer, Leaves};
    use std::arch::x86_64::{__cpuid, CpuidResult};

    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    const FIRST_BASE: u32 = 0x4000_0000;
    const BASES: u32 = 16;
    const STEP: u32 = 0x100;

    pub(super) fn ask() -> Answer {
        if cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
            return Answer::BareMetal;
        }
        let first = leaves(FIRST_BASE);
        let preferred =
            |leaves: &Leaves| leaves.signature == *b"KVMKVMKVM\0\0\0" || leaves.signature == *b"XenVMMXenVMM";
        let bases = (1..BASES).map(|n| leaves(FIRST_BASE + n * STEP));
        Answer::Hypervisor(if preferred(&first) {
            first
        } else {
            bases.into_iter().find(preferred).unwrap_or(first)
        })
    }

    fn leaves(base: u32) -> Leaves {
        let CpuidResult { ebx, ecx, edx, .. } = cpuid(base);
        let mut signature = [0; 12];
        for (bytes, register) in signature.chunks_exact_mut(4).zip([ebx, ecx, edx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        let behind = cpuid(base + 1);
        Leaves { signature, features: behind.eax, hints: behind.edx }
    }

    #[allow(unused_unsafe, reason = "newer compilers know that every x86-64 has the instruction")]
    fn cpuid(leaf: u32) -> CpuidResult {
        // SAFETY: every x86-64 CPU has the instruction; it reads registers only and any leaf may be asked.
        unsafe { __cpuid(leaf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hypervisor_has_a_signature() {
        if let Answer::Hypervisor(leaves) = ask() {
            println!("{leaves:x?} {:?}", String::from_utf8_lossy(&leaves.signature));
            assert!(leaves.signature.iter().any(|byte| *byte != 0));
        }
    }
}
