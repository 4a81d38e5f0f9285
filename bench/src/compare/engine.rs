//! podman and docker. The image is brought to them as an archive of its files, so that they run what the others run; it goes again.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::arm::{Arm, Made, Making, first_line, missing, program};
use super::moving::{Errand, VOLUME};
use super::running::{Input, Patience, Running, answer};
use super::tree;
use super::{PREFIX, Process, is_alive};
use crate::process::BenchError;

struct Engine {
    program: PathBuf,
    image: String,
    process: Process,
    image_kib: Option<u64>,
}

/// The arm of the engine `name`, or why there is none.
pub(super) fn make(name: &str, making: &Making<'_>) -> Result<Made, String> {
    let program = program(name).ok_or_else(|| missing(name))?;
    let ask = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words);
        answer(command, making.patience).map_err(|error| error.to_string())
    };
    // docker's client without a daemon has a version, and nothing to run containers with.
    let version = match name {
        "docker" => ask(&["version", "--format", "{{.Server.Version}}"])?,
        _ => ask(&["version", "--format", "{{.Client.Version}}"])?,
    };
    sweep(&program, &ask(&["images", "--format", "{{.Repository}}"])?);
    let image = format!("{PREFIX}{}", std::process::id());
    import(&program, making.root, &image, making.patience).map_err(|error| error.to_string())?;
    let process = making.what.process.clone();
    let mut engine = Engine { program: program.clone(), image, process, image_kib: None };
    let bytes = ask(&["image", "inspect", "--format", "{{.Size}}", &engine.image]);
    engine.image_kib = bytes.ok().and_then(|bytes| bytes.trim().parse::<u64>().ok()).map(|bytes| bytes >> 10);
    Ok(Made { version: format!("{name} {}", first_line(&version)), arm: Box::new(engine) })
}

/// Brings the files below `root` to the engine.
fn import(program: &Path, root: &Path, image: &str, patience: Patience<'_>) -> Result<(), BenchError> {
    let mut pack = Command::new("tar");
    pack.arg("--create").arg("--file=-").arg("--numeric-owner").arg("-C").arg(root).arg(".");
    pack.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let started = |error: std::io::Error| BenchError::Container(format!("start of 'tar': {error}"));
    let mut packing = pack.spawn().map_err(started)?;
    let mut import = Command::new(program);
    import.args(["import", "-", image]);
    let result = match packing.stdout.take() {
        Some(archive) => Running::start(import, Input::From(archive.into())).and_then(|running| running.end(patience)),
        None => Err(BenchError::NoRuns),
    };
    let _ = packing.kill();
    let _ = packing.wait();
    result?.good("import").map(drop)
}

/// Removes the images of benchmarks that were killed.
fn sweep(program: &Path, images: &str) {
    let of_ours = |name: &&str| {
        name.rsplit('/').next().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(|pid| !is_alive(pid))
    };
    for image in images.lines().filter(of_ours) {
        let _ = Command::new(program).args(["rmi", "--force", image]).stdin(Stdio::null()).output();
    }
}

impl Engine {
    fn inspect(&self, id: &str, what: &str) -> Option<u64> {
        let mut command = Command::new(&self.program);
        command.args(["inspect", "--size", "--format", what, id]).stdin(Stdio::null());
        String::from_utf8(command.output().ok()?.stdout).ok()?.trim().parse().ok()
    }
}

impl Arm for Engine {
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError> {
        let Process { env, cwd, uid, gid, groups } = &self.process;
        let mut command = Command::new(&self.program);
        command.args(["run", "--rm", "--interactive", "--network=none", "--pull=never", "--name", id]);
        command.arg(format!("--user={uid}:{gid}")).arg(format!("--workdir={cwd}"));
        command.args(env.iter().map(|entry| format!("--env={entry}")));
        command.args(groups.iter().filter(|group| *group != gid).map(|group| format!("--group-add={group}")));
        command.arg(&self.image).args(words);
        Ok(command)
    }

    fn clear(&self, id: &str) {
        // It says so if there is none, and that is well.
        let _ = Command::new(&self.program).args(["rm", "--force", id]).stdin(Stdio::null()).output();
    }

    fn errand(&self, id: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
        let mut command = Command::new(&self.program);
        // It stays until it is cleared away: what goes with --rm podman never writes to a disk (overlay's `volatile`).
        command.args(["run", "--pull=never", "--user=0:0", "--workdir=/", "--name", id]);
        // Where there is a network, it is the engine's usual one.
        command.args((!errand.network).then_some("--network=none"));
        command.arg("--volume").arg(format!("{}:{VOLUME}", errand.volume.display()));
        command.arg(&self.image).args(errand.words(Path::new(VOLUME), Path::new("/")));
        Ok(Some(command))
    }

    /// The verb that waits, the container, and the process that looks after it: conmon, or containerd's shim.
    fn processes(&self, child: u32, id: &str) -> Vec<u32> {
        let mut all = tree::descendants(child);
        let main = self.inspect(id, "{{.State.Pid}}").and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        if let Some(main) = main {
            let keeper = tree::parent(main).filter(|parent| *parent > 1);
            all.extend(keeper.map_or_else(|| tree::descendants(main), tree::descendants));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn image_disk(&self) -> Option<u64> {
        self.image_kib
    }

    fn instance_disk(&self, id: &str) -> Option<u64> {
        self.inspect(id, "{{.SizeRw}}").map(|bytes| bytes >> 10)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = Command::new(&self.program).args(["rmi", "--force", &self.image]).stdin(Stdio::null()).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// An engine that writes down what it is asked for.
    fn fake(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("engine");
        let text = format!("#!/bin/sh\ncd {}\necho \"$*\" >> asked\n{script}\n", dir.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_image_is_brought_as_an_archive_and_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("root/file"), "content").unwrap();
        let program = fake(dir.path(), "[ $1 = import ] && tar -t > listed; exit 0");
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: Duration::from_secs(30), stop: stop.as_fd() };
        import(&program, &dir.path().join("root"), "name", patience).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("listed")).unwrap(), "./\n./file\n");
        let process = Process { env: vec!["A=b c".into()], cwd: "/w".into(), uid: 1, gid: 2, groups: vec![2, 3] };
        let engine = Engine { program, image: "name".into(), process, image_kib: None };
        let command = engine.command("id", &["sh".into()]).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words[words.len() - 6..],
            ["--user=1:2", "--workdir=/w", "--env=A=b c", "--group-add=3", "name", "sh"]
        );
        drop(engine);
        sweep(&dir.path().join("engine"), &format!("other\nlocalhost/{PREFIX}4294967295\n{PREFIX}1\n"));
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked, format!("import - name\nrmi --force name\nrmi --force localhost/{PREFIX}4294967295\n"));
    }

    #[test]
    fn an_import_that_fails_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let program = fake(dir.path(), "echo no space >&2; exit 1");
        let (stop, _other) = UnixStream::pair().unwrap();
        let patience = Patience { limit: Duration::from_secs(30), stop: stop.as_fd() };
        let error = import(&program, dir.path(), "name", patience).unwrap_err().to_string();
        assert!(error.contains("no space"), "{error}");
    }
}
