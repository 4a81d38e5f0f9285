//! `-v`: directories and files of this host in a container, and volumes that the store has under a name ([`named`]), which may be one
//! that was made up for the container ([`anonymous`]), with docker's syntax; and what becomes of the VOLUME of an image.
//!
//! All of a container's are entries of one virtio-fs device, by number; the guest is told where each goes. But for those that are only
//! a place of the container's own files.

pub mod anonymous;
pub mod named;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use guest_images::PreparedImage;
use guest_protocol::{Volume, VolumeSource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::paths;
use named::{Locked, NamedVolumes, VolumesError};

/// Key of their device's section in a machine's configuration.
pub const SECTION: &str = "fs";
/// Most volumes that an image may want: each is a mount in the guest.
const MOST_OF_IMAGE: usize = 100;

/// What the VOLUME of an image is to a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolume {
    /// A place of the container's own files, which is in no `diff` and no `commit`
    #[default]
    Own,
    /// An anonymous volume
    Anonymous,
    /// A directory as any other
    Ignore,
}

/// What a volume is, beside what was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// As it was written: a path of this host, or a name.
    #[default]
    Given,
    /// Its name is made up when the container is made, and it is the container's alone.
    Anonymous,
    /// Where the container's other files are.
    Own,
}

/// One `-v`, as it was written, or a VOLUME.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFlag {
    source: PathBuf,
    target: String,
    read_only: bool,
    #[serde(default)]
    kind: Kind,
}

impl FromStr for VolumeFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.splitn(3, ':');
        let (Some(source), Some(target)) = (words.next(), words.next()) else {
            return VolumeFlag::of_kind(Kind::Anonymous, text)
                .map_err(|error| format!("{error}; else it is SRC:DST[:ro]"));
        };
        let read_only = match words.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("'{other}' is not a volume option; there are ro and rw")),
        };
        if source.is_empty() {
            return Err("the path on this host, or the name of a volume, is missing".into());
        }
        let flag = VolumeFlag { source: source.into(), target: clean(target)?, read_only, kind: Kind::Given };
        if let Some(name) = flag.name() {
            named::check_name(name).map_err(|error| format!("{error}; for the directory, write ./{name}"))?;
        }
        Ok(flag)
    }
}

impl VolumeFlag {
    /// One that has no source yet, or never.
    fn of_kind(kind: Kind, target: &str) -> Result<Self, String> {
        Ok(VolumeFlag { source: PathBuf::new(), target: clean(target)?, read_only: false, kind })
    }

    /// It was made up for the container.
    pub fn is_anonymous(&self) -> bool {
        self.kind == Kind::Anonymous
    }

    /// It is a place of the container's own files.
    pub fn is_own(&self) -> bool {
        self.kind == Kind::Own
    }

    /// It was given with a source.
    pub fn is_given(&self) -> bool {
        self.kind == Kind::Given
    }

    /// Whether it is a path of this host.
    fn is_path(&self) -> bool {
        self.kind == Kind::Given && self.name().is_none()
    }

