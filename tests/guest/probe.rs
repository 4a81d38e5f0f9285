//! A static program for guests that have nothing else: asked, it tells about the machine.
//!
//! `probe avx PROCESSES SECONDS`   vector registers under preemption: `bad=N rounds=N switches=N`
//! `probe cpus TURNS`              a thread on each CPU, which take turns: `cpus=N turned=N`
//! `probe memory`                  MemTotal in MiB
//! `probe say NUMBER`              `out NUMBER`, the host's name and a random number; `err NUMBER` on stderr; ends with that code
//! `probe hog`                     uses memory until there is none
//! `probe disk [MIB]`              as PID 1: uses /dev/vda as `tests/e2e/disk.rs` expects, with a line for each step, and
//!                                 MIB of memory meanwhile, which it gives back when the disk has grown
//! `probe console KIB`             as PID 1: the size of its terminal, and what it becomes: `size ROWS COLUMNS`; a line that is
//!                                 typed: `heard LINE`; then so many KiB of `#`, the line `flooded`, and power-off
//! `probe fetch ADDRESS BYTES`     a pattern from a server and back again: `fetched N, sent N`
//! `probe meet ADDRESS BYTES PORT` the same with a client of its own at PORT, after the line `listening`, when nothing has been sent yet; then as above
//! `probe facts`                   what no two guests may have in common, and the time, each with its name
//! `probe count [ADDRESS]`         counts aloud until SIGTERM, without a pause, then the same but for the boot id, and what became of
//!                                 a connection to ADDRESS that it has had since its start: `peer`, and of a new one: `again`
//!
//! As PID 1 of a guest that has only an initramfs it gives eth0 the address of PROBE_NET and does `fetch` with PROBE_FETCH
//! (both from the kernel's command line), then powers off.
//!
//! Built by `tests/run` with plain rustc, so that it needs no libraries in the image.

use std::arch::asm;
use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut u64) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn sched_setaffinity(thread: c_int, bytes: usize, mask: *const u64) -> c_int;
    fn sched_getcpu() -> c_int;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["avx", processes, seconds] => avx(number(processes), number(seconds)),
        ["avx-worker", seed, seconds] => avx_worker(number(seed), number(seconds)),
        ["cpus", turns] => cpus(number(turns)),
        ["memory"] => memory(),
        ["say", word] => say(word),
        ["hog"] => hog(),
        ["disk"] => disk(0),
        ["disk", mib] => disk(number(mib) as usize),
        ["console", kib] => console(number(kib)),
        ["fetch", address, bytes] => fetch(address, number(bytes)),
        ["facts"] => {
            println!("boot {}", first_line("/proc/sys/kernel/random/boot_id"));
            facts()
        }
        ["count"] => count(None),
        ["count", address] => count(Some(address)),
        ["meet", address, bytes, port] => meet(address, number(bytes), number(port)),
        [] if std::process::id() == 1 => alone(),
        _ => ExitCode::from(2),
    }
}

/// A word to each stream, its host's name and a random number; the word, a number, is its exit code.
fn say(word: &str) -> ExitCode {
    println!("out {word}");
    eprintln!("err {word}");
    for name in ["hostname", "random/uuid"] {
        print!("{}", std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default());
    }
    ExitCode::from(number(word) as u8)
}

/// Uses memory until there is none, and what comes of that.
fn hog() -> ExitCode {
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
    }
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

/// Byte `at` of what a server sends, as in `tests/e2e/net.rs`.
fn pattern(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) as u8
}

fn fetch(address: &str, bytes: u64) -> ExitCode {
    exchange(std::net::TcpStream::connect(address).expect("a connection"), bytes)
}

fn meet(address: &str, bytes: u64, port: u64) -> ExitCode {
    let listener = std::net::TcpListener::bind(("0.0.0.0", port as u16)).expect("a port");
    println!("listening");
    let mut caller = listener.accept().expect("a client").0;
    // It speaks first, as servers of mail and of some databases do.
    caller.write_all(b"hello\n").expect("room");
    exchange(caller, bytes);
    fetch(address, bytes)
}

