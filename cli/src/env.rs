//! Environment variables from `-e` and `--env-file`, with docker's rules.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More than this is not a file of variables. They all travel to the guest in one message of 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// A file of variables that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// It cannot be read.
    #[error("environment file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The host's answer.
        source: std::io::Error,
    },
    /// It is too long.
    #[error("environment file {path}: more than {MAX_FILE} bytes")]
    TooLong {
        /// The file.
        path: String,
    },
    /// A line is not `KEY=value` or `KEY`.
    #[error("environment file {path}, line {line}: {why}; write KEY=value, or KEY to take the host's value")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An argument of `-e` is not `KEY=value` or `KEY`.
    #[error("environment variable '{0}': the name is empty; write KEY=value, or KEY to take the host's value")]
    NoName(String),
}

/// The variables of an image, changed by files and then by arguments: later ones win, and each name keeps the place
/// where it appeared first. `KEY` alone takes the host's value; a variable that the host lacks is left out.
pub fn merge(
    image: &[String],
    files: &[impl AsRef<Path>],
    arguments: &[String],
    host: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvError> {
    let mut vars = Vars::default();
    // An image may hold anything; what is no variable is nothing a process could see.
    image.iter().filter_map(|entry| entry.split_once('=')).for_each(|(key, value)| vars.set(key, value));
    for file in files {
        let path = file.as_ref().display().to_string();
        let text = read(file.as_ref(), &path)?;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why| EnvError::Line { path: path.clone(), line: index + 1, why };
            let key = line.split_once('=').map_or(line, |(key, _)| key);
            if key.is_empty() {
                return Err(wrong("the name is empty"));
            }
            if key.contains(char::is_whitespace) {
                return Err(wrong("the name holds a space"));
            }
            vars.add(line, &host);
        }
    }
    for argument in arguments {
        if argument.is_empty() || argument.starts_with('=') {
            return Err(EnvError::NoName(argument.clone()));
        }
        vars.add(argument, &host);
    }
    Ok(vars.list)
}

fn read(file: &Path, path: &str) -> Result<String, EnvError> {
    let error = |source| EnvError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(file).and_then(|f| f.take(MAX_FILE + 1).read_to_string(&mut text)).map_err(error)?;
    if text.len() as u64 > MAX_FILE {
        return Err(EnvError::TooLong { path: path.to_owned() });
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[derive(Default)]
struct Vars {
    list: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Vars {
    fn add(&mut self, entry: &str, host: &impl Fn(&str) -> Option<String>) {
        match entry.split_once('=') {
            Some((key, value)) => self.set(key, value),
            None => {
                if let Some(value) = host(entry) {
                    self.set(entry, &value);
                }
            }
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let entry = format!("{key}={value}");
        match self.places.get(key) {
            Some(&place) => self.list[place] = entry,
            None => {
                self.places.insert(key.to_owned(), self.list.len());
                self.list.push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    fn host(key: &str) -> Option<String> {
        (key == "HOSTVAR").then(|| "from host".to_owned())
    }

    const NO_FILES: [&str; 0] = [];

    #[test]
    fn later_wins_and_order_stays() {
        let got = merge(&strings(&["A=1", "B=2", "junk"]), &NO_FILES, &strings(&["C=3", "A=x=y", "C="]), host).unwrap();
        assert_eq!(got, ["A=x=y", "B=2", "C="]);
    }

    #[test]
    fn a_name_alone_takes_the_hosts_value_or_nothing() {
        let got = merge(&strings(&["GONE=image"]), &NO_FILES, &strings(&["HOSTVAR", "GONE", "NOPE"]), host).unwrap();
        assert_eq!(got, ["GONE=image", "HOSTVAR=from host"]);
    }

    #[test]
    fn files_have_comments_and_lose_to_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "\u{feff}# c\n\n  A=file # kept\nHOSTVAR\nB=\n").unwrap();
        let got = merge(&[], &[&file], &strings(&["B=arg"]), host).unwrap();
        assert_eq!(got, ["A=file # kept", "HOSTVAR=from host", "B=arg"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        for (text, line) in [("A=1\n=x\n", 2), ("a b=1\n", 1)] {
            std::fs::write(&file, text).unwrap();
            assert!(
                matches!(merge(&[], &[&file], &[], host), Err(EnvError::Line { line: l, .. }) if l == line),
                "{text}"
            );
        }
        std::fs::write(&file, vec![b'a'; MAX_FILE as usize + 1]).unwrap();
        assert!(matches!(merge(&[], &[&file], &[], host), Err(EnvError::TooLong { .. })));
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(matches!(merge(&[], &[&file], &[], host), Err(EnvError::Read { .. })));
        assert!(matches!(merge(&[], &[Path::new("/nonexistent/x")], &[], host), Err(EnvError::Read { .. })));
        assert!(matches!(merge(&[], &NO_FILES, &strings(&["=v"]), host), Err(EnvError::NoName(_))));
    }
}
