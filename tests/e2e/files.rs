//! Files in and out of a container, its processes, and images of what it has become.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use serde_json::Value;
use tests::{Lab, Running};

use crate::lab;

/// What a verb prints, which succeeds.
fn done(lab: &Lab, arguments: &[&str]) -> String {
    let ended = lab.run(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.text().to_owned()
}

/// `cp` with an archive of one file, `name`, that holds `content`.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

/// One container, into which files go and from which they come; it becomes an image, and that a container.
#[test]
fn a_container_gives_and_takes_files_and_becomes_an_image() {
    let lab = lab!("a_container_gives_and_takes_files_and_becomes_an_image", on hardware);
    let patience = lab.patience(2);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let tar = lab.images("debian.tar").display().to_string();
    done(&lab, &["load", "-q", "-i", &tar, "--name", "debian"]);
    let script = "cd /srv; echo hi > file; ln -s file link; rm /etc/issue; trap exit TERM; echo up; while :; do sleep 1000 & wait; done";
    let command = ["run", "--name", "web", "-e", "TIER=web", "debian", "sh", "-c", script];
    let mut web = Running::start(lab.bulkhead(command));
    web.wait_for("up\n", patience);

    let processes: Vec<Value> = done(&lab, &["top", "--format", "json", "web"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        processes[0]["PID"] == "1" && processes[0]["Command"].as_str().unwrap().starts_with("sh -c "),
        "{processes:?}"
    );
    assert!(processes.len() == 2 && processes[1]["PPID"] == "1", "and not whoever looks: {processes:?}");

    // In: a tree, into a directory that is there and as one that is not.
    let tree = lab.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let big: Vec<u8> = (0..100_000u32).flat_map(|n| [(n >> 3) as u8]).collect();
    fs::write(tree.join("sub/big"), &big).unwrap();
    fs::set_permissions(tree.join("sub/big"), fs::Permissions::from_mode(0o754)).unwrap();
    let from = tree.display().to_string();
    assert_eq!(done(&lab, &["cp", &from, "web:/srv"]), "");
    done(&lab, &["cp", &format!("{from}/."), "web:srv/new"]);
    let mut command = lab.bulkhead(["cp", "-", "web:/srv"]);
    command.stdin(Stdio::piped());
    let mut streaming = Running::start(command);
    streaming.feed(archive("from/archive", b"packed"));
    let streamed = streaming.end(patience);
    assert_eq!(streamed.code, Some(0), "{streamed:?}");

    // Out: what went in, by its new name, and as an archive.
    let out = lab.path("out");
    done(&lab, &["cp", "web:/srv", &out.display().to_string()]);
    assert!(fs::read(out.join("tree/sub/big")).unwrap() == big && fs::read(out.join("new/sub/big")).unwrap() == big);
    let meta = fs::metadata(out.join("tree/sub/big")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o754, fs::metadata(tree.join("sub/big")).unwrap().mtime()));
    assert_eq!(fs::read_to_string(out.join("from/archive")).unwrap(), "packed");
    assert_eq!(fs::read_link(out.join("link")).unwrap().to_str(), Some("file"));
    let packed = lab.run(["cp", "-L", "web:/srv/link", "-"]);
    let mut entries = tar::Archive::new(&packed.stdout[..]);
    let mut entry = entries.entries().unwrap().next().unwrap().unwrap();
    let mut content = String::new();
    entry.read_to_string(&mut content).unwrap();
    assert_eq!((entry.path().unwrap().to_str(), content.as_str()), (Some("link"), "hi\n"), "{}", packed.stderr);

    // What cannot be.
    for (line, words) in [
        (["web:/none", "/tmp"], ["/none", "no such file"]),
        (["/none/here", "web:/srv"], ["/none/here", "No such file"]),
        (["web:/etc/passwd", "/none/here"], ["/none/here", "No such file"]),
        (["web:/srv", "/dev/null"], ["/dev/null", "directory"]),
        (["other:/x", "/tmp"], ["other", "web"]),
        (["/x", "/y"], ["CONTAINER:PATH", ""]),
        (["web:/x", "web:/y"], ["between containers", ""]),
    ] {
        lab.run(["cp", line[0], line[1]]).assert_failed(1, &words);
    }

    let changes = done(&lab, &["diff", "web"]);
    for line in ["A /srv/file", "A /srv/link", "A /srv/tree/sub/big", "C /srv", "D /etc/issue", "C /etc"] {
        assert!(changes.lines().any(|change| change == line), "{line}: {changes}");
    }
    assert!(!changes.contains("/etc/hosts") && !changes.contains("/proc"), "{changes}");

    // What the image is to do when it is run: look at all of that.
    let look = "CMD cat /srv/file; cmp /srv/tree/sub/big /srv/new/sub/big && [ ! -e /etc/issue ] && [ -e /etc/passwd ] && \
                stat -c %a /srv/from/archive; echo $NEW";
    let line = ["commit", "-m", "with a tree", "-c", look, "-c", "ENV NEW=1", "web", "team/web:1"];
    let id = done(&lab, &line);
    assert!(id.starts_with("sha256:"), "{id}");
    let history = done(&lab, &["history", "--format", "{{.Comment}}", "team/web:1"]);
    assert_eq!(history.lines().next(), Some("with a tree"), "{history}");
    let image: Value = serde_json::from_str(&done(&lab, &["inspect", "team/web:1"])).unwrap();
    let env = image[0]["Config"]["Env"].to_string();
    assert!(env.contains("TIER=web") && env.contains("NEW=1"), "{image}");
    lab.run(["commit", "web", "BAD NAME"]).assert_failed(1, &["BAD NAME"]);
    lab.run(["commit", "-c", "RUN x", "web", "x"]).assert_failed(1, &["RUN x"]);
    web.signal(rustix::process::Signal::TERM);
    web.end(patience);
    lab.run(["top", "web"]).assert_failed(1, &["web"]);

    assert_eq!(done(&lab, &["run", "team/web:1"]), "hi\n640\n1\n");
    // What is saved of it is loaded again as what it is.
    let saved = lab.path("saved.tar").display().to_string();
    done(&lab, &["save", "-o", &saved, "team/web:1"]);
    done(&lab, &["rmi", "-f", "team/web:1"]);
    done(&lab, &["load", "-q", "-i", &saved]);
    let again: Value = serde_json::from_str(&done(&lab, &["inspect", "team/web:1"])).unwrap();
    assert_eq!(again[0]["Id"], image[0]["Id"]);
    lab.assert_clean();
}

/// All that is known of a container, but for its files.
fn known(lab: &Lab, name: &str) -> [String; 3] {
    let events = ["events", "--since", "1", "--until", "0s", "--filter", &format!("container={name}")];
    [done(lab, &["inspect", name]), done(lab, &["logs", name]), done(lab, &events)]
}

/// What is done with the files of a container that does not run leaves no trace in it but in them.
#[test]
fn a_container_that_does_not_run_gives_and_takes_files() {
    let lab = lab!("a_container_that_does_not_run_gives_and_takes_files", on the machine);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let (file, out) = (lab.path("file").display().to_string(), lab.path("out").display().to_string());
    fs::write(&file, "went in\n").unwrap();
    done(&lab, &["create", "--name", "idle", &lab.debian(), "cat", "/srv/file"]);
    let created = known(&lab, "idle");
    done(&lab, &["cp", &file, "idle:/srv"]);
    lab.run(["cp", "idle:/srv/none", &out]).assert_failed(1, &["/srv/none", "no such file"]);
    assert_eq!(known(&lab, "idle"), created);
    assert_eq!(done(&lab, &["start", "-a", "idle"]), "went in\n");
    let ended = known(&lab, "idle");
    done(&lab, &["cp", "idle:/srv/file", &out]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "went in\n");
    assert_eq!(done(&lab, &["diff", "idle"]), "C /srv\nA /srv/file\n");
    assert_eq!(known(&lab, "idle"), ended);
    lab.assert_clean();
}

/// Whoever looks into a container that does not run has it. SIGKILL and signals leave nothing behind.
#[test]
fn a_container_that_is_looked_into_is_in_use() {
    let lab = lab!("a_container_that_is_looked_into_is_in_use", on hardware);
    let patience = lab.patience(2);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let tar = lab.images("debian.tar").display().to_string();
    done(&lab, &["load", "-q", "-i", &tar, "--name", "debian"]);
    let (shared, file) = (lab.path("shared"), lab.path("file").display().to_string());
    fs::create_dir(&shared).unwrap();
    fs::write(&file, "went in\n").unwrap();
    let volume = format!("{}:/shared", shared.display());
    done(&lab, &["create", "--name", "idle", "-v", &volume, "debian", "cat", "/srv/file"]);
    done(&lab, &["create", "--name", "brief", "--rm", "debian"]);

    let mut looking = lab.bulkhead(["cp", "idle:/usr/lib", "-"]);
    let mut looking = looking.stdout(Stdio::piped()).spawn().unwrap();
    // The rest of it waits for whoever reads.
    looking.stdout.as_mut().unwrap().read_exact(&mut [0; 512]).unwrap();
    lab.run(["start", "idle"]).assert_failed(1, &["idle", "in use", "looked into"]);
    lab.run(["rm", "-f", "idle"]).assert_failed(1, &["idle", "in use"]);
    looking.kill().unwrap();
    looking.wait().unwrap();
    lab.wait_for_processes(patience);

    let mut looking = lab.bulkhead(["cp", "-", "idle:/srv"]);
    looking.stdin(Stdio::piped());
    let mut looking = Running::start(looking);
    // So much has room nowhere but in the guest.
    let unfinished = String::from_utf8(archive("unfinished", &[b'x'; 8 << 20])).unwrap();
    looking.say(&unfinished[..4 << 20]);
    looking.signal(rustix::process::Signal::INT);
    let ended = looking.end(patience);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(130), ""), "{ended:?}");

    // Through volumes as well. And what has no disk takes nothing, but goes no sooner than it would have.
    done(&lab, &["cp", &file, "idle:/shared/file"]);
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "went in\n");
    done(&lab, &["cp", &file, "idle:/srv"]);
    lab.run(["cp", &file, "brief:/srv"]).assert_failed(1, &["brief", "--rm", "start"]);
    assert_eq!(done(&lab, &["diff", "brief"]), "");
    done(&lab, &["inspect", "brief"]);
    done(&lab, &["commit", "idle", "committed"]);
    assert_eq!(done(&lab, &["run", "committed"]), "went in\n");
    lab.assert_clean();
}
