//! What the tests share: a writer of (hostile) tar files, a reader of EROFS images that shares no code with the writer,
//! and a maker of OCI layouts and docker archives.

pub mod erofs;
pub mod oci;
pub mod tar;

use guest_images::layer::{Flavour, LayerError, Limits, from_tar};
use std::io::Cursor;

/// Converts a tar file in memory.
pub fn convert(tar: &[u8]) -> Result<Vec<u8>, LayerError> {
    convert_with(tar, Flavour::Layer, Limits::default())
}

pub fn convert_with(tar: &[u8], flavour: Flavour, limits: Limits) -> Result<Vec<u8>, LayerError> {
    let mut image = Cursor::new(Vec::new());
    let bytes = from_tar(tar, &mut image, flavour, limits, [7; 16])?;
    assert_eq!(bytes, image.get_ref().len() as u64, "the length told is the file's");
    Ok(image.into_inner())
}
