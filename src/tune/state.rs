//! What was changed, and what was there before: written before the first change, so that every change can be taken
//! back after a crash. Layers lie one on another; the last one is taken off first.

use serde::{Deserialize, Serialize};

use super::plan::FILES;
use super::root::Root;
use super::value::Format;

pub(super) const FILE: &str = "/var/lib/ringfort/tune/state.json";
pub(super) const LOCK: &str = "/var/lib/ringfort/tune/lock";
const SCHEMA: &str = "ringfort-tune-state/1";
/// Applying without ever reverting is bounded.
pub(super) const LAYERS_MAX: usize = 64;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    schema: String,
    /// From the oldest.
    pub layers: Vec<Layer>,
}

/// One `apply`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub id: String,
    /// The version of Ringfort that made it.
    pub tool: String,
    /// The boot in which it was made.
    pub boot_id: String,
    pub phase: Phase,
    /// Until when it has to be confirmed: milliseconds of this boot's monotonic clock.
    pub confirm_by_ms: Option<u64>,
    pub modules: Vec<String>,
    pub values: Vec<ValueChange>,
    pub files: Vec<FileChange>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Begun: any part of it may have happened.
    Applying,
    /// Values are set; files follow with the confirmation, so that a reboot undoes all of it.
    Unconfirmed,
    Applied,
}

/// A value of the kernel.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueChange {
    pub key: String,
    pub path: String,
    pub format: Format,
    pub before: String,
    pub after: String,
}

/// A whole file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileChange {
    pub path: String,
    /// `None`: there was none.
    pub before: Option<String>,
    pub after: String,
}

impl Default for State {
    fn default() -> Self {
        Self { schema: SCHEMA.to_owned(), layers: Vec::new() }
    }
}

impl State {
    /// The recorded state; an empty one where nothing is recorded.
    ///
    /// # Errors
    /// What is there cannot be read, or is none of ours: cause and cure.
    pub(super) fn load(root: &dyn Root) -> Result<Self, String> {
        let text = match root.read(FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("{FILE}: {error}; run as root")),
        };
        let state: Self = serde_json::from_str(&text).map_err(|error| {
            format!("{FILE}: {error}; it is damaged or of another version: move it away, and undo by hand what it names")
        })?;
        let sound = |layer: &Layer| {
            let value = |value: &ValueChange| {
                let below = value.path.starts_with("/proc/sys/") || value.path.starts_with("/sys/");
                below && !value.path.split('/').any(|part| part == "..")
            };
            layer.values.iter().all(value) && layer.files.iter().all(|file| FILES.contains(&&*file.path))
        };
        if state.schema == SCHEMA && state.layers.iter().all(sound) {
            Ok(state)
        } else {
            Err(format!(
                "{FILE}: not a state of this version of ringfort tune; move it away, and undo by hand what it names"
            ))
        }
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// Cause and cure.
    pub(super) fn save(&self, root: &mut dyn Root) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        root.replace(FILE, &text).map_err(|error| {
            let cure = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "; run as root",
                std::io::ErrorKind::ReadOnlyFilesystem => "; a container's host has to be tuned itself",
                _ => "",
            };
            format!("cannot write {FILE}: {error}{cure}")
        })
    }

    /// The last layer, where it waits for a confirmation or was interrupted.
    pub(super) fn open_layer(&self) -> Option<&Layer> {
        self.layers.last().filter(|layer| layer.phase != Phase::Applied)
    }
}

impl Layer {
    /// Whether nobody will confirm it any more: it was interrupted, its time is over, or the machine was restarted.
    pub(super) fn is_stale(&self, boot_id: &str, now_ms: u64) -> bool {
        match self.phase {
            Phase::Applied => false,
            Phase::Applying => true,
            Phase::Unconfirmed => {
                self.boot_id != boot_id || self.confirm_by_ms.is_none_or(|confirm_by| now_ms >= confirm_by)
            }
        }
    }
}
