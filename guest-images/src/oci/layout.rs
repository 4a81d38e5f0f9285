//! OCI image layouts (image-spec: image-layout.md, image-index.md, manifest.md): from index.json to one image for
//! linux/amd64, every blob checked against its descriptor.

use super::source::Source;
use super::{MAX_JSON, Manifest, OciError, Resolved, config, offer, printable};
use crate::digest::{Digest, HashingReader};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use std::io::Read;

/// How deep indexes may be nested, and how many manifests are looked at.
const MAX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 256;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's layer types, with the meaning of OCI's.
pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_LAYERS: [&str; 3] = [
    DOCKER_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// The file that tells a layout.
pub const INDEX: &str = "index.json";

/// Finds the image of `tag` (or the only one) for linux/amd64 in a layout.
///
/// # Errors
/// See [`OciError`]; where there is no fitting image, the error lists what there is.
pub fn resolve(source: &Source, tag: Option<&str>) -> Result<Resolved, OciError> {
    let index = index(source)?;
    let mut found = search(source, &choose(index.manifests(), tag)?)?;
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => Err(OciError::Ambiguous(tags(index.manifests()))),
    }
}

/// All images for linux/amd64 in a layout, each once, with all its names.
///
/// # Errors
/// See [`OciError`]; there must be one.
pub fn resolve_all(source: &Source) -> Result<Vec<Resolved>, OciError> {
    let index = index(source)?;
    search(source, &index.manifests().iter().collect::<Vec<_>>())
}

/// The image whose manifest (or index of manifests) a descriptor names.
///
/// # Errors
/// See [`OciError`].
pub fn resolve_descriptor(source: &Source, descriptor: &Descriptor) -> Result<Resolved, OciError> {
    let mut found = search(source, &[descriptor])?;
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => Err(OciError::Ambiguous(printable(descriptor.digest().as_ref()))),
    }
}

fn index(source: &Source) -> Result<ImageIndex, OciError> {
    parse(&read_json(source, INDEX)?, INDEX)
}

/// What there is for linux/amd64, never nothing.
fn search(source: &Source, descriptors: &[&Descriptor]) -> Result<Vec<Resolved>, OciError> {
    let mut search = Search { source, left: MAX_MANIFESTS, platforms: Vec::new(), found: Vec::new() };
    for descriptor in descriptors {
        search.visit(descriptor, names(descriptor), 0)?;
    }
    let Search { found, platforms, .. } = search;
    let mut images: Vec<Resolved> = Vec::new();
    for mut image in found {
        match images.iter_mut().find(|other| other.id == image.id) {
            Some(other) => other.names.append(&mut image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() { Err(OciError::Platform(offer(platforms))) } else { Ok(images) }
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

/// The names that the index gives a manifest: a full one (as docker and containerd write it), or just a tag.
fn names(descriptor: &Descriptor) -> Vec<String> {
    let full = annotation(descriptor, IMAGE_NAME);
    let name = annotation(descriptor, REF_NAME).filter(|name| name.contains([':', '/']));
    full.or(name).map(str::to_owned).into_iter().collect()
}

fn tags(descriptors: &[Descriptor]) -> String {
    let tag = |d| annotation(d, REF_NAME).or(annotation(d, IMAGE_NAME)).map_or("(untagged)".to_owned(), printable);
    offer(descriptors.iter().map(tag).collect())
}

fn choose<'a>(descriptors: &'a [Descriptor], tag: Option<&str>) -> Result<Vec<&'a Descriptor>, OciError> {
    let Some(tag) = tag else {
        return Ok(descriptors.iter().collect());
    };
    let matches = |name: &str| name == tag || name.rsplit_once(':').is_some_and(|(_, t)| t == tag);
    let fits = |d: &&Descriptor| [REF_NAME, IMAGE_NAME].iter().any(|key| annotation(d, key).is_some_and(matches));
    let chosen: Vec<_> = descriptors.iter().filter(fits).collect();
    if chosen.is_empty() {
        return Err(OciError::NoSuchTag { tag: printable(tag), available: tags(descriptors) });
    }
    Ok(chosen)
}

/// Looks through (nested) indexes for manifests that fit this machine.
struct Search<'a> {
    source: &'a Source,
    left: usize,
    /// What was seen and did not fit.
    platforms: Vec<String>,
    found: Vec<Resolved>,
}

impl Search<'_> {
    fn visit(&mut self, descriptor: &Descriptor, names: Vec<String>, depth: usize) -> Result<(), OciError> {
        self.left = self.left.checked_sub(1).ok_or(OciError::Nesting(MAX_DEPTH))?;
        if depth > MAX_DEPTH {
            return Err(OciError::Nesting(MAX_DEPTH));
        }
        if let Some(platform) = descriptor.platform()
            && (*platform.os() != Os::Linux || *platform.architecture() != Arch::Amd64)
        {
            self.platforms.push(printable(&format!("{}/{}", platform.os(), platform.architecture())));
            return Ok(());
        }
        let what = || format!("manifest {}", printable(descriptor.digest().as_ref()));
        match descriptor.media_type() {
            MediaType::ImageIndex => self.visit_index(descriptor, &names, depth),
            MediaType::Other(t) if t == DOCKER_INDEX => self.visit_index(descriptor, &names, depth),
            MediaType::ImageManifest => self.visit_manifest(descriptor, names),
            MediaType::Other(t) if t == DOCKER_MANIFEST => self.visit_manifest(descriptor, names),
            other => Err(OciError::MediaType { what: what(), media_type: printable(other.as_ref()) }),
        }
    }

    fn visit_index(&mut self, descriptor: &Descriptor, names: &[String], depth: usize) -> Result<(), OciError> {
        let bytes = read_blob(self.source, descriptor, "index")?;
        let index: ImageIndex = parse(&bytes, "image index")?;
        index.manifests().iter().try_for_each(|inner| self.visit(inner, names.to_vec(), depth + 1))
    }

    fn visit_manifest(&mut self, descriptor: &Descriptor, names: Vec<String>) -> Result<(), OciError> {
        let bytes = read_blob(self.source, descriptor, "manifest")?;
        let manifest: ImageManifest = parse(&bytes, "image manifest")?;
        match manifest.config().media_type() {
            MediaType::ImageConfig => {}
            MediaType::Other(t) if t == "application/vnd.docker.container.image.v1+json" => {}
            other => {
                let what = "image configuration".to_owned();
                return Err(OciError::MediaType { what, media_type: printable(other.as_ref()) });
            }
        }
        let config_bytes = read_blob(self.source, manifest.config(), "image configuration")?;
        let blobs = manifest.layers().iter().map(layer).collect::<Result<Vec<_>, _>>()?;
        let id = digest(manifest.config(), "image configuration")?;
        match config::resolved(id, names, config_bytes, blobs) {
            Err(OciError::Platform(platform)) => self.platforms.push(platform),
            other => {
                let media_type = descriptor.media_type().to_string();
                self.found.push(Resolved { manifest: Some(Manifest { media_type, bytes }), ..other? });
            }
        }
        Ok(())
    }
}

