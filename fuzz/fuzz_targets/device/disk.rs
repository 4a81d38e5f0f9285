//! Requests to disks, whatever is behind them.

use devices::virtio::limit::{Limits, RateLimiter, Scope, TokenBucket};
use devices::virtio::testing::{Driver, NEEDS_RESET, Part, RUNNING};

use super::{Input, recovers};

/// Requests of any kind, as chains of any shape: each is answered, or the device asks for a reset.
pub fn requests(driver: &mut Driver, mut input: Input) {
    driver.bring_up(input.u64());
    let running = driver.status() == RUNNING;
    // Of half of the inputs, some requests wait for a limit.
    let size = u64::from(input.byte() & 1) * 4;
    let ops = Some(TokenBucket { size, one_time_burst: None, refill_time: 1 });
    let limits = Limits::default().with(Scope::All, RateLimiter { bandwidth: None, ops });
    driver.lock().set_limits(&limits).expect("a timer");
    let mut offered = 0;
    while !input.is_empty() && running {
        let mut header = [0; 16];
        header[0] = input.byte() % 16;
        header[8..].copy_from_slice(&(input.u64() >> (input.byte() & 63)).to_le_bytes());
        let shape = input.byte();
        let (head, tail) = header.split_at(usize::from(shape & 15) + 1);
        let data = input.bytes(usize::from(shape) * 8);
        let room = u32::from(input.u16());
        let parts = [Part::Read(head), Part::Read(tail), Part::Read(data), Part::Write(room), Part::Write(1)];
        let skip = usize::from(shape >> 6 == 3);
        offered += usize::from(driver.add(0, &parts[..parts.len() - skip]).is_some());
        if shape & 16 != 0 {
            driver.kick(0);
            assert!(driver.settle());
        }
    }
    driver.kick(0);
    let mut answered = 0;
    // What goes to the file is answered when it is done. One that is not, or twice, ends in a panic here.
    driver.wait(|driver| {
        answered += std::iter::from_fn(|| driver.used(0)).count();
        !running || answered == offered || driver.status() & NEEDS_RESET != 0
    });
    recovers(driver);
}
