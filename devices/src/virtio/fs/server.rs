//! FUSE and the file system that it serves: the library's, with each volume as an entry of the root, behind its guard.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::server::Server as Fuse;
use fuse_backend_rs::api::{Vfs, VfsOptions};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use library_memory::ByteValued;

use super::config::{Shared, SharedVolume};
use super::guard::Guard;
use super::memory::{Mailbox, Spans};
use crate::virtio::chain::Chain;

/// For how long the guest believes what it knows of names and attributes: others may change files on the host.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One driver's life: what it knows by number and has open.
pub struct Server {
    shared: Arc<Shared>,
    /// Made by the first request, on a thread whose umask it may change.
    fuse: OnceLock<io::Result<Mounted>>,
}

/// The library's part.
struct Mounted {
    fuse: Fuse<Arc<Vfs>>,
    vfs: Arc<Vfs>,
}

impl Server {
    /// One of which nothing is known.
    pub fn new(shared: Arc<Shared>) -> Self {
        Server { shared, fuse: OnceLock::new() }
    }

    /// Whether the driver has begun and not ended.
    pub fn in_use(&self) -> bool {
        matches!(self.fuse.get(), Some(Ok(mounted)) if mounted.vfs.initialized())
    }

    /// Carries a request out, on a thread of the pool. Returns the bytes of the answer: none to what cannot be answered.
    pub fn answer(&self, mailbox: &mut Mailbox, spans: &Spans) -> u32 {
        let answered = match self.fuse.get_or_init(|| make(&self.shared)) {
            Err(e) => Err(e.to_string()),
            Ok(Mounted { fuse, .. }) => mailbox.open(spans).map_err(|e| e.to_string()).and_then(|(reader, writer)| {
                fuse.handle_message(reader, writer, None, None).map_err(|e| e.to_string())
            }),
        };
        match answered {
            Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
            Err(e) => {
                tracing::debug!("fs: a request that is none: {e}");
                refuse(mailbox, spans).unwrap_or(0)
            }
        }
    }
}

/// The answer to what the library has none for, if there is room for one.
fn refuse(mailbox: &mut Mailbox, spans: &Spans) -> io::Result<u32> {
    let (mut reader, mut writer) = mailbox.open(spans)?;
    let header: InHeader = reader.read_obj()?;
    let len = size_of::<OutHeader>() as u32;
    writer.write_all(OutHeader { len, error: -libc::EINVAL, unique: header.unique }.as_slice())?;
    Ok(len)
}

/// The answer to a request where nothing is shared, with a system call's error for who mounts that. Returns its bytes: none to what is no
/// request, or has no room for one.
pub fn nothing_here(chain: &Chain) -> u32 {
    let mut header = InHeader::default();
    let len = size_of::<OutHeader>() as u32;
    let answered = chain.readable().read(header.as_mut_slice()) == size_of::<InHeader>() && chain.writable_len() >= len;
    if !answered {
        return 0;
    }
    let answer = OutHeader { len, error: -libc::ENODEV, unique: header.unique };
    chain.writable().write(answer.as_slice()) as u32
}

fn make(shared: &Shared) -> io::Result<Mounted> {
    let vfs = Vfs::new(VfsOptions { no_open: false, no_opendir: false, no_writeback: true, ..VfsOptions::default() });
    for volume in &shared.volumes {
        let guard = Guard::new(passthrough(volume)?, volume, shared.budget.clone());
        vfs.mount(Box::new(guard), &format!("/{}", volume.name)).map_err(io::Error::other)?;
    }
    let vfs = Arc::new(vfs);
    Ok(Mounted { fuse: Fuse::new(vfs.clone()), vfs })
}

pub(super) fn passthrough(volume: &SharedVolume) -> io::Result<PassthroughFs> {
    let config = Config {
        root_dir: volume.path(),
        entry_timeout: TIMEOUT,
        attr_timeout: TIMEOUT,
        cache_policy: CachePolicy::Auto,
        // The other layer does it.
        do_import: false,
        // Without it, a number is kept for every file that there ever was.
        use_host_ino: true,
        // Requests are not aligned as that needs.
        allow_direct_io: false,
        ..Config::default()
    };
    let file_system = PassthroughFs::new(config)?;
    file_system.import()?;
    Ok(file_system)
}
