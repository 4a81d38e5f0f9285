//! The cache of converted layers: `layers/KEY.erofs`, each made once, whole or not there, locked while in use.

use super::lock::{WorkLock, open_held};
use super::{Progress, Store};
use crate::digest::{Algorithm, Digest, HashingReader};
use crate::erofs::{self, BLOCK, ErofsError, MergeError};
use crate::error::ImageError;
use crate::layer::{self, Flavour, LayerError, Limits};
use crate::oci::source::Source;
use crate::oci::{LayerBlob, OciError};
use crate::pipe;
use rustix::fs::statvfs;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A converted layer: a read-only EROFS image of whole 4 KiB blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The image file.
    pub path: PathBuf,
    /// Digest of the uncompressed layer; of a root file system the digest of its metadata.
    pub digest: Digest,
    /// The image's length in bytes.
    pub bytes: u64,
}

/// A layer with the lock that keeps it.
#[derive(Debug)]
pub(super) struct Held {
    pub layer: Layer,
    /// There is nothing in it but a root directory.
    pub empty: bool,
    /// Open with a shared lock.
    pub file: File,
}

/// Which kind of thing a layer was made of; the kinds do not share files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    Layer,
    Rootfs,
    /// Of the layers of an image.
    Merged,
}

const MERGED: &str = "merged-";

/// Name of a layer's file without its suffix.
pub(super) fn key(origin: Origin, digest: &Digest) -> String {
    match origin {
        Origin::Layer => digest.file_name(),
        Origin::Rootfs => format!("rootfs-{}", digest.hex()),
        Origin::Merged => format!("{MERGED}{}", digest.hex()),
    }
}

impl Store {
    pub(super) fn layer_path(&self, key: &str) -> PathBuf {
        let directory = if key.starts_with(MERGED) { "merged" } else { "layers" };
        self.dir.join(directory).join(format!("{key}.erofs"))
    }

    /// Opens a converted layer and locks it against removal. `None`: it is not there (or damaged).
    pub(super) fn open_layer(&self, origin: Origin, digest: &Digest) -> Result<Option<Held>, ImageError> {
        let path = self.layer_path(&key(origin, digest));
        let Some(file) = open_held(&path)? else { return Ok(None) };
        let mut block = [0; BLOCK];
        let bytes = file.metadata().map_err(ImageError::io("read", &path))?.len();
        let whole = file.read_exact_at(&mut block, 0).is_ok();
        match erofs::summary(&block).filter(|summary| whole && summary.bytes == bytes) {
            Some(summary) => {
                let layer = Layer { path, digest: digest.clone(), bytes };
                Ok(Some(Held { layer, empty: summary.inodes == 1, file }))
            }
            None => {
                tracing::warn!(path = %path.display(), "damaged layer image; converting it again");
                Ok(None)
            }
        }
    }

    /// Opens a layer, having `convert` make it first if it is not there. Of several that want the same layer, in this
    /// process or others, one converts and the others wait. `convert` gets an empty file.
    pub(super) fn layer(
        &self,
        origin: Origin,
        digest: &Digest,
        mut convert: impl FnMut(&File) -> Result<(), ImageError>,
    ) -> Result<Held, ImageError> {
        loop {
            if let Some(held) = self.open_layer(origin, digest)? {
                return Ok(held);
            }
            let key = key(origin, digest);
            let work = WorkLock::acquire(&self.temp_dir(), &key)?;
            if let Some(held) = self.open_layer(origin, digest)? {
                return Ok(held);
            }
            let file = work.temp_file()?;
            convert(&file)?;
            work.publish(&file, &self.layer_path(&key))?;
        }
    }

