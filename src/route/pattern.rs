//! A regular expression that must match the whole input. A dense DFA: one table look-up a byte, no scratch memory, so
//! workers share it without sharing anything that changes. Never backtracks, never allocates to match.

use std::fmt;
use std::hash::{Hash, Hasher};

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

/// Largest compiled pattern, in bytes. A pattern of counted repetitions can need more states than anyone meant.
const DFA_BYTES_MAX: usize = 1 << 20;
const NFA_BYTES_MAX: usize = 1 << 18;
/// Longest pattern text, in bytes.
const TEXT_BYTES_MAX: usize = 4_096;
/// Deepest nesting of groups.
const NEST_MAX: u32 = 64;

#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    /// Boxed: it is some 800 bytes by itself, and few routes have one.
    dfa: Box<dense::DFA<Vec<u32>>>,
    start: StateID,
}

/// One line of text for an operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PatternError(pub String);

impl Pattern {
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(PatternError(format!("longer than {TEXT_BYTES_MAX} bytes")));
        }
        let syntax = syntax::Config::new().unicode(false).utf8(false).nest_limit(NEST_MAX);
        let hir = syntax::parse_with(text, &syntax).map_err(|error| {
            // The parser draws the pattern with a caret below; its last line says what is wrong.
            let drawn = error.to_string();
            let last = drawn.lines().next_back().unwrap_or_default();
            PatternError(last.strip_prefix("error: ").unwrap_or(last).to_owned())
        })?;
        let too_large =
            || PatternError("too many states when compiled; use fewer or smaller repetitions".to_owned());
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(NFA_BYTES_MAX))
                    .which_captures(thompson::WhichCaptures::None),
            )
            .build_from_hir(&hir)
            .map_err(|_| too_large())?;
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            // Every match counts, not the leftmost-first one: "a|ab" matches the whole of "ab".
            .match_kind(MatchKind::All)
            .dfa_size_limit(Some(DFA_BYTES_MAX))
            .determinize_size_limit(Some(DFA_BYTES_MAX));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).map_err(|error| {
            if error.is_size_limit_exceeded() { too_large() } else { PatternError(error.to_string()) }
        })?;
        let start = dfa
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|error| PatternError(error.to_string()))?;
        Ok(Self { text: text.into(), dfa: Box::new(dfa), start })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether all of `input` matches.
    pub fn matches(&self, input: &[u8]) -> bool {
        let mut state = self.start;
        for &byte in input {
            state = self.dfa.next_state(state, byte);
            if self.dfa.is_special_state(state)
                && (self.dfa.is_dead_state(state) || self.dfa.is_quit_state(state))
            {
                return false;
            }
        }
        // The automaton reports a match one byte late.
        self.dfa.is_match_state(self.dfa.next_eoi_state(state))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?}, {} bytes)", self.text, self.dfa.memory_usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, input: &str) -> bool {
        Pattern::new(pattern)
            .unwrap_or_else(|error| panic!("{pattern}: {}", error.0))
            .matches(input.as_bytes())
    }

    #[test]
    fn the_whole_input_must_match() {
        assert!(matches("/v[0-9]+/.*", "/v12/x"));
        assert!(!matches("/v[0-9]+", "/v12/x") && !matches("v[0-9]+", "/v12"));
        assert!(matches("a|ab", "ab") && matches("ab|a", "a") && matches("a*?", "aaa"));
        assert!(matches("", "") && !matches("", "a"));
        assert!(matches("^/x$", "/x"));
        assert!(matches(r"/x\b.*", "/x/y") && !matches(r"/x\b.*", "/xy"));
        assert!(matches("(?i)/ABC", "/abc"));
    }

    #[test]
    fn bytes_that_are_no_text_are_no_obstacle() {
        assert!(Pattern::new("a.b").expect("pattern").matches(b"a\xffb"));
    }

    #[test]
    fn a_bad_or_oversized_pattern_is_told_in_one_line() {
        let error = |text: &str| Pattern::new(text).expect_err(text).0;
        assert_eq!(error("("), "unclosed group");
        assert_eq!(error("[a"), "unclosed character class");
        assert!(error("(?:a{1000}){1000}").starts_with("too many states"));
        assert!(error("[ab]*a[ab]{20}").starts_with("too many states"));
        assert_eq!(error(&"a".repeat(5_000)), "longer than 4096 bytes");
        assert!(!error(&"(".repeat(100)).contains('\n'));
    }
}
