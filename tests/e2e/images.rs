//! The store of images without any guest: names, history, archives.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tests::Running;

use crate::lab;

/// tag, history, inspect, save, load from stdin, system df, rmi by id; and what each says when there is nothing.
#[test]
fn an_image_is_named_told_of_saved_and_loaded_again() {
    let lab = lab!("an_image_is_named_told_of_saved_and_loaded_again", on the machine).own_store();
    let json = |arguments: &[&str]| -> Value {
        let ended = lab.run(arguments);
        serde_json::from_slice(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"))
    };
    let archive = lab.images("debian.tar").display().to_string();
    assert_eq!(lab.run(["load", "-q", "-i", &archive, "--name", "debian"]).code, Some(0));
    assert_eq!(lab.run(["tag", "debian", "team/deb:12"]).code, Some(0));

    let image = &json(&["inspect", "debian"])[0];
    assert_eq!(image["RepoTags"], serde_json::json!(["debian:latest", "team/deb:12"]), "{image}");
    assert_eq!((image["Os"].as_str(), image["Architecture"].as_str()), (Some("linux"), Some("amd64")));
    let layers = image["RootFS"]["Layers"].as_array().unwrap().len();
    assert_eq!(layers, 3, "{image}");
    let id = image["Id"].as_str().unwrap();
    let shown = lab.run(["inspect", "-f", "{{.Id}} {{json .Config.Cmd}}", "--type", "image", &id[7..19]]);
    assert_eq!(shown.text(), format!("{id} {}\n", image["Config"]["Cmd"]), "{shown:?}");

    let table = lab.run(["history", "debian"]);
    assert!(table.text().starts_with("IMAGE ") && table.text().contains("<missing>"), "{table:?}");
    let lines = lab.run(["history", "--format", "json", "--no-trunc", "--human=false", "debian"]);
    let steps: Vec<Value> = lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps[0]["ID"], id);
    assert!(steps.len() >= layers, "{steps:?}");
    assert!(steps.iter().any(|step| step["Size"].as_str().unwrap().parse::<u64>().unwrap() > 1 << 20));

    let saved = lab.path("saved.tar").display().to_string();
    assert_eq!(lab.run(["save", "-o", &saved, "debian", "team/deb:12"]).code, Some(0));
    let shell = |line: &str| {
        let bulkhead = lab.keeping::<&str>([]);
        let mut command = Command::new("sh");
        command.args(["-c", line]).arg(bulkhead.get_program()).arg(&saved);
        command.envs(bulkhead.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Running::start(command).end(lab.patience(1))
    };
    let same = shell("\"$0\" save debian team/deb:12 | cmp - \"$1\"");
    assert_eq!(same.code, Some(0), "{same:?}");

    let df = json(&["system", "df", "--format", "json"]);
    assert_eq!((&df["images"]["count"], &df["containers"]["count"]), (&2.into(), &0.into()), "{df}");
    assert!(df["images"]["bytes"].as_u64() > Some(10 << 20), "{df}");
    lab.run(["rmi", &id[7..19]]).assert_failed(1, &["team/deb:12", "must be forced"]);
    let removed = lab.run(["rmi", "-f", &id[7..19]]);
    assert_eq!(removed.text(), "Untagged: debian:latest\nUntagged: team/deb:12\n", "{removed:?}");
    assert_eq!(fs::read_dir(lab.store().join("blobs/sha256")).unwrap().count(), 0);

    let loaded = shell("\"$0\" load < \"$1\"");
    assert_eq!(loaded.text(), "Loaded image: debian:latest\nLoaded image: team/deb:12\n", "{loaded:?}");
    assert_eq!(json(&["inspect", "debian"])[0], *image);

    lab.run(["tag", "none", "x"]).assert_failed(1, &["none", "bulkhead load"]);
    lab.run(["tag", "debian", "UPPER"]).assert_failed(1, &["UPPER", "not a valid name"]);
    lab.run(["history", "none"]).assert_failed(1, &["none"]);
    // As docker: what there is, even if that is nothing, and then what is wrong.
    let none = lab.run(["inspect", "none"]);
    assert_eq!((none.code, none.text()), (Some(1), "[]\n"), "{none:?}");
    assert!(none.stderr.contains("no such container or image: none"), "{none:?}");
    lab.run(["inspect", "-f", "{{.Id}}", "--type", "container", "debian"]).assert_failed(1, &["no such container"]);
    lab.run(["save", "-o", &saved, "none"]).assert_failed(1, &["none"]);
    lab.run(["save", "-o", "/nonexistent/x", "debian"]).assert_failed(1, &["/nonexistent/x"]);
    assert!(fs::metadata(&saved).unwrap().len() > 1 << 20, "a failed save took the earlier archive away");
    lab.assert_clean();
}