    /// Identifies these very layer files, in this order: a merged image leads to blocks in them, and a layer that is converted
    /// anew may have its data elsewhere. None if one is not there.
    pub(super) fn merged_digest<'a>(layers: impl Iterator<Item = &'a Path>) -> Option<Digest> {
        let mut identity = Vec::new();
        for path in layers {
            identity.extend(super::file_fingerprint(&fs::metadata(path).ok()?));
        }
        Some(Digest::of(&identity))
    }

    /// The image that makes one file system of several layers; `digest` identifies those of the image.
    pub(super) fn merged_layer(&self, digest: &Digest, held: &[Held]) -> Result<Held, ImageError> {
        self.layer(Origin::Merged, digest, |file| {
            let (limits, free) = self.limits()?;
            let layers: Vec<_> = held.iter().map(|held| (&held.file, held.layer.bytes)).collect();
            let budget = limits.metadata.min(limits.bytes);
            match erofs::merge(&layers, file, digest.uuid(), budget, limits.entries) {
                Ok(_) => Ok(()),
                Err(MergeError::Write(e)) => Err(self.layer_error("of all layers", free, e.into())),
                Err(source) => Err(ImageError::Merge { dir: self.dir.clone(), source }),
            }
        })
    }

    /// The limits for one layer: no more bytes than there is room for.
    fn limits(&self) -> Result<(Limits, u64), ImageError> {
        let stat = statvfs(&self.dir).map_err(|e| ImageError::io("examine", &self.dir)(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let limits = Limits { bytes: self.limits.bytes.min(free), ..self.limits };
        Ok((limits, free))
    }

    /// Turns an error of a conversion into what the user is told.
    fn layer_error(&self, layer: &str, free: u64, source: LayerError) -> ImageError {
        let full = match &source {
            LayerError::Image(ErofsError::Write(e)) => {
                matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            LayerError::Image(ErofsError::TooLarge(limit)) => *limit == free,
            _ => false,
        };
        match full {
            true => ImageError::NoSpace { layer: layer.to_owned(), dir: self.dir.clone(), free },
            false => ImageError::Layer { layer: layer.to_owned(), source },
        }
    }

    /// The converted layer of a blob.
    pub(super) fn blob_layer(
        &self,
        image: &str,
        source: &Source,
        blob: &LayerBlob,
        progress: &mut dyn Progress,
    ) -> Result<Held, ImageError> {
        self.layer(Origin::Layer, &blob.diff_id, |file| self.convert_blob(image, source, blob, file, progress))
    }

    fn convert_blob(
        &self,
        image: &str,
        source: &Source,
        blob: &LayerBlob,
        file: &File,
        progress: &mut dyn Progress,
    ) -> Result<(), ImageError> {
        let opened = source
            .open(&blob.path)
            .map_err(|e| ImageError::Oci { image: image.to_owned(), source: OciError::Source(e) })?;
        if let Some((digest, bytes)) = &blob.stored
            && opened.bytes != *bytes
        {
            return Err(ImageError::LayerSize { layer: digest.clone(), expected: *bytes, found: opened.bytes });
        }
        progress.bytes(0, Some(opened.bytes));
        let stored = blob.stored.as_ref().map(|(digest, _)| digest);
        let what = stored.unwrap_or(&blob.diff_id).to_string();
        let (limits, free) = self.limits()?;
        let read = AtomicU64::new(0);
        let algorithm = stored.map_or(Algorithm::Sha256, Digest::algorithm);
        let ((result, found), passed) = pipe::run(opened.reader, algorithm, self.limits.bytes, &read, |plain| {
            let mut on_read = || progress.bytes(read.load(Ordering::Relaxed), Some(opened.bytes));
            let ticking = Ticking { inner: plain, on_read: &mut on_read };
            let mut plain = HashingReader::new(ticking, blob.diff_id.algorithm());
            let result = layer::from_tar(&mut plain, file, Flavour::Layer, limits, blob.diff_id.uuid());
            // Read to the end whether it worked or not: if the content is not what it should be, that is the error.
            if !matches!(result, Err(LayerError::Image(_))) {
                let drained = io::copy(&mut plain, &mut io::sink());
                let drained = drained.map_err(|e| LayerError::Tar(layer::tar::TarError::Read(e)));
                return (result.and_then(|bytes| drained.map(|_| bytes)), Some(plain.finish().0));
            }
            (result, None)
        });
        if let (Some(expected), Some(passed)) = (stored, &passed)
            && passed.stored != *expected
        {
            let found = passed.stored.clone();
            return Err(ImageError::LayerDigest { layer: expected.clone(), kind: "blob", found });
        }
        result.map_err(|e| self.layer_error(&what, free, e))?;
        match found {
            Some(found) if found != blob.diff_id => {
                Err(ImageError::LayerDigest { layer: blob.diff_id.clone(), kind: "uncompressed", found })
            }
            _ => Ok(()),
        }
    }

    /// The converted image of a root file system: a directory or a tar file.
    pub(super) fn rootfs_layer(&self, path: &Path, progress: &mut dyn Progress) -> Result<Held, ImageError> {
        let what = path.display().to_string();
        let layer = |source| ImageError::Layer { layer: what.clone(), source };
        let meta = fs::metadata(path).map_err(ImageError::io("open", path))?;
        if meta.is_dir() {
            let fingerprint = layer::fingerprint(path).map_err(layer)?;
            let digest = Digest::from_sha256(fingerprint);
            return self.layer(Origin::Rootfs, &digest, |file| {
                let (limits, free) = self.limits()?;
                layer::from_dir(path, file, limits, digest.uuid(), |bytes| progress.bytes(bytes, None))
                    .map_err(|e| self.layer_error(&what, free, e))?;
                let same = layer::fingerprint(path).map_err(layer)? == fingerprint;
                if same { Ok(()) } else { Err(ImageError::Changed(path.to_owned())) }
            });
        }
        let digest = Digest::of(&super::file_fingerprint(&meta));
        self.layer(Origin::Rootfs, &digest, |file| {
            let oci = |e| ImageError::Oci { image: what.clone(), source: OciError::Source(e) };
            let input = crate::oci::source::open_regular(path).map_err(oci)?;
            let total = input.metadata().map_err(ImageError::io("read", path))?;
            if Digest::of(&super::file_fingerprint(&total)) != digest {
                return Err(ImageError::Changed(path.to_owned()));
            }
            let (limits, free) = self.limits()?;
            let read = AtomicU64::new(0);
            let (result, _) = pipe::run(input, Algorithm::Sha256, self.limits.bytes, &read, |plain| {
                let mut on_read = || progress.bytes(read.load(Ordering::Relaxed), Some(total.len()));
                let ticking = Ticking { inner: plain, on_read: &mut on_read };
                layer::from_tar(ticking, file, Flavour::Rootfs, limits, digest.uuid())
            });
            result.map(drop).map_err(|e| self.layer_error(&what, free, e))
        })
    }
}

/// A reader that tells of each read.
struct Ticking<'a, R> {
    inner: R,
    on_read: &'a mut dyn FnMut(),
}

impl<R: Read> Read for Ticking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.on_read)();
        self.inner.read(buffer)
    }
}
