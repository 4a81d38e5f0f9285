//! From an image reference to layers that are ready to be attached, and from an archive to loaded images.

use super::layers::{Held, Origin};
use super::records::{ImageInfo, Original, Record, RecordLayer};
use super::{LayersInUse, PreparedImage, Progress, Store};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::oci::config::ProcessDefaults;
use crate::oci::reference::{ImageRef, normalize_name};
use crate::oci::source::{Source, SourceError};
use crate::oci::{OciError, Resolved, docker, layout};
use std::fs::File;
use std::path::Path;

impl Store {
    /// Makes an image ready to run: finds it, verifies it, converts the layers that are not converted yet.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing half-done stays behind.
    pub fn prepare(&self, image: &ImageRef, progress: &mut dyn Progress) -> Result<PreparedImage, ImageError> {
        match image {
            ImageRef::Rootfs(path) => return self.prepare_rootfs(path, progress),
            ImageRef::Name(name) => return self.prepare_loaded(name, progress),
            _ => {}
        }
        let name = image.to_string();
        let (source, resolved) = self.source_of(image)?.ok_or_else(|| ImageError::NotAnImage(name.clone().into()))?;
        let held = self.convert(&name, &source, &resolved, progress)?;
        self.prepared(resolved.id, resolved.config, held)
    }

    /// Where an image is that is in no store, and what it says of itself; none of what is in one or no image.
    pub(super) fn source_of(&self, image: &ImageRef) -> Result<Option<(Source, Resolved)>, ImageError> {
        let name = image.to_string();
        let oci = |source| ImageError::Oci { image: name.clone(), source };
        Ok(Some(match image {
            ImageRef::Rootfs(_) | ImageRef::Name(_) => return Ok(None),
            ImageRef::OciDir(path, tag) => {
                let source = Source::dir(path).map_err(|e| oci(e.into()))?;
                let resolved = layout::resolve(&source, tag.as_deref()).map_err(oci)?;
                (source, resolved)
            }
            ImageRef::OciArchive(path, tag) => {
                let source = self.archive(path).map_err(|e| oci(e.into()))?;
                let resolved = layout::resolve(&source, tag.as_deref()).map_err(oci)?;
                (source, resolved)
            }
            ImageRef::DockerArchive(path, tag) => {
                let source = self.archive(path).map_err(|e| oci(e.into()))?;
                let resolved = docker::resolve(&source, tag.as_deref()).map_err(oci)?;
                (source, resolved)
            }
        }))
    }

    fn archive(&self, path: &Path) -> Result<Source, SourceError> {
        Source::archive(path, &self.temp_dir(), self.limits.bytes)
    }

    pub(super) fn convert(
        &self,
        image: &str,
        source: &Source,
        resolved: &Resolved,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Held>, ImageError> {
        let count = resolved.layers.len();
        let mut held = Vec::with_capacity(count);
        for (index, blob) in resolved.layers.iter().enumerate() {
            let cached = self.open_layer(Origin::Layer, &blob.diff_id)?;
            progress.layer(index, count, cached.is_some());
            held.push(match cached {
                Some(layer) => layer,
                None => self.blob_layer(image, source, blob, progress)?,
            });
        }
        Ok(held)
    }

    fn prepare_rootfs(&self, path: &Path, progress: &mut dyn Progress) -> Result<PreparedImage, ImageError> {
        progress.layer(0, 1, false);
        let held = self.rootfs_layer(path, progress)?;
        self.prepared(held.layer.digest.clone(), ProcessDefaults::default(), vec![held])
    }

    fn prepare_loaded(&self, name: &str, progress: &mut dyn Progress) -> Result<PreparedImage, ImageError> {
        let record = self.find(name)?;
        let mut held = Vec::with_capacity(record.layers.len());
        for (index, layer) in record.layers.iter().enumerate() {
            progress.layer(index, record.layers.len(), true);
            let missing = || ImageError::LayerMissing { name: record.name.clone(), layer: layer.digest.clone() };
            held.push(self.open_layer(Origin::Layer, &layer.digest)?.ok_or_else(missing)?);
        }
        self.prepared(record.id, record.config, held)
    }

    /// Loads the images of an OCI layout (directory or archive) or a docker archive under the names they bring, or the
    /// one image in it under `name`, and returns them. An image without a name gets that of the file.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing half-done stays behind.
    pub fn load(
        &self,
        path: &Path,
        name: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let source = match path.is_dir() {
            true => Source::dir(path),
            false => self.archive(path),
        };
        self.load_from(path, source, name, progress)
    }

    /// The same from an archive that is open already; `what` is what messages call it, and an image in it that has no name.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load_file(
        &self,
        what: &str,
        file: File,
        name: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let path = Path::new(what);
        self.load_from(path, Source::archive_file(path, file, &self.temp_dir(), self.limits.bytes), name, progress)
    }