/// A layer's file name, digest and size, if its type is one that can be used: not a foreign or an encrypted one.
fn layer(descriptor: &Descriptor) -> Result<(String, Option<(Digest, u64)>), OciError> {
    let supported = match descriptor.media_type() {
        MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => true,
        MediaType::Other(t) => DOCKER_LAYERS.contains(&t.as_str()),
        _ => false,
    };
    let digest = digest(descriptor, "layer")?;
    if !supported {
        let media_type = printable(descriptor.media_type().as_ref());
        return Err(OciError::MediaType { what: format!("layer {digest}"), media_type });
    }
    Ok((blob_path(&digest), Some((digest, descriptor.size()))))
}

fn digest(descriptor: &Descriptor, what: &str) -> Result<Digest, OciError> {
    let text: &str = descriptor.digest().as_ref();
    text.parse().map_err(|source| OciError::BadDigest { what: what.to_owned(), source })
}

/// Where a layout has the blob of a digest.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json { what: what.to_owned(), source })
}

/// Reads a small document that no descriptor vouches for.
pub(super) fn read_json(source: &Source, name: &str) -> Result<Vec<u8>, OciError> {
    let blob = source.open(name)?;
    let too_large = |bytes| OciError::TooLarge { what: name.to_owned(), bytes };
    if blob.bytes > MAX_JSON {
        return Err(too_large(blob.bytes));
    }
    let mut bytes = Vec::new();
    let read = |e| super::source::SourceError::Read { path: source.path().join(name), source: e };
    blob.reader.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_JSON { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a document and checks its size and digest.
fn read_blob(source: &Source, descriptor: &Descriptor, kind: &str) -> Result<Vec<u8>, OciError> {
    let digest = digest(descriptor, kind)?;
    let what = format!("{kind} {digest}");
    if descriptor.size() > MAX_JSON {
        return Err(OciError::TooLarge { what, bytes: descriptor.size() });
    }
    let name = blob_path(&digest);
    let blob = source.open(&name)?;
    if blob.bytes != descriptor.size() {
        return Err(OciError::Size { what, expected: descriptor.size(), found: blob.bytes });
    }
    let mut reader = HashingReader::new(blob.reader.take(MAX_JSON), digest.algorithm());
    let mut bytes = Vec::new();
    let read = |e| super::source::SourceError::Read { path: source.path().join(&name), source: e };
    reader.read_to_end(&mut bytes).map_err(read)?;
    let (found, _) = reader.finish();
    if found == digest { Ok(bytes) } else { Err(OciError::Digest { what, found }) }
}