    /// Has it mean the same wherever this program is started next.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        if self.is_path() {
            self.source = std::path::absolute(&self.source)?;
        }
        Ok(())
    }

    /// The volume that it names, if it is no path: without a slash, and not `.` or `..`. An anonymous one has its name from [`prepare`] on.
    pub fn name(&self) -> Option<&str> {
        self.source.to_str().filter(|text| !text.contains('/') && !matches!(*text, "" | "." | ".."))
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

    /// As docker shows it: `SRC:DST[:ro]`, or `DST` of one that has no source.
    pub fn shown(&self) -> String {
        if self.is_own() {
            return self.target.clone();
        }
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

/// The device's section where nothing is shared.
pub fn none() -> Value {
    json!({ "volumes": [] })
}

/// The volumes of a container: found on this host, in the order in which they are to be mounted.
#[derive(Debug, Default)]
pub struct Volumes(Vec<(Option<PathBuf>, Volume)>);

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
            if flag.is_path() {
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
            let (target, read_only) = (flag.target.clone(), flag.read_only);
            if flag.is_own() {
                return Ok((None, Volume { source: VolumeSource::Own, target, read_only }));
            }
            let (path, directory) = look(&flag.place()?)?;
            let name = index.to_string();
            let source = if directory { VolumeSource::Directory(name) } else { VolumeSource::File(name) };
            Ok((Some(path), Volume { source, target, read_only }))
        };
        flags.iter().enumerate().map(&mut find).collect::<Result<_, _>>().map(Volumes)
    }

    /// The device's section, if one is needed.
    pub fn section(&self) -> anyhow::Result<Option<Value>> {
        let entry = |(path, volume): &(Option<PathBuf>, Volume)| {
            let path = path.as_ref()?;
            let (VolumeSource::Directory(name) | VolumeSource::File(name)) = &volume.source else { return None };
            let text = path.to_str().ok_or_else(|| anyhow!("-v '{}': the path is not UTF-8", path.display()));
            Some(text.map(|text| json!({ "name": name, "path_on_host": text, "is_read_only": volume.read_only })))
        };
        let entries = self.0.iter().filter_map(entry).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((!entries.is_empty()).then(|| json!({ "volumes": entries })))
    }

    /// Where on this host what is shared is, and as what.
    pub fn binds(&self) -> impl Iterator<Item = (&Path, &Volume)> {
        self.0.iter().filter_map(|(path, volume)| Some((path.as_deref()?, volume)))
    }

    /// What the guest is told.
    pub fn for_guest(&self) -> Vec<Volume> {
        self.0.iter().map(|(_, volume)| volume.clone()).collect()
    }
}

/// Adds what an image wants a volume for, unless the container has something else there: at one of `taken`, or a volume.
///
/// # Errors
/// It wants one where there can be none, or too many.
pub fn add_of_image(
    flags: &mut Vec<VolumeFlag>,
    image: &[String],
    taken: &HashSet<&str>,
    how: ImageVolume,
) -> anyhow::Result<()> {
    let kind = match how {
        ImageVolume::Own => Kind::Own,
        ImageVolume::Anonymous => Kind::Anonymous,
        ImageVolume::Ignore => return Ok(()),
    };
    if image.len() > MOST_OF_IMAGE {
        return Err(anyhow!(
            "the image wants {} volumes, and {MOST_OF_IMAGE} are the most; see --image-volume",
            image.len()
        ));
    }
    for path in image {
        // As a working directory without a slash is one of the root.
        let flag = VolumeFlag::of_kind(kind, &format!("/{path}"))
            .map_err(|error| anyhow!("the image wants a volume: {error}; see --image-volume"))?;
        if !taken.contains(flag.target()) && flags.iter().all(|other| other.target != flag.target) {
            flags.push(flag);
        }
    }
    Ok(())
}

/// Sees to the named volumes of a container that is made from an image, and gives those a name that are to have one made up: these go with
/// the container if `passing`. None of them goes while the result lives, which is to be until the container has its record.
///
/// # Errors
/// One cannot be made, or filled with what the image has there.
pub fn prepare(flags: &mut [VolumeFlag], image: &PreparedImage, passing: bool) -> anyhow::Result<Option<Locked>> {
    for flag in flags.iter_mut().filter(|flag| flag.is_anonymous()) {
        flag.source = anonymous::name()?.into();
    }
    if flags.iter().all(|flag| flag.name().is_none()) {
        return Ok(None);
    }
    let locked = NamedVolumes::of(&paths::store())?.lock()?;
    if passing {
        flags.iter().filter(|flag| flag.is_anonymous()).try_for_each(|flag| locked.let_pass(flag))?;
    }
    locked.prepare(flags, image)?;
    Ok(Some(locked))
}

