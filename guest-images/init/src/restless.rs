//! What of the container does not stand still when it should: for a person who wonders why a freeze does not come about.

use alloc::string::String;
use core::ffi::CStr;
use core::fmt::Write as _;
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io;

/// Most threads that are looked at.
const MOST_THREADS: usize = 512;
/// Most that are told of.
const MOST_TOLD: usize = 4;
/// Where a frozen thread waits, with a kernel that knows the names of its functions. The first is part of the second where the
/// compiler sees fit.
const FROZEN: [&[u8]; 2] = [b"do_freezer_trap", b"get_signal"];

/// One line on the container's threads that are not frozen, as far as /proc tells that.
#[must_use]
pub fn tell() -> String {
    let (mut text, mut told, mut left) = (String::with_capacity(256), 0, MOST_THREADS);
    let _ = each(CWD, c"/proc", &mut |processes, process| {
        // Who has ended meanwhile does not move either.
        let Ok(process) = directory(processes, process) else { return };
        let _ = each(&process, c"task", &mut |threads, thread| {
            if left == 0 || told == MOST_TOLD {
                return;
            }
            left -= 1;
            let Ok(thread) = directory(threads, thread) else { return };
            let (mut stat, mut place) = ([0; 128], [0; 64]);
            let (stat, place) = (read(&thread, c"stat", &mut stat), read(&thread, c"wchan", &mut place));
            if let Some(Moving { name, id, state }) = moving(stat, place) {
                let lossy = String::from_utf8_lossy;
                let separator = if told == 0 { "" } else { ", " };
                let _ = write!(text, "{separator}{} ({}) is in state {state}", lossy(name), lossy(id));
                if !place.is_empty() && place != b"0" {
                    let _ = write!(text, " in {}", lossy(place));
                }
                told += 1;
            }
        });
    });
    if told == 0 {
        text.push_str("all its processes seem to wait");
    }
    text
}

/// A thread that is not frozen.
#[derive(Debug, PartialEq, Eq)]
struct Moving<'a> {
    name: &'a [u8],
    id: &'a [u8],
    state: char,
}

/// Judges a thread by its `stat` (proc(5)) and the function that it waits in, `0` if the kernel does not say.
fn moving<'a>(stat: &'a [u8], place: &[u8]) -> Option<Moving<'a>> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let (id, name) = (stat.get(..open)?.trim_ascii_end(), stat.get(open + 1..close)?);
    let state = char::from(*stat.get(close + 2)?);
    let named = !place.is_empty() && place != b"0";
    let moves = match state {
        'Z' | 'X' => false,
        'R' | 'D' => true,
        _ => named && !FROZEN.contains(&place),
    };
    (moves && !(named && FROZEN.contains(&place))).then_some(Moving { name, id, state })
}

/// Calls `with` for each entry of a directory whose name is a number.
fn each<Fd: AsFd>(parent: Fd, name: &CStr, with: &mut dyn FnMut(&OwnedFd, &CStr)) -> io::Result<()> {
    let list = directory(parent, name)?;
    let mut buffer = [const { MaybeUninit::uninit() }; 1024];
    let mut entries = RawDir::new(&list, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name().to_bytes().iter().all(u8::is_ascii_digit) {
            with(&list, entry.file_name());
        }
    }
    Ok(())
}

fn directory<Fd: AsFd>(parent: Fd, name: &CStr) -> io::Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The beginning of a file; nothing if it cannot be read.
fn read<'a>(parent: &OwnedFd, name: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let file = openat(parent, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let count = file.and_then(|file| io::read(file, &mut *buffer)).unwrap_or(0);
    buffer.get(..count).unwrap_or_default().trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_something_else_than_the_freezer_moves() {
        let seen = |stat: &'static str, place: &str| {
            moving(stat.as_bytes(), place.as_bytes()).map(|it| (it.name, it.id, it.state))
        };
        assert_eq!(seen("7 (sh) D 1 7", "request_wait_answer"), Some((&b"sh"[..], &b"7"[..], 'D')));
        assert_eq!(seen("12 (a) b) (c) R 1", "0"), Some((&b"a) b) (c"[..], &b"12"[..], 'R')));
        assert_eq!(seen("7 (sh) S 1", "do_wait"), Some((&b"sh"[..], &b"7"[..], 'S')));
        for (stat, place) in [
            ("7 (sh) S 1", "do_freezer_trap"),
            ("7 (sh) S 1", "get_signal"),
            // Without names there is no telling.
            ("7 (sh) S 1", "0"),
            ("7 (sh) S 1", ""),
            ("7 (sh) Z 1", "0"),
            ("7 (sh)", "0"),
            ("", ""),
        ] {
            assert_eq!(seen(stat, place), None, "{stat} {place}");
        }
    }

    #[test]
    fn this_very_thread_is_told_of_unless_there_are_others() {
        let text = tell();
        assert!(text.contains("is in state") && text.matches("is in state").count() <= MOST_TOLD, "{text}");
    }
}
