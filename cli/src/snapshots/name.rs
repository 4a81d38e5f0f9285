//! What snapshots are called: by people, and on disk. Both are known to be names that lead nowhere else.

use std::fmt;
use std::str::FromStr;

use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};

use super::SnapshotsError;

/// Longest name, as for VMs.
const MAX_NAME: usize = 63;
/// What the name of a warm image ends with.
pub const WARM: &str = "@warm";

/// Names a snapshot for ever: 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(u64);

impl Id {
    /// One that nothing else has.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 8];
        // The kernel fills requests of up to 256 bytes whole, once it has started.
        match rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())? {
            8 => Ok(Id(u64::from_ne_bytes(bytes))),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| "not an id of a snapshot".into())
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits { u64::from_str_radix(text, 16).map(Id).map_err(drop) } else { Err(()) }
    }
}

/// What people call it: a word, and `@warm` behind it if `run` takes it for an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// A snapshot's name, of what a user has typed.
    pub fn plain(text: &str) -> Result<Self, SnapshotsError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if first && rest && text.len() <= MAX_NAME {
            Ok(Name(text.to_owned()))
        } else {
            Err(SnapshotsError::BadName(text.chars().take(160).collect()))
        }
    }

    /// A warm image's name, of what a user has typed, `@warm` or not.
    pub fn warm(text: &str) -> Result<Self, SnapshotsError> {
        let Name(word) = Self::plain(text.strip_suffix(WARM).unwrap_or(text))?;
        Ok(Name(word + WARM))
    }

    /// The `number`th name for a snapshot of the VM `vm`.
    pub fn numbered(vm: &str, number: usize) -> Result<Self, SnapshotsError> {
        let number = format!("-{number}");
        let word: String = vm.chars().take(MAX_NAME.saturating_sub(number.len())).collect();
        Self::plain(&(word + &number))
    }

    /// Whether it is one that `run` takes for an image.
    pub fn is_warm(&self) -> bool {
        self.0.ends_with(WARM)
    }

    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = SnapshotsError;

    fn from_str(text: &str) -> Result<Self, SnapshotsError> {
        if text.ends_with(WARM) { Self::warm(text) } else { Self::plain(text) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere() {
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "a/b", "/etc", "-x", "a b", "ä", "a\n", "@warm", "a@warm@warm", "a@b", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "A.b_c-1", "web@warm", &long[1..]] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        assert!(Name::plain("web@warm").is_err());
        assert_eq!(
            (Name::warm("web").unwrap(), Name::warm("web@warm").unwrap()),
            ("web@warm".parse().unwrap(), "web@warm".parse().unwrap())
        );
        assert_eq!(Name::numbered(&long[1..], 12).unwrap().as_str().len(), 63);
        assert_eq!(Name::numbered("web", 2).unwrap().as_str(), "web-2");
    }

    #[test]
    fn ids_are_sixteen_digits() {
        let id = Id::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "0",
            "00000000000000000",
            "000000000000000G",
            "000000000000000A",
            "+00000000000000f",
            "../0000000000000",
        ] {
            assert_eq!(bad.parse::<Id>(), Err(()), "{bad}");
        }
    }
}
