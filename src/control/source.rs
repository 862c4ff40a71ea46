//! The text that the configuration is made from, so that both processes make theirs from the same.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};

/// Where a configuration comes from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Source {
    /// Built into the binary.
    Embedded,
    /// The name, from whose folder relative paths are taken, and the text that was found there.
    File { name: String, text: String },
}

impl Source {
    /// Reads a file. Its warnings are told in the log; an error is a text for the operator.
    pub fn read(path: Option<&Path>) -> Result<(Self, Config), String> {
        let Some(path) = path else {
            return Ok((Self::Embedded, config::embedded_default()));
        };
        // First for its judgement, which covers what cannot be read; then for the text that is passed on.
        config::load(path).map_err(|error| error.to_string())?;
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        let (config, warnings) = config::parse(&name, &text).map_err(|problems| list(&problems))?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok((Self::File { name, text }, config))
    }

    /// The configuration again, in the other process.
    pub fn parse(&self) -> Result<Config, String> {
        match self {
            Self::Embedded => Ok(config::embedded_default()),
            Self::File { name, text } => {
                config::parse(name, text).map(|(config, _)| config).map_err(|problems| list(&problems))
            }
        }
    }
}

fn list(problems: &[config::Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_process_gets_the_same_configuration_even_if_the_file_is_gone() {
        let path = std::env::temp_dir().join(format!("ringfort-source-{}.toml", std::process::id()));
        fs::write(&path, "[[listener]]\nname = \"w\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\n")
            .unwrap();
        let (source, config) = Source::read(Some(&path)).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(source.parse().unwrap().effective, config.effective);
        assert!(Source::read(Some(&path)).unwrap_err().contains("No such file"));
    }

    #[test]
    fn the_embedded_default_needs_no_file() {
        let (source, config) = Source::read(None).unwrap();
        assert_eq!(source, Source::Embedded);
        assert_eq!(source.parse().unwrap().effective, config.effective);
    }
}
