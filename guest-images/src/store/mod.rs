//! The image store: a directory of converted layers and loaded images, shared by all VMs and safe against anyone being
//! killed at any point.
//!
//! ```text
//! version              "1"
//! layers/KEY.erofs     a converted layer; whoever uses it holds a shared flock on it
//! images/HASH.json     a loaded image: name, configuration, layers
//! tmp/KEY.lock, .tmp   work going on; the lock's holder owns the .tmp; without holder both are rubbish
//! ```
//!
//! Lock order: the store's lock (`tmp/store.lock`, for changes to `images/` and removal of layers), then a layer's
//! work lock, then locks on layer files. Nobody waits for the store's lock while holding a work lock.

mod layers;
mod lock;
mod records;

pub use layers::Layer;
pub use records::ImageInfo;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::Limits;
use crate::oci::config::ProcessDefaults;
use crate::oci::reference::{ImageRef, normalize_name};
use crate::oci::source::{Source, SourceError};
use crate::oci::{Resolved, docker, layout};
use layers::{Held, Origin};
use lock::WorkLock;
use records::{Record, RecordLayer};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
/// Key of the store's own lock.
const STORE_KEY: &str = "store";

/// What a caller hears while images are prepared. All methods may be left out.
pub trait Progress {
    /// Layer `index` (from 0) of `count` is next; `cached`: there is nothing to convert.
    fn layer(&mut self, index: usize, count: usize, cached: bool) {
        let _ = (index, count, cached);
    }
    /// So many bytes of the layer's input were read, out of `total` if that is known.
    fn bytes(&mut self, done: u64, total: Option<u64>) {
        let _ = (done, total);
    }
}

impl Progress for () {}

/// An image whose layers are ready to be attached to a VM.
#[derive(Debug)]
pub struct PreparedImage {
    /// Digest of the image's configuration; of a root file system that of its metadata.
    pub id: Digest,
    /// The layers, lowest first; never empty.
    pub layers: Vec<Layer>,
    /// How to start its process.
    pub config: ProcessDefaults,
    /// Keeps the layers from being removed for as long as it lives.
    pub lock: LayersInUse,
}

/// Shared locks on layer images. The kernel drops them with the process.
#[derive(Debug)]
pub struct LayersInUse(Vec<File>);

impl LayersInUse {
    /// The layer images, open for reading, in the order of [`PreparedImage::layers`].
    pub fn files(&self) -> &[File] {
        &self.0
    }
}

/// Disk usage of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Converted layers.
    pub layers: usize,
    /// Bytes they take on disk (holes take none).
    pub bytes: u64,
}

/// An image store. Any number of processes may have the same one open.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    limits: Limits,
}

