//! The text that the configuration is made from, so that both processes make theirs from the same.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{self, Config, LoadError, Loaded};

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
        let Loaded { config, text, warnings } = config::load(path).map_err(|error| error.to_string())?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok((Self::File { name: path.display().to_string(), text }, config))
    }

    /// Reads the same file again. Warnings are told in the log; an error is a text for the operator.
    pub fn read_again(path: Option<&Path>) -> Result<(Self, Config), String> {
        // A pipe has no end until somebody writes to it.
        if let Some(path) = path
            && std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
        {
            let path = path.display();
            return Err(format!(
                "{path}: is no file that can be read again; restart the gateway with a file"
            ));
        }
        Self::read(path)
    }

    /// For problems that are told by their place.
    pub fn named(&self) -> config::Source<'_> {
        match self {
            Self::Embedded => config::Source { name: "embedded default", text: "" },
            Self::File { name, text } => config::Source { name, text },
        }
    }

    /// The configuration again, in the other process.
    pub fn parse(&self) -> Result<Config, String> {
        match self {
            Self::Embedded => Ok(config::embedded_default()),
            Self::File { name, text } => config::parse(name, text)
                .map(|(config, _)| config)
                .map_err(|problems| LoadError::Problems(problems).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn a_configuration_is_read_once_so_that_it_may_come_from_a_pipe() {
        let path = std::env::temp_dir().join(format!("ringfort-source-{}.pipe", std::process::id()));
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let writer = std::thread::spawn({
            let path = path.clone();
            move || fs::write(path, "[[listener]]\nname = \"w\"\nlisten = \"127.0.0.1:0\"\n")
        });
        let read = Source::read(Some(&path));
        writer.join().unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        let (source, config) = read.unwrap();
        assert_eq!(source.parse().unwrap().effective, config.effective);
    }

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
