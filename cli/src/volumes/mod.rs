//! `-v`: directories and files of this host in a container, and volumes that the store has under a name ([`named`]), with docker's
//! syntax.
//!
//! All of a container's are entries of one virtio-fs device, by number; the guest is told where each goes.

pub mod named;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use guest_images::PreparedImage;
use guest_protocol::Volume;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::paths;
use named::{Locked, NamedVolumes, VolumesError};

/// One `-v`, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFlag {
    source: PathBuf,
    target: String,
    read_only: bool,
}

impl FromStr for VolumeFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.splitn(3, ':');
        let (Some(source), Some(target)) = (words.next(), words.next()) else {
            return Err("it is SRC:DST or SRC:DST:ro".into());
        };
        let read_only = match words.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("'{other}' is not a volume option; there are ro and rw")),
        };
        if source.is_empty() {
            return Err("the path on this host, or the name of a volume, is missing".into());
        }
        let flag = VolumeFlag { source: source.into(), target: clean(target)?, read_only };
        if let Some(name) = flag.name() {
            named::check_name(name).map_err(|error| format!("{error}; for the directory, write ./{name}"))?;
        }
        Ok(flag)
    }
}

impl VolumeFlag {
    /// Has it mean the same wherever this program is started next.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        if self.name().is_none() {
            self.source = std::path::absolute(&self.source)?;
        }
        Ok(())
    }

    /// The volume that it names, if it is no path: without a slash, and not `.` or `..`.
    pub fn name(&self) -> Option<&str> {
        self.source.to_str().filter(|text| !text.contains('/') && !matches!(*text, "." | ".."))
    }

    /// Where it goes in the container.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Nothing is written to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Where it is on this host.
    ///
    /// # Errors
    /// There is no volume of its name.
    pub fn place(&self) -> anyhow::Result<PathBuf> {
        let Some(name) = self.name() else { return Ok(self.source.clone()) };
        let volumes = NamedVolumes::existing(&paths::store()).ok_or_else(|| VolumesError::NotFound(name.into()));
        Ok(volumes?.data(name)?)
    }

    /// As docker shows it: `SRC:DST[:ro]`.
    pub fn shown(&self) -> String {
        format!("{}:{}{}", self.source.display(), self.target, if self.read_only { ":ro" } else { "" })
    }
}

/// A path in the container without `.`, `..` and double slashes.
fn clean(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("'{path}': not an absolute path in the container"));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err("'/' is the container's own root; choose a directory in it".into());
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The volumes of a container: found on this host, in the order in which they are to be mounted.
#[derive(Debug, Default)]
pub struct Volumes(Vec<(PathBuf, Volume)>);

impl Volumes {
    /// Looks at what the flags name, before any of it is used. Volumes that are not there yet will be.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn check(flags: &[VolumeFlag]) -> anyhow::Result<()> {
        let mut targets = HashSet::new();
        for flag in flags {
            if !targets.insert(&flag.target) {
                return Err(twice(&flag.target));
            }
            if flag.name().is_none() {
                look(&flag.source)?;
            }
        }
        Ok(())
    }

    /// Finds what the flags name.
    ///
    /// # Errors
    /// Something is not there, or is neither a directory nor a regular file; two have the same target.
    pub fn find(flags: &[VolumeFlag]) -> anyhow::Result<Self> {
        let mut flags: Vec<&VolumeFlag> = flags.iter().collect();
        // What lies in another one is mounted after it.
        flags.sort_by_key(|flag| flag.target.matches('/').count());
        let mut targets = HashSet::new();
        let mut find = |(index, flag): (usize, &&VolumeFlag)| {
            if !targets.insert(flag.target.clone()) {
                return Err(twice(&flag.target));
            }
            let (path, directory) = look(&flag.place()?)?;
            let (target, read_only) = (flag.target.clone(), flag.read_only);
            Ok((path, Volume { name: index.to_string(), target, directory, read_only }))
        };
        flags.iter().enumerate().map(&mut find).collect::<Result<_, _>>().map(Volumes)
    }

    /// The device's section, if one is needed.
    pub fn section(&self) -> anyhow::Result<Option<Value>> {
        let entry = |(path, volume): &(PathBuf, Volume)| {
            let text = path.to_str().ok_or_else(|| anyhow!("-v '{}': the path is not UTF-8", path.display()))?;
            Ok(json!({ "name": volume.name, "path_on_host": text, "is_read_only": volume.read_only }))
        };
        let entries = self.0.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((!entries.is_empty()).then(|| json!({ "volumes": entries })))
    }

    /// What the guest is told.
    pub fn for_guest(&self) -> Vec<Volume> {
        self.0.iter().map(|(_, volume)| volume.clone()).collect()
    }
}