    fn load_from(
        &self,
        path: &Path,
        source: Result<Source, SourceError>,
        name: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let name = name.map(normalize_name).transpose()?;
        let what = path.display().to_string();
        let oci = |source| ImageError::Oci { image: what.clone(), source };
        let source = source.map_err(|e| oci(e.into()))?;
        let images = images_in(path, &source, oci)?;
        if name.is_some() && images.len() != 1 {
            return Err(ImageError::NameForMany { path: path.to_owned(), images: images.len() });
        }
        let mut loaded = Vec::new();
        for image in images {
            let names = self.names_for(path, &image, name.as_deref())?;
            // The locks in `held` keep the layers until the records that refer to them are written.
            let held = self.convert(&what, &source, &image, progress)?;
            let kept = self.keep_image(&what, &source, &image)?;
            let work = self.lock()?;
            for name in names {
                let record = record(name, &image, &held, &kept.original);
                self.write_record(&work, &record)?;
                loaded.push(record.into());
            }
        }
        Ok(loaded)
    }

    /// Makes an image of blobs that are in the store already, and held there by the caller. It replaces what has had its name.
    ///
    /// # Errors
    /// See [`ImageError`]; the blobs may be no image, whatever their digests are.
    pub fn adopt(&self, name: &str, original: Original, progress: &mut dyn Progress) -> Result<ImageInfo, ImageError> {
        let name = normalize_name(name)?;
        let oci = |source| ImageError::Oci { image: name.clone(), source };
        let source = Source::dir(&self.dir).map_err(|e| oci(e.into()))?;
        let descriptor = original.descriptor().map_err(|e| oci(OciError::spec("image manifest", e)))?;
        let image = layout::resolve_descriptor(&source, &descriptor).map_err(oci)?;
        let held = self.convert(&name, &source, &image, progress)?;
        let work = self.lock()?;
        let record = record(name, &image, &held, &original);
        self.write_record(&work, &record)?;
        Ok(record.into())
    }

    /// Gives a loaded image another name as well. Whatever had that name before is without it.
    ///
    /// # Errors
    /// There is no such image, or what is to be its name is none.
    pub fn tag(&self, image: &str, name: &str) -> Result<(), ImageError> {
        let name = normalize_name(name)?;
        let work = self.lock()?;
        let record = Record { name, ..self.find(image)? };
        self.write_record(&work, &record)
    }

    /// Leaves out layers without any file (some builders make one per metadata step), but never all of them; merges those that
    /// remain, if they are several.
    pub(super) fn prepared(
        &self,
        id: Digest,
        config: ProcessDefaults,
        held: Vec<Held>,
    ) -> Result<PreparedImage, ImageError> {
        let digest = Self::merged_digest(held.iter().map(|held| held.layer.path.as_path()));
        let all_empty = held.iter().all(|held| held.empty);
        let mut kept: Vec<Held> = held.into_iter().filter(|held| all_empty || !held.empty).collect();
        if all_empty {
            kept.truncate(1);
        }
        let merged = match digest {
            Some(digest) if kept.len() > 1 => Some(self.merged_layer(&digest, &kept)?),
            Some(_) => None,
            // They are locked, so someone else than a store has removed one.
            None => {
                let dir = self.dir().join("layers");
                return Err(ImageError::io("find a layer in", dir)(std::io::ErrorKind::NotFound.into()));
            }
        };
        let (layers, mut files): (_, Vec<_>) = kept.into_iter().map(|held| (held.layer, held.file)).unzip();
        let merged = merged.map(|held| {
            files.push(held.file);
            held.layer
        });
        Ok(PreparedImage { id, layers, merged, config, lock: LayersInUse(files) })
    }

    fn names_for(&self, path: &Path, image: &Resolved, name: Option<&str>) -> Result<Vec<String>, ImageError> {
        if let Some(name) = name {
            return Ok(vec![name.to_owned()]);
        }
        if !image.names.is_empty() {
            return Ok(image.names.iter().map(|name| normalize_name(name)).collect::<Result<_, _>>()?);
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = file.split(".tar").next().unwrap_or_default();
        Ok(vec![normalize_name(stem)?])
    }
}

/// The images in what is to be loaded. An archive that is both kinds is read as a layout, which has the manifests; but
/// its names are those of docker's table, which are the whole ones.
fn images_in(path: &Path, source: &Source, oci: impl Fn(OciError) -> ImageError) -> Result<Vec<Resolved>, ImageError> {
    let for_docker = source.has(docker::MANIFEST);
    if !source.has(layout::INDEX) {
        let none = || ImageError::NotAnImage(path.to_owned());
        return if for_docker { docker::resolve_all(source).map_err(oci) } else { Err(none()) };
    }
    let mut images = layout::resolve_all(source).map_err(&oci)?;
    let names = if for_docker { docker::names(source).map_err(oci)? } else { Vec::new() };
    for image in &mut images {
        if let Some((_, names)) = names.iter().find(|(id, _)| id == image.id.hex()) {
            image.names.clone_from(names);
        }
    }
    Ok(images)
}

fn record(name: String, image: &Resolved, held: &[Held], original: &Original) -> Record {
    let layer = |held: &Held| RecordLayer { digest: held.layer.digest.clone(), bytes: held.layer.bytes };
    Record {
        name,
        id: image.id.clone(),
        created: image.created.clone(),
        layers: held.iter().map(layer).collect(),
        config: image.config.clone(),
        original: Some(original.clone()),
    }
}