/// Sees to the named volumes of what has no image: those that are not there are made empty. None of them goes while the result lives.
///
/// # Errors
/// One cannot be made.
pub fn prepare_empty(flags: &[VolumeFlag]) -> anyhow::Result<Option<Locked>> {
    if flags.iter().all(|flag| flag.name().is_none()) {
        return Ok(None);
    }
    let locked = NamedVolumes::of(&paths::store())?.lock()?;
    locked.prepare_empty(flags)?;
    Ok(Some(locked))
}

/// Removes what a container had for itself alone, and what has gone with containers that are gone.
///
/// # Errors
/// One cannot be removed, though no container has it.
pub fn remove_anonymous(flags: &[VolumeFlag]) -> Result<(), VolumesError> {
    let mut names = flags.iter().filter(|flag| flag.is_anonymous()).filter_map(VolumeFlag::name).peekable();
    let Some(volumes) = NamedVolumes::existing(&paths::store()).filter(|_| names.peek().is_some()) else {
        return Ok(());
    };
    let locked = volumes.lock()?;
    names.try_for_each(|name| match locked.remove(name) {
        // Another container has been given it by its name, or somebody was quicker.
        Err(VolumesError::InUse { .. } | VolumesError::NotFound(_)) => Ok(()),
        other => other,
    })
}

/// Removes what killed processes have left, and the anonymous volumes that were to go with containers that are gone.
pub fn sweep() {
    if let Some(Err(error)) = NamedVolumes::existing(&paths::store()).map(|volumes| volumes.sweep()) {
        tracing::warn!("{error}");
    }
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
        let anonymous = flag("/a//b/").unwrap();
        assert!(anonymous.is_anonymous() && anonymous.name().is_none() && anonymous.target() == "/a/b");
        for (text, word) in [
            ("a", "SRC:DST"),
            ("/", "root"),
            ("/a:ro", "absolute"),
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
    fn an_image_has_its_volumes_where_nothing_else_is() {
        let mut flags = vec!["/given".parse::<VolumeFlag>().unwrap()];
        let image = ["/given/", "data", "/data/.", "/mem"].map(str::to_owned);
        let taken = HashSet::from(["/mem"]);
        for (how, wanted) in [
            (ImageVolume::Ignore, &["/given"][..]),
            (ImageVolume::Own, &["/given", "/data"]),
            (ImageVolume::Anonymous, &["/given", "/data"]),
        ] {
            flags.truncate(1);
            add_of_image(&mut flags, &image, &taken, how).unwrap();
            assert_eq!(flags.iter().map(VolumeFlag::target).collect::<Vec<_>>(), wanted, "{how:?}");
            assert!(flags[1..].iter().all(|flag| flag.is_own() == (how == ImageVolume::Own) && !flag.is_path()));
        }
        add_of_image(&mut flags, &image, &taken, ImageVolume::Own).unwrap();
        for image in [vec!["/".to_owned()], vec!["/x".to_owned(); MOST_OF_IMAGE + 1]] {
            let error = add_of_image(&mut flags, &image, &taken, ImageVolume::Own).unwrap_err().to_string();
            assert!(error.contains("--image-volume"), "{error}");
        }
        flags.truncate(1);
        add_of_image(&mut flags, &["/own".to_owned()], &taken, ImageVolume::Own).unwrap();
        let found = Volumes::find(&flags[1..]).unwrap();
        assert_eq!(found.for_guest()[0].source, VolumeSource::Own);
        assert!(found.section().unwrap().is_none(), "no directory of the host is shared for it");
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
            guest.iter().map(|v| (v.target.as_str(), v.source.clone())).collect::<Vec<_>>(),
            [("/a", VolumeSource::Directory("0".into())), ("/a/b", VolumeSource::File("1".into()))]
        );
        let section = found.section().unwrap().unwrap();
        let real = fs::canonicalize(path("file")).unwrap();
        assert_eq!(section["volumes"][1]["path_on_host"].as_str(), real.to_str());
        assert_eq!(section["volumes"][1]["name"], "1");
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
