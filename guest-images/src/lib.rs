//! What a guest is made of: container images as read-only disk images, the initramfs, the guest kernel.
//!
//! - [`Store`]: images in, [`PreparedImage`] out; converted layers are cached and shared
//! - [`ImageRef`], [`oci`]: how images are named and what they look like as files
//! - [`layer`]: one layer (tar stream or directory) to one EROFS image; [`tree`] and [`erofs`] are its two halves
//! - [`PreparedImage::find`]: what a guest is spared to look up
//! - [`digest`], [`pipe`]: verification and decompression on the way
//! - [`initramfs`], [`INIT`], [`kernel`]: what boots before the image is seen
//!
//! - [`PreparedImage::unpack`]: an image as a directory, for the container runtimes that the benchmark compares with
//!
//! Nothing here needs root or mounts anything, and no microVM needs an image unpacked: its names only ever meet a tree in
//! memory. `unpack` writes such a tree into a new directory, in which it meets nothing but itself.

#![forbid(unsafe_code)]

pub mod digest;
pub mod erofs;
mod error;
mod found;
pub mod initramfs;
pub mod kernel;
pub mod layer;
pub mod oci;
pub mod pipe;
pub mod store;
pub mod tree;
mod unpack;

pub use digest::Digest;
pub use error::ImageError;
pub use layer::Limits;
pub use oci::config::ProcessDefaults;
pub use oci::reference::ImageRef;
pub use store::{
    CONTAINERS, Contents, Draft, DraftLayer, ImageDetails, ImageInfo, Keeper, KeptBlob, KeptLayers, Layer, LayerKey,
    LayersInUse, Original, Place, PreparedImage, Progress, SNAPSHOTS, Said, Step, Store, disk_bytes_below,
};

/// The guest's first process, a static executable, built from `guest-images/init` by this crate's build script.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

#[cfg(test)]
mod tests {
    #[test]
    fn init_is_a_static_executable() {
        // ELF, 64 bit, little-endian; type EXEC; machine x86-64; no program header of type INTERP.
        let init = super::INIT;
        assert_eq!(&init[..6], b"\x7fELF\x02\x01");
        assert_eq!(&init[16..20], [2, 0, 62, 0]);
        let count = usize::from(u16::from_le_bytes([init[56], init[57]]));
        let headers = init[64..].chunks(56).take(count);
        assert!(headers.into_iter().all(|header| header[0] != 3), "no dynamic linker");
    }
}
