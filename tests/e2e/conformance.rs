//! Docker's habits, here and with another engine.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::lab;

/// A habit of one command.
const HABIT: &str = "the first process cannot kill itself";

/// The other engine is this one: then nothing differs; and one that lies is found out.
#[test]
fn habits_are_compared_with_another_engines() {
    let lab = lab!("habits_are_compared_with_another_engines", on the machine);
    let lab = lab.own_store_with(&["layers", "merged", "templates"]);
    let archive = lab.images("debian.tar");
    let loaded = lab.run(["load", "--name", "habits", archive.to_str().unwrap()]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    let before = lab.run(["images"]);
    let ours = lab.keeping::<&str>([]).get_program().to_owned();
    let engine = |name: &str, lie: &str| {
        let path = lab.path(name);
        fs::write(&path, format!("#!/bin/sh\n{lie}\nexec '{}' \"$@\"\n", ours.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let compared = |with: &str| {
        let told = lab.run(["conformance", "--with", with, "--only", HABIT, "--format", "json", "habits"]);
        let found: Value = serde_json::from_str(told.text()).unwrap_or_else(|error| panic!("{error}: {told:?}"));
        assert_eq!(found["habits"].as_array().map(Vec::len), Some(1), "{found}");
        (told.code, found["habits"][0].clone())
    };
    let (code, same) = compared(&engine("same", ":"));
    assert_eq!((code, &same["habit"], &same["differences"]), (Some(0), &HABIT.into(), &Value::Array(vec![])), "{same}");
    let (code, other) = compared(&engine("other", "[ \"$1\" = run ] && exit 9"));
    let found = &other["differences"][0];
    let [what, here, there] = ["what", "ours", "theirs"].map(|key| found[key].as_str().unwrap_or_default());
    assert_eq!((code, what, here, there), (Some(1), "exit code", "3", "9"), "{other}");

    if crate::isolation::has_runc() {
        // This one again, without microVMs.
        let (code, contained) = compared(&engine("contained", "export BULKHEAD_ISOLATION=container"));
        assert_eq!((code, &contained["differences"]), (Some(0), &Value::Array(vec![])), "{contained}");
    }

    let refused = lab.run(["conformance", "--with", "/no/such/engine", "habits"]);
    refused.assert_failed(125, &["/no/such/engine"]);
    lab.run(["conformance", "--with", "/bin/true", "--only", "no such habit", "habits"])
        .assert_failed(125, &["--only"]);
    lab.run(["conformance", "--with", "/bin/true", "no-such-image"]).assert_failed(125, &["no-such-image"]);
    assert_eq!(lab.run(["images"]).text(), before.text(), "nothing that was made for it has stayed");
    lab.assert_clean();
}
