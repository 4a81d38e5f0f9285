//! PID 1 of a guest under load: all that a snapshot could disturb, checked all the time (`tests/e2e/load.rs` is the host's side).
//!
//! - two processes write blocks with a pattern of their own to the disk, past the page cache, and read back what they wrote last;
//! - two wait for times, which must not come early, on a clock that must not go back;
//! - two hold patterns in all vector registers;
//! - this one has a stream to the host, of numbered frames that are verified at both ends. A frame to the host has what the others
//!   have done, and whether anything was ever wrong. When the connection is gone, the guest makes another one, says how far it
//!   is, and goes on where both agree to be.
//!
//! Built by `tests/run` with plain rustc.

use std::arch::asm;
use std::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

unsafe extern "C" {
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn fork() -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Address, len: u32) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
    fn clock_settime(clock: c_int, time: *const [c_long; 2]) -> c_int;
    fn clock_nanosleep(clock: c_int, flags: c_int, time: *const [c_long; 2], left: *mut [c_long; 2]) -> c_int;
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int;
    fn timerfd_settime(fd: c_int, flags: c_int, new: *const [c_long; 4], old: *mut [c_long; 4]) -> c_int;
    fn mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: c_long) -> *mut c_void;
}

/// Struct sockaddr_vm.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: u32,
}

const AF_VSOCK: c_int = 40;
const STREAM: c_int = 1;
const HOST: u32 = 2;
const PORT: u32 = 1024;
const REALTIME: c_int = 0;
const MONOTONIC: c_int = 1;
const ABSOLUTE: c_int = 1;
const O_DIRECT: c_int = 0x4000;
const NANOS: u64 = 1_000_000_000;
/// Words of a frame.
const FRAME: usize = 128;
/// Words of a frame to the host that are no pattern.
const FACTS: usize = 8;

/// What all processes share.
#[repr(C)]
struct Shared {
    blocks: AtomicU64,
    times: AtomicU64,
    rounds: AtomicU64,
    /// What was wrong first: 1 disk, 2 time, 3 registers, 4 stream.
    wrong: AtomicU64,
    /// The latest time that any process has seen.
    latest: AtomicU64,
}

impl Shared {
    fn check(&self, fine: bool, what: u64, words: impl FnOnce() -> String) {
        if !fine {
            let _ = self.wrong.compare_exchange(0, what, SeqCst, SeqCst);
            eprintln!("WRONG: {}", words());
        }
    }

    /// The time since boot, which must not be earlier than it has been for anybody.
    fn now(&self) -> u64 {
        let before = self.latest.load(SeqCst);
        let now = clock(MONOTONIC);
        self.check(now >= before, 2, || format!("the clock went back from {before} to {now}"));
        self.latest.fetch_max(now, SeqCst);
        now
    }
}

fn clock(which: c_int) -> u64 {
    let mut time = [0; 2];
    // SAFETY: it writes two numbers.
    unsafe { clock_gettime(which, &mut time) };
    time[0] as u64 * NANOS + time[1] as u64
}

fn split(ns: u64) -> [c_long; 2] {
    [(ns / NANOS) as c_long, (ns % NANOS) as c_long]
}

/// Something that nothing else is by accident.
fn mix(seed: u64, index: u64) -> u64 {
    (seed ^ index.rotate_left(40)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29)
}

fn main() {
    // SAFETY: C strings; without it, opening the disk says what is missing.
    unsafe { mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null()) };
    // SAFETY: a new mapping (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS) of zeros, which are a `Shared`; it is never unmapped.
    let shared: &'static Shared = unsafe { &*mmap(std::ptr::null_mut(), 4096, 3, 0x21, -1, 0).cast() };
    let workers: [fn(&'static Shared); 6] =
        [|s| disk(s, 0), |s| disk(s, 1), timer, sleeper, |s| vectors(s, 1), |s| vectors(s, 2)];
    for work in workers {
        // SAFETY: this process has one thread.
        if unsafe { fork() } == 0 {
            return work(shared);
        }
    }
    stream(shared)
}

/// Leaves the processor to others. Where kernel mode is emulated, those that use it all the time leave none.
fn pause(ms: u64) {
    // SAFETY: a time, and nothing to be told of what is left.
    unsafe { clock_nanosleep(MONOTONIC, 0, &split(ms * 1_000_000), std::ptr::null_mut()) };
}

/// Part of the disk that one process has.
const BLOCKS: u64 = 128;
const BLOCK: usize = 8192;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn of(place: u64, version: u64) -> Self {
        let mut block = Block([0; BLOCK]);
        // The disk begins with zeros.
        if version > 0 {
            for (index, word) in (0..).zip(block.0.chunks_exact_mut(8)) {
                word.copy_from_slice(&mix(place << 32 | version, index).to_le_bytes());
            }
        }
        block
    }
}

