//! From a registry into the store.

use std::fs::File;
use std::io::Write;

use futures_util::TryStreamExt as _;
use guest_images::{Digest, ImageError, ImageInfo, KeptBlob, Original, Progress, Store};
use oci_client::RegistryOperation;
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};

use crate::{Registry, RegistryError};

/// Documents larger than this are none of an image.
const MAX_DOCUMENT: u64 = guest_images::oci::MAX_JSON;
/// How deep indexes may be nested.
const MAX_DEPTH: usize = 4;
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// What a pull has brought.
#[derive(Debug)]
pub struct Pulled {
    /// The image in the store.
    pub image: ImageInfo,
    /// Digest of what the name leads to at the registry: an index of images, or a manifest.
    pub digest: Digest,
    /// The image was not in the store under this name before.
    pub new: bool,
}

/// A document of the registry's, its digest checked.
struct Document {
    bytes: Vec<u8>,
    digest: Digest,
    media_type: String,
}

impl Registry {
    /// Brings an image into the store, under its own name. Blobs that are there already are not asked for again, also those of a pull
    /// that was cut short.
    ///
    /// # Errors
    /// See [`RegistryError`]; what has come whole stays for the next pull, until `system prune`.
    pub fn pull(&self, store: &Store, progress: &mut dyn Progress) -> Result<Pulled, RegistryError> {
        let local = self.name.local()?;
        self.authenticate(RegistryOperation::Pull)?;
        let top = self.document(None)?;
        let digest = top.digest.clone();
        let manifest = self.for_this_machine(top)?;
        let parsed: ImageManifest = serde_json::from_slice(&manifest.bytes)
            .map_err(|error| RegistryError::content(&self.name, format!("its manifest: {error}")))?;
        let before = store.image(&local).ok().map(|image| image.id);
        // For their locks: the blobs stay until the image has its name.
        let mut kept = vec![self.blob(store, parsed.config(), Some(MAX_DOCUMENT), &mut ())?];
        let count = parsed.layers().len();
        for (index, layer) in parsed.layers().iter().enumerate() {
            let there = store.blob(&self.digest_of(layer)?)?.is_some();
            progress.layer(index, count, there);
            kept.push(self.blob(store, layer, None, progress)?);
        }
        kept.push(store.keep_blob(&manifest.digest, |file| {
            file.write_all(&manifest.bytes).map_err(|source| ImageError::Io {
                action: "write",
                path: store.dir().to_owned(),
                source,
            })
        })?);
        let original = Original {
            bytes: manifest.bytes.len() as u64,
            media_type: manifest.media_type,
            manifest: manifest.digest,
            blobs: kept.iter().map(|blob| blob.digest.clone()).collect(),
        };
        let image = store.adopt(&local, original, progress)?;
        Ok(Pulled { new: before.as_ref() != Some(&image.id), image, digest })
    }

