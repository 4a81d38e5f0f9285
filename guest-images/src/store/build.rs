//! Images in the making, and the layers that earlier builds have made: `build/HEX`, one line each that names a layer, by a digest of
//! all that it was made from.
//!
//! What a cache keeps is a blob; what is converted of it comes and goes as of any image. `rmi` leaves it, `prune` does not.

use super::blobs::KeptBlob;
use super::commit::{push, tell_of_all_layers};
use super::layers::Held;
use super::records::{ImageInfo, Original};
use super::{PreparedImage, Progress, Store};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::oci::config::resolved;
use crate::oci::layout::blob_path;
use crate::oci::reference::ImageRef;
use crate::oci::source::Source;
use crate::oci::{OciError, Resolved};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, FileTimes};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Where the cache is.
const CACHE: &str = "build";
/// Most that the layers of the cache may take, packed; the ones that were not used for longest go first.
const MAX_CACHED: u64 = 10 << 30;
/// More is no entry of ours.
const MAX_ENTRY: u64 = 1 << 10;

/// An image in the making: what it is on stays for as long as this lives.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its configuration (OCI image-spec, config.md).
    pub config: Value,
    layers: Vec<DraftLayer>,
}

/// A layer of one.
#[derive(Clone, Debug)]
pub struct DraftLayer {
    diff_id: Digest,
    /// When it was made (RFC 3339); empty if that is not known.
    created: String,
    blob: Arc<KeptBlob>,
}

/// An entry of the cache.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    diff_id: Digest,
    created: String,
    blob: Digest,
    bytes: u64,
}

impl DraftLayer {
    /// The digest of its archive.
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// When it was made (RFC 3339); empty if that is not known.
    pub fn created(&self) -> &str {
        &self.created
    }
}

impl Draft {
    /// Nothing at all.
    #[must_use]
    pub fn scratch() -> Self {
        let config = json!({ "architecture": "amd64", "os": "linux", "config": {},
                             "rootfs": { "type": "layers", "diff_ids": [] }, "history": [] });
        Draft { config, layers: Vec::new() }
    }

    /// The digest of its configuration, as it is by now: the id of the image.
    pub fn id(&self) -> Digest {
        Digest::of(self.config.to_string().as_bytes())
    }

    /// What its files are made of: the digests of its layers' archives, lowest first.
    pub fn diff_ids(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(DraftLayer::diff_id)
    }

    /// One more step (`history` in its configuration), and the layer that it has made, if it has.
    pub fn add(&mut self, mut step: Value, layer: Option<DraftLayer>) {
        tell_of_all_layers(&mut self.config);
        match layer {
            Some(layer) => {
                push(&mut self.config["rootfs"]["diff_ids"], layer.diff_id.to_string().into());
                self.layers.push(layer);
            }
            None => step["empty_layer"] = true.into(),
        }
        push(&mut self.config["history"], step);
    }

    fn resolved(&self) -> Result<Resolved, OciError> {
        let document = self.config.to_string().into_bytes();
        let blob = |layer: &DraftLayer| {
            let stored = (layer.blob.digest.clone(), layer.blob.bytes);
            (blob_path(&layer.blob.digest), Some(stored))
        };
        resolved(Digest::of(&document), Vec::new(), document, self.layers.iter().map(blob).collect())
    }
}

