//! The environment of the process and the places its command is looked for. Pure.

use crate::failure::Failure;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_protocol::{DEFAULT_PATH, FailureKind};

/// The value of `key` in a list of `KEY=value`.
#[must_use]
pub fn get<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    env.iter().find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='))
}

/// Puts `KEY=value` in the place of the one with this key, or behind all.
pub fn set(env: &mut Vec<String>, entry: String) {
    let key = entry.split('=').next().unwrap_or_default();
    let place = env.iter_mut().find(|old| old.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')));
    match place {
        Some(place) => *place = entry,
        None => env.push(entry),
    }
}

/// Adds PATH, HOSTNAME, HOME and, with a terminal, TERM where `env` does not have them.
pub fn complete(env: &mut Vec<String>, hostname: &str, home: &str, terminal: bool) {
    let defaults = [
        ("PATH", Some(DEFAULT_PATH)),
        ("HOSTNAME", Some(hostname)),
        ("TERM", terminal.then_some("xterm")),
        ("HOME", Some(home)),
    ];
    for (key, value) in defaults {
        if let Some(value) = value.filter(|_| get(env, key).is_none()) {
            env.push(format!("{key}={value}"));
        }
    }
}

/// The paths to try to execute for `command`, in order: itself if it has a slash, else one in each directory of `path`.
///
/// # Errors
/// `command` is empty or has a NUL in it.
pub fn candidates(command: &str, path: &str) -> Result<Vec<CString>, Failure> {
    if command.is_empty() {
        return Err(Failure::new(FailureKind::NotFound, String::from("exec: \"\": the command is empty")));
    }
    if command.contains('/') {
        return Ok(vec![c_string(command)?]);
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| c_string(&format!("{directory}/{command}")))
        .collect()
}

/// All of `strings`, terminated.
///
/// # Errors
/// One has a NUL in it.
pub fn c_strings(strings: &[String]) -> Result<Vec<CString>, Failure> {
    strings.iter().map(|string| c_string(string)).collect()
}

/// `string`, terminated.
///
/// # Errors
/// It has a NUL in it.
pub fn c_string(string: &str) -> Result<CString, Failure> {
    CString::new(string)
        .map_err(|_| Failure::new(FailureKind::BadRequest, format!("{string:?} has a NUL character in it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&string| String::from(string)).collect()
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let mut env = strings(&["A=1"]);
        complete(&mut env, "box", "/root", true);
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(env, ["A=1", &path, "HOSTNAME=box", "TERM=xterm", "HOME=/root"]);

        let mut env = strings(&["HOME=", "PATH=/x", "HOSTNAME=other", "TERMINAL=1"]);
        complete(&mut env, "box", "/root", false);
        assert_eq!(env, ["HOME=", "PATH=/x", "HOSTNAME=other", "TERMINAL=1"]);
    }

    #[test]
    fn a_variable_keeps_its_place_and_gets_another_value() {
        let mut env = strings(&["A=1", "AB=2", "B=3"]);
        ["AB=", "C=x=y", "A=4", "C=5"].into_iter().for_each(|entry| set(&mut env, entry.into()));
        assert_eq!(env, ["A=4", "AB=", "B=3", "C=5"]);
    }

    #[test]
    fn commands_are_looked_for_where_the_shell_would() {
        let list = |command, path| {
            let found = candidates(command, path).unwrap();
            found.iter().map(|path| path.to_str().unwrap().into()).collect::<Vec<String>>()
        };
        assert_eq!(list("ls", "/bin:/usr/bin"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(list("ls", "/bin::"), ["/bin/ls", "./ls", "./ls"]);
        assert_eq!(list("./ls", "/bin"), ["./ls"]);
        assert_eq!(list("/ls", "/bin"), ["/ls"]);
        assert_eq!(candidates("", "/bin").unwrap_err().kind, FailureKind::NotFound);
        assert_eq!(candidates("a\0b", "/bin").unwrap_err().kind, FailureKind::BadRequest);
    }
}
