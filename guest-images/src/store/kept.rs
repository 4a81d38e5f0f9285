//! Layers that stay although no loaded image has them and no process uses them: those of snapshots, whose guests have them
//! mounted and must find these very bytes, and those of containers, which can be started again.
//!
//! `snapshots/ID/layers` or `containers/ID/layers` names them, one key a line, in the order in which they make up a disk. They
//! stay for as long as that file does. It is written under the store's lock, which whoever removes layers holds, by a process that has them
//! in use: so there is no moment in which they can go.

use super::layers::{self, Layer, Origin};
use super::{LayersInUse, PreparedImage, Store};
use crate::digest::Digest;
use crate::error::ImageError;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where snapshots are, in the store.
pub const SNAPSHOTS: &str = "snapshots";
/// Where containers are, in the store.
pub const CONTAINERS: &str = "containers";
/// The file in it.
const LIST: &str = "layers";
/// More is not ours: 1,000 keys.
const MAX_LIST: u64 = 150 << 10;

/// Who keeps layers: whatever has a directory of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper<'a> {
    /// A snapshot.
    Snapshot(&'a str),
    /// A container.
    Container(&'a str),
}

impl Keeper<'_> {
    fn list(self, store: &Path) -> PathBuf {
        let (kind, name) = match self {
            Keeper::Snapshot(name) => (SNAPSHOTS, name),
            Keeper::Container(name) => (CONTAINERS, name),
        };
        store.join(kind).join(name).join(LIST)
    }
}

/// Names a file of layers within a store: known to be a name that leads nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    origin: Origin,
    digest: Digest,
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&layers::key(self.origin, &self.digest))
    }
}

/// A text that is no key.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' names no layer")]
pub struct BadKey(String);

impl FromStr for LayerKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bad = || BadKey(text.chars().take(160).collect());
        let (kind, hex) = text.split_once('-').ok_or_else(bad)?;
        let (origin, algorithm) = match kind {
            "merged" => (Origin::Merged, "sha256"),
            "rootfs" => (Origin::Rootfs, "sha256"),
            algorithm => (Origin::Layer, algorithm),
        };
        let digest = format!("{algorithm}:{hex}").parse().map_err(|_| bad())?;
        Ok(LayerKey { origin, digest })
    }
}

/// The layers of a disk, in order, held in the store.
#[derive(Debug)]
pub struct KeptLayers {
    /// Their files.
    pub layers: Vec<Layer>,
    /// Their names.
    pub keys: Vec<LayerKey>,
    /// Keeps them from being removed for as long as it lives.
    pub lock: LayersInUse,
}

impl PreparedImage {
    /// What makes up the disk of a VM, in order, by name.
    pub fn keys(&self) -> Vec<LayerKey> {
        let key = |layer: &Layer| layer.path.file_stem().and_then(|name| name.to_str()?.parse().ok());
        self.disk().filter_map(key).collect()
    }
}

impl Store {
    /// Has these layers stay for as long as the keeper's directory does. The caller has them in use.
    ///
    /// # Errors
    /// The list cannot be written, or is there already.
    pub fn keep(&self, keeper: Keeper<'_>, keys: &[LayerKey]) -> Result<(), ImageError> {
        let path = keeper.list(&self.dir);
        let _removals_wait = self.lock()?;
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(ImageError::io("create", &path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(ImageError::io("write", &path))
    }

    /// The layers that `keeper` keeps, locked as those of a prepared image; `None` if it keeps none.
    ///
    /// # Errors
    /// One of them is gone, or the list is none.
    pub fn kept(&self, keeper: Keeper<'_>) -> Result<Option<KeptLayers>, ImageError> {
        let path = keeper.list(&self.dir);
        let Some(keys) = read_list(&path)? else { return Ok(None) };
        self.layers_of(keys, |key| bad_list(&path, format!("layer {key} is gone"))).map(Some)
    }

    /// Layers that somebody else has in use, locked as those of a prepared image.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn in_use(&self, keys: Vec<LayerKey>) -> Result<KeptLayers, ImageError> {
        let dir = self.dir.join("layers");
        self.layers_of(keys, |_| ImageError::io("find a layer in", &dir)(io::ErrorKind::NotFound.into()))
    }

    fn layers_of(
        &self,
        keys: Vec<LayerKey>,
        missing: impl Fn(&LayerKey) -> ImageError,
    ) -> Result<KeptLayers, ImageError> {
        let (mut layers, mut files) = (Vec::new(), Vec::new());
        for key in &keys {
            let held = self.open_layer(key.origin, &key.digest)?.ok_or_else(|| missing(key))?;
            layers.push(held.layer);
            files.push(held.file);
        }
        Ok(KeptLayers { layers, keys, lock: LayersInUse(files) })
    }

    /// Keys of the files that are kept. A list that cannot be read is an error: what it names must not go.
    pub(super) fn all_kept(&self) -> Result<HashSet<String>, ImageError> {
        let mut kept = HashSet::new();
        for dir in [SNAPSHOTS, CONTAINERS].map(|kind| self.dir.join(kind)) {
            let entries = match fs::read_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(ImageError::io("read", &dir))?,
            };
            for entry in entries {
                let path = entry.map_err(ImageError::io("read", &dir))?.path().join(LIST);
                kept.extend(read_list(&path)?.into_iter().flatten().map(|key| key.to_string()));
            }
        }
        Ok(kept)
    }
}

fn bad_list(path: &Path, problem: String) -> ImageError {
    ImageError::Kept { path: path.to_owned(), problem }
}

fn read_list(path: &Path) -> Result<Option<Vec<LayerKey>>, ImageError> {
    let file = match File::open(path) {
        // No directory: a file beside the keepers.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        other => other.map_err(ImageError::io("open", path))?,
    };
    let mut text = String::new();
    file.take(MAX_LIST).read_to_string(&mut text).map_err(ImageError::io("read", path))?;
    let keys = text.lines().map(|line| line.parse::<LayerKey>().map_err(|e| bad_list(path, e.to_string())));
    keys.collect::<Result<_, _>>().map(Some)
}
