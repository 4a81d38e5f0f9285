//! All that the store knows of one loaded image.

use super::Store;
use super::records::{ImageInfo, Original, Record};
use crate::digest::Digest;
use crate::error::ImageError;
use oci_spec::image::ImageConfiguration;

/// A loaded image, in full.
#[derive(Debug)]
pub struct ImageDetails {
    /// What a listing says of it.
    pub info: ImageInfo,
    /// All names of this very image.
    pub names: Vec<String>,
    /// Digest of its manifest, and with it of all of the image.
    pub manifest: Digest,
    /// The image's configuration, as it came.
    pub config: serde_json::Value,
    /// Digests of its layers, unpacked, lowest first, and the bytes of their disk images.
    pub layers: Vec<(Digest, u64)>,
}

/// One step of what made an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When (RFC 3339), if it is known.
    pub created: Option<String>,
    /// The command.
    pub created_by: String,
    /// What its maker had to say.
    pub comment: String,
    /// Bytes of the layer that it made; 0: none.
    pub bytes: u64,
}

impl Store {
    /// All that is known of a loaded image.
    ///
    /// # Errors
    /// There is none of that name, or it was loaded by a version that kept less.
    pub fn details(&self, name: &str) -> Result<ImageDetails, ImageError> {
        let record = self.find(name)?;
        let original = self.original(&record)?;
        let document = self.document(&record)?;
        let config = serde_json::from_slice(&document)
            .map_err(|source| ImageError::Record { path: self.blob_file(&record.id), source })?;
        let same = self.records()?.into_iter().filter(|other| other.id == record.id);
        Ok(ImageDetails {
            names: same.map(|other| other.name).collect(),
            manifest: original.manifest.clone(),
            config,
            layers: record.layers.iter().map(|layer| (layer.digest.clone(), layer.bytes)).collect(),
            info: record.into(),
        })
    }

    /// What made a loaded image, the latest step first.
    ///
    /// # Errors
    /// As [`Store::details`].
    pub fn history(&self, name: &str) -> Result<Vec<Step>, ImageError> {
        let record = self.find(name)?;
        let config: ImageConfiguration = serde_json::from_slice(&self.document(&record)?)
            .map_err(|source| ImageError::Record { path: self.blob_file(&record.id), source })?;
        let mut sizes = record.layers.iter().map(|layer| layer.bytes);
        let mut steps: Vec<Step> = config
            .history()
            .iter()
            .flatten()
            .map(|step| Step {
                created: step.created().clone(),
                created_by: step.created_by().clone().unwrap_or_default(),
                comment: step.comment().clone().unwrap_or_default(),
                bytes: if step.empty_layer() == Some(true) { 0 } else { sizes.next().unwrap_or(0) },
            })
            .collect();
        // Layers that no step speaks of.
        steps.extend(sizes.map(|bytes| Step {
            created: record.created.clone(),
            created_by: String::new(),
            comment: String::new(),
            bytes,
        }));
        steps.reverse();
        Ok(steps)
    }

    /// The blobs of a loaded image.
    ///
    /// # Errors
    /// As [`Store::details`].
    pub fn original_of(&self, name: &str) -> Result<Original, ImageError> {
        let record = self.find(name)?;
        self.original(&record).cloned()
    }

    pub(super) fn original<'a>(&self, record: &'a Record) -> Result<&'a Original, ImageError> {
        record.original.as_ref().ok_or_else(|| ImageError::NoOriginal(record.name.clone()))
    }

    pub(super) fn document(&self, record: &Record) -> Result<Vec<u8>, ImageError> {
        self.read_document(&self.blob_of(&record.name, &record.id)?)
    }
}
