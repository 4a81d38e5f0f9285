//! What containers are called by people: what they were told, or an adjective and a surname, as docker makes them.

use std::io;

use rustix::rand::GetRandomFlags;

use super::ContainersError;

/// Longest name: what docker takes is longer, but it is a host name, too.
const MAX: usize = 63;

const ADJECTIVES: [&str; 64] = [
    "able", "agile", "amber", "ample", "bold", "brave", "bright", "brisk", "calm", "candid", "clever", "crisp",
    "daring", "deft", "eager", "early", "earnest", "fair", "fervent", "fleet", "fond", "frank", "gentle", "glad",
    "golden", "grand", "hardy", "hearty", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid",
    "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud",
    "quick", "quiet", "ready", "robust", "serene", "sharp", "sincere", "steady", "stoic", "sunny", "tender", "tidy",
    "upbeat", "vivid", "warm", "witty",
];

/// People who built ships, machines and systems, or found out why they work.
const SURNAMES: [&str; 64] = [
    "archimedes",
    "babbage",
    "backus",
    "bartik",
    "bell",
    "bernoulli",
    "boole",
    "brunel",
    "carson",
    "cerf",
    "church",
    "clarke",
    "curie",
    "darwin",
    "dijkstra",
    "easley",
    "einstein",
    "engelbart",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "franklin",
    "galileo",
    "gauss",
    "goldstine",
    "goodall",
    "hamilton",
    "hawking",
    "hertz",
    "hoare",
    "hopper",
    "huygens",
    "johnson",
    "kepler",
    "knuth",
    "lamarr",
    "lamport",
    "liskov",
    "lovelace",
    "mccarthy",
    "meitner",
    "mendel",
    "moser",
    "newton",
    "noether",
    "pascal",
    "pasteur",
    "perlman",
    "ritchie",
    "shannon",
    "sinoussi",
    "stonebraker",
    "tesla",
    "thompson",
    "turing",
    "villani",
    "volta",
    "wiles",
    "wilkes",
    "wozniak",
    "zuse",
];

/// Whether a user may call one so.
pub fn check(name: &str) -> Result<(), ContainersError> {
    match is_name(name) {
        true => Ok(()),
        false => Err(ContainersError::BadName(crate::failure::sanitize(name).chars().take(160).collect())),
    }
}

/// Whether this is a name, of a container or of a volume.
pub fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    first && rest && name.len() <= MAX
}

/// A name by chance. With `number`, which is for when many are taken, a digit is added.
pub fn random(number: bool) -> io::Result<String> {
    let mut bytes = [0; 3];
    if rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let pick = |list: &[&'static str; 64], byte: u8| list[usize::from(byte) % list.len()];
    let name = format!("{}_{}", pick(&ADJECTIVES, bytes[0]), pick(&SURNAMES, bytes[1]));
    Ok(if number { format!("{name}{}", bytes[2]) } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_made_is_one() {
        for adjective in ADJECTIVES {
            for surname in SURNAMES {
                check(&format!("{adjective}_{surname}255")).unwrap();
            }
        }
        let (adjective, surname) =
            random(false).unwrap().split_once('_').map(|(a, s)| (a.to_owned(), s.to_owned())).unwrap();
        assert!(ADJECTIVES.contains(&&*adjective) && SURNAMES.contains(&&*surname));
        let long = "a".repeat(64);
        for bad in ["", "-a", ".a", "a b", "a/b", "..", "ä", "a\n", &long] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