impl Store {
    /// Opens the store in `dir`, making it if it is not there (mode 0700), and removes what killed processes left.
    ///
    /// # Errors
    /// It cannot be made or read, or is of another version.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Store, ImageError> {
        Self::open_with(dir, Limits::default())
    }

    /// As [`Store::open`], with limits on what converting one layer may cost.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: impl Into<PathBuf>, limits: Limits) -> Result<Store, ImageError> {
        let dir = dir.into();
        for dir in [
            dir.clone(),
            dir.join("layers"),
            dir.join("images"),
            dir.join("tmp"),
        ] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(ImageError::io("create", dir))?;
        }
        let store = Store { dir, limits };
        store.check_version()?;
        store.sweep()?;
        Ok(store)
    }

    fn check_version(&self) -> Result<(), ImageError> {
        let path = self.dir.join("version");
        let check = |text: &str| match text.trim() == VERSION.to_string() {
            true => Ok(()),
            false => {
                let found = crate::oci::printable(text.trim());
                Err(ImageError::Version {
                    dir: self.dir.clone(),
                    found,
                    known: VERSION,
                })
            }
        };
        match fs::read_to_string(&path) {
            Ok(text) => return check(&text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io("read", path)(e)),
        }
        let work = self.lock()?;
        if let Ok(text) = fs::read_to_string(&path) {
            return check(&text);
        }
        let mut file = work.temp_file()?;
        writeln!(file, "{VERSION}").map_err(ImageError::io("write", work.temp_path()))?;
        work.publish(&file, &path)
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn temp_dir(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn lock(&self) -> Result<WorkLock, ImageError> {
        WorkLock::acquire(&self.temp_dir(), STORE_KEY)
    }

    /// Removes the temporary files of work whose process is gone. Every [`Store::open`] does this.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn sweep(&self) -> Result<(), ImageError> {
        let dir = self.temp_dir();
        let mut keys = HashSet::new();
        for entry in fs::read_dir(&dir).map_err(ImageError::io("read", &dir))? {
            let name = entry.map_err(ImageError::io("read", &dir))?.file_name();
            let name = name.to_string_lossy();
            let key = name
                .strip_suffix(".lock")
                .or_else(|| name.strip_suffix(".tmp"));
            keys.extend(key.filter(|key| !key.is_empty()).map(str::to_owned));
        }
        for key in keys {
            // Dropping the lock of idle work removes its files.
            drop(WorkLock::try_acquire(&dir, &key)?);
        }
        Ok(())
    }

    /// Makes an image ready to run: finds it, verifies it, converts the layers that are not converted yet.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing half-done stays behind.
    pub fn prepare(
        &self,
        image: &ImageRef,
        progress: &mut dyn Progress,
    ) -> Result<PreparedImage, ImageError> {
        let name = image.to_string();
        let oci = |source| ImageError::Oci {
            image: name.clone(),
            source,
        };
        let (source, resolved) = match image {
            ImageRef::Rootfs(path) => return self.prepare_rootfs(path, progress),
            ImageRef::Name(name) => return self.prepare_loaded(name, progress),
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
        };
        let held = self.convert(&name, &source, &resolved, progress)?;
        Ok(prepared(resolved.id, resolved.config, held))
    }

    fn archive(&self, path: &Path) -> Result<Source, SourceError> {
        Source::archive(path, &self.temp_dir(), self.limits.bytes)
    }

    fn convert(
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

    fn prepare_rootfs(
        &self,
        path: &Path,
        progress: &mut dyn Progress,
    ) -> Result<PreparedImage, ImageError> {
        progress.layer(0, 1, false);
        let held = self.rootfs_layer(path, progress)?;
        Ok(prepared(
            held.layer.digest.clone(),
            ProcessDefaults::default(),
            vec![held],
        ))
    }

    fn prepare_loaded(
        &self,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<PreparedImage, ImageError> {
        let record = self.find(name)?;
        let mut held = Vec::with_capacity(record.layers.len());
        for (index, layer) in record.layers.iter().enumerate() {
            progress.layer(index, record.layers.len(), true);
            let missing = || ImageError::LayerMissing {
                name: record.name.clone(),
                layer: layer.digest.clone(),
            };
            held.push(
                self.open_layer(Origin::Layer, &layer.digest)?
                    .ok_or_else(missing)?,
            );
        }
        Ok(prepared(record.id, record.config, held))
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
        let name = name.map(normalize_name).transpose()?;
        let what = path.display().to_string();
        let oci = |source| ImageError::Oci {
            image: what.clone(),
            source,
        };
        let source = match path.is_dir() {
            true => Source::dir(path).map_err(|e| oci(e.into()))?,
            false => self.archive(path).map_err(|e| oci(e.into()))?,
        };
        let images = if source.has(docker::MANIFEST) {
            docker::resolve_all(&source).map_err(oci)?
        } else if source.has("index.json") {
            vec![layout::resolve(&source, None).map_err(oci)?]
        } else {
            return Err(ImageError::NotAnImage(path.to_owned()));
        };
        if name.is_some() && images.len() != 1 {
            return Err(ImageError::NameForMany {
                path: path.to_owned(),
                images: images.len(),
            });
        }
        let mut loaded = Vec::new();
        for image in images {
            let names = self.names_for(path, &image, name.as_deref())?;
            // The locks in `held` keep the layers until the records that refer to them are written.
            let held = self.convert(&what, &source, &image, progress)?;
            let work = self.lock()?;
            for name in names {
                let record = record(name, &image, &held);
                self.write_record(&work, &record)?;
                loaded.push(record.into());
            }
        }
        Ok(loaded)
    }

    fn names_for(
        &self,
        path: &Path,
        image: &Resolved,
        name: Option<&str>,
    ) -> Result<Vec<String>, ImageError> {
        if let Some(name) = name {
            return Ok(vec![name.to_owned()]);
        }
        if !image.names.is_empty() {
            return Ok(image
                .names
                .iter()
                .map(|name| normalize_name(name))
                .collect::<Result<_, _>>()?);
        }
        let file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        let stem = file.split(".tar").next().unwrap_or_default();
        Ok(vec![normalize_name(stem)?])
    }

    /// The loaded images, by name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        Ok(self.records()?.into_iter().map(ImageInfo::from).collect())
    }

    /// Removes a loaded image and those of its layers that no other image has and no container uses. Returns what it
    /// was.
    ///
    /// # Errors
    /// There is no such image, or the store cannot be changed.
    pub fn remove(&self, name: &str) -> Result<ImageInfo, ImageError> {
        let _work = self.lock()?;
        let record = self.find(name)?;
        self.remove_record(&record.name)?;
        let used = self.referenced()?;
        for layer in &record.layers {
            let key = layers::key(Origin::Layer, &layer.digest);
            if !used.contains(&key) {
                self.remove_layer(&self.layer_path(&key))?;
            }
        }
        Ok(record.into())
    }

    /// Removes all layers that belong to no loaded image and are not in use (images run straight from a file leave such
    /// layers for the next run). Returns how many bytes of disk that gave back.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune(&self) -> Result<u64, ImageError> {
        let _work = self.lock()?;
        let used = self.referenced()?;
        let mut freed = 0;
        for path in self.layer_files()? {
            let key = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let bytes = path.metadata().map_or(0, |meta| meta.blocks() * 512);
            if !used.contains(&key) && self.remove_layer(&path)? {
                freed += bytes;
            }
        }
        Ok(freed)
    }

    /// How much disk the converted layers take.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let files = self.layer_files()?;
        let bytes = files
            .iter()
            .map(|path| path.metadata().map_or(0, |meta| meta.blocks() * 512))
            .sum();
        Ok(Usage {
            layers: files.len(),
            bytes,
        })
    }

    fn layer_files(&self) -> Result<Vec<PathBuf>, ImageError> {
        let dir = self.dir.join("layers");
        let entries = fs::read_dir(&dir).map_err(ImageError::io("read", &dir))?;
        entries
            .map(|entry| Ok(entry.map_err(ImageError::io("read", &dir))?.path()))
            .collect()
    }

    /// Keys of the layers that loaded images have.
    fn referenced(&self) -> Result<HashSet<String>, ImageError> {
        let records = self.records()?;
        let layers = records.iter().flat_map(|record| &record.layers);
        Ok(layers
            .map(|layer| layers::key(Origin::Layer, &layer.digest))
            .collect())
    }

    /// Removes a layer's file unless someone uses it; says whether it did.
    fn remove_layer(&self, path: &Path) -> Result<bool, ImageError> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(ImageError::io("open", path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            other => other.map_err(|e| ImageError::io("lock", path)(e.into()))?,
        }
        fs::remove_file(path).map_err(ImageError::io("remove", path))?;
        Ok(true)
    }
}

