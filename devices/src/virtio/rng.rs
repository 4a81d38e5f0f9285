//! The entropy device (virtio 1.3, 5.4): fills the driver's buffers from the host's generator.
//!
//! A request gets [`MOST`] bytes at most, straight into guest memory. Configured by `"entropy": {}`.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::Buffers;
use super::limit::{Direction, RateLimiter, Scope};
use super::table::{DeviceError, DeviceKind, check_state_version};
use super::{DeviceFault, DeviceInfo, Io, StateError, VirtioDevice};

/// Most bytes a request gets; the driver asks again for more.
pub const MOST: usize = 64 << 10;

const STATE_VERSION: u32 = 1;

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "rng",
    config_key: "entropy",
    flag: "entropy",
    flag_syntax: "",
    help: "an entropy source for the guest",
    parse_flag: |_, section| {
        *section = serde_json::json!({});
        Ok(())
    },
    id_key: None,
    swappable: &[],
    adjustable: &[],
    limiters: &[("rate_limiter", Scope::All)],
    told: None,
    writable_files: |_| Vec::new(),
    reaches: |_| Vec::new(),
    check,
    build: |section| {
        check(section)?;
        Ok(vec![Box::new(Rng)])
    },
    given: None,
    kernel_args: |_| None,
    syscalls: &[libc::SYS_getrandom],
    prompt_syscalls: &[],
    ioctls: &[],
    workers: &[],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample: |_| serde_json::json!({}),
};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Config {
    rate_limiter: Option<RateLimiter>,
}

fn check(section: &Value) -> Result<(), DeviceError> {
    let _: Config = serde_json::from_value(section.clone()).map_err(DeviceError::section("entropy"))?;
    Ok(())
}

/// The device. It has no state.
struct Rng;

/// Fills `buffers`; returns the bytes filled.
fn fill(buffers: Buffers) -> io::Result<u32> {
    let mut total = 0;
    for slice in buffers.slices() {
        let guard = slice.ptr_guard_mut();
        let mut done = 0;
        while done < guard.len() {
            // SAFETY: `done` is below the slice's length, and the kernel writes the rest of the slice at most; the slice
            // is guest RAM that `buffers` borrows.
            let got = unsafe { libc::getrandom(guard.as_ptr().add(done).cast(), guard.len() - done, 0) };
            match usize::try_from(got) {
                Ok(got) => done += got,
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
        total += done as u32;
    }
    Ok(total)
}

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "rng", id: 4, features: 0, queue_sizes: &[256], prompt: false }
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            if !io.admits(index, Direction::ToGuest) {
                io.queues[index].undo_pop(chain.head());
                break;
            }
            let (buffers, _) = chain.writable().split_at(MOST);
            let filled = fill(buffers).map_err(|source| DeviceFault::Host { what: "getrandom", source })?;
            io.spend(Direction::ToGuest, filled.into());
            io.queues[index].push(io.mem, chain.head(), filled)?;
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(serde_json::json!({ "version": STATE_VERSION }))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("rng", state, STATE_VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, Part};
    use super::*;

    #[test]
    fn requests_are_filled_up_to_the_bound() {
        let mut driver = Driver::start(Box::new(Rng));
        let big = 2 * MOST as u32;
        for (asked, given) in [(0, 0), (1, 1), (4096, 4096), (big, MOST as u32)] {
            let done = driver.request(0, &[Part::Write(asked)]);
            assert_eq!(done.written, given);
            if given > 64 {
                assert!(done.data[..given as usize].iter().any(|byte| *byte != 0));
                assert!(done.data[given as usize..].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn a_request_with_nothing_to_fill_is_given_back() {
        let mut driver = Driver::start(Box::new(Rng));
        assert_eq!(driver.request(0, &[Part::Read(b"what?")]).written, 0);
    }

    #[test]
    fn unknown_options_are_refused() {
        assert!((KIND.build)(&serde_json::json!({ "rate_limiter": { "bps": 1 } })).is_err());
        assert_eq!((KIND.build)(&serde_json::json!({})).unwrap().len(), 1);
    }
}
