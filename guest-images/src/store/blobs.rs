//! The blobs of loaded images, byte for byte as they came: manifests, configurations, packed layers. A microVM needs none of
//! them; `save` and `push` give them on, so that an image has the same digests everywhere.
//!
//! `blobs/ALGORITHM/HEX`, as in an OCI layout: the store's directory can be read as one. Like a layer, a blob is written aside
//! under a lock of its own, and whoever uses it holds a shared flock on it.

use super::lock::{WorkLock, lock, open_held};
use super::{Store, records::Original};
use crate::digest::{Digest, HashingReader};
use crate::error::ImageError;
use crate::oci::layout::blob_path;
use crate::oci::source::{Blob, Source, SourceError};
use crate::oci::{LayerBlob, MAX_JSON, Manifest, OciError, Resolved};
use crate::pipe::Compression;
use oci_spec::OciSpecError;
use oci_spec::image::{Descriptor, DescriptorBuilder, ImageManifestBuilder, MediaType};
use rustix::fs::FlockOperation;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;

/// Where they are.
pub(super) const BLOBS: &str = "blobs";

/// A blob that is in the store, and stays while this lives.
#[derive(Debug)]
pub struct KeptBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// Open for reading, with a shared lock.
    pub file: File,
}

/// The blobs of an image, kept while this lives.
#[derive(Debug)]
pub(super) struct KeptImage {
    pub original: Original,
    /// The configuration, the layers, the manifest.
    pub blobs: Vec<KeptBlob>,
}

