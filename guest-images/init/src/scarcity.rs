//! Whether the kernel has killed a process because there was no memory left: its log says so, and nothing else does on every
//! kernel that guests have.

use alloc::string::String;

/// What the kernel says of it, behind the cause.
const KILLED: &str = "ut of memory: Killed process ";
/// Longest text that is told.
const MOST: usize = 200;

/// The process that was killed for lack of memory, by its number and name and what it had, if the kernel's log says so: the one with
/// the number `main`, if it was, and else the last one. The kernel may kill another before it has the memory of the first.
#[must_use]
pub fn killed(log: &[u8], main: i32) -> Option<String> {
    let log = String::from_utf8_lossy(log);
    let lines = || log.lines().filter_map(|line| line.split_once(KILLED)).map(|(_, line)| line);
    let is_main = |line: &&str| line.split_once(' ').is_some_and(|(number, _)| number.parse() == Ok(main));
    let line = lines().find(is_main).or_else(|| lines().next_back())?;
    Some(line.chars().filter(|c| !c.is_control()).take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_process_is_told_or_the_last_one() {
        let log = b"<6>[    1.0] x\n<3>[   2.5] Out of memory: Killed process 41 (hog) total-vm:1kB\n\
            <3>[   3.5] Memory cgroup out of memory: Killed process 42 (a b) total-vm:900kB, anon-rss:80kB\n<6>[   4.0] y\n";
        assert_eq!(killed(log, 4).as_deref(), Some("42 (a b) total-vm:900kB, anon-rss:80kB"));
        assert_eq!(killed(log, 41).as_deref(), Some("41 (hog) total-vm:1kB"));
        assert_eq!(killed(b"<6>[    1.0] Out of time\n", 1), None);
        assert_eq!(killed(b"", 1), None);
        assert_eq!(
            killed(&[b"out of memory: Killed process ".as_slice(), &[b'9'; 900]].concat(), 9).unwrap().len(),
            MOST
        );
    }
}
