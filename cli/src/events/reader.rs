//! Reading the journal: what there is, and what comes.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use super::{Event, FILES, MOST_LINE, VERSION, directory};
use crate::args::Filter;
use crate::containers::record::now_ns;
use crate::rotated::{Lines, Watch};

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Not before then, in nanoseconds since the epoch.
    pub since_ns: u64,
    /// Not after then.
    pub until_ns: Option<u64>,
    /// Those that fit all keys, each by one of its values.
    pub filters: Vec<Filter>,
}

/// A journal that is being read.
#[derive(Debug)]
pub struct Reader {
    wanted: Wanted,
    lines: Lines,
    watch: Watch,
}

/// Hears an event.
pub type Hear<'a> = &'a mut dyn FnMut(&Event) -> io::Result<()>;

impl Reader {
    /// Reads the journal of a store. What is written from now on will be noticed.
    pub fn open(store: &Path, wanted: Wanted) -> io::Result<Self> {
        let dir = directory(store);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lines = Lines::open(&dir, FILES, MOST_LINE as u64);
        let watch = lines.watch()?;
        Ok(Reader { wanted, lines, watch })
    }

    /// Passes on what there is.
    pub fn present(&mut self, hear: Hear<'_>) -> io::Result<()> {
        let wanted = &self.wanted;
        self.lines.present(&mut |line| event(line, wanted).map_or(Ok(()), |event| hear(&event)))
    }

    /// Passes on what comes, until there can be nothing more that is wanted.
    pub fn follow(&mut self, hear: Hear<'_>) -> io::Result<()> {
        loop {
            let wanted = &self.wanted;
            let left = wanted.until_ns.map(|until| until.saturating_sub(now_ns()));
            self.lines.news(&mut |line| event(line, wanted).map_or(Ok(()), |event| hear(&event)))?;
            if left == Some(0) {
                return Ok(());
            }
            self.watch.wait(None, left.map(Duration::from_nanos))?;
        }
    }
}

/// What is on a line, if that is wanted. What is no line of ours is left out.
fn event(line: &[u8], wanted: &Wanted) -> Option<Event> {
    let event = serde_json::from_slice::<Event>(line).ok().filter(|event| event.version == VERSION)?;
    let in_time = event.at_ns >= wanted.since_ns && wanted.until_ns.is_none_or(|until| event.at_ns <= until);
    (in_time && fits(&event, &wanted.filters)).then_some(event)
}

/// Values of the same key are alternatives, different keys conditions, as docker's.
fn fits(event: &Event, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| {
        let same = filters.iter().filter(|other| other.key == filter.key);
        same.into_iter().any(|filter| fits_one(event, &filter.key, &filter.value))
    })
}

fn fits_one(event: &Event, key: &str, value: &str) -> bool {
    let named = |attribute: &str| event.attributes.get(attribute).map(String::as_str);
    let same_image = |name: Option<&str>| {
        name.is_some_and(|name| name.trim_end_matches(":latest") == value.trim_end_matches(":latest"))
    };
    match key {
        "type" => event.kind == value,
        "event" => event.action == value,
        "container" => {
            event.kind == "container"
                && (named("name") == Some(value) || (!value.is_empty() && event.id.starts_with(value)))
        }
        "image" if event.kind == "image" => same_image(named("name")) || event.id == value,
        "image" => same_image(named("image")),
        "label" => match value.split_once('=') {
            Some((key, value)) => named(key) == Some(value),
            None => named(value).is_some(),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{append, tell};
    use super::*;
    use crate::containers::Id;
    use crate::containers::record::tests::record;

    fn filters(list: &[&str]) -> Vec<Filter> {
        let parse =
            |text: &&str| text.split_once('=').map(|(key, value)| Filter { key: key.into(), value: value.into() });
        list.iter().filter_map(parse).collect()
    }

    #[test]
    fn filters_are_dockers() {
        let mut record = record(&Id::random().unwrap());
        record.labels.insert("tier".into(), "web".into());
        let event = Event::of_container(&record, "one", "die", &[]);
        let fit = |list: &[&str]| fits(&event, &filters(list));
        assert!(fit(&[]) && fit(&["event=start", "event=die"]) && fit(&["container=one", "type=container"]));
        assert!(fit(&["label=tier"]) && fit(&["label=tier=web"]) && fit(&["image=debian:latest"]));
        assert!(fit(&[&format!("container={}", record.id.short())]));
        assert!(!fit(&["event=start"]) && !fit(&["container=on"]) && !fit(&["type=image"]) && !fit(&["label=x"]));
        assert!(!fit(&["container="]) && !fit(&["event=die", "image=other"]));
        let image = Event::of_image("sha256:1", "debian:12", "pull");
        assert!(fits(&image, &filters(&["image=debian:12"])) && !fits(&image, &filters(&["container=debian:12"])));
    }

    #[test]
    fn a_follower_hears_everything_over_changes_of_files_and_stops_in_time() {
        let store = tempfile::tempdir().unwrap();
        tell(store.path(), Event::of_image("before", "x", "pull"));
        std::fs::write(directory(store.path()).join("other"), "").unwrap();
        let mut reader = Reader::open(store.path(), Wanted::default()).unwrap();
        let mut heard = Vec::new();
        let mut hear = |event: &Event| {
            heard.push(event.id.clone());
            // Nobody listens any more.
            if event.id == "59" { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        };
        reader.present(&mut hear).unwrap();
        std::thread::scope(|scope| {
            let dir = directory(store.path());
            scope.spawn(move || {
                for number in 0..60 {
                    // No more of them in a file than a reader that is woken each time finds.
                    append(&dir, Event::of_image(&number.to_string(), "x", "pull"), 6000).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            assert!(reader.follow(&mut hear).is_err());
        });
        let wanted: Vec<String> = std::iter::once("before".into()).chain((0..60).map(|n: u32| n.to_string())).collect();
        assert_eq!(heard, wanted);
        let until_ns = Some(now_ns());
        append(&directory(store.path()), Event::of_image("after", "x", "pull"), 6000).unwrap();
        let mut reader = Reader::open(store.path(), Wanted { until_ns, ..Wanted::default() }).unwrap();
        let mut last = String::new();
        reader
            .present(&mut |event| {
                last = event.id.clone();
                Ok(())
            })
            .unwrap();
        reader.follow(&mut |event| panic!("{event:?}")).unwrap();
        assert_eq!(last, "59");
    }
}
