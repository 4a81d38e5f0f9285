//! A user of its own for the process of each microVM that root starts: to the host's kernel it is nobody, and no other microVM's
//! (credentials(7)). Files of root's that it reaches are its own in its root directory, and stay root's on the disk: they are mounted
//! so (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, WaitOptions, geteuid, parent_process_death_signal, set_dumpable_behavior,
    set_parent_process_death_signal, waitpid,
};

use crate::process::{self, Lineage};

/// The first one, behind all that is given to people, services and containers (systemd's "Users, Groups, UIDs and GIDs": from here to
/// 2^31 there is nobody). There are fewer processes than that.
pub const FIRST: u32 = 0x7000_0000;

/// The user, and the group of the same number, that this process is to be: no two that live have the same. None: it is not root's, and
/// can be nobody else.
pub fn own() -> Option<u32> {
    geteuid().is_root().then(|| FIRST + process::id())
}

/// The calling thread is `user` from now on, with those that it starts, and no other. Files that are open stay open; capabilities are
/// gone. By system calls and not by the C library's functions, which would have all threads do the same by signals that the filters of
/// some do not let through.
///
/// # Errors
/// The host does not let it be that user: nothing has changed then, if it is the group that it cannot have.
pub fn become_one(user: u32) -> io::Result<()> {
    let done = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: they take numbers, and no group at all.
    unsafe {
        done(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        done(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        done(libc::syscall(libc::SYS_setresuid, user, user, user))
    }
}

/// The same for the process's first thread, when all that there are besides are that user already: `lineage` tells whether who started the process
/// lives, with whom it ends if it was to.
///
/// # Errors
/// As [`become_one`]; and the parent process is gone.
pub fn become_one_as_process(user: u32, lineage: &Lineage) -> io::Result<()> {
    // They go with the old user.
    let (parent, signal) = (lineage.parent()?, parent_process_death_signal()?);
    become_one(user)?;
    // Or /proc/self would be root's, and with it what a snapshot is made from. There is no other process of this user that could look
    // into it.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    set_parent_process_death_signal(signal)?;
    if signal.is_some() && lineage.parent()? != parent {
        return Err(io::Error::other("the parent process is gone"));
    }
    Ok(())
}

/// A user namespace in which what is root's is that user's, and what is another's is that other's.
///
/// A namespace is had from a process in it, and outlives that in the descriptor. The process shares this one's memory: copying that, and then each page
/// that this one writes to, takes longer than all else here.
///
/// # Errors
/// The host does not let it be made.
pub fn mapping(user: u32) -> io::Result<OwnedFd> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    let ends = [theirs.as_raw_fd(), ours.as_raw_fd()];
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let flags = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd = -1;
    // SAFETY: the stack is its own, aligned, and there until it has ended, as is what it is given; what it does with memory that is
    // this process's as well, `wait_in_namespace` says.
    let child = unsafe {
        let top = stack.as_mut_ptr_range().end;
        libc::clone(wait_in_namespace, top.cast(), flags, (&raw const ends).cast_mut().cast(), &raw mut pidfd)
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: clone(2) has made it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let namespace = number(&pidfd).and_then(|number| {
        let of_child = |what: &str| format!("/proc/{number}/{what}");
        let map = |what: &str| fs::write(of_child(what), format!("0 {user} 1\n1 1 {}\n", user - 1));
        map("uid_map")?;
        map("gid_map")?;
        File::open(of_child("ns/user"))
    });
    drop(ours);
    let ended = retry_on_intr(|| waitpid(Pid::from_raw(child), WaitOptions::empty()));
    if ended.is_err() {
        // It cannot be said to have ended: then its stack stays.
        std::mem::forget(stack);
    }
    ended?;
    Ok(namespace?.into())
}

/// A process's number where /proc has been mounted, which may be another namespace of processes than this one's (proc_pid_fdinfo(5)).
fn number(pidfd: &OwnedFd) -> io::Result<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Bytes of the stack of a process that waits: three calls, and a signal's frame.
const STACK: usize = 16 << 10;

/// Is there until the pipe's other end is closed: by the process that made this one, or by its end. It touches nothing but its own stack and, if a
/// call fails, which these do not, `errno`.
extern "C" fn wait_in_namespace(ends: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `mapping` gives two descriptors, of which this process has copies of its own.
    unsafe {
        let [theirs, ours] = *ends.cast::<[libc::c_int; 2]>();
        libc::close(ours);
        let mut byte = 0u8;
        libc::read(theirs, (&raw mut byte).cast(), 1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    /// In a process of its own: what it becomes, it stays.
    #[test]
    fn group_11_a_process_is_its_own_user() {
        const CHILD: &str = "BULKHEAD_TEST_OWN_USER";
        let Some(user) = own() else {
            return println!("SKIP group_11_a_process_is_its_own_user: only root can be somebody else");
        };
        if std::env::var_os(CHILD).is_none() {
            let test = "sandbox::user::tests::group_11_a_process_is_its_own_user";
            let mut again = Command::new(std::env::current_exe().unwrap());
            let ended = again.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
            assert!(ended.status.success(), "{ended:?}");
            return;
        }
        set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
        let lineage = Lineage::open().unwrap();
        become_one_as_process(user, &lineage).unwrap();
        // Its own: the tests run beside the first thread.
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        let all = [user; 4].map(|id| id.to_string()).join("\t");
        assert_eq!((line("Uid:"), line("Gid:"), line("Groups:")), (all.clone(), all, String::new()));
        assert_eq!(line("CapEff:"), "0000000000000000");
        assert!(File::open("/proc/thread-self/pagemap").is_ok() && File::open("/etc/shadow").is_err());
        assert_eq!(parent_process_death_signal().unwrap(), Some(rustix::process::Signal::KILL));
        assert!(fs::metadata("/proc/thread-self").unwrap().uid() == user && become_one(0).is_err());
    }

    #[test]
    fn a_mapping_is_a_namespace_and_nobody_is_left_in_it() {
        let Some(user) = own() else {
            return println!("SKIP a_mapping_is_a_namespace_and_nobody_is_left_in_it: it takes root");
        };
        let mapping = mapping(user).unwrap();
        let link = |path: &str| fs::read_link(path).unwrap();
        let ours = link("/proc/self/ns/user");
        assert_ne!(link(&format!("/proc/self/fd/{}", mapping.as_fd().as_raw_fd())), ours);
    }
}
