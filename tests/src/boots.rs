//! Boots of this host's guest kernel, counted: whoever boots it opens its file.
//!
//! Each is told as a line `BOOT <how many by now>` on stderr, where the test harness does not hide it; `tests/run` counts those, and
//! docs/test-hosts.md has a reason for each. Boots of other programs of the host with the same kernel are counted with them.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::{Errno, Result};

/// Room for some events of a file.
const ROOM: usize = 1024;

/// Counts from now on, as long as the process lives.
///
/// # Errors
/// The kernel's file cannot be watched.
pub fn count(kernel: &Path) -> std::io::Result<()> {
    let events = init(CreateFlags::CLOEXEC)?;
    add_watch(&events, kernel, WatchFlags::OPEN)?;
    let tell = move || -> Result<()> {
        let mut room = [MaybeUninit::uninit(); ROOM];
        let mut reader = Reader::new(events, &mut room);
        let mut booted = 0u64;
        loop {
            match reader.next() {
                Ok(_) => booted += 1,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            // In one piece, as other threads say something, too.
            let _ = std::io::stderr().write_all(format!("BOOT {booted}\n").as_bytes());
        }
    };
    std::thread::Builder::new().name("boots".into()).spawn(tell).map(drop)
}