/// What identifies a state of a file without reading it: device, inode, size, modification and change time.
fn file_fingerprint(meta: &Metadata) -> Vec<u8> {
    let numbers = [meta.dev(), meta.ino(), meta.size()];
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    let times = times.iter().flat_map(|n| n.to_le_bytes());
    numbers
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .chain(times)
        .collect()
}

fn record(name: String, image: &Resolved, held: &[Held]) -> Record {
    let layer = |held: &Held| RecordLayer {
        digest: held.layer.digest.clone(),
        bytes: held.layer.bytes,
    };
    Record {
        name,
        id: image.id.clone(),
        created: image.created.clone(),
        layers: held.iter().map(layer).collect(),
        config: image.config.clone(),
    }
}

/// Leaves out layers without any file (some builders make one per metadata step), but never all of them.
fn prepared(id: Digest, config: ProcessDefaults, held: Vec<Held>) -> PreparedImage {
    let all_empty = held.iter().all(|held| held.empty);
    let mut kept: Vec<Held> = held
        .into_iter()
        .filter(|held| all_empty || !held.empty)
        .collect();
    if all_empty {
        kept.truncate(1);
    }
    let (layers, files) = kept.into_iter().map(|held| (held.layer, held.file)).unzip();
    PreparedImage {
        id,
        layers,
        config,
        lock: LayersInUse(files),
    }
}
