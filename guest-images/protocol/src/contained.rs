//! Where init finds what is a container's, where it is the first process not of a guest but of a container of the host's own kernel
//! (`run --isolation container`): the runtime has made namespaces for it and mounted these.

/// Its first argument then.
pub const ARGUMENT: &str = "--contained";
/// The directory with the host's sockets, as a guest's vsock device has them there: `vsock_PORT`.
pub const SOCKETS: &str = "/sockets";
/// The port by which init gives the host the interface that it has made: one byte, and with it a queue of the tap (SCM_RIGHTS, unix(7)).
pub const LINK_PORT: u32 = 1026;
/// The files of the image.
pub const IMAGE: &str = "/image";
/// Those that are the container's own, if it is to keep them.
pub const FILES: &str = "/files";
/// The host's directories, each by its name ([`crate::VOLUMES`]).
pub const VOLUMES: &str = "/volumes";
/// An empty directory.
pub const SCRATCH: &str = "/scratch";
/// Init itself.
pub const INIT: &str = "/init";
