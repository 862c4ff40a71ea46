//! How keys are declared: one row each. Checking, defaults, the reference file and `/config` all read these rows.

/// A table of the file.
#[derive(Debug)]
pub(super) struct Table {
    /// What it is for, for the reference file.
    pub help: &'static str,
    /// Stands in the reference file without a comment sign.
    pub shown: bool,
    pub rows: &'static [Row],
}

#[derive(Debug)]
pub(super) struct Row {
    pub key: &'static str,
    pub kind: Kind,
    pub preset: Preset,
    /// Unit of a number; empty where it counts things.
    pub unit: &'static str,
    pub help: &'static str,
}

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Boolean,
    /// Both ends included.
    Integer {
        min: u64,
        max: u64,
    },
    /// A share of the whole, both ends included.
    Ratio {
        min: f64,
        max: f64,
    },
    /// The reader of the key says what the text must look like.
    Text,
    /// One of these words; the second list comes with a later release.
    Word(&'static [&'static str], &'static [&'static str]),
    TextList,
    /// One text or a list of them.
    TextOrList,
    /// Names of the operator's choice, each with a text: fields (headers) of a message.
    Fields,
    /// In effect with its defaults also where it is absent.
    Table(&'static Table),
    /// In effect only where it stands.
    Choice(&'static Table),
    Tables(&'static Table),
}

/// The value of a key that is not there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Preset {
    Boolean(bool),
    Integer(u64),
    Ratio(f64),
    Text(&'static str),
    /// What `[timeouts]` says, by default this.
    Inherited(u64),
    /// Nothing. Holds TOML to show in the reference file.
    Absent(&'static str),
    /// As `Absent`, but the reference file sets it.
    Shown(&'static str),
    /// Must be there. Holds TOML to show in the reference file.
    Required(&'static str),
}

impl Kind {
    /// Whether it is a table of its own in the reference file.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, Self::Table(_) | Self::Choice(_) | Self::Tables(_))
    }

    /// For messages: what was expected.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Boolean => "true or false".to_owned(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Ratio { min, max } => format!("a share from {min:?} to {max:?}"),
            Self::Text => "a text in quotes".to_owned(),
            Self::Word(words, _) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => quoted.join(""),
                }
            }
            Self::TextList => "a list of texts, [\"…\", \"…\"]".to_owned(),
            Self::TextOrList => "a text in quotes or a list of them".to_owned(),
            Self::Fields => "a table of texts, { \"name\" = \"value\" }".to_owned(),
            Self::Table(_) | Self::Choice(_) => "a table".to_owned(),
            Self::Tables(_) => "a list of tables".to_owned(),
        }
    }
}

impl Table {
    pub(super) fn row(&self, key: &str) -> Option<&'static Row> {
        self.rows.iter().find(|row| row.key == key)
    }

    /// Whether every key of it has the value of `[timeouts]` unless it is set.
    pub(super) fn is_inherited(&self) -> bool {
        self.rows.iter().all(|row| matches!(row.preset, Preset::Inherited(_)))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.rows.iter().map(|row| row.key)
    }
}