fn disk(shared: &Shared, part: u64) {
    let disk = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open("/dev/vdb").expect("/dev/vdb");
    let mut versions = vec![0u64; BLOCKS as usize];
    let mut found = Box::new(Block([0; BLOCK]));
    for turn in 0.. {
        let place = mix(turn, part) % BLOCKS;
        let version = &mut versions[place as usize];
        let at = (part * BLOCKS + place) * BLOCK as u64;
        let read = disk.read_exact_at(&mut found.0, at);
        let fine = read.is_ok() && found.0 == Block::of(at, *version).0;
        shared.check(fine, 1, || format!("block {place} of part {part} is not version {version} ({read:?})"));
        *version += 1;
        let written = disk.write_all_at(&Block::of(at, *version).0, at);
        shared.check(written.is_ok(), 1, || format!("block {place} of part {part}: {written:?}"));
        shared.blocks.fetch_add(1, SeqCst);
        pause(20);
    }
}

fn timer(shared: &'static Shared) {
    // SAFETY: plain numbers.
    let fd = unsafe { timerfd_create(MONOTONIC, 0) };
    assert!(fd >= 0, "timerfd: {}", Error::last_os_error());
    // SAFETY: the descriptor is new.
    let mut file = unsafe { File::from_raw_fd(fd) };
    loop {
        let due = shared.now() + 100_000_000;
        let [seconds, nanos] = split(due);
        // SAFETY: interval and first expiry, no old value.
        unsafe { timerfd_settime(fd, ABSOLUTE, &[0, 0, seconds, nanos], std::ptr::null_mut()) };
        let mut count = [0; 8];
        let read = file.read_exact(&mut count);
        let now = shared.now();
        let fine = read.is_ok() && u64::from_le_bytes(count) == 1 && now >= due;
        shared.check(fine, 2, || format!("a timer for {due} came at {now}: {count:?} {read:?}"));
        shared.times.fetch_add(1, SeqCst);
    }
}

fn sleeper(shared: &'static Shared) {
    loop {
        let due = shared.now() + 70_000_000;
        pause(70);
        let now = shared.now();
        shared.check(now >= due, 2, || format!("a sleep to {due} was over at {now}"));
        shared.times.fetch_add(1, SeqCst);
    }
}

fn vectors(shared: &Shared, seed: u64) {
    let wide = std::is_x86_feature_detected!("avx");
    for round in 0u64.. {
        let pattern: [u64; 64] = std::array::from_fn(|index| mix(seed << 32 | round, index as u64));
        let mut after = [0; 64];
        if wide {
            hold_avx(&pattern, &mut after);
        } else {
            hold_sse(&pattern, &mut after);
        }
        let held = if wide { 64 } else { 32 };
        shared.check(pattern[..held] == after[..held], 3, || format!("registers of process {seed} in round {round}"));
        shared.rounds.fetch_add(1, SeqCst);
    }
}

/// How often a loop of a cycle is gone through while the registers hold the pattern: half a millisecond.
const HOLD: u64 = 1_000_000;

