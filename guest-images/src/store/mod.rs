//! The image store: a directory of converted layers and loaded images, shared by all VMs and safe against anyone being
//! killed at any point.
//!
//! ```text
//! version              "1"
//! layers/KEY.erofs     a converted layer; whoever uses it holds a shared flock on it
//! merged/KEY.erofs     the metadata of an image with several layers, merged; locked like a layer
//! unpacked/KEY/        the files of an image whose first file is KEY's, for containers without a microVM; goes with that file
//! blobs/ALGORITHM/HEX  what a loaded image came as, byte for byte; locked like a layer
//! images/HASH.json     a loaded image: name, configuration, layers
//! build/HASH           a layer that a build has made, for later ones
//! snapshots/ID/layers, containers/ID/layers
//!                      layers that stay for as long as this file does; the rest of the directory is not the store's
//! tmp/KEY.lock, .tmp   work going on; the lock's holder owns the .tmp; without holder both are rubbish
//! ```
//!
//! Lock order: the store's lock (`tmp/store.lock`, for changes to `images/` and removal of layers), then a layer's
//! work lock, then locks on layer files. Nobody waits for the store's lock while holding a work lock.

mod blobs;
mod build;
mod commit;
mod contents;
mod details;
mod kept;
mod layers;
mod lock;
mod prepare;
mod records;
mod save;
mod unpacked;

pub use blobs::KeptBlob;
pub use build::{Draft, DraftLayer};
pub use commit::Said;
pub use contents::{Contents, Place};
pub use details::{ImageDetails, Step};
pub use kept::{CONTAINERS, Keeper, KeptLayers, LayerKey, SNAPSHOTS};
pub use layers::Layer;
use records::Record;
pub use records::{ImageInfo, Original};
pub use unpacked::disk_bytes_below;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::layer::Limits;
use crate::oci::config::ProcessDefaults;
use layers::Origin;
use lock::WorkLock;
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
    /// With several layers: the file system that they make together; see [`crate::erofs::merge`].
    pub merged: Option<Layer>,
    /// How to start its process.
    pub config: ProcessDefaults,
    /// Keeps the layers from being removed for as long as it lives.
    pub lock: LayersInUse,
}

impl PreparedImage {
    /// What makes up the disk of a VM, in order. The file system on it is the first of them.
    pub fn disk(&self) -> impl Iterator<Item = &Layer> {
        self.merged.iter().chain(&self.layers)
    }
}

/// Shared locks on layer images. The kernel drops them with the process.
#[derive(Debug)]
pub struct LayersInUse(Vec<File>);

impl LayersInUse {
    /// The images, open for reading: the layers' in the order of [`PreparedImage::layers`], then the merged one.
    pub fn files(&self) -> &[File] {
        &self.0
    }
}

