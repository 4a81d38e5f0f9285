//! Loaded images: `images/<sha256 of the name>.json`, one record per name, replaced as a whole.

use super::Store;
use super::lock::WorkLock;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::oci::config::ProcessDefaults;
use crate::oci::reference::normalize_name;
use crate::oci::{offer, printable};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Records are as large as an image configuration at most.
const MAX_RECORD: u64 = 8 << 20;

/// What the store knows about a loaded image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// `name:tag`.
    pub name: String,
    pub id: Digest,
    pub created: Option<String>,
    pub layers: Vec<RecordLayer>,
    pub config: ProcessDefaults,
    /// What it was loaded from. None: by a version that did not keep it.
    #[serde(default)]
    pub original: Option<Original>,
}

/// The blobs of a loaded image, as they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Original {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's length.
    pub bytes: u64,
    /// All of them: the configuration, the layers, the manifest.
    pub blobs: Vec<Digest>,
}

/// A layer of a loaded image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RecordLayer {
    pub digest: Digest,
    pub bytes: u64,
}

/// A loaded image, for a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Name without the tag.
    pub name: String,
    /// Tag.
    pub tag: String,
    /// Digest of the image's configuration.
    pub id: Digest,
    /// When it was made (RFC 3339), if the image says so.
    pub created: Option<String>,
    /// Bytes of its layer images, those shared with other images included.
    pub size: u64,
}

impl Store {
    fn record_path(&self, name: &str) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
    }

    /// Writes a record; `_store` is the store's own lock, which makes its temporary file ours.
    pub(super) fn write_record(&self, store: &WorkLock, record: &Record) -> Result<(), ImageError> {
        let path = self.record_path(&record.name);
        let bytes = serde_json::to_vec(record).map_err(|e| ImageError::Record { path: path.clone(), source: e })?;
        let mut file = store.temp_file()?;
        file.write_all(&bytes).map_err(ImageError::io("write", store.temp_path()))?;
        store.publish(&file, &path)
    }

    /// All records, by name.
    pub(super) fn records(&self) -> Result<Vec<Record>, ImageError> {
        let dir = self.dir.join("images");
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(ImageError::io("read", &dir))? {
            let path = entry.map_err(ImageError::io("read", &dir))?.path();
            match read_record(&path) {
                Ok(record) => records.push(record),
                // Removed by someone else since the directory was read.
                Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Finds an image by its name, by the end of it after a slash where only one image fits, or by its id or the beginning of it.
    pub(super) fn find(&self, name: &str) -> Result<Record, ImageError> {
        let records = self.records()?;
        if let Some(digits) = name.strip_prefix("sha256:").filter(|digits| !digits.is_empty()) {
            let found = by_id(&records, digits)?;
            return found.ok_or_else(|| not_found(name.to_owned(), &records));
        }
        let wanted = normalize_name(name)?;
        if let Some(record) = records.iter().find(|record| record.name == wanted) {
            return Ok(record.clone());
        }
        let suffix = format!("/{wanted}");
        let mut fitting: Vec<&Record> = records.iter().filter(|record| record.name.ends_with(&suffix)).collect();
        match fitting.len() {
            0 => by_id(&records, name)?.ok_or_else(|| not_found(wanted, &records)),
            1 => Ok(fitting.remove(0).clone()),
            _ => Err(ImageError::Ambiguous { name: wanted, available: list(fitting) }),
        }
    }

    /// Removes the record of exactly this name.
    pub(super) fn remove_record(&self, name: &str) -> Result<(), ImageError> {
        let path = self.record_path(name);
        fs::remove_file(&path).map_err(ImageError::io("remove", path))
    }
}

fn list<'a>(records: impl IntoIterator<Item = &'a Record>) -> String {
    offer(records.into_iter().map(|record| printable(&record.name)).collect())
}

fn not_found(name: String, records: &[Record]) -> ImageError {
    ImageError::NotFound { name: printable(&name), available: list(records) }
}

/// The one image whose id begins so, under the first of its names.
fn by_id(records: &[Record], digits: &str) -> Result<Option<Record>, ImageError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let fitting: Vec<&Record> = records.iter().filter(|record| record.id.hex().starts_with(digits)).collect();
    match fitting.first() {
        Some(first) if fitting.iter().all(|record| record.id == first.id) => Ok(Some((*first).clone())),
        Some(_) => Err(ImageError::Ambiguous { name: digits.to_owned(), available: list(fitting) }),
        None => Ok(None),
    }
}

fn read_record(path: &Path) -> Result<Record, ImageError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(ImageError::io("open", path))?;
    file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| ImageError::Record { path: path.to_owned(), source: e })
}

impl From<Record> for ImageInfo {
    fn from(record: Record) -> Self {
        let (name, tag) = record.name.rsplit_once(':').unwrap_or((&record.name, ""));
        ImageInfo {
            name: name.to_owned(),
            tag: tag.to_owned(),
            // Whatever the record says.
            size: record.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.bytes)),
            created: record.created,
            id: record.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_shown_as_the_largest() {
        let layer = RecordLayer { digest: Digest::of(b"x"), bytes: u64::MAX };
        let record = Record {
            name: "debian:latest".into(),
            id: Digest::of(b"y"),
            created: None,
            layers: vec![layer.clone(), layer],
            config: ProcessDefaults::default(),
            original: None,
        };
        assert_eq!(ImageInfo::from(record).size, u64::MAX);
    }
}
