//! Images as directories of files, for containers that have no kernel of their own to mount a disk: one for all that are of an image. It goes with
//! the first file of the disk that it was made from, which whoever uses it has in use.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::lock::WorkLock;
use super::{Layer, Progress, Store};
use crate::error::ImageError;
use crate::tree::Tree;
use crate::unpack::unpack_layers;

/// The directory of all of them.
const DIR: &str = "unpacked";
/// What one that is being removed ends with.
const GONE: &str = "gone";
/// And one that is being made.
const UNFINISHED: &str = "new";

impl Store {
    /// The files of a disk, of which these are what it is made of, in order. The caller has them in use for as long as the directory, and writes
    /// nothing there.
    ///
    /// # Errors
    /// A layer is damaged, or the directory cannot be written.
    pub fn unpacked(&self, disk: &[Layer], progress: &mut dyn Progress) -> Result<PathBuf, ImageError> {
        // What several layers were merged into has no files of its own.
        let layers = if disk.len() > 1 { &disk[1..] } else { disk };
        let key = disk.first().map_or_else(|| "none".into(), |first| stem(&first.path));
        let dir = self.dir.join(DIR).join(&key);
        if dir.is_dir() {
            return Ok(dir);
        }
        let _work = WorkLock::acquire(&self.temp_dir(), &format!("unpacked-{key}"))?;
        if dir.is_dir() {
            return Ok(dir);
        }
        let unfinished = dir.with_extension(UNFINISHED);
        let made = self.unpack(layers, &unfinished, progress);
        let made = made.and_then(|()| fs::rename(&unfinished, &dir).map_err(ImageError::io("create", &dir)));
        made.inspect_err(|_| drop(fs::remove_dir_all(&unfinished)))?;
        Ok(dir)
    }

    fn unpack(&self, layers: &[Layer], dir: &Path, progress: &mut dyn Progress) -> Result<(), ImageError> {
        // That of a process that was killed.
        remove(dir)?;
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(ImageError::io("create", dir))?;
        let open = |layer: &Layer| File::open(&layer.path).map_err(ImageError::io("open", &layer.path));
        let files = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let files: Vec<(&File, u64)> = files.iter().zip(layers).map(|(file, layer)| (file, layer.bytes)).collect();
        unpack_layers(&files, &self.dir, dir, progress, |_| Some(Tree::ROOT))?;
        // Once it has its name it is taken for whole, also after a crash of this host.
        let synced = File::open(dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(ImageError::io("write", dir))
    }

    /// Has what was made from a file of the store be nobody's, while the caller still has the file for itself: from now on it is only to be
    /// [removed](remove).
    pub(super) fn part_with_unpacked(&self, file: &Path) -> Result<PathBuf, ImageError> {
        let dir = self.dir.join(DIR).join(stem(file));
        let gone = dir.with_extension(GONE);
        // That of a process that was killed.
        remove(&gone)?;
        match fs::rename(&dir, &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", &dir)(error)),
            _ => Ok(gone),
        }
    }

    /// The same of those that a killed process has left without that file. Returns how many bytes of disk that gave back.
    pub(super) fn forget_stray(&self) -> Result<u64, ImageError> {
        let mut freed = 0;
        for dir in self.all_unpacked()? {
            let file = format!("{}.erofs", stem(&dir));
            let extension = dir.extension().unwrap_or_default();
            // One that is unfinished is whoever's who works at it, if anybody does.
            let work = WorkLock::try_acquire(&self.temp_dir(), &format!("unpacked-{}", stem(&dir)))?;
            let wanted = match extension.to_str() {
                Some(UNFINISHED) => work.is_none(),
                Some(GONE) => false,
                _ => ["layers", "merged"].iter().any(|place| self.dir.join(place).join(&file).exists()),
            };
            if wanted {
                continue;
            }
            freed += disk_bytes_below(&dir);
            remove(&dir)?;
        }
        Ok(freed)
    }

    /// Bytes that they take on disk.
    pub(super) fn unpacked_bytes(&self) -> Result<u64, ImageError> {
        Ok(self.all_unpacked()?.iter().map(|dir| disk_bytes_below(dir)).sum())
    }

    /// What a file of the store was unpacked to takes on disk.
    pub(super) fn unpacked_bytes_of(&self, file: &Path) -> u64 {
        disk_bytes_below(&self.dir.join(DIR).join(stem(file)))
    }

    fn all_unpacked(&self) -> Result<Vec<PathBuf>, ImageError> {
        let dir = self.dir.join(DIR);
        match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => Ok(other.map_err(ImageError::io("read", &dir))?.flatten().map(|entry| entry.path()).collect()),
        }
    }
}

/// What a file of the store is called, and a directory that was made from it, finished or not.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn remove(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Bytes that a directory takes on disk with all below it, as far as it can be read. What has several names counts for each of them.
pub fn disk_bytes_below(dir: &Path) -> u64 {
    let (mut sum, mut waiting) = (0, vec![dir.to_owned()]);
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum += meta.blocks() * 512;
            waiting.extend(meta.is_dir().then(|| entry.path()));
        }
    }
    sum
}
