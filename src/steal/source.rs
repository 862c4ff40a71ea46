//! Whether steal can be seen at all. "Nothing is stolen" and "the hypervisor does not say" both read 0 in
//! `/proc/stat`; this tells them apart. Never guesses that nothing is stolen.

/// Who runs this machine, by its signature in CPUID.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hypervisor {
    /// CPUID says that there is none.
    None,
    Kvm,
    Xen,
    VMware,
    HyperV,
    /// Another one, or an architecture where a process cannot ask.
    Unknown,
}

/// What the machine says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    pub hypervisor: Hypervisor,
    /// EAX of KVM's leaf of features; 0 on any other hypervisor.
    pub kvm_features: u32,
    /// EDX of the same leaf.
    pub kvm_hints: u32,
}

/// `KVM_FEATURE_STEAL_TIME` (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURE_STEAL_TIME: u32 = 1 << 5;
/// `KVM_HINTS_REALTIME`: the provider's word that virtual CPUs are never preempted for long.
const KVM_HINTS_REALTIME: u32 = 1;

impl Machine {
    /// Whether the provider says that the virtual CPUs have a CPU each.
    pub const fn is_dedicated(self) -> bool {
        self.kvm_hints & KVM_HINTS_REALTIME != 0
    }
}

/// What is known beside CPUID.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// `/proc/stat` has the column.
    pub has_column: bool,
    /// It has been above zero on some CPU since boot.
    pub ever_above_zero: bool,
    /// The procfs that is read is not this machine's own.
    pub other_root: bool,
    /// The kernel was started with `no-steal-acc`.
    pub accounting_off: bool,
}

/// Where steal is read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    Kvm,
    Xen,
    VMware,
    /// A procfs named by the configuration.
    Procfs,
    /// No hypervisor: nobody to steal.
    BareMetal,
    /// Some hypervisor that was seen to report.
    Other,
    /// Not reported, or not to be trusted: what is lost shows in gaps of the workers' loops alone.
    Gap,
}

impl Source {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Xen => "xen",
            Self::VMware => "vmware",
            Self::Procfs => "procfs",
            Self::BareMetal => "bare_metal",
            Self::Other => "other",
            Self::Gap => "gap",
        }
    }

    /// Whether a steal of 0 means that nothing is stolen.
    pub fn is_reported(self) -> bool {
        self != Self::Gap
    }
}

/// Where steal can be read on this machine.
pub fn source(machine: Machine, seen: Seen) -> Source {
    if !seen.has_column || seen.accounting_off {
        return Source::Gap;
    }
    if seen.other_root {
        return Source::Procfs;
    }
    match machine.hypervisor {
        Hypervisor::None => Source::BareMetal,
        Hypervisor::Kvm if machine.kvm_features & KVM_FEATURE_STEAL_TIME != 0 => Source::Kvm,
        // The runstate of a virtual CPU is part of Xen's interface: every guest has it.
        Hypervisor::Xen => Source::Xen,
        // VMware reports where stealclock.enable is set, which only its kernel driver can ask; for Hyper-V and others no
        // clock is known. A counter that ever moved is the proof.
        Hypervisor::VMware if seen.ever_above_zero => Source::VMware,
        Hypervisor::HyperV | Hypervisor::Unknown if seen.ever_above_zero => Source::Other,
        _ => Source::Gap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Seen =
        Seen { has_column: true, ever_above_zero: false, other_root: false, accounting_off: false };

    fn machine(hypervisor: Hypervisor, kvm_features: u32) -> Machine {
        Machine { hypervisor, kvm_features, kvm_hints: 0 }
    }

    #[test]
    fn kvm_reports_when_bit_5_says_so() {
        assert_eq!(source(machine(Hypervisor::Kvm, 1 << 5), PLAIN), Source::Kvm);
        assert_eq!(source(machine(Hypervisor::Kvm, !(1 << 5)), PLAIN), Source::Gap);
        // A counter that was above zero before a migration to a host that hides it proves nothing.
        let moved = Seen { ever_above_zero: true, ..PLAIN };
        assert_eq!(source(machine(Hypervisor::Kvm, 0), moved), Source::Gap);
    }

    #[test]
    fn what_cannot_be_asked_is_believed_once_it_moved() {
        let moved = Seen { ever_above_zero: true, ..PLAIN };
        for (hypervisor, then) in [
            (Hypervisor::VMware, Source::VMware),
            (Hypervisor::HyperV, Source::Other),
            (Hypervisor::Unknown, Source::Other),
        ] {
            assert_eq!(source(machine(hypervisor, 0), PLAIN), Source::Gap, "{hypervisor:?}");
            assert_eq!(source(machine(hypervisor, 0), moved), then);
        }
        assert_eq!(source(machine(Hypervisor::Xen, 0), PLAIN), Source::Xen);
        assert_eq!(source(machine(Hypervisor::None, 0), PLAIN), Source::BareMetal);
    }

    #[test]
    fn another_root_reports_by_its_column_and_no_column_reports_nothing() {
        let other = Seen { other_root: true, ..PLAIN };
        assert_eq!(source(machine(Hypervisor::Kvm, 0), other), Source::Procfs);
        let none = Seen { has_column: false, ..other };
        assert_eq!(source(machine(Hypervisor::Kvm, 1 << 5), none), Source::Gap);
        let off = Seen { accounting_off: true, ..PLAIN };
        assert_eq!(source(machine(Hypervisor::Kvm, 1 << 5), off), Source::Gap);
    }

    #[test]
    fn a_promise_of_real_time_is_the_hint_of_dedicated_cpus() {
        assert!(Machine { hypervisor: Hypervisor::Kvm, kvm_features: 0, kvm_hints: 1 }.is_dedicated());
        assert!(!machine(Hypervisor::Kvm, !0).is_dedicated());
    }
}