/// Sees to the named volumes of a container that is made from an image. None of them goes while the result lives, which is to be until
/// the container has its record.
///
/// # Errors
/// One cannot be made, or filled with what the image has there.
pub fn prepare(flags: &[VolumeFlag], image: &PreparedImage) -> anyhow::Result<Option<Locked>> {
    if flags.iter().all(|flag| flag.name().is_none()) {
        return Ok(None);
    }
    let locked = NamedVolumes::of(&paths::store())?.lock()?;
    locked.prepare(flags, image)?;
    Ok(Some(locked))
}

fn twice(target: &str) -> anyhow::Error {
    anyhow!("-v: two volumes for '{target}'")
}

/// Where a path really leads, and whether to a directory.
fn look(path: &Path) -> anyhow::Result<(PathBuf, bool)> {
    let real = fs::canonicalize(path).with_context(|| format!("-v '{}'", path.display()))?;
    let kind = fs::metadata(&real).with_context(|| format!("-v '{}'", path.display()))?.file_type();
    if kind.is_dir() || kind.is_file() {
        Ok((real, kind.is_dir()))
    } else {
        Err(anyhow!("-v '{}': neither a directory nor a regular file; a guest cannot share it", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_dockers() {
        let flag = |text: &str| text.parse::<VolumeFlag>();
        let got = flag("/a/b:/c/./d//../e/:ro").unwrap();
        assert_eq!((got.source.as_path(), got.target.as_str(), got.read_only), (Path::new("/a/b"), "/c/e", true));
        for (text, name) in [("db:/c", Some("db")), ("./db:/c", None), ("..:/c", None), ("/db:/c", None)] {
            let mut got = flag(text).unwrap();
            assert_eq!(got.name(), name, "{text}");
            got.make_absolute().unwrap();
            assert_eq!(got.name(), name, "{text}");
        }
        assert!(!flag(".:/c").unwrap().read_only && !flag("./x:/c:rw").unwrap().read_only);
        for (text, word) in [
            ("/a", "SRC:DST"),
            (":/a", "missing"),
            ("na me:/a", "./na me"),
            ("/a:b", "absolute"),
            ("/a:/..", "root"),
            ("/a:/b:z", "'z'"),
            ("/a:/b:ro,z", "ro,z"),
            ("", "SRC:DST"),
        ] {
            assert!(flag(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn what_is_there_is_found_outer_ones_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let find = |list: &[String]| {
            let flags: Vec<VolumeFlag> = list.iter().map(|text| text.parse().unwrap()).collect();
            Volumes::find(&flags)
        };
        let found = find(&[format!("{}:/a/b:ro", path("link")), format!("{}:/a", path("."))]).unwrap();
        let guest = found.for_guest();
        assert_eq!(
            guest.iter().map(|v| (v.target.as_str(), v.directory)).collect::<Vec<_>>(),
            [("/a", true), ("/a/b", false)]
        );
        let section = found.section().unwrap().unwrap();
        let real = fs::canonicalize(path("file")).unwrap();
        assert_eq!(section["volumes"][1]["path_on_host"].as_str(), real.to_str());
        assert_eq!(section["volumes"][1]["name"].as_str(), Some(guest[1].name.as_str()));
        assert!(Volumes::default().section().unwrap().is_none());
        for (list, word) in [
            (vec![format!("{}:/a", path("none"))], "none"),
            (vec![format!("{}:/a", path(".")), format!("{}:/a/", path("file"))], "two volumes"),
            (vec!["/dev/null:/a".into()], "neither"),
        ] {
            let error = format!("{:#}", find(&list).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
