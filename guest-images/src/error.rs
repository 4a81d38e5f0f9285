//! What can go wrong with an image, as the user sees it: one line that names the image and the reason.

use crate::digest::Digest;
use crate::erofs::MergeError;
use crate::layer::LayerError;
use crate::oci::OciError;
use crate::oci::reference::RefError;
use std::io;
use std::path::PathBuf;

/// Why an image cannot be used, or the store cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A bad reference or name.
    #[error(transparent)]
    Reference(#[from] RefError),
    /// The image's index, manifests or configuration.
    #[error("image '{image}': {source}")]
    Oci {
        /// The reference.
        image: String,
        /// What is wrong.
        source: OciError,
    },
    /// A layer cannot be converted.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Its digest, or its path.
        layer: String,
        /// What is wrong.
        source: LayerError,
    },
    /// A layer's blob has another digest than its descriptor, or its content another than the configuration says.
    #[error("layer {layer}: {kind} digest is wrong: the content has {found}")]
    LayerDigest {
        /// The digest it should have.
        layer: Digest,
        /// "compressed" or "uncompressed".
        kind: &'static str,
        /// The digest it has.
        found: Digest,
    },
    /// A layer's blob is longer or shorter than its descriptor says.
    #[error("layer {layer}: size is {found} bytes, not {expected} as its descriptor says (truncated?)")]
    LayerSize {
        /// Its digest.
        layer: Digest,
        /// By the descriptor.
        expected: u64,
        /// In fact.
        found: u64,
    },
    /// The disk cannot take the layer.
    #[error("layer {layer}: no space: '{}' has {free} bytes free; free some or set BULKHEAD_STORE to another disk", dir.display())]
    NoSpace {
        /// Its digest, or its path.
        layer: String,
        /// The store.
        dir: PathBuf,
        /// What was free before.
        free: u64,
    },
    /// The layers of an image cannot be made into one file system.
    #[error("image store '{}': cannot merge the image's layers: {source}; remove its layers with `bulkhead system prune` and try again", dir.display())]
    Merge {
        /// The store.
        dir: PathBuf,
        /// What is wrong.
        source: MergeError,
    },
    /// No loaded image of that name.
    #[error(
        "no image '{name}' in the store; there is: {available} (`bulkhead pull NAME` or `bulkhead load FILE` brings one)"
    )]
    NotFound {
        /// The name.
        name: String,
        /// Names there are.
        available: String,
    },
    /// A short name that fits several images.
    #[error("image name '{name}' fits several: {available}")]
    Ambiguous {
        /// The name.
        name: String,
        /// Which.
        available: String,
    },
    /// A loaded image lacks a layer.
    #[error("image '{name}' is damaged: layer {layer} is missing from the store; load the image again")]
    LayerMissing {
        /// The image.
        name: String,
        /// The layer.
        layer: Digest,
    },
    /// An image whose blobs were not kept.
    #[error("image '{0}' was loaded by an earlier version, which kept no originals of images; load it again")]
    NoOriginal(String),
    /// An archive of images cannot be written.
    #[error("cannot write the archive: {0}")]
    Save(io::Error),
    /// A file to load is neither kind of archive.
    #[error("'{}' is neither an OCI image (no index.json) nor a docker archive (no manifest.json)", .0.display())]
    NotAnImage(PathBuf),
    /// An archive of several images cannot be loaded under one name.
    #[error("'{}' has {images} images; load it without a name", path.display())]
    NameForMany {
        /// The archive.
        path: PathBuf,
        /// How many images.
        images: usize,
    },
    /// A directory given as root file system changed while it was converted.
    #[error("'{}' changed while it was converted; try again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    /// A store of another version.
    #[error("the store '{}' has version {found}, this program knows version {known}; remove it or set BULKHEAD_STORE", dir.display())]
    Version {
        /// The store.
        dir: PathBuf,
        /// Its version.
        found: String,
        /// Ours.
        known: u32,
    },
    /// A file of the store cannot be read or written.
    #[error("image store: cannot {action} '{}': {source}", path.display())]
    Io {
        /// What failed.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record of the store is damaged.
    #[error("image store: '{}' is damaged: {source}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A list of layers that are to stay is damaged, or names one that is gone.
    #[error("image store: '{}': {problem}", path.display())]
    Kept {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl ImageError {
    /// For `map_err`: `action` on `path` failed.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ImageError::Io { action, path, source }
    }
}
