//! Images as they come: OCI layouts and docker archives, in directories or tar files, down to a verified configuration
//! and a list of layer blobs.
//!
//! [`source`] gives access to files by name, [`layout`] reads OCI's index and manifests, [`docker`] reads `docker save`'s
//! manifest.json, [`config`] the image configuration. Layer blobs are not read here.

pub mod config;
pub mod docker;
pub mod layout;
pub mod reference;
pub mod source;

use crate::digest::{Digest, DigestError};
use config::ProcessDefaults;
use source::SourceError;

/// Largest index, manifest or configuration that is read, in bytes.
pub const MAX_JSON: u64 = 4 << 20;
/// Most layers of one image: what one overlayfs can stack is of this order.
pub const MAX_LAYERS: usize = 500;

/// An image, found and verified up to its list of layers.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The configuration's digest: what docker calls the image's ID.
    pub id: Digest,
    /// Names the source gives this image (`name:tag`), perhaps none.
    pub names: Vec<String>,
    /// When it was made, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// How to start its process.
    pub config: ProcessDefaults,
    /// The layers, lowest first.
    pub layers: Vec<LayerBlob>,
    /// The configuration itself, byte for byte.
    pub document: Vec<u8>,
    /// The manifest, where the source has one.
    pub manifest: Option<Manifest>,
}

/// An image's manifest, byte for byte.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// OCI's or docker's.
    pub media_type: String,
    /// The document.
    pub bytes: Vec<u8>,
}

/// One layer, not read yet.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    /// Digest of the uncompressed layer, from the verified configuration.
    pub diff_id: Digest,
    /// Digest and size of the blob as stored, where the source tells them.
    pub stored: Option<(Digest, u64)>,
    /// Its name in the source.
    pub path: String,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file of the image cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Not valid JSON, or not what it should be.
    #[error("{what}: {source}")]
    Json {
        /// Which document.
        what: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A document is larger than [`MAX_JSON`].
    #[error("{what} is {bytes} bytes long, more than the limit of 4 MiB")]
    TooLarge {
        /// Which document.
        what: String,
        /// Its size.
        bytes: u64,
    },
    /// A blob's size is not what its descriptor says.
    #[error("{what}: size is {found} bytes, not {expected} as its descriptor says")]
    Size {
        /// Which blob.
        what: String,
        /// By the descriptor.
        expected: u64,
        /// In fact.
        found: u64,
    },
    /// A blob's content does not have its digest.
    #[error("{what}: digest is wrong: the content has {found}")]
    Digest {
        /// Which blob.
        what: String,
        /// Of the content.
        found: Digest,
    },
    /// A digest that is none.
    #[error("{what}: {source}")]
    BadDigest {
        /// Where it stands.
        what: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// No image of this tag.
    #[error("no image with the tag '{tag}' in it; there is: {available}")]
    NoSuchTag {
        /// The tag asked for.
        tag: String,
        /// The tags there are.
        available: String,
    },
    /// None for linux/amd64.
    #[error("no image for linux/amd64 in it; there is: {0}")]
    Platform(String),
    /// More than one image, and none was chosen.
    #[error("it has more than one image; choose one by its tag: {0}")]
    Ambiguous(String),
    /// Layers and configuration do not fit together.
    #[error("the manifest has {layers} layers but the configuration lists {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// No layers, or more than [`MAX_LAYERS`].
    #[error("the image has {0} layers; between 1 and {MAX_LAYERS} are supported")]
    Layers(usize),
    /// A media type this program cannot use.
    #[error("{what} has the unsupported media type '{media_type}'")]
    MediaType {
        /// Which blob.
        what: String,
        /// Its type.
        media_type: String,
    },
    /// Indexes within indexes without end.
    #[error("image indexes are nested more than {0} deep, or too many")]
    Nesting(usize),
}

impl OciError {
    /// A document that cannot be made or read, in the words of whoever knows its form.
    pub(crate) fn spec(what: &str, problem: oci_spec::OciSpecError) -> Self {
        OciError::Json { what: what.to_owned(), source: serde::ser::Error::custom(problem) }
    }
}

/// Text of the image for use in an error: one line, bounded.
pub(crate) fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect();
    clean
}

/// Joins what a source offers for an error message.
pub(crate) fn offer(mut items: Vec<String>) -> String {
    items.sort();
    items.dedup();
    let more = items.len().saturating_sub(16);
    items.truncate(16);
    let mut text = if items.is_empty() { "nothing".to_owned() } else { items.join(", ") };
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}