    /// What the name leads to, or one of the same repository by its digest.
    fn document(&self, digest: Option<&str>) -> Result<Document, RegistryError> {
        let reference = digest.map_or_else(|| self.name.reference.clone(), |digest| self.by_digest(digest));
        let accepted: Vec<&str> = INDEXES.into_iter().chain(MANIFESTS).collect();
        let asked = self.client.pull_manifest_raw(&reference, &self.auth, &accepted);
        let (bytes, said) = self.runtime.block_on(asked).map_err(|source| RegistryError::of(&self.name, source))?;
        let wrong = |problem: String| RegistryError::content(&self.name, problem);
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(wrong(format!("its manifest is {} bytes long, more than the limit of 4 MiB", bytes.len())));
        }
        let digest: Digest = said.parse().map_err(|error| wrong(format!("its manifest: {error}")))?;
        let media_type = media_type(&bytes).map_err(|error| wrong(format!("its manifest: {error}")))?;
        Ok(Document { bytes: bytes.to_vec(), digest, media_type })
    }

    /// Follows indexes to the manifest for this kind of machine.
    fn for_this_machine(&self, mut document: Document) -> Result<Document, RegistryError> {
        for _ in 0..MAX_DEPTH {
            if MANIFESTS.contains(&document.media_type.as_str()) {
                return Ok(document);
            }
            if !INDEXES.contains(&document.media_type.as_str()) {
                let problem = format!("it is no image: '{}'", document.media_type);
                return Err(RegistryError::content(&self.name, problem));
            }
            let index: ImageIndex = serde_json::from_slice(&document.bytes)
                .map_err(|error| RegistryError::content(&self.name, format!("its index: {error}")))?;
            document = self.document(Some(&self.choose(&index)?))?;
        }
        Err(RegistryError::content(&self.name, format!("its indexes are nested more than {MAX_DEPTH} deep")))
    }

    fn choose(&self, index: &ImageIndex) -> Result<String, RegistryError> {
        let platform = |descriptor: &Descriptor| {
            descriptor.platform().as_ref().map(|platform| (platform.os().clone(), platform.architecture().clone()))
        };
        // An entry that names no platform may lead to an index that does.
        let fits = |descriptor: &&Descriptor| {
            platform(descriptor).is_none_or(|(os, machine)| os == Os::Linux && machine == Arch::Amd64)
        };
        match index.manifests().iter().find(fits) {
            Some(descriptor) => Ok(descriptor.digest().to_string()),
            None => {
                let there: Vec<String> = index
                    .manifests()
                    .iter()
                    .filter_map(platform)
                    .filter(|(os, _)| *os != Os::Other("unknown".into()))
                    .map(|(os, machine)| format!("{os}/{machine}"))
                    .collect();
                let problem = format!("there is none for linux/amd64; there is: {}", there.join(", "));
                Err(RegistryError::content(&self.name, problem))
            }
        }
    }

    fn digest_of(&self, descriptor: &Descriptor) -> Result<Digest, RegistryError> {
        let text: &str = descriptor.digest().as_ref();
        text.parse()
            .map_err(|error: guest_images::digest::DigestError| RegistryError::content(&self.name, error.to_string()))
    }

    /// A blob, from the store or else from the registry.
    fn blob(
        &self,
        store: &Store,
        descriptor: &Descriptor,
        limit: Option<u64>,
        progress: &mut dyn Progress,
    ) -> Result<KeptBlob, RegistryError> {
        let digest = self.digest_of(descriptor)?;
        let size = descriptor.size();
        if limit.is_some_and(|limit| size > limit) {
            return Err(RegistryError::content(&self.name, format!("{digest} has {size} bytes, which is too much")));
        }
        // The store has errors of its own alone; what the registry did is told besides.
        let mut failed = None;
        let kept = store.keep_blob(&digest, |file| {
            self.download(&digest, size, file, progress).map_err(|error| {
                let interrupted = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
                failed = Some(error);
                ImageError::Io { action: "fill", path: store.dir().to_owned(), source: interrupted }
            })
        });
        let kept = kept.map_err(|error| failed.take().unwrap_or(RegistryError::Store(error)))?;
        match kept.bytes == size {
            true => Ok(kept),
            false => Err(RegistryError::content(
                &self.name,
                format!("{digest} has {} bytes, not {size} as the manifest says", kept.bytes),
            )),
        }
    }

    fn download(
        &self,
        digest: &Digest,
        size: u64,
        file: &mut File,
        progress: &mut dyn Progress,
    ) -> Result<(), RegistryError> {
        let text = digest.to_string();
        let wrong = |source| RegistryError::of(&self.name, source);
        progress.bytes(0, Some(size));
        self.runtime.block_on(async {
            let blob = self.client.pull_blob_stream(&self.name.reference, text.as_str()).await.map_err(wrong)?;
            let mut stream = blob.stream;
            let mut done = 0;
            while let Some(chunk) = stream.try_next().await.map_err(|error| wrong(error.into()))? {
                done += chunk.len() as u64;
                if done > size {
                    let problem = format!("{digest} has more than the {size} bytes that the manifest says");
                    return Err(RegistryError::content(&self.name, problem));
                }
                file.write_all(&chunk).map_err(|source| ImageError::Io {
                    action: "write",
                    path: format!("blob {digest}").into(),
                    source,
                })?;
                progress.bytes(done, Some(size));
            }
            Ok(())
        })
    }
}

/// What a document says that it is; docker's and OCI's later ones do, an early OCI manifest is known by what is in it.
fn media_type(bytes: &[u8]) -> Result<String, serde_json::Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let kind: Kind = serde_json::from_slice(bytes)?;
    let guess = if kind.manifests.is_some() { INDEXES[0] } else { MANIFESTS[0] };
    Ok(kind.media_type.unwrap_or_else(|| guess.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_say_what_they_are() {
        let kind = |text: &str| media_type(text.as_bytes());
        assert_eq!(kind(r#"{"mediaType": "x/y", "manifests": []}"#).expect("JSON"), "x/y");
        assert_eq!(kind(r#"{"manifests": []}"#).expect("JSON"), INDEXES[0]);
        assert_eq!(kind(r#"{"config": {}}"#).expect("JSON"), MANIFESTS[0]);
        assert!(kind("[").is_err());
    }
}
