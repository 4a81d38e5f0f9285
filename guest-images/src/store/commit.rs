//! A new image of one that is loaded: its layers, and one more on top of them.

use super::blobs::KeptBlob;
use super::records::{ImageInfo, Original};
use super::{Progress, Store};
use crate::digest::{Algorithm, Digest, HashingWriter};
use crate::error::ImageError;
use crate::oci::layout::{DOCKER_LAYER_GZIP, DOCKER_MANIFEST};
use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::MediaType;
use serde_json::{Value, json};
use std::io::{self, Seek, SeekFrom, Write};

/// What is said of a new layer.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// When it was made (RFC 3339).
    pub created: &'a str,
    /// By what command.
    pub created_by: &'a str,
    /// Who is responsible; nobody if empty.
    pub author: &'a str,
    /// Whatever else; nothing if empty.
    pub comment: &'a str,
}

impl Store {
    /// Makes an image called `name` of the loaded image `base` (by name or `sha256:` and the beginning of the id) and a layer, whose tar
    /// archive `write` writes. `edit` changes the `config` of its configuration.
    ///
    /// # Errors
    /// There is no such image; what `write` says; the store cannot be written.
    pub fn commit<E: From<ImageError>>(
        &self,
        base: &str,
        name: &str,
        said: Said<'_>,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
        edit: impl FnOnce(&mut Value),
    ) -> Result<ImageInfo, E> {
        let original = self.original_of(base)?;
        // All of them stay while these live.
        let mut kept = original.blobs.iter().map(|digest| self.blob_of(base, digest)).collect::<Result<Vec<_>, _>>()?;
        let manifest_blob = self.blob_of(base, &original.manifest)?;
        let mut manifest = self.read_json(&manifest_blob)?;
        let config_digest = manifest["config"]["digest"].as_str().and_then(|text| text.parse().ok());
        let config_digest: Digest = config_digest.ok_or_else(|| ImageError::NoOriginal(base.to_owned()))?;
        let mut config = self.read_json(&self.blob_of(base, &config_digest)?)?;

        let (diff_id, layer) = self.keep_new_layer(write)?;
        config["created"] = said.created.into();
        if !said.author.is_empty() {
            config["author"] = said.author.into();
        }
        tell_of_all_layers(&mut config);
        push(&mut config["rootfs"]["diff_ids"], diff_id.to_string().into());
        let mut step = json!({ "created": said.created, "created_by": said.created_by });
        for (key, value) in [("author", said.author), ("comment", said.comment)] {
            if !value.is_empty() {
                step[key] = value.into();
            }
        }
        push(&mut config["history"], step);
        if !config["config"].is_object() {
            config["config"] = json!({});
        }
        edit(&mut config["config"]);

        let bytes = config.to_string().into_bytes();
        let config = self.keep_bytes(&bytes)?;
        manifest["config"]["digest"] = config.digest.to_string().into();
        manifest["config"]["size"] = config.bytes.into();
        let media_type = match original.media_type.as_str() {
            DOCKER_MANIFEST => DOCKER_LAYER_GZIP.into(),
            _ => MediaType::ImageLayerGzip.to_string(),
        };
        let descriptor = json!({ "mediaType": media_type, "digest": layer.digest.to_string(), "size": layer.bytes });
        push(&mut manifest["layers"], descriptor);
        let manifest = self.keep_bytes(&manifest.to_string().into_bytes())?;
        let (digest, bytes) = (manifest.digest.clone(), manifest.bytes);
        // In place of the base's own two documents.
        kept.retain(|blob| blob.digest != original.manifest && blob.digest != config_digest);
        kept.extend([config, layer, manifest]);
        let blobs = kept.iter().map(|blob| blob.digest.clone()).collect();
        let original = Original { manifest: digest, media_type: original.media_type, bytes, blobs };
        Ok(self.adopt(name, original, &mut () as &mut dyn Progress)?)
    }

    pub(super) fn read_json(&self, blob: &KeptBlob) -> Result<Value, ImageError> {
        serde_json::from_slice(&self.read_document(blob)?)
            .map_err(|source| ImageError::Record { path: self.blob_file(&blob.digest), source })
    }

    /// Packs a layer and keeps it: the digest of its archive, and the blob.
    pub(super) fn keep_new_layer<E: From<ImageError>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(Digest, KeptBlob), E> {
        let failed = || ImageError::io("write", self.temp_dir());
        let file = self.unnamed_file()?;
        let packed = HashingWriter::new(file, Algorithm::Sha256);
        let mut archive = HashingWriter::new(GzEncoder::new(packed, Compression::default()), Algorithm::Sha256);
        write(&mut archive)?;
        let (encoder, diff_id) = archive.finish();
        let (mut file, digest) = encoder.finish().map_err(failed())?.finish();
        let blob = self.keep_blob(&digest, |kept| {
            let copied = file.seek(SeekFrom::Start(0)).and_then(|_| io::copy(&mut file, kept));
            copied.map(drop).map_err(failed())
        })?;
        Ok((diff_id, blob))
    }
}

/// Has the history have a step for each layer: the next one would be taken for that of one of them.
pub(super) fn tell_of_all_layers(config: &mut Value) {
    let layers = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    let makes_a_layer = |step: &&Value| step["empty_layer"] != true;
    let steps = config["history"].as_array().map_or(0, |steps| steps.iter().filter(makes_a_layer).count());
    (steps..layers).for_each(|_| push(&mut config["history"], json!({})));
}

/// Adds to a list, which is made if there is none.
pub(super) fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}
