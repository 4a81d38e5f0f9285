//! Which user and groups a container's `user` string means, by the image's own /etc/passwd and /etc/group.
//!
//! Pure: takes the files' bytes. Malformed lines are skipped, as they are elsewhere. The first match of a file counts. Here, because
//! either side may have the files at hand: the host often finds them without a guest, where each block read costs.

use crate::process::FailureKind;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Largest user or group id taken; the rest of the range means "none" or "nobody knows" to the kernel.
const MAX_ID: u32 = i32::MAX as u32;
/// Most supplementary groups a process gets; the kernel's own limit (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// Largest /etc/passwd and /etc/group read, in bytes.
pub const MAX_ACCOUNTS: usize = 1 << 20;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first, none twice.
    pub groups: Vec<u32>,
    /// Home directory; `/` if the image knows none.
    pub home: String,
}

/// There is no such user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// [`FailureKind::UnknownUser`] or [`FailureKind::UnknownGroup`].
    pub kind: FailureKind,
    /// Which, and why.
    pub detail: String,
}

/// Resolves `""` (root), `user`, `uid`, `user:group`, `uid:gid`, `uid:group`, `user:gid`, `:group`.
///
/// A number that no line knows is taken as it is; a name must be there. With a group given, the user's other groups do not
/// count.
///
/// # Errors
/// No such name, or a number out of range.
pub fn resolve(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Account, Unknown> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let number = if user.is_empty() { Some(0) } else { id(user.as_bytes()) };
    let entry = accounts(passwd)
        .find(|account| (!user.is_empty() && account.name == user.as_bytes()) || number == Some(account.uid));
    let (uid, mut gid, home) = match (&entry, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, &b"/"[..]),
        (None, None) => {
            let why = if is_number(user) { "is out of range" } else { "is not in the image's /etc/passwd" };
            return Err(Unknown { kind: FailureKind::UnknownUser, detail: format!("user {user:?} {why}") });
        }
    };
    let mut groups = Vec::new();
    if let Some(name) = wanted_group {
        gid = group_id(name, group)?;
        groups.push(gid);
    } else {
        groups.push(gid);
        if let Some(account) = &entry {
            member_of(account.name, group, &mut groups);
        }
    }
    let home = core::str::from_utf8(home).ok().filter(|home| !home.is_empty()).unwrap_or("/");
    Ok(Account { uid, gid, groups, home: String::from(home) })
}

/// The id that a group's name or number means.
fn group_id(wanted: &str, file: &[u8]) -> Result<u32, Unknown> {
    let number = id(wanted.as_bytes());
    let found = groups(file).find(|group| group.name == wanted.as_bytes() || number == Some(group.gid));
    found.map(|group| group.gid).or(number).ok_or_else(|| {
        let why = if is_number(wanted) { "is out of range" } else { "is not in the image's /etc/group" };
        Unknown { kind: FailureKind::UnknownGroup, detail: format!("group {wanted:?} {why}") }
    })
}

/// Adds the groups that list `name` as a member.
fn member_of(name: &[u8], file: &[u8], into: &mut Vec<u32>) {
    for group in groups(file) {
        if into.len() >= MAX_GROUPS {
            return;
        }
        let member = group.members.split(|&byte| byte == b',').any(|member| member == name);
        if member && !into.contains(&group.gid) {
            into.push(group.gid);
        }
    }
}

/// A line of /etc/passwd.
struct UserLine<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of /etc/group.
struct GroupLine<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn accounts(file: &[u8]) -> impl Iterator<Item = UserLine<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        Some(UserLine { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(file: &[u8]) -> impl Iterator<Item = GroupLine<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(GroupLine { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// Lines without surrounding blanks, empty ones and comments.
fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && line.first() != Some(&b'#'))
}

/// A decimal id in range.
fn id(digits: &[u8]) -> Option<u32> {
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = core::str::from_utf8(digits).ok().filter(|_| valid)?.parse().ok()?;
    (number <= MAX_ID).then_some(number)
}

/// Whether this was meant as a number.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# no:x:9:9::/:\n\nbroken\nweb:x:33:44:www:/var/www:/bin/false\n\
        1000:x:7:8::/numeric:\nbad:x:abc:1::/:\nweb:x:99:99::/second:\n";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:web,root\nweb:x:44:web\nlog:x:55:nobody,web\nx:x:y:web\n55:x:56:\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn specs_mean_what_they_say() {
        for (spec, expected) in [
            ("", user(0, 0, &[0, 4], "/root")),
            ("root", user(0, 0, &[0, 4], "/root")),
            ("0", user(0, 0, &[0, 4], "/root")),
            ("web", user(33, 44, &[44, 4, 55], "/var/www")),
            ("33", user(33, 44, &[44, 4, 55], "/var/www")),
            ("web:adm", user(33, 4, &[4], "/var/www")),
            ("33:4", user(33, 4, &[4], "/var/www")),
            ("12:13", user(12, 13, &[13], "/")),
            ("12", user(12, 0, &[0], "/")),
            (":log", user(0, 55, &[55], "/root")),
            ("web:", user(33, 44, &[44, 4, 55], "/var/www")),
            ("1000", user(7, 8, &[8], "/numeric")),
            ("0:55", user(0, 55, &[55], "/root")),
            ("2147483647:2147483647", user(2_147_483_647, 2_147_483_647, &[2_147_483_647], "/")),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP), Ok(expected), "{spec:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for (spec, kind) in [
            ("nobody", FailureKind::UnknownUser),
            ("bad", FailureKind::UnknownUser),
            ("-1", FailureKind::UnknownUser),
            ("2147483648", FailureKind::UnknownUser),
            ("99999999999", FailureKind::UnknownUser),
            ("web:nope", FailureKind::UnknownGroup),
            ("0:4294967295", FailureKind::UnknownGroup),
            ("0:0:0", FailureKind::UnknownGroup),
        ] {
            assert_eq!(resolve(spec, PASSWD, GROUP).map_err(|unknown| unknown.kind), Err(kind), "{spec:?}");
        }
    }

    #[test]
    fn an_image_without_the_files_has_root_and_numbers() {
        assert_eq!(resolve("", b"", b""), Ok(user(0, 0, &[0], "/")));
        assert_eq!(resolve("5:6", b"", b""), Ok(user(5, 6, &[6], "/")));
        assert!(resolve("root", b"", b"").is_err());
    }

    proptest! {
        #[test]
        fn hostile_files_and_specs_are_contained(
            spec in "[a-z0-9:]{0,12}",
            passwd in proptest::collection::vec(any::<u8>(), 0..400),
            group in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            if let Ok(user) = resolve(&spec, &passwd, &group) {
                prop_assert!(user.uid <= MAX_ID && user.gid <= MAX_ID);
                prop_assert_eq!(user.groups.first(), Some(&user.gid));
            }
        }
    }
}
