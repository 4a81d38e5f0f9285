//! What the kernel tells of processes that stand still: printed when a test's patience ends, because it cannot be asked for
//! afterwards.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Most characters of one file that are shown.
const MOST: usize = 2000;

/// The variable that a lab's processes have in common.
const MARK: &str = "BULKHEAD_RUN=";

/// Of `pid` and all that run in the same lab: what their threads wait for, the counts of their eventfds and the indices of
/// their io_urings, and what KVM has counted.
pub fn of(pid: u32) -> String {
    let mut text = String::new();
    let mark = environment(pid).into_iter().find(|entry| entry.starts_with(MARK));
    for other in numbers("/proc") {
        if other == pid || mark.is_some() && environment(other).into_iter().any(|entry| Some(entry) == mark) {
            process(&mut text, other);
        }
    }
    text
}

fn process(text: &mut String, pid: u32) {
    let _ = writeln!(text, "process {pid}: {}", read(format!("/proc/{pid}/cmdline")).replace('\0', " "));
    for task in numbers(&format!("/proc/{pid}/task")) {
        let task = format!("/proc/{pid}/task/{task}");
        let of = |name: &str| read(format!("{task}/{name}"));
        let state = of("stat").rsplit_once(") ").map(|(_, rest)| rest[..1].to_owned()).unwrap_or_default();
        let waits = of("stack").lines().take(8).map(last_word).collect::<Vec<_>>().join(" < ");
        let _ = writeln!(text, "  {} {state} syscall {} stack {waits}", of("comm").trim(), of("syscall").trim());
    }
    for fd in numbers(&format!("/proc/{pid}/fd")) {
        let kind = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        if !["anon_inode:[eventfd]", "anon_inode:[io_uring]", "anon_inode:[timerfd]"]
            .iter()
            .any(|kept| kind == Path::new(kept))
        {
            continue;
        }
        let info = read(format!("/proc/{pid}/fdinfo/{fd}"));
        // What every descriptor has.
        let info = info
            .lines()
            .filter(|line| !["pos:", "flags:", "mnt_id:", "ino:"].iter().any(|kept| line.starts_with(kept)));
        let _ = writeln!(text, "  fd {fd} {}: {}", kind.display(), info.collect::<Vec<_>>().join("; "));
    }
    // By the thread that has made it.
    let threads: Vec<_> = numbers(&format!("/proc/{pid}/task")).into_iter().map(|task| format!("{task}-")).collect();
    for machine in fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten() {
        if threads.iter().any(|thread| machine.file_name().to_string_lossy().starts_with(thread)) {
            counts(text, &machine.path());
        }
    }
}

/// What is not zero.
fn counts(text: &mut String, dir: &Path) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let _ = write!(text, "  {}:", dir.display());
    for path in entries.iter().filter(|path| path.is_file()) {
        let value = read(path);
        if value.trim() != "0" && value.len() < 40 {
            let _ = write!(text, " {}={}", path.file_name().unwrap_or_default().to_string_lossy(), value.trim());
        }
    }
    let _ = writeln!(text);
    entries.iter().filter(|path| path.is_dir()).for_each(|path| counts(text, path));
}

fn environment(pid: u32) -> Vec<String> {
    read_all(format!("/proc/{pid}/environ")).split('\0').map(str::to_owned).collect()
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn read_all(path: impl AsRef<Path>) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    read_all(path).chars().take(MOST).collect()
}

fn last_word(line: &str) -> &str {
    line.rsplit(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_that_waits_is_described() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let text = super::of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(text.contains(&format!("process {}: sleep 1000", child.id())) && text.contains("syscall"), "{text}");
    }
}
