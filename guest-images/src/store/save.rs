//! Loaded images as one archive that is both an OCI layout and what `docker load` takes (as `docker save` makes it since 25): the
//! blobs are there once, byte for byte as they came, and two tables lead to them.

use super::Store;
use super::blobs::{FromStart, KeptBlob};
use super::records::{Original, Record};
use crate::digest::{Algorithm, Digest};
use crate::error::ImageError;
use crate::oci::docker;
use crate::oci::layout::{INDEX, blob_path};
use serde_json::{Value, json};
use std::io::{self, Read, Write};

impl Store {
    /// Writes loaded images into one archive.
    ///
    /// # Errors
    /// There is no such image, or it was loaded by a version that kept less; `out` cannot be written.
    pub fn save(&self, names: &[String], out: impl Write) -> Result<(), ImageError> {
        let mut records: Vec<Record> = Vec::new();
        for name in names {
            let record = self.find(name)?;
            if !records.iter().any(|other| other.name == record.name) {
                records.push(record);
            }
        }
        // All of them are opened before the first byte is written: they stay, and what is missing is said in time.
        let mut blobs: Vec<KeptBlob> = Vec::new();
        for record in &records {
            for digest in &self.original(record)?.blobs {
                if !blobs.iter().any(|blob| blob.digest == *digest) {
                    blobs.push(self.blob(digest)?.ok_or_else(|| ImageError::NoOriginal(record.name.clone()))?);
                }
            }
        }
        write(&records, &blobs, out).map_err(ImageError::Save)
    }
}

fn write(records: &[Record], blobs: &[KeptBlob], out: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    for blob in blobs {
        add(&mut archive, &blob_path(&blob.digest), blob.bytes, FromStart { file: &blob.file, at: 0 })?;
    }
    let with_original = || records.iter().filter_map(|record| Some((record, record.original.as_ref()?)));
    let manifests: Vec<Value> = with_original().map(|(record, original)| in_index(record, original)).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                        "manifests": manifests });
    let mut document = |name: &str, value: &Value| {
        let text = value.to_string();
        add(&mut archive, name, text.len() as u64, text.as_bytes())
    };
    document(INDEX, &index)?;
    document("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
    // docker's table has no room for other digests.
    let speakable = |(record, _): &(&Record, &Original)| record.id.algorithm() == Algorithm::Sha256;
    let items = for_docker(with_original().filter(speakable));
    document(docker::MANIFEST, &Value::Array(items))?;
    archive.into_inner()?.flush()
}

/// Times and owners say nothing: the same images make the same archive.
fn add(archive: &mut tar::Builder<impl Write>, name: &str, bytes: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    header.set_mode(0o444);
    archive.append_data(&mut header, name, content)
}

fn in_index(record: &Record, original: &Original) -> Value {
    let tag = record.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    json!({
        "mediaType": original.media_type, "digest": original.manifest.to_string(), "size": original.bytes,
        "platform": { "os": "linux", "architecture": "amd64" },
        "annotations": { "io.containerd.image.name": record.name, "org.opencontainers.image.ref.name": tag },
    })
}

/// An entry for each image, with all of its names that are in this archive.
fn for_docker<'a>(images: impl Iterator<Item = (&'a Record, &'a Original)>) -> Vec<Value> {
    let mut items: Vec<(Digest, Vec<&str>, Vec<String>)> = Vec::new();
    for (record, original) in images {
        match items.iter_mut().find(|(id, ..)| *id == record.id) {
            Some((_, names, _)) => names.push(&record.name),
            None => {
                // The configuration is the first blob, the manifest the last.
                let layers = original.blobs.get(1..original.blobs.len().saturating_sub(1)).unwrap_or_default();
                items.push((record.id.clone(), vec![&record.name], layers.iter().map(blob_path).collect()));
            }
        }
    }
    let item = |(id, names, layers)| json!({ "Config": blob_path(&id), "RepoTags": names, "Layers": layers });
    items.into_iter().map(item).collect()
}
