//! `docker save` archives: manifest.json names a configuration and layer files for each image.
//!
//! The layers are verified by the configuration's diff_ids, the configuration by its own file name, which is its digest.

use super::source::Source;
use super::{OciError, Resolved, config, offer, printable};
use crate::digest::Digest;
use serde::Deserialize;

/// The file that tells a docker archive.
pub const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// All images of an archive, each with its names.
///
/// # Errors
/// See [`OciError`].
pub fn resolve_all(source: &Source) -> Result<Vec<Resolved>, OciError> {
    let bytes = super::layout::read_json(source, MANIFEST)?;
    let items: Vec<Item> =
        serde_json::from_slice(&bytes).map_err(|e| OciError::Json { what: MANIFEST.to_owned(), source: e })?;
    items.into_iter().map(|item| resolve_item(source, item)).collect()
}

/// The image called `name` (`name:tag`), or the only one.
///
/// # Errors
/// See [`OciError`]; where the choice is not clear, the error lists the names.
pub fn resolve(source: &Source, name: Option<&str>) -> Result<Resolved, OciError> {
    let mut all = resolve_all(source)?;
    let available = || offer(all.iter().flat_map(|image| image.names.iter().map(|n| printable(n))).collect());
    match name {
        Some(name) => {
            let tagged = |image: &Resolved| image.names.iter().any(|n| n == name);
            let at = all.iter().position(tagged);
            let at = at.ok_or_else(|| OciError::NoSuchTag { tag: printable(name), available: available() })?;
            Ok(all.swap_remove(at))
        }
        None if all.len() == 1 => Ok(all.remove(0)),
        None => Err(OciError::Ambiguous(available())),
    }
}

fn resolve_item(source: &Source, item: Item) -> Result<Resolved, OciError> {
    let bytes = super::layout::read_json(source, &item.config)?;
    let id = Digest::of(&bytes);
    // "<hex>.json", or "blobs/sha256/<hex>" since Docker 25.
    let stem = item.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    let what = || format!("image configuration {}", printable(&item.config));
    format!("sha256:{stem}").parse::<Digest>().map_err(|source| OciError::BadDigest { what: what(), source })?;
    if stem != id.hex() {
        return Err(OciError::Digest { what: what(), found: id });
    }
    let blobs = item.layers.into_iter().map(|path| (path, None)).collect();
    config::resolved(id, item.repo_tags.unwrap_or_default(), config::parse(&bytes)?, blobs)
}