impl Store {
    /// Where the blob of a digest is, or would be.
    pub(super) fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(blob_path(digest))
    }

    /// Opens a blob and locks it against removal. `None`: it is not there.
    ///
    /// # Errors
    /// The host refuses.
    pub fn blob(&self, digest: &Digest) -> Result<Option<KeptBlob>, ImageError> {
        let path = self.blob_file(digest);
        let Some(file) = open_held(&path)? else { return Ok(None) };
        let bytes = file.metadata().map_err(ImageError::io("read", &path))?.len();
        Ok(Some(KeptBlob { digest: digest.clone(), bytes, file }))
    }

    /// The blob of a loaded image.
    pub(super) fn blob_of(&self, image: &str, digest: &Digest) -> Result<KeptBlob, ImageError> {
        self.blob(digest)?.ok_or_else(|| ImageError::NoOriginal(image.to_owned()))
    }

    /// The bytes of a manifest or configuration.
    pub(super) fn read_document(&self, blob: &KeptBlob) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let read = FromStart { file: &blob.file, at: 0 }.take(MAX_JSON).read_to_end(&mut bytes);
        read.map_err(ImageError::io("read", self.blob_file(&blob.digest)))?;
        Ok(bytes)
    }

    /// Keeps a blob, which `write` writes into an empty file if it is not there yet. What it wrote is checked here. Of several that
    /// want the same blob one writes, and the others wait.
    ///
    /// # Errors
    /// What `write` says; the bytes are not those of the digest; the store cannot be written.
    pub fn keep_blob(
        &self,
        digest: &Digest,
        write: impl FnOnce(&mut File) -> Result<(), ImageError>,
    ) -> Result<KeptBlob, ImageError> {
        if let Some(blob) = self.blob(digest)? {
            return Ok(blob);
        }
        let work = WorkLock::acquire(&self.temp_dir(), &format!("blob-{}", digest.file_name()))?;
        if let Some(blob) = self.blob(digest)? {
            return Ok(blob);
        }
        let mut file = work.temp_file()?;
        write(&mut file)?;
        self.check_blob(digest, &file)?;
        let path = self.blob_file(digest);
        let dir = path.parent().unwrap_or(&self.dir);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(ImageError::io("create", dir))?;
        // Before it has its name, so that there is no moment in which it could go.
        lock(&file, FlockOperation::LockShared).map_err(ImageError::io("lock", work.temp_path()))?;
        work.publish(&file, &path)?;
        let bytes = file.metadata().map_err(ImageError::io("read", &path))?.len();
        Ok(KeptBlob { digest: digest.clone(), bytes, file })
    }

    fn check_blob(&self, digest: &Digest, file: &File) -> Result<(), ImageError> {
        let mut reader = HashingReader::new(FromStart { file, at: 0 }, digest.algorithm());
        io::copy(&mut reader, &mut io::sink()).map_err(ImageError::io("read", self.blob_file(digest)))?;
        let (found, _) = reader.finish();
        match found == *digest {
            true => Ok(()),
            false => Err(ImageError::LayerDigest { layer: digest.clone(), kind: "blob", found }),
        }
    }

    pub(super) fn keep_bytes(&self, bytes: &[u8]) -> Result<KeptBlob, ImageError> {
        self.keep_document(&Digest::of(bytes), bytes)
    }

    fn keep_document(&self, digest: &Digest, bytes: &[u8]) -> Result<KeptBlob, ImageError> {
        let write = ImageError::io("write", self.blob_file(digest));
        self.keep_blob(digest, |file| io::Write::write_all(file, bytes).map_err(write))
    }

    /// Keeps all blobs of an image from `source`, which may be this very store.
    pub(super) fn keep_image(&self, what: &str, source: &Source, image: &Resolved) -> Result<KeptImage, ImageError> {
        let oci = |source| ImageError::Oci { image: what.to_owned(), source };
        let mut blobs = vec![self.keep_document(&image.id, &image.document)?];
        for layer in &image.layers {
            let open = || source.open(&layer.path).map_err(|e| oci(e.into()));
            blobs.push(self.keep_layer(layer, open, |e| oci(read_error(source, layer, e)))?);
        }
        let manifest = match &image.manifest {
            Some(manifest) => manifest.clone(),
            None => self.manifest_for(&blobs).map_err(oci)?,
        };
        let kept = self.keep_bytes(&manifest.bytes)?;
        let (digest, bytes) = (kept.digest.clone(), kept.bytes);
        blobs.push(kept);
        let all = blobs.iter().map(|blob| blob.digest.clone()).collect();
        let original = Original { manifest: digest, media_type: manifest.media_type, bytes, blobs: all };
        Ok(KeptImage { original, blobs })
    }

    fn keep_layer(
        &self,
        layer: &LayerBlob,
        open: impl Fn() -> Result<Blob, ImageError>,
        read: impl Fn(io::Error) -> ImageError,
    ) -> Result<KeptBlob, ImageError> {
        let digest = match &layer.stored {
            Some((digest, _)) => digest.clone(),
            // A docker archive tells the digest of what is in the blob, and not the blob's own.
            None => {
                let mut reader = HashingReader::new(open()?.reader, layer.diff_id.algorithm());
                io::copy(&mut reader, &mut io::sink()).map_err(&read)?;
                reader.finish().0
            }
        };
        self.keep_blob(&digest, |file| {
            let copied = io::copy(&mut open()?.reader, file);
            copied.map(drop).map_err(|e| match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    ImageError::NoSpace { layer: digest.to_string(), dir: self.dir.clone(), free: 0 }
                }
                _ => read(e),
            })
        })
    }

    /// A manifest for an image that came without one: the same for the same blobs. The configuration is the first.
    pub(super) fn manifest_for(&self, blobs: &[KeptBlob]) -> Result<Manifest, OciError> {
        let spec = |problem| OciError::spec("image manifest", problem);
        let (config, layers) = blobs.split_first().ok_or(OciError::Layers(0))?;
        let config = descriptor(config, MediaType::ImageConfig).map_err(spec)?;
        let layers = layers.iter().map(|blob| descriptor(blob, layer_type(&blob.file)));
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers.collect::<Result<Vec<_>, _>>().map_err(spec)?)
            .build()
            .map_err(spec)?;
        let bytes = manifest.to_string().map_err(spec)?.into_bytes();
        Ok(Manifest { media_type: MediaType::ImageManifest.to_string(), bytes })
    }

    /// The blobs in the store.
    pub(super) fn blob_files(&self) -> Result<Vec<(Digest, PathBuf)>, ImageError> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let dir = self.dir.join(BLOBS).join(algorithm);
            let entries = match fs::read_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(ImageError::io("read", &dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(ImageError::io("read", &dir))?;
                let digest = format!("{algorithm}:{}", entry.file_name().to_string_lossy()).parse();
                found.extend(digest.ok().map(|digest| (digest, entry.path())));
            }
        }
        Ok(found)
    }
}

fn read_error(source: &Source, layer: &LayerBlob, error: io::Error) -> OciError {
    SourceError::Read { path: source.path().join(&layer.path), source: error }.into()
}

impl Original {
    /// What leads to the manifest.
    pub(super) fn descriptor(&self) -> Result<Descriptor, OciSpecError> {
        describe(&self.manifest, self.bytes, MediaType::from(self.media_type.as_str()))
    }
}

fn descriptor(blob: &KeptBlob, media_type: MediaType) -> Result<Descriptor, OciSpecError> {
    describe(&blob.digest, blob.bytes, media_type)
}

fn describe(digest: &Digest, bytes: u64, media_type: MediaType) -> Result<Descriptor, OciSpecError> {
    let digest: oci_spec::image::Digest = digest.to_string().parse()?;
    DescriptorBuilder::default().media_type(media_type).digest(digest).size(bytes).build()
}

fn layer_type(file: &File) -> MediaType {
    let mut start = [0; 6];
    let got = file.read_at(&mut start, 0).unwrap_or(0);
    match Compression::detect(&start[..got]) {
        Compression::None => MediaType::ImageLayer,
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    }
}

/// Reads a file without moving the position of whoever else has it.
pub(super) struct FromStart<'a> {
    pub file: &'a File,
    pub at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