impl Store {
    /// A draft that begins as an image is, which is found and verified as by [`Store::prepare`].
    ///
    /// # Errors
    /// As [`Store::prepare`]; a root file system has no layer that an image could be made of.
    pub fn draft_of(&self, image: &ImageRef, progress: &mut dyn Progress) -> Result<Draft, ImageError> {
        let what = image.to_string();
        let (blobs, diff_ids, document) = match image {
            ImageRef::Name(name) => {
                let record = self.find(name)?;
                let original = self.original(&record)?;
                let manifest = self.read_json(&self.blob_of(name, &original.manifest)?)?;
                let digest = |layer: &Value| layer["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
                let named = manifest["layers"].as_array().into_iter().flatten().map(digest);
                let missing = || ImageError::NoOriginal(record.name.clone());
                let open = |digest: Option<Digest>| self.blob_of(name, &digest.ok_or_else(missing)?);
                let blobs = named.map(open).collect::<Result<Vec<_>, _>>()?;
                let diff_ids: Vec<Digest> = record.layers.iter().map(|layer| layer.digest.clone()).collect();
                (blobs, diff_ids, self.document(&record)?)
            }
            other => {
                let (source, image) =
                    self.source_of(other)?.ok_or_else(|| ImageError::NotAnImage(what.clone().into()))?;
                drop(self.convert(&what, &source, &image, progress)?);
                let mut blobs = self.keep_image(&what, &source, &image)?.blobs;
                let layers = blobs.drain(1..=image.layers.len()).collect();
                (layers, image.layers.into_iter().map(|layer| layer.diff_id).collect(), image.document)
            }
        };
        if blobs.len() != diff_ids.len() {
            let source = OciError::LayerCount { layers: blobs.len(), diff_ids: diff_ids.len() };
            return Err(ImageError::Oci { image: what, source });
        }
        let json = |source| OciError::Json { what: "image configuration".into(), source };
        let config = serde_json::from_slice(&document);
        let config = config.map_err(|source| ImageError::Oci { image: what, source: json(source) })?;
        let layer = |(diff_id, blob)| DraftLayer { diff_id, created: String::new(), blob: Arc::new(blob) };
        Ok(Draft { config, layers: diff_ids.into_iter().zip(blobs).map(layer).collect() })
    }

    /// Packs and keeps a layer, made at the moment `created` (RFC 3339), whose archive `write` writes.
    ///
    /// # Errors
    /// What `write` says; the store cannot be written.
    pub fn draft_layer<E: From<ImageError>>(
        &self,
        created: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<DraftLayer, E> {
        let (diff_id, blob) = self.keep_new_layer(write)?;
        Ok(DraftLayer { diff_id, created: created.to_owned(), blob: Arc::new(blob) })
    }

    /// Makes a draft ready to run, as it is by now.
    ///
    /// # Errors
    /// As [`Store::prepare`]; it has no layer yet.
    pub fn prepare_draft(&self, draft: &Draft, progress: &mut dyn Progress) -> Result<PreparedImage, ImageError> {
        let (image, held) = self.convert_draft(draft, progress)?;
        self.prepared(image.id, image.config, held)
    }

    pub(super) fn convert_draft(
        &self,
        draft: &Draft,
        progress: &mut dyn Progress,
    ) -> Result<(Resolved, Vec<Held>), ImageError> {
        const WHAT: &str = "the image so far";
        let oci = |source| ImageError::Oci { image: WHAT.into(), source };
        let image = draft.resolved().map_err(oci)?;
        let source = Source::dir(&self.dir).map_err(|e| oci(e.into()))?;
        let held = self.convert(WHAT, &source, &image, progress)?;
        Ok((image, held))
    }

    /// Has a draft be an image of these names, which whatever had them before is without.
    ///
    /// # Errors
    /// It has no layers; a name is none; the store cannot be written.
    pub fn publish(
        &self,
        draft: &Draft,
        names: &[String],
        progress: &mut dyn Progress,
    ) -> Result<ImageInfo, ImageError> {
        let what = || names.first().cloned().unwrap_or_default();
        let oci = |source| ImageError::Oci { image: what(), source };
        let image = draft.resolved().map_err(oci)?;
        let mut blobs = vec![self.keep_bytes(&image.document)?];
        for layer in &draft.layers {
            blobs.push(self.blob_of(&what(), &layer.blob.digest)?);
        }
        let manifest = self.manifest_for(&blobs).map_err(oci)?;
        let kept = self.keep_bytes(&manifest.bytes)?;
        let (digest, bytes) = (kept.digest.clone(), kept.bytes);
        blobs.push(kept);
        let all = blobs.iter().map(|blob| blob.digest.clone()).collect();
        let original = Original { manifest: digest, media_type: manifest.media_type, bytes, blobs: all };
        let mut adopted = None;
        for name in names {
            adopted = Some(self.adopt(name, original.clone(), progress)?);
        }
        adopted.ok_or_else(|| ImageError::NoOriginal(what()))
    }

    /// Gives up what was merged to run a draft, unless it is in use or an image's own.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn forget_merged(&self, merged: &[PathBuf]) -> Result<(), ImageError> {
        let _work = self.lock()?;
        let wanted = self.referenced()?;
        for path in merged {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !wanted.contains(&name) {
                self.remove_unused(path)?;
            }
        }
        Ok(())
    }

    fn cache_file(&self, of: &Digest) -> PathBuf {
        self.dir.join(CACHE).join(of.hex())
    }

    /// The layer that was made from what `of` is a digest of, if it is still there. It counts as used now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn cached(&self, of: &Digest) -> Result<Option<DraftLayer>, ImageError> {
        let path = self.cache_file(of);
        let Some((file, Entry { diff_id, created, blob, .. })) = read_entry(&path)? else { return Ok(None) };
        let Some(blob) = self.blob(&blob)? else { return Ok(None) };
        // If that cannot be noted, it goes sooner.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Ok(Some(DraftLayer { diff_id, created, blob: Arc::new(blob) }))
    }

