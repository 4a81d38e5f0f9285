//! What containers are called on disk, and by programs: 64 lower-case hexadecimal digits, as docker's.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::GetRandomFlags;
use serde::{Deserialize, Serialize};

/// Digits of an id.
const DIGITS: usize = 64;
/// Digits that people see.
const SHORT: usize = 12;

/// Names a container for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// One that nothing else has.
    pub fn random() -> io::Result<Self> {
        loop {
            let mut bytes = [0; DIGITS / 2];
            // The kernel fills requests of up to 256 bytes whole, once it has started.
            if rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let id = Id(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
            // The short one becomes a host name, which programs may take for a number.
            if !id.short().bytes().all(|digit| digit.is_ascii_digit()) {
                return Ok(id);
            }
        }
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As people see it.
    pub fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| "not an id of a container".into())
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits { Ok(Id(text.to_owned())) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_digits_and_nothing_else() {
        let id = Id::random().unwrap();
        assert_eq!((id.as_str().len(), id.short().len()), (64, 12));
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_ne!(id, Id::random().unwrap());
        for bad in
            ["", "../../etc", &"a".repeat(63), &"A".repeat(64), &"g".repeat(64), &"a".repeat(65), &"é".repeat(32)]
        {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }
}
