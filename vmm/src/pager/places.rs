//! Which of a snapshot's memory files has a page.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;

use crate::snapshot::memory::{Extent, PAGE, Source, data_runs};

/// No file has it: zeros.
const NOWHERE: u8 = 0;

/// Where each page of RAM is.
pub struct Places {
    files: Vec<File>,
    /// One for each page: [`NOWHERE`], or one more than the index of its file.
    of_page: Vec<u8>,
    buffer: Vec<u8>,
}

impl Places {
    /// Looks at the files, not into them. There may be 255 of them; snapshots have fewer.
    pub fn of(sources: &[Source], pages: usize) -> io::Result<Self> {
        let mut of_page = vec![NOWHERE; pages];
        let mut files = Vec::new();
        for source in sources {
            files.push(source.file.try_clone()?);
            let number = u8::try_from(files.len()).map_err(|_| io::Error::other("too many memory files"))?;
            match &source.extents {
                None => data_runs(&source.file, 0, pages, &mut |run| {
                    of_page.get_mut(run).unwrap_or_default().fill(number);
                })?,
                Some(extents) => {
                    for &(first, count) in extents {
                        let run = first as usize..first.saturating_add(count) as usize;
                        of_page.get_mut(run).unwrap_or_default().fill(number);
                    }
                }
            }
        }
        Ok(Places { files, of_page, buffer: Vec::new() })
    }

    /// How many pages from `page` on are in one place, `end` not among them.
    pub fn run(&self, page: usize, end: usize) -> usize {
        let Some((first, rest)) = self.of_page.get(page..end.min(self.of_page.len())).and_then(<[u8]>::split_first)
        else {
            return 1;
        };
        1 + rest.iter().take_while(|&place| place == first).count()
    }

    /// The content of `count` pages that are in one place; `None` if that is zeros.
    pub fn read(&mut self, page: usize, count: usize) -> io::Result<Option<&[u8]>> {
        let place = self.of_page.get(page).copied().unwrap_or(NOWHERE);
        let Some(file) = usize::from(place).checked_sub(1).and_then(|index| self.files.get(index)) else {
            return Ok(None);
        };
        self.buffer.resize(count * PAGE, 0);
        file.read_exact_at(&mut self.buffer, (page * PAGE) as u64)?;
        Ok(Some(&self.buffer))
    }

    /// Has the host begin to read these pages.
    pub fn will_need(&self, extents: &[Extent]) {
        for &(first, count) in extents {
            let (mut page, end) = (first as usize, first.saturating_add(count) as usize);
            while page < end.min(self.of_page.len()) {
                let run = self.run(page, end);
                let place = self.of_page.get(page).copied().unwrap_or(NOWHERE);
                if let Some(file) = usize::from(place).checked_sub(1).and_then(|index| self.files.get(index)) {
                    // A hint; nothing depends on it.
                    let len = std::num::NonZeroU64::new((run * PAGE) as u64);
                    let _ = rustix::fs::fadvise(file, (page * PAGE) as u64, len, Advice::WillNeed);
                }
                page += run;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_that_has_a_page_counts() {
        let page = PAGE as u64;
        let (base, over) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        base.set_len(64 * page).unwrap();
        base.write_all_at(&[1; 8 * PAGE], 8 * page).unwrap();
        over.write_all_at(&[2; PAGE], 10 * page).unwrap();
        over.set_len(64 * page).unwrap();
        // A page that an extent names is the file's although it is a hole there.
        let sources =
            [Source { file: base, extents: None }, Source { file: over, extents: Some(vec![(10, 1), (20, 2)]) }];
        let mut places = Places::of(&sources, 64).unwrap();
        assert_eq!([places.run(0, 64), places.run(8, 64), places.run(8, 9), places.run(11, 64)], [8, 2, 1, 5]);
        assert_eq!(places.run(63, 80), 1);
        let mut first = |at, count| places.read(at, count).unwrap().map(|bytes| (bytes.len(), bytes[0]));
        assert_eq!([first(0, 8), first(8, 2), first(10, 1)], [None, Some((2 * PAGE, 1)), Some((PAGE, 2))]);
        assert_eq!([first(20, 2), first(22, 1)], [Some((2 * PAGE, 0)), None]);
        places.will_need(&[(0, 64), (60, 900)]);
    }

    #[test]
    fn a_file_that_is_cut_short_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4 * PAGE], 0).unwrap();
        let mut places = Places::of(&[Source { file: file.try_clone().unwrap(), extents: None }], 4).unwrap();
        file.set_len(PAGE as u64).unwrap();
        assert!(places.read(0, 1).is_ok() && places.read(1, 1).is_err());
    }
}
