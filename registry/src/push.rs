//! From the store to a registry.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use futures_util::stream;
use guest_images::{Digest, ImageError, KeptBlob, Original, Progress, Store};
use oci_client::RegistryOperation;
use oci_client::errors::OciDistributionError;

use crate::{Registry, RegistryError};

/// How much of a blob is read at a time.
const CHUNK: usize = 1 << 20;

impl Registry {
    /// Gives an image of the store to the registry, as it came: the blobs that the registry does not have, then the manifest. Returns
    /// what it was.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn push(&self, store: &Store, progress: &mut dyn Progress) -> Result<Original, RegistryError> {
        let local = self.name.local()?;
        let original = store.original_of(&local)?;
        let missing = || ImageError::NoOriginal(local.clone());
        let opened = original.blobs.iter().map(|digest| store.blob(digest)?.ok_or_else(missing));
        let blobs = opened.collect::<Result<Vec<KeptBlob>, ImageError>>()?;
        self.authenticate(RegistryOperation::Push)?;
        let (manifest, others) = blobs.split_last().ok_or_else(missing)?;
        for (index, blob) in others.iter().enumerate() {
            let there = self.has(&blob.digest)?;
            progress.layer(index, others.len(), there);
            if !there {
                self.upload(blob)?;
            }
            progress.bytes(blob.bytes, Some(blob.bytes));
        }
        self.upload_manifest(manifest, &original.media_type)?;
        Ok(original)
    }

    fn has(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let text = digest.to_string();
        let asked = self.client.blob_exists(&self.name.reference, &text);
        self.runtime.block_on(asked).map_err(|source| RegistryError::of(&self.name, source))
    }

    fn upload(&self, blob: &KeptBlob) -> Result<(), RegistryError> {
        let text = blob.digest.to_string();
        let read = |source| ImageError::Io { action: "read", path: format!("blob {text}").into(), source };
        let file = blob.file.try_clone().map_err(read)?;
        let chunks = stream::unfold((file, 0), |(file, at)| async move {
            match chunk(&file, at) {
                Ok(bytes) if bytes.is_empty() => None,
                Ok(bytes) => {
                    let next = at + bytes.len() as u64;
                    Some((Ok(bytes), (file, next)))
                }
                Err(error) => Some((Err(OciDistributionError::IoError(error)), (file, u64::MAX))),
            }
        });
        let sent = self.client.push_blob_stream(&self.name.reference, chunks, &text, Some(blob.bytes));
        self.runtime.block_on(sent).map(drop).map_err(|source| RegistryError::of(&self.name, source))
    }

    fn upload_manifest(&self, manifest: &KeptBlob, media_type: &str) -> Result<(), RegistryError> {
        let mut bytes = vec![0; usize::try_from(manifest.bytes).unwrap_or(usize::MAX)];
        let read = |source| ImageError::Io { action: "read", path: format!("blob {}", manifest.digest).into(), source };
        manifest.file.read_exact_at(&mut bytes, 0).map_err(read)?;
        let kind = media_type.parse().map_err(|_| RegistryError::content(&self.name, "its media type is none"))?;
        let sent = self.client.push_manifest_raw(&self.name.reference, bytes, kind);
        self.runtime.block_on(sent).map(drop).map_err(|source| RegistryError::of(&self.name, source))
    }
}

/// What a file has there; nothing at its end.
fn chunk(file: &File, at: u64) -> std::io::Result<Bytes> {
    let mut buffer = vec![0; CHUNK];
    let got = file.read_at(&mut buffer, at)?;
    buffer.truncate(got);
    Ok(buffer.into())
}