/// Disk usage of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Converted layers.
    pub layers: usize,
    /// Bytes they take on disk, with what they were merged into and unpacked to (holes take none).
    pub bytes: u64,
    /// Blobs that loaded images came as.
    pub blobs: usize,
    /// Bytes they take on disk.
    pub blob_bytes: u64,
    /// Blobs that are here for later builds alone.
    pub cached: usize,
    /// Bytes they take on disk.
    pub cached_bytes: u64,
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
        for dir in [dir.clone(), dir.join("layers"), dir.join("merged"), dir.join("images"), dir.join("tmp")] {
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
                Err(ImageError::Version { dir: self.dir.clone(), found, known: VERSION })
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

    /// An empty file without a name, beside the store's others: for something large that goes with its descriptor.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn unnamed_file(&self) -> Result<File, ImageError> {
        let dir = self.temp_dir();
        tempfile::tempfile_in(&dir).map_err(ImageError::io("create a file in", dir))
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
            let key = name.strip_suffix(".lock").or_else(|| name.strip_suffix(".tmp"));
            keys.extend(key.filter(|key| !key.is_empty()).map(str::to_owned));
        }
        for key in keys {
            // Dropping the lock of idle work removes its files.
            drop(WorkLock::try_acquire(&dir, &key)?);
        }
        Ok(())
    }

    /// The loaded images, by name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        Ok(self.records()?.into_iter().map(ImageInfo::from).collect())
    }

    /// The loaded image of this name.
    ///
    /// # Errors
    /// There is no such image, or several could be meant.
    pub fn image(&self, name: &str) -> Result<ImageInfo, ImageError> {
        self.find(name).map(ImageInfo::from)
    }

    /// Removes a loaded image and those of its layers that no other image has, no container has and no snapshot keeps.
    /// Returns what it was.
    ///
    /// # Errors
    /// There is no such image, or the store cannot be changed.
    pub fn remove(&self, name: &str) -> Result<ImageInfo, ImageError> {
        let _work = self.lock()?;
        let record = self.find(name)?;
        let keys = self.keys(&record);
        self.remove_record(&record.name)?;
        let used = self.referenced()?;
        for key in keys.difference(&used) {
            self.remove_unused(&self.layer_path(key))?;
        }
        let wanted = self.wanted_blobs()?;
        for digest in record.original.iter().flat_map(|original| &original.blobs).filter(|d| !wanted.contains(*d)) {
            self.remove_unused(&self.blob_file(digest))?;
        }
        Ok(record.into())
    }

    /// Removes what builds have left for later ones, and all layers that belong to no loaded image and are neither in use nor kept
    /// (images run straight from a file leave such layers for the next run). Returns how many bytes of disk that gave back.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune(&self) -> Result<u64, ImageError> {
        let _work = self.lock()?;
        self.forget_builds()?;
        let used = self.referenced()?;
        let mut freed = 0;
        for path in self.files("merged")?.into_iter().chain(self.files("layers")?) {
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = path.metadata().map_or(0, |meta| meta.blocks() * 512);
            let bytes = bytes + self.unpacked_bytes_of(&path);
            if !used.contains(&key) && self.remove_unused(&path)? {
                freed += bytes;
            }
        }
        freed += self.forget_stray()?;
        let wanted = self.wanted_blobs()?;
        for (_, path) in self.blob_files()?.into_iter().filter(|(digest, _)| !wanted.contains(digest)) {
            let bytes = path.metadata().map_or(0, |meta| meta.blocks() * 512);
            if self.remove_unused(&path)? {
                freed += bytes;
            }
        }
        Ok(freed)
    }

    /// How much disk the converted layers and the blobs take.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let (layers, merged) = (self.files("layers")?, self.files("merged")?);
        let on_disk = |path: &PathBuf| path.metadata().map_or(0, |meta| meta.blocks() * 512);
        let bytes = layers.iter().chain(&merged).map(on_disk).sum::<u64>() + self.unpacked_bytes()?;
        let (of_images, cached) = (self.image_blobs()?, self.cached_blobs()?);
        let (cached, blobs): (Vec<_>, Vec<_>) = self
            .blob_files()?
            .into_iter()
            .partition(|(digest, _)| cached.contains(digest) && !of_images.contains(digest));
        let sum = |files: &[(Digest, PathBuf)]| files.iter().map(|(_, path)| on_disk(path)).sum();
        let (blob_bytes, cached_bytes) = (sum(&blobs), sum(&cached));
        Ok(Usage { layers: layers.len(), bytes, blobs: blobs.len(), blob_bytes, cached: cached.len(), cached_bytes })
    }

    fn files(&self, directory: &str) -> Result<Vec<PathBuf>, ImageError> {
        let dir = self.dir.join(directory);
        let entries = fs::read_dir(&dir).map_err(ImageError::io("read", &dir))?;
        entries.map(|entry| Ok(entry.map_err(ImageError::io("read", &dir))?.path())).collect()
    }

    /// Keys of the files that loaded images have, and of those that are kept.
    fn referenced(&self) -> Result<HashSet<String>, ImageError> {
        let mut keys = self.all_kept()?;
        keys.extend(self.records()?.iter().flat_map(|record| self.keys(record)));
        Ok(keys)
    }

    /// Keys of an image's layers, and of what they were merged into.
    fn keys(&self, record: &Record) -> HashSet<String> {
        let layers: Vec<String> = record.layers.iter().map(|layer| layers::key(Origin::Layer, &layer.digest)).collect();
        let paths: Vec<PathBuf> = layers.iter().map(|key| self.layer_path(key)).collect();
        let merged = Self::merged_digest(paths.iter().map(PathBuf::as_path));
        layers.into_iter().chain(merged.map(|digest| layers::key(Origin::Merged, &digest))).collect()
    }

    /// Digests of the blobs that must stay.
    fn wanted_blobs(&self) -> Result<HashSet<Digest>, ImageError> {
        let mut wanted = self.image_blobs()?;
        wanted.extend(self.cached_blobs()?);
        Ok(wanted)
    }

    /// Digests of the blobs that loaded images came as.
    fn image_blobs(&self) -> Result<HashSet<Digest>, ImageError> {
        Ok(self.records()?.into_iter().filter_map(|record| record.original).flat_map(|kept| kept.blobs).collect())
    }

    /// Removes a layer's or a blob's file unless someone uses it; says whether it did.
    fn remove_unused(&self, path: &Path) -> Result<bool, ImageError> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(ImageError::io("open", path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            other => other.map_err(|e| ImageError::io("lock", path)(e.into()))?,
        }
        let unpacked = self.part_with_unpacked(path)?;
        fs::remove_file(path).map_err(ImageError::io("remove", path))?;
        unpacked::remove(&unpacked)?;
        Ok(true)
    }
}

/// What identifies a state of a file without reading it: device, inode, size, modification and change time.
fn file_fingerprint(meta: &Metadata) -> Vec<u8> {
    let numbers = [meta.dev(), meta.ino(), meta.size()];
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
    let times = times.iter().flat_map(|n| n.to_le_bytes());
    numbers.iter().flat_map(|n| n.to_le_bytes()).chain(times).collect()
}
