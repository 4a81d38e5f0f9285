//! A static program for guests that have nothing else: asked, it tells about the machine.
//!
//! `probe avx PROCESSES SECONDS`   vector registers under preemption: `bad=N rounds=N switches=N`
//! `probe memory`                  MemTotal in MiB
//!
//! Built by `tests/run` with plain rustc, so that it needs no libraries in the image.

use std::arch::asm;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["avx", processes, seconds] => avx(number(processes), number(seconds)),
        ["avx-worker", seed, seconds] => avx_worker(number(seed), number(seconds)),
        ["memory"] => memory(),
        _ => ExitCode::from(2),
    }
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
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
