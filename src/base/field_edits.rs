//! Changes an operator asks for on the fields (headers) of a message. Routes own them, protocols apply them.

/// Applied in the order remove, set, add. Names are lower-case tokens, values valid field values:
/// whoever builds one has checked both (RFC 9110 §5.1, §5.5).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FieldEdits {
    pub remove: Vec<Box<str>>,
    pub set: Vec<(Box<str>, Box<str>)>,
    pub add: Vec<(Box<str>, Box<str>)>,
}

impl FieldEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a field of this name that came with the message must not be copied.
    pub fn drops(&self, name: &[u8]) -> bool {
        self.remove.iter().any(|removed| removed.as_bytes().eq_ignore_ascii_case(name))
            || self.set.iter().any(|(set, _)| set.as_bytes().eq_ignore_ascii_case(name))
    }

    /// The fields to append to the message, in order.
    pub fn appended(&self) -> impl Iterator<Item = (&str, &str)> {
        self.set.iter().chain(&self.add).map(|(name, value)| (&**name, &**value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_what_came_and_add_keeps_it() {
        let edits = FieldEdits {
            remove: vec!["server".into()],
            set: vec![("x-a".into(), "1".into())],
            add: vec![("x-b".into(), "2".into())],
        };
        assert!(edits.drops(b"Server") && edits.drops(b"X-A") && !edits.drops(b"x-b"));
        assert_eq!(edits.appended().collect::<Vec<_>>(), [("x-a", "1"), ("x-b", "2")]);
    }
}
