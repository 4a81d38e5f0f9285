//! The container's processes, as its /proc tells.

use super::pack::{link, names};
use super::{Broken, Output, broken};
use crate::root::read_file;
use crate::sys::{Clock, clock_ns};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::files::{FileMessage, ProcessInfo};
use rustix::fs::{AtFlags, CWD, major, minor, statat};

/// Milliseconds of the kernel's clock tick for programs (USER_HZ is 100).
const TICK_MS: u64 = 10;
/// Major number of pseudo-terminals.
const PTS: u32 = 136;
/// Longest command that is told.
const COMMAND: usize = 4 << 10;
const PAGE: u64 = 4096;

/// Sends them, in the order of their ids, but for this one.
///
/// # Errors
/// There is no /proc.
pub fn all(output: &mut Output<'_>) -> Result<(), Broken> {
    let own = own();
    let names = names(b"/proc").map_err(broken("/proc"))?;
    let mut pids: Vec<u32> = names
        .iter()
        .filter_map(|name| core::str::from_utf8(name).ok()?.parse().ok())
        .filter(|pid| Some(*pid) != own)
        .collect();
    pids.sort_unstable();
    for process in pids.into_iter().filter_map(describe) {
        output.say(&FileMessage::Process(process))?;
    }
    Ok(())
}

/// What this process is called in /proc, if it is of the PID namespace that this is about.
pub fn own() -> Option<u32> {
    let link = link(b"/proc/self").ok()?;
    core::str::from_utf8(&link.0).ok()?.parse().ok()
}

/// None: it has ended meanwhile.
fn describe(pid: u32) -> Option<ProcessInfo> {
    let directory = format!("/proc/{pid}");
    let uid = statat(CWD, directory.as_str(), AtFlags::empty()).ok()?.st_uid;
    let stat = read_file(&format!("{directory}/stat"), 64 << 10).ok()?;
    let now_ms = clock_ns(Clock::Monotonic) / 1_000_000;
    let mut process = parse(pid, &String::from_utf8_lossy(&stat), now_ms)?;
    process.uid = uid;
    let arguments = read_file(&format!("{directory}/cmdline"), 4 << 20).unwrap_or_default();
    let arguments = arguments.strip_suffix(b"\0").unwrap_or(&arguments);
    if !arguments.is_empty() {
        let shown = arguments.get(..COMMAND).unwrap_or(arguments);
        process.command = String::from_utf8_lossy(shown).replace('\0', " ");
    }
    Some(process)
}

/// What proc_pid_stat(5) says: fields behind the name, which is in parentheses and may have any in it.
fn parse(pid: u32, stat: &str, now_ms: u64) -> Option<ProcessInfo> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse::<i64>().ok();
    let ticks = |number: usize| field(number).and_then(|ticks| u64::try_from(ticks).ok());
    let terminal = u64::try_from(field(7)?).ok()?;
    Some(ProcessInfo {
        pid,
        ppid: u32::try_from(field(4)?).ok()?,
        uid: 0,
        age_ms: now_ms.saturating_sub(ticks(22)?.saturating_mul(TICK_MS)),
        cpu_ms: ticks(14)?.saturating_add(ticks(15)?).saturating_mul(TICK_MS),
        terminal: (major(terminal) == PTS).then(|| minor(terminal)),
        resident: ticks(24)?.saturating_mul(PAGE),
        command: format!("[{name}]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_understood() {
        let line = "42 (a) b (c) S 7 42 42 34818 42 4194304 100 0 0 0 12 30 0 0 20 0 1 0 500 1000000 25 184467";
        let process = parse(42, line, 6_000).unwrap();
        let wanted = ProcessInfo {
            pid: 42,
            ppid: 7,
            uid: 0,
            age_ms: 1_000,
            cpu_ms: 420,
            terminal: Some(2),
            resident: 25 * PAGE,
            command: "[a) b (c]".into(),
        };
        assert_eq!(process, wanted);
        assert_eq!(parse(42, &line.replace("34818", "0"), 6_000).unwrap().terminal, None);
        for broken in ["", "42", "42 (a", "42 (a) S", "42 (a) S x 1 1 1"] {
            assert!(parse(42, broken, 0).is_none(), "{broken}");
        }
        let own = describe(std::process::id()).unwrap();
        assert!(own.resident > 0 && !own.command.starts_with('['), "{own:?}");
    }
}