/// Reads `bytes` from the other end, all of which must be right, and sends it the same.
fn exchange(mut server: std::net::TcpStream, bytes: u64) -> ExitCode {
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    while at < bytes {
        let count = server.read(&mut buffer).expect("data");
        assert!(count > 0, "the end after {at} bytes");
        let wrong = buffer[..count].iter().zip(at..).find(|(byte, at)| **byte != pattern(*at));
        assert!(wrong.is_none(), "byte {}", wrong.unwrap().1);
        at += count as u64;
    }
    let mut sent = 0;
    while sent < bytes {
        let count = (bytes - sent).min(buffer.len() as u64);
        buffer.iter_mut().zip(sent..).for_each(|(byte, at)| *byte = pattern(at));
        server.write_all(&buffer[..count as usize]).expect("room");
        sent += count;
    }
    server.shutdown(std::net::Shutdown::Write).expect("an end");
    // Nothing more comes, and the server has all.
    assert_eq!(server.read(&mut buffer).expect("the end"), 0);
    println!("fetched {at}, sent {sent}");
    ExitCode::SUCCESS
}

/// Rows and columns of the terminal on stdin.
fn terminal_size() -> [u16; 2] {
    const TIOCGWINSZ: c_ulong = 0x5413;
    let mut size = 0;
    // SAFETY: it writes a struct winsize, of eight bytes.
    assert_eq!(unsafe { ioctl(0, TIOCGWINSZ, &mut size) }, 0, "{}", std::io::Error::last_os_error());
    [size as u16, (size >> 16) as u16]
}

fn console(kib: u64) -> ! {
    let tell = |[rows, columns]: [u16; 2]| println!("size {rows} {columns}");
    let first = terminal_size();
    tell(first);
    // The first process is told of no change: no terminal is its own.
    while terminal_size() == first {
        std::thread::sleep(Duration::from_millis(20));
    }
    tell(terminal_size());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    println!("heard {}", line.trim());
    let mut output = std::io::stdout().lock();
    for _ in 0..kib {
        output.write_all(&[b'#'; 1024]).expect("a console");
    }
    writeln!(output, "\nflooded").expect("a console");
    output.flush().expect("a console");
    // SAFETY: RB_POWER_OFF.
    unsafe { reboot(0x4321_fedc) };
    unreachable!("it is off")
}

/// Everything there is in a machine without a root file system.
fn alone() -> ! {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name}"));
    give_address("eth0", variable("PROBE_NET").parse().expect("an address"));
    let words = variable("PROBE_FETCH");
    let (address, bytes) = words.split_once(',').expect("an address and a number");
    fetch(address, number(bytes));
    // SAFETY: RB_POWER_OFF.
    unsafe { reboot(0x4321_fedc) };
    unreachable!("it is off")
}

