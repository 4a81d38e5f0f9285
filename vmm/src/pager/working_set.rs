//! Which pages a guest wants first: recorded once, so that later machines get them before they ask.
//!
//! ```text
//! magic and version, 8 bytes · identity of the memory file, 16 · number of extents, u64 · first and count of each, u64 · SHA-256 of all before
//! ```
//!
//! Numbers are little-endian. A file that is missing, damaged or of another memory is not an error: the working set is
//! recorded anew. The worst that a wrong one can do is to fill pages that nobody wants.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::open;
use crate::snapshot::memory::{Extent, ID_LEN, are_sound};

/// Name of the file, in the snapshot's directory.
pub const FILE: &str = "working-set";
/// Raise the digit with the format.
const MAGIC: &[u8; 8] = b"BULKWSE1";
/// Bytes of an extent.
const EXTENT: usize = 16;
/// Bytes of the digest.
const DIGEST: usize = 32;
/// No file of ours is longer.
const MAX_FILE: u64 = 16 << 20;

/// Where the working set of a snapshot is.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
    id: [u8; ID_LEN],
}

impl Place {
    /// That of the snapshot in `dir`, whose memory is `id`.
    pub fn of(dir: &Path, id: [u8; ID_LEN]) -> Self {
        Place { path: dir.join(FILE), id }
    }

    /// The pages, of `pages` that there are.
    pub fn read(&self, pages: u64) -> io::Result<Vec<Extent>> {
        let mut bytes = Vec::new();
        open::regular_itself(&self.path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        let extents = decode(&bytes, &self.id).filter(|extents| are_sound(extents, pages));
        extents.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "damaged, or of another snapshot"))
    }

    /// Puts a working set there, whole or not at all.
    pub fn write(&self, extents: &[Extent]) -> io::Result<()> {
        open::put(&self.path, &encode(extents, &self.id))
    }

    /// Where it is, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(extents: &[Extent], id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(id);
    bytes.extend((extents.len() as u64).to_le_bytes());
    for (first, count) in extents {
        bytes.extend(first.to_le_bytes());
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(Sha256::digest(&bytes));
    bytes
}

fn decode(bytes: &[u8], id: &[u8; ID_LEN]) -> Option<Vec<Extent>> {
    let (body, digest) = bytes.split_last_chunk::<DIGEST>()?;
    if Sha256::digest(body)[..] != digest[..] {
        return None;
    }
    let (count, body) = body.strip_prefix(MAGIC)?.strip_prefix(id)?.split_first_chunk()?;
    if body.len() % EXTENT != 0 || (body.len() / EXTENT) as u64 != u64::from_le_bytes(*count) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    Some(body.chunks_exact(EXTENT).map(|extent| (number(&extent[..8]), number(&extent[8..]))).collect())
}

/// Reads any bytes.
#[cfg(feature = "testing")]
pub fn fuzz(bytes: &[u8], signed: bool) {
    const PAGES: u64 = 1 << 15;
    let mut bytes = bytes.to_vec();
    if signed {
        bytes.splice(..0, [&MAGIC[..], &[0; ID_LEN]].concat());
        bytes.extend(Sha256::digest(&bytes));
    }
    if let Some(extents) = decode(&bytes, &[0; ID_LEN]) {
        assert!(extents.len() * EXTENT <= bytes.len());
        let counted: u64 = if are_sound(&extents, PAGES) { extents.iter().map(|(_, count)| count).sum() } else { 0 };
        assert!(counted <= PAGES);
        assert_eq!(encode(&extents, &[0; ID_LEN]), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; ID_LEN] = [3; ID_LEN];
    const EXTENTS: [Extent; 3] = [(0, 1), (7, 20), (100, 28)];

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::of(dir.path(), ID);
        assert!(place.read(128).is_err());
        place.write(&EXTENTS[..1]).unwrap();
        place.write(&EXTENTS).unwrap();
        assert_eq!(place.read(128).unwrap(), EXTENTS);
        assert!(place.read(127).is_err(), "beyond the memory");
        assert!(Place::of(dir.path(), [4; ID_LEN]).read(128).is_err(), "another snapshot's");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_damage_is_found() {
        let whole = encode(&EXTENTS, &ID);
        assert!(decode(&whole, &ID).is_some());
        for at in 0..whole.len() {
            assert!(decode(&whole[..at], &ID).is_none(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped, &ID).is_none(), "byte {at}");
        }
        // A digest that is right does not make a count right.
        let mut longer = whole[..whole.len() - DIGEST].to_vec();
        longer[24] += 1;
        longer.extend(Sha256::digest(&longer));
        assert!(decode(&longer, &ID).is_none());
    }
}
