//! What a container's process needs to know of its image, looked up on the host: there it costs microseconds, in a guest
//! whose kernel is emulated a hundred thousand instructions.

use crate::PreparedImage;
use crate::erofs::{Entry, Files, ReadError};
use guest_protocol::account::{self, MAX_ACCOUNTS};
use guest_protocol::{Account, DEFAULT_PATH, Found};

impl PreparedImage {
    /// Whom `user` means, and where in the PATH of `env` the `command` is. Whatever is not certain is left for the guest to
    /// find out, errors among it.
    #[must_use]
    pub fn find(&self, user: &str, command: &str, env: &[String]) -> Found {
        let (layers, merged) = self.lock.files().split_at(self.layers.len());
        let Ok(files) = Files::open(merged.iter().chain(layers)) else {
            return Found::default();
        };
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let program = find_program(&files, command, path);
        Found { account: find_account(&files, user).ok().flatten(), program: program.ok().flatten() }
    }
}

fn find_account(files: &Files<'_>, user: &str) -> Result<Option<Account>, ReadError> {
    let (Some(passwd), Some(group)) = (read(files, "/etc/passwd")?, read(files, "/etc/group")?) else {
        return Ok(None);
    };
    Ok(account::resolve(user, &passwd, &group).ok())
}

/// A file's bytes; none if it is not there. `None`: the guest has to look.
fn read(files: &Files<'_>, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
    match files.look_up(path.as_bytes())? {
        Entry::Missing => Ok(Some(Vec::new())),
        entry @ Entry::File { nid, .. } if entry.is_regular() => files.read(nid, MAX_ACCOUNTS as u64),
        _ => Ok(None),
    }
}

/// The first path that `command` is at, if nothing before it could be it.
fn find_program(files: &Files<'_>, command: &str, path: &str) -> Result<Option<String>, ReadError> {
    if command.is_empty() || command.contains('/') {
        return Ok(None);
    }
    for directory in path.split(':') {
        // One relative to a working directory that may not be there yet.
        if !directory.starts_with('/') {
            return Ok(None);
        }
        let candidate = format!("{directory}/{command}");
        match files.look_up(candidate.as_bytes())? {
            Entry::Missing => {}
            entry => return Ok(entry.is_program().then_some(candidate)),
        }
    }
    Ok(None)
}