/// Gives an interface an address in a network of 24 bits, and brings it up.
fn give_address(name: &str, address: std::net::Ipv4Addr) {
    const SIOCSIFFLAGS: u64 = 0x8914;
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    let inet = |[a, b, c, d]: [u8; 4]| [2, 0, 0, 0, a, b, c, d];
    let values = [(SIOCSIFADDR, inet(address.octets())), (SIOCSIFNETMASK, inet([255, 255, 255, 0]))];
    // SAFETY: AF_INET, SOCK_DGRAM.
    let fd = unsafe { socket(2, 2, 0) };
    for (request, value) in values.into_iter().chain([(SIOCSIFFLAGS, [1, 0, 0, 0, 0, 0, 0, 0])]) {
        // Struct ifreq: 16 bytes of name, and 24 of which the calls here use 8.
        let mut bytes = [0u8; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let [first, second] = [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes")));
        let mut ifreq = [first, second, u64::from_ne_bytes(value), 0, 0];
        // SAFETY: it reads a struct ifreq.
        let result = unsafe { ioctl(fd, request, ifreq.as_mut_ptr()) };
        assert_eq!(result, 0, "{name}: {request:#x}: {}", std::io::Error::last_os_error());
    }
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().next().unwrap_or_default().to_owned()
}

/// Who this guest is.
fn facts() -> ExitCode {
    println!("host {}", first_line("/proc/sys/kernel/hostname"));
    println!("file {}", first_line("/etc/hostname"));
    println!("machine {}", first_line("/etc/machine-id"));
    println!("uuid {}", first_line("/proc/sys/kernel/random/uuid"));
    let mut random = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).expect("random numbers");
    println!("random {:032x}", u128::from_be_bytes(random));
    let mac = "/sys/class/net/eth0/address";
    if std::path::Path::new(mac).exists() {
        println!("mac {}", first_line(mac));
        // Where it would send from: nothing is sent.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect("203.0.113.1:9").expect("a route");
        println!("ip {}", socket.local_addr().expect("an address").ip());
    }
    println!("clock {}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs());
    ExitCode::SUCCESS
}

static TOLD: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

extern "C" fn told(_: c_int) {
    TOLD.store(true, std::sync::atomic::Ordering::Relaxed);
}

fn count(address: Option<&str>) -> ExitCode {
    const SIGTERM: c_int = 15;
    // SAFETY: the handler only stores a flag.
    unsafe { signal(SIGTERM, told) };
    let mut stream = address.map(|address| std::net::TcpStream::connect(address).expect("a connection"));
    for number in 1u64.. {
        println!("{number}");
        if TOLD.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
    }
    let said = |stream: &mut std::net::TcpStream| {
        let mut text = [0; 64];
        match stream.read(&mut text) {
            Ok(count) => String::from_utf8_lossy(&text[..count]).into_owned(),
            Err(error) => format!("{:?}", error.kind()),
        }
    };
    if let (Some(stream), Some(address)) = (&mut stream, address) {
        println!("peer {}", said(stream));
        println!("again {}", said(&mut std::net::TcpStream::connect(address).expect("a new connection")));
    }
    facts()
}

/// One thread for each CPU, which it does not leave. They count together, each when it is its turn, and wait for it without a call
/// of the kernel: it takes all the CPUs to get anywhere.
fn cpus(turns: u64) -> ExitCode {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    let cpus = std::thread::available_parallelism().expect("CPUs").get() as u64;
    let count = AtomicU64::new(0);
    let turn = |cpu: u64| {
        // SAFETY: it reads a mask of 64 CPUs; 0 is this thread.
        assert_eq!(unsafe { sched_setaffinity(0, 8, &(1 << cpu)) }, 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
        // SAFETY: it takes nothing.
        assert_eq!(unsafe { sched_getcpu() } as u64, cpu);
        while let now = count.load(SeqCst)
            && now < turns
        {
            if now % cpus == cpu {
                count.store(now + 1, SeqCst);
            }
            std::hint::spin_loop();
        }
    };
    let turn = &turn;
    std::thread::scope(|scope| (0..cpus).for_each(|cpu| drop(scope.spawn(move || turn(cpu)))));
    println!("cpus={cpus} turned={}", count.into_inner());
    ExitCode::SUCCESS
}

fn memory() -> ExitCode {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("MemTotal");
    println!("{}", number(kib.trim().trim_end_matches(" kB")) >> 10);
    ExitCode::SUCCESS
}

/// Starts the workers, which fight for the CPUs, and adds up what they saw.
fn avx(processes: u64, seconds: u64) -> ExitCode {
    if !std::is_x86_feature_detected!("avx") {
        println!("no avx");
        return ExitCode::SUCCESS;
    }
    let start = |seed: u64| {
        let mut worker = Command::new("/proc/self/exe");
        worker.args(["avx-worker", &seed.to_string(), &seconds.to_string()]).stdout(Stdio::piped());
        worker.spawn().expect("worker")
    };
    let workers: Vec<_> = (1..=processes).map(start).collect();
    let mut sums = [0u64; 3];
    for worker in workers {
        let output = worker.wait_with_output().expect("worker");
        assert!(output.status.success(), "worker: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("text");
        text.split_whitespace().zip(&mut sums).for_each(|(word, sum)| *sum += number(word));
    }
    let [bad, rounds, switches] = sums;
    println!("bad={bad} rounds={rounds} switches={switches}");
    ExitCode::from(u8::from(bad != 0))
}

/// Fills all sixteen YMM registers with a pattern of its own, computes for about a millisecond, and looks at them again.
fn avx_worker(seed: u64, seconds: u64) -> ExitCode {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (mut bad, mut rounds) = (0u64, 0u64);
    while Instant::now() < deadline {
        let pattern: [u64; 64] = std::array::from_fn(|i| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rounds << 32) ^ i as u64);
        let mut after = [0u64; 64];
        // SAFETY: AVX is there (the parent looked); the blocks read and write 512 bytes of these two arrays, and every
        // register they change is named.
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
                "vzeroupper",
                p = in(reg) pattern.as_ptr(), a = in(reg) after.as_mut_ptr(), n = inout(reg) 2_000_000u64 => _,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack),
            );
        }
        bad += u64::from(pattern != after);
        rounds += 1;
    }
    println!("{bad} {rounds} {}", switches());
    ExitCode::SUCCESS
}