    /// Keeps a layer for later builds; makes room for it, if need be.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remember(&self, of: &Digest, layer: &DraftLayer) -> Result<(), ImageError> {
        let work = self.lock()?;
        let dir = self.dir.join(CACHE);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(ImageError::io("create", &dir))?;
        let (diff_id, blob, bytes) = (layer.diff_id.clone(), layer.blob.digest.clone(), layer.blob.bytes);
        let text = json!(Entry { diff_id, created: layer.created.clone(), blob, bytes }).to_string();
        let mut file = work.temp_file()?;
        file.write_all(text.as_bytes()).map_err(ImageError::io("write", work.temp_path()))?;
        work.publish(&file, &self.cache_file(of))?;
        self.trim(MAX_CACHED)
    }

    /// Has the cache keep no more than so many bytes; the caller has the store's lock.
    fn trim(&self, most: u64) -> Result<(), ImageError> {
        let mut entries = self.cache_entries()?;
        entries.sort_by_key(|(_, used, _)| std::cmp::Reverse(*used));
        let (mut total, wanted) = (0u64, self.image_blobs()?);
        let mut gone = Vec::new();
        for (path, _, entry) in entries {
            total = total.saturating_add(entry.bytes);
            if total > most {
                fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
                gone.push(entry.blob);
            }
        }
        let kept = self.cached_blobs()?;
        for blob in gone.iter().filter(|blob| !wanted.contains(*blob) && !kept.contains(*blob)) {
            self.remove_unused(&self.blob_file(blob))?;
        }
        Ok(())
    }

    /// Empties the cache; the caller has the store's lock, and removes the blobs that nobody wants.
    pub(super) fn forget_builds(&self) -> Result<(), ImageError> {
        let dir = self.dir.join(CACHE);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ImageError::io("remove", dir)),
        }
    }

    /// The blobs that the cache keeps.
    pub(super) fn cached_blobs(&self) -> Result<HashSet<Digest>, ImageError> {
        Ok(self.cache_entries()?.into_iter().map(|(_, _, entry)| entry.blob).collect())
    }

    /// Files, when they were used last, what they say. One that says nothing is not there.
    fn cache_entries(&self) -> Result<Vec<(PathBuf, SystemTime, Entry)>, ImageError> {
        let dir = self.dir.join(CACHE);
        let files = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(ImageError::io("read", &dir))?,
        };
        let mut entries = Vec::new();
        for file in files {
            let path = file.map_err(ImageError::io("read", &dir))?.path();
            if let Some((file, entry)) = read_entry(&path)? {
                let used = file.metadata().and_then(|meta| meta.modified()).map_err(ImageError::io("read", &path))?;
                entries.push((path, used, entry));
            }
        }
        Ok(entries)
    }
}

fn read_entry(path: &PathBuf) -> Result<Option<(File, Entry)>, ImageError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ImageError::io("open", path))?,
    };
    let mut text = Vec::new();
    (&file).take(MAX_ENTRY).read_to_end(&mut text).map_err(ImageError::io("read", path))?;
    Ok(serde_json::from_slice(&text).ok().map(|entry| (file, entry)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn layer(store: &Store, content: &str) -> DraftLayer {
        let write = |out: &mut dyn Write| out.write_all(content.as_bytes()).map_err(ImageError::io("write", "a layer"));
        store.draft_layer("then", write).unwrap()
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let keys: Vec<Digest> = (0..4).map(|n| Digest::of(&[n])).collect();
        for (n, of) in keys.iter().enumerate() {
            store.remember(of, &layer(&store, &format!("layer {n}"))).unwrap();
            let age = Duration::from_secs(1000 - n as u64);
            let file = File::options().write(true).open(store.cache_file(of)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let there = || keys.iter().map(|of| store.cached(of).unwrap().is_some()).collect::<Vec<_>>();
        // The oldest one is used, and so is the youngest.
        let first = store.cached(&keys[0]).unwrap().unwrap();
        assert_eq!((first.created(), first.diff_id()), ("then", &Digest::of(b"layer 0")));
        let work = store.lock().unwrap();
        store.trim(2 * first.blob.bytes).unwrap();
        drop(work);
        assert_eq!(store.cache_entries().unwrap().len(), 2);
        assert_eq!(there(), [true, false, false, true]);
        assert_eq!(store.usage().unwrap().cached, 2, "and their blobs are gone");
        // One whose blob is gone, or that says nothing, is not there.
        fs::write(store.cache_file(&keys[3]), "{").unwrap();
        drop(first);
        fs::remove_dir_all(dir.path().join("blobs")).unwrap();
        assert_eq!(there(), [false; 4]);
        store.prune().unwrap();
        assert!(store.cached_blobs().unwrap().is_empty());
    }

    #[test]
    fn steps_and_layers_of_a_draft_belong_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut draft = Draft::scratch();
        assert!(matches!(store.publish(&draft, &["x".into()], &mut ()), Err(ImageError::Oci { .. })));
        draft.add(json!({ "created_by": "ENV" }), None);
        let empty = layer(&store, &"\0".repeat(1024));
        draft.add(json!({ "created_by": "COPY" }), Some(empty.clone()));
        assert_eq!(draft.config["rootfs"]["diff_ids"], json!([empty.diff_id().to_string()]));
        let history = json!([{ "created_by": "ENV", "empty_layer": true }, { "created_by": "COPY" }]);
        assert_eq!(draft.config["history"], history);
        let info = store.publish(&draft, &["x".into(), "y:2".into()], &mut ()).unwrap();
        assert_eq!((info.id, store.list().unwrap().len()), (draft.id(), 2));
        let again = store.draft_of(&"y:2".parse().unwrap(), &mut ()).unwrap();
        assert_eq!((&again.config, again.diff_ids().collect::<Vec<_>>()), (&draft.config, vec![empty.diff_id()]));
    }
}