/// Loads sixteen registers of 32 bytes, computes, and stores them.
fn hold_avx(pattern: &[u64; 64], after: &mut [u64; 64]) {
    // SAFETY: AVX is there; the blocks read and write 512 bytes of these two arrays, and every register they change is named.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{p}]", "vmovdqu ymm1, [{p} + 32]", "vmovdqu ymm2, [{p} + 64]", "vmovdqu ymm3, [{p} + 96]",
            "vmovdqu ymm4, [{p} + 128]", "vmovdqu ymm5, [{p} + 160]", "vmovdqu ymm6, [{p} + 192]", "vmovdqu ymm7, [{p} + 224]",
            "vmovdqu ymm8, [{p} + 256]", "vmovdqu ymm9, [{p} + 288]", "vmovdqu ymm10, [{p} + 320]", "vmovdqu ymm11, [{p} + 352]",
            "vmovdqu ymm12, [{p} + 384]", "vmovdqu ymm13, [{p} + 416]", "vmovdqu ymm14, [{p} + 448]", "vmovdqu ymm15, [{p} + 480]",
            "2: dec {n}", "jnz 2b",
            "vmovdqu [{a}], ymm0", "vmovdqu [{a} + 32], ymm1", "vmovdqu [{a} + 64], ymm2", "vmovdqu [{a} + 96], ymm3",
            "vmovdqu [{a} + 128], ymm4", "vmovdqu [{a} + 160], ymm5", "vmovdqu [{a} + 192], ymm6", "vmovdqu [{a} + 224], ymm7",
            "vmovdqu [{a} + 256], ymm8", "vmovdqu [{a} + 288], ymm9", "vmovdqu [{a} + 320], ymm10", "vmovdqu [{a} + 352], ymm11",
            "vmovdqu [{a} + 384], ymm12", "vmovdqu [{a} + 416], ymm13", "vmovdqu [{a} + 448], ymm14", "vmovdqu [{a} + 480], ymm15",
            p = in(reg) pattern.as_ptr(), a = in(reg) after.as_mut_ptr(), n = inout(reg) HOLD => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

/// The same with sixteen registers of 16 bytes.
fn hold_sse(pattern: &[u64; 64], after: &mut [u64; 64]) {
    // SAFETY: x86-64 has SSE2; as above, with 256 bytes.
    unsafe {
        asm!(
            "movdqu xmm0, [{p}]", "movdqu xmm1, [{p} + 16]", "movdqu xmm2, [{p} + 32]", "movdqu xmm3, [{p} + 48]",
            "movdqu xmm4, [{p} + 64]", "movdqu xmm5, [{p} + 80]", "movdqu xmm6, [{p} + 96]", "movdqu xmm7, [{p} + 112]",
            "movdqu xmm8, [{p} + 128]", "movdqu xmm9, [{p} + 144]", "movdqu xmm10, [{p} + 160]", "movdqu xmm11, [{p} + 176]",
            "movdqu xmm12, [{p} + 192]", "movdqu xmm13, [{p} + 208]", "movdqu xmm14, [{p} + 224]", "movdqu xmm15, [{p} + 240]",
            "2: dec {n}", "jnz 2b",
            "movdqu [{a}], xmm0", "movdqu [{a} + 16], xmm1", "movdqu [{a} + 32], xmm2", "movdqu [{a} + 48], xmm3",
            "movdqu [{a} + 64], xmm4", "movdqu [{a} + 80], xmm5", "movdqu [{a} + 96], xmm6", "movdqu [{a} + 112], xmm7",
            "movdqu [{a} + 128], xmm8", "movdqu [{a} + 144], xmm9", "movdqu [{a} + 160], xmm10", "movdqu [{a} + 176], xmm11",
            "movdqu [{a} + 192], xmm12", "movdqu [{a} + 208], xmm13", "movdqu [{a} + 224], xmm14", "movdqu [{a} + 240], xmm15",
            p = in(reg) pattern.as_ptr(), a = in(reg) after.as_mut_ptr(), n = inout(reg) HOLD => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack),
        );
    }
}

/// How far the stream is: frames sent and received.
#[derive(Default)]
struct Place {
    sent: u64,
    received: u64,
}

fn stream(shared: &Shared) -> ! {
    let mut place = Place::default();
    loop {
        // The error is that the connection is gone, or that there was none: the next one is to be made.
        let Err(_) = talk(shared, &mut place);
        pause(5);
    }
}

fn talk(shared: &Shared, place: &mut Place) -> Result<std::convert::Infallible> {
    let mut host = dial()?;
    write(&mut host, &[place.received, place.sent])?;
    let [agreed, wall] = read(&mut host)?;
    shared.check(agreed <= place.sent, 4, || format!("the host has {agreed} frames of {}", place.sent));
    place.sent = agreed;
    // SAFETY: a time.
    let set = unsafe { clock_settime(REALTIME, &split(wall)) };
    shared.check(set == 0, 2, || format!("the clock cannot be set: {}", Error::last_os_error()));
    loop {
        let mut frame: [u64; FRAME] = std::array::from_fn(|index| mix(place.sent, index as u64));
        let count = |counter: &AtomicU64| counter.load(SeqCst);
        frame[..FACTS].copy_from_slice(&[
            place.sent,
            shared.now(),
            clock(REALTIME),
            place.received,
            count(&shared.blocks),
            count(&shared.times),
            count(&shared.rounds),
            count(&shared.wrong),
        ]);
        write(&mut host, &frame)?;
        place.sent += 1;
        let frame: [u64; FRAME] = read(&mut host)?;
        let fine = (0..).zip(frame).all(|(index, word)| word == mix(!place.received, index));
        shared.check(fine, 4, || format!("frame {} from the host begins with {:x?}", place.received, &frame[..2]));
        place.received += 1;
    }
}

fn dial() -> Result<File> {
    // SAFETY: plain numbers.
    let fd = unsafe { socket(AF_VSOCK, STREAM, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new.
    let file = unsafe { File::from_raw_fd(fd) };
    let address = Address { family: AF_VSOCK as u16, reserved: 0, port: PORT, cid: HOST, rest: 0 };
    // SAFETY: an address of this length.
    let done = unsafe { connect(file.as_raw_fd(), &address, size_of::<Address>() as u32) };
    if done == 0 { Ok(file) } else { Err(Error::last_os_error()) }
}

fn write<const N: usize>(to: &mut File, words: &[u64; N]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    to.write_all(&bytes)
}

fn read<const N: usize>(from: &mut File) -> Result<[u64; N]> {
    let mut bytes = vec![0; N * 8];
    from.read_exact(&mut bytes)?;
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    Ok(std::array::from_fn(|_| words.next().unwrap_or(0)))
}
