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
    items(source)?.into_iter().map(|item| resolve_item(source, item)).collect()
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

/// What an archive calls its images, by their ids: of an archive that is a layout as well, which says it in fewer words.
///
/// # Errors
/// See [`OciError`].
pub fn names(source: &Source) -> Result<Vec<(String, Vec<String>)>, OciError> {
    let names = |item: Item| (id_hex(&item.config).to_owned(), item.repo_tags.unwrap_or_default());
    Ok(items(source)?.into_iter().map(names).collect())
}

fn items(source: &Source) -> Result<Vec<Item>, OciError> {
    let bytes = super::layout::read_json(source, MANIFEST)?;
    serde_json::from_slice(&bytes).map_err(|e| OciError::Json { what: MANIFEST.to_owned(), source: e })
}

/// `<hex>.json`, or `blobs/sha256/<hex>` since Docker 25.
fn id_hex(config: &str) -> &str {
    config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json")
}

fn resolve_item(source: &Source, item: Item) -> Result<Resolved, OciError> {
    let bytes = super::layout::read_json(source, &item.config)?;
    let id = Digest::of(&bytes);
    let stem = id_hex(&item.config);
    let what = || format!("image configuration {}", printable(&item.config));
    format!("sha256:{stem}").parse::<Digest>().map_err(|source| OciError::BadDigest { what: what(), source })?;
    if stem != id.hex() {
        return Err(OciError::Digest { what: what(), found: id });
    }
    let blobs = item.layers.into_iter().map(|path| (path, None)).collect();
    config::resolved(id, item.repo_tags.unwrap_or_default(), bytes, blobs)
}
