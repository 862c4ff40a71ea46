//! Carries changes out and takes them back, over any `Root`. At every moment the machine is as before, or the state says
//! what was before: the process may be killed between any two calls.

use std::io;

use super::root::Root;
use super::state::{FileChange, Layer, Phase, State, ValueChange};
use super::value::Value;

/// Why nothing was changed in the end, or was not brought to an end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// Nothing was changed.
    Untouched(String),
    /// Something could not be changed, and what had been is restored.
    Restored(String),
    /// Something could neither be changed nor restored; the state has it.
    Recorded(String),
}

/// What became of one change that was to be taken back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Restored,
    /// It was as before already.
    Already,
    /// Somebody has changed it since: left alone.
    Drifted,
    /// It is not there any more.
    Gone,
    /// It stays until the next boot.
    Stays,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Undone {
    /// A key or a path.
    pub what: String,
    pub outcome: Outcome,
}

/// Applies one layer. With `confirm_by_ms` its files wait for `confirm`, and `arm` is called before the first change:
/// it sees to it that somebody takes the layer back in time.
///
/// # Errors
/// The layer is not there then, or recorded as interrupted.
pub(super) fn apply(
    root: &mut dyn Root,
    state: &mut State,
    layer: Layer,
    arm: &mut dyn FnMut() -> Result<(), String>,
) -> Result<(), Failure> {
    let index = state.layers.len();
    let waits = layer.confirm_by_ms.is_some();
    state.layers.push(Layer { phase: Phase::Applying, ..layer.clone() });
    if let Err(text) = state.save(root) {
        state.layers.truncate(index);
        return Err(Failure::Untouched(text));
    }
    let mut carried_out = || -> Result<(), String> {
        if waits {
            arm()?;
        }
        for module in &layer.modules {
            root.load_module(module).map_err(|error| format!("module {module}: {error}"))?;
        }
        for value in &layer.values {
            set(root, value)?;
        }
        if !waits {
            write_files(root, &layer.files)?;
        }
        state.layers[index].phase = if waits { Phase::Unconfirmed } else { Phase::Applied };
        state.save(root)
    };
    carried_out().map_err(|cause| {
        state.layers[index].phase = Phase::Applying;
        match revert_last(root, state) {
            Ok(_) => Failure::Restored(format!("{cause}; everything is as before")),
            Err(text) => Failure::Recorded(format!(
                "{cause}; and {text}: what was before is recorded, run \"ringfort tune revert\""
            )),
        }
    })
}

fn set(root: &mut dyn Root, value: &ValueChange) -> Result<(), String> {
    let ValueChange { key, path, format, before, after } = value;
    root.set(path, after).map_err(|error| {
        let cure = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ": run as root, and in a container tune its host"
            }
            _ => "",
        };
        format!("{key} cannot be set to {after}: {error}{cure}")
    })?;
    let read = root.read(path).map_err(|error| format!("{key} cannot be read back: {error}"))?;
    if Value::same(*format, &read, after) {
        Ok(())
    } else {
        // Neither value is there: reverting would take it for somebody else's.
        let _ = root.set(path, before);
        Err(format!("{key} was set to {after} and is {}", read.trim()))
    }
}

fn write_files(root: &mut dyn Root, files: &[FileChange]) -> Result<(), String> {
    files.iter().try_for_each(|file| {
        root.replace(&file.path, &file.after).map_err(|error| format!("cannot write {}: {error}", file.path))
    })
}

/// Makes the last layer one that stays: writes its files.
///
/// # Errors
/// It waits on then.
pub(super) fn confirm(root: &mut dyn Root, state: &mut State) -> Result<(), String> {
    let Some(layer) = state.layers.last_mut() else { return Ok(()) };
    write_files(root, &layer.files)?;
    layer.phase = Phase::Applied;
    layer.confirm_by_ms = None;
    state.save(root)
}

/// Takes the last layer back, and forgets it. What somebody has changed since is left alone. Good to be called again
/// after it was interrupted.
///
/// # Errors
/// The layer stays recorded then.
pub(super) fn revert_last(root: &mut dyn Root, state: &mut State) -> Result<Vec<Undone>, String> {
    let Some(layer) = state.layers.last() else { return Ok(Vec::new()) };
    let mut undone = Vec::new();
    // Files first: a reboot in between must not bring back what is taken back here.
    for file in layer.files.iter().rev() {
        undone.push(Undone { what: file.path.clone(), outcome: restore_file(root, file)? });
    }
    for value in layer.values.iter().rev() {
        undone.push(Undone { what: value.key.clone(), outcome: restore_value(root, value)? });
    }
    let stays = |module: &String| Undone { what: format!("module {module}"), outcome: Outcome::Stays };
    undone.extend(layer.modules.iter().map(stays));
    let mut without = state.clone();
    without.layers.pop();
    without.save(root)?;
    *state = without;
    Ok(undone)
}

fn restore_value(root: &mut dyn Root, value: &ValueChange) -> Result<Outcome, String> {
    let ValueChange { key, path, format, before, after } = value;
    let now = match root.read(path) {
        Ok(now) => now,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Gone),
        Err(error) => return Err(format!("{key} cannot be read: {error}")),
    };
    if Value::same(*format, &now, before) {
        return Ok(Outcome::Already);
    }
    if !Value::same(*format, &now, after) {
        return Ok(Outcome::Drifted);
    }
    root.set(path, before).map_err(|error| format!("{key} cannot be set back to {before}: {error}"))?;
    Ok(Outcome::Restored)
}

fn restore_file(root: &mut dyn Root, file: &FileChange) -> Result<Outcome, String> {
    let FileChange { path, before, after } = file;
    let now = match root.read(path) {
        Ok(now) => Some(now),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // Never of our making.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(Outcome::Drifted),
        Err(error) => return Err(format!("{path} cannot be read: {error}")),
    };
    if now == *before {
        return Ok(Outcome::Already);
    }
    match (now, before) {
        (None, _) => return Ok(Outcome::Gone),
        (Some(now), _) if now != *after => return Ok(Outcome::Drifted),
        (Some(_), Some(before)) => root.replace(path, before),
        (Some(_), None) => root.remove(path),
    }
    .map_err(|error| format!("{path} cannot be restored: {error}"))?;
    Ok(Outcome::Restored)
}

#[cfg(test)]
mod tests;
