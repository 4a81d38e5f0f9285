//! The processes that an instance consists of, what memory they have, and what files take.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process and all that descend from it, itself first.
pub(super) fn descendants(of: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(parent) = parent(pid)
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![of];
    let mut at = 0;
    while at < all.len() {
        // Ids may be given anew while this is read: nobody counts twice.
        let more: Vec<u32> = children.remove(&all[at]).unwrap_or_default();
        all.extend(more);
        at += 1;
    }
    all
}

/// The parent of a process; none if it is gone.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may have some in it (proc(5)): then the state, then the parent.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The memory of a process, KiB: each page by how many share it. None if it is gone, or another's.
pub(super) fn pss_kib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// What the files below a directory take on disk, KiB; a file of several names once, holes nothing.
pub(super) fn disk_kib(dir: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    let mut bytes = 0;
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if seen.insert((meta.dev(), meta.ino())) {
            bytes += meta.blocks() * 512;
        }
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes >> 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_has_its_children_and_memory() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let me = std::process::id();
        let all = descendants(me);
        assert!(all[0] == me && all.contains(&child.id()), "{all:?}");
        assert_eq!((parent(child.id()), parent(u32::MAX)), (Some(me), None));
        assert!(pss_kib(me).is_some_and(|kib| kib > 100) && pss_kib(u32::MAX).is_none());
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn files_count_once_and_holes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let empty = disk_kib(dir.path());
        fs::write(&file, vec![1; 64 << 10]).unwrap();
        fs::hard_link(&file, dir.path().join("b")).unwrap();
        fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
        let kib = disk_kib(dir.path()) - empty;
        assert!((64..=128).contains(&kib), "{kib}");
        assert_eq!(disk_kib(Path::new("/nonexistent")), 0);
    }
}