/// How often the kernel took the CPU away from this process.
fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.map_or(0, |n| number(n.trim()))
}

const O_DIRECT: c_int = 0x4000;
const DISCARD: c_ulong = 0x1277;
const ZERO_OUT: c_ulong = 0x127f;
const SIZE: c_ulong = 0x8008_1272;

#[repr(align(4096))]
#[derive(Clone, PartialEq)]
struct Block([u8; 4096]);

/// The block at `offset`, past the page cache.
fn block(file: &File, offset: u64) -> std::io::Result<Block> {
    let mut block = Block([0; 4096]);
    file.read_exact_at(&mut block.0, offset).map(|()| block)
}

fn write(file: &File, offset: u64, version: u64) {
    let mut block = Block([0; 4096]);
    block.0.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&version.to_le_bytes()));
    file.write_all_at(&block.0, offset).expect("write");
}

fn control(file: &File, request: c_ulong, range: [u64; 2]) -> u64 {
    let mut range = range;
    // SAFETY: these take one or two numbers, or give one.
    let done = unsafe { ioctl(file.as_raw_fd(), request, range.as_mut_ptr()) };
    assert!(done == 0, "{request:#x}: {}", std::io::Error::last_os_error());
    range[0]
}

fn disk(mib: usize) -> ExitCode {
    let memory = vec![1u8; mib << 20];
    // SAFETY: C strings; without it, opening the disk says what is missing.
    unsafe { mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null()) };
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open("/dev/vda").expect("/dev/vda");
    let size = control(&file, SIZE, [0; 2]);
    // The host has filled all of it with something else.
    (0..8).for_each(|n| write(&file, n << 12, n + 1));
    control(&file, DISCARD, [16 << 10, size / 2]);
    control(&file, ZERO_OUT, [size - (64 << 10), 64 << 10]);
    file.sync_all().expect("fsync");
    let zeros = [16 << 10, size / 2, size - 4096].map(|at| block(&file, at).expect("read") == Block([0; 4096]));
    println!("first {} zeros {zeros:?}", block(&file, 12 << 10).expect("read").0[0]);
    let mut now = size;
    while now == size {
        std::thread::sleep(Duration::from_millis(20));
        now = control(&file, SIZE, [0; 2]);
    }
    drop(std::hint::black_box(memory));
    write(&file, now - 4096, 9);
    file.sync_all().expect("fsync");
    println!("size {now}");
    // The host cuts the file off, and tells nobody.
    while block(&file, now - 4096).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("then {} {:?}", block(&file, 0).expect("read").0[0], block(&file, now - 4096).map(|_| ()));
    for version in 1.. {
        write(&file, (version % 16) << 12, version);
        file.sync_all().expect("fsync");
        println!("durable {version}");
    }
    ExitCode::SUCCESS
}
