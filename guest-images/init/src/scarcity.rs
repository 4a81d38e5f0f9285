//! Whether the kernel has killed a process because there was no memory left: its log says so, and nothing else does on every
//! kernel that guests have.

use alloc::format;
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

/// The last process that was killed in the cgroup `group`, a child of the root, by the same words: the kernel says in the line before whose
/// it was.
#[must_use]
pub fn killed_in(log: &[u8], group: &str) -> Option<String> {
    let log = String::from_utf8_lossy(log);
    let whose = format!("task_memcg=/{group},");
    let pairs = log.lines().zip(log.lines().skip(1)).filter(|(before, _)| before.contains(&whose));
    let (_, line) = pairs.filter_map(|(_, line)| line.split_once(KILLED)).last()?;
    Some(line.chars().filter(|c| !c.is_control()).take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_containers_each_is_told_of_its_own() {
        let log = b"<6>[1] oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/member-1,task_memcg=/member-1,task=a,pid=41,uid=0\n\
            <3>[1] Memory cgroup out of memory: Killed process 41 (a) total-vm:1kB\n\
            <6>[2] oom-kill:constraint=CONSTRAINT_NONE,global_oom,task_memcg=/member-2,task=b,pid=42,uid=0\n\
            <3>[2] Out of memory: Killed process 42 (b) total-vm:2kB\n";
        assert_eq!(killed_in(log, "member-1").as_deref(), Some("41 (a) total-vm:1kB"));
        assert_eq!(killed_in(log, "member-2").as_deref(), Some("42 (b) total-vm:2kB"));
        assert_eq!(killed_in(log, "member-3"), None);
    }

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
