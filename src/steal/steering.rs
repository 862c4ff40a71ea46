//! Shares of new connections as a program for `SO_ATTACH_REUSEPORT_CBPF`: the kernel runs it for every new connection
//! and gives the connection to the worker whose number comes out. Attaches nothing.

/// One instruction of classic BPF (Documentation/networking/filter.rst).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Instruction {
    pub code: u16,
    /// Instructions skipped when the condition holds, and when it does not.
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

/// `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4_096;

const LOAD_WORD_ABSOLUTE: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_RANDOM`: the kernel's generator in place of a byte of the packet.
const RANDOM: u32 = 0xffff_f000 + 56;
const RANGE: u32 = 1 << 16;

/// The program that gives worker `n` of the group its share. `None` for more workers than a program can tell apart, and
/// for none.
pub fn program(shares: &[f64]) -> Option<Vec<Instruction>> {
    let plain = |code, k| Instruction { code, jump_true: 0, jump_false: 0, k };
    let last = u32::try_from(shares.len().checked_sub(1)?).ok()?;
    let mut program = vec![plain(LOAD_WORD_ABSOLUTE, RANDOM), plain(AND, RANGE - 1)];
    let mut sum = 0.0;
    for (worker, share) in (0..last).zip(shares) {
        sum += share.clamp(0.0, 1.0);
        let bound = (sum * f64::from(RANGE)).round() as u32;
        program.push(Instruction { jump_true: 1, ..plain(JUMP_GREATER_OR_EQUAL, bound) });
        program.push(plain(RETURN, worker));
    }
    program.push(plain(RETURN, last));
    (program.len() <= INSTRUCTIONS_MAX).then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use proptest::prelude::*;

    /// What the kernel would answer: a small interpreter of the instructions used.
    fn run(program: &[Instruction], random: u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, k } = program[at];
            at += 1;
            match code {
                LOAD_WORD_ABSOLUTE if k == RANDOM => accumulator = random,
                AND => accumulator &= k,
                JUMP_GREATER_OR_EQUAL => {
                    at += usize::from(if accumulator >= k { jump_true } else { jump_false });
                }
                RETURN => return k,
                _ => panic!("an instruction that is not used: {code:#x} {k:#x}"),
            }
        }
    }

    fn counts(shares: &[f64], draws: u32) -> Vec<f64> {
        let program = program(shares).unwrap();
        let (mut random, mut counts) = (Random::new(7), vec![0.0; shares.len()]);
        for _ in 0..draws {
            counts[run(&program, random.next_u64() as u32) as usize] += 1.0;
        }
        counts
    }

    #[test]
    fn each_worker_gets_its_share() {
        const DRAWS: u32 = 100_000;
        for shares in [&[0.5, 0.5][..], &[0.41, 0.59], &[0.02, 0.98], &[0.4, 0.1, 0.3, 0.2], &[1.0]] {
            let counts = counts(shares, DRAWS);
            let off = |(count, share): (&f64, &f64)| {
                let expected = share * f64::from(DRAWS);
                (count - expected).powi(2) / expected
            };
            let chi_squared: f64 = counts.iter().zip(shares).map(off).sum();
            // 0.1 % of honest programs are beyond 16.3 with three degrees of freedom.
            assert!(chi_squared < 16.3, "{shares:?}: {counts:?}");
        }
    }

    #[test]
    fn two_workers_take_five_instructions() {
        assert_eq!(program(&[0.5, 0.5]).unwrap().len(), 5);
    }

    #[test]
    fn what_no_program_can_tell_apart_is_none() {
        assert_eq!(program(&[]), None);
        assert!(program(&vec![1.0 / 2_000.0; 2_000]).is_some());
        assert_eq!(program(&vec![1.0 / 3_000.0; 3_000]), None);
    }

    proptest! {
        #[test]
        fn every_program_ends_in_a_worker_of_the_group(shares in proptest::collection::vec(-1.0f64..2.0, 1..40), random in any::<u32>()) {
            let program = program(&shares).unwrap();
            prop_assert!((run(&program, random) as usize) < shares.len());
        }
    }
}
