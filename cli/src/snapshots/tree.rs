//! Snapshots as a tree: which came from which.

use std::collections::HashMap;

use super::{Entry, Id};

/// Deeper ones are drawn no further to the right.
const DEEPEST: usize = 24;

/// An entry in its place.
#[derive(Debug)]
pub struct Placed<'a> {
    /// The lines that lead to it.
    pub branch: String,
    /// The nearest of those before it that is still there.
    pub parent: Option<&'a Entry>,
    /// The entry.
    pub entry: &'a Entry,
}

/// Puts each entry below the nearest of those before it that is still there, in the order of `entries`.
pub fn arrange(entries: &[Entry]) -> Vec<Placed<'_>> {
    let mut at: HashMap<Id, usize> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        at.entry(entry.record.id).or_insert(index);
    }
    let parent = |index: usize| {
        let entry = entries.get(index)?;
        // Another name of the same snapshot is no child of it.
        let ancestors = entry.record.ancestors.iter().filter(|id| **id != entry.record.id);
        ancestors.into_iter().find_map(|id| at.get(id).copied())
    };
    let parents: Vec<Option<usize>> = (0..entries.len()).map(parent).collect();
    let mut children = vec![Vec::new(); entries.len()];
    for (index, parent) in parents.iter().enumerate() {
        if let Some(siblings) = parent.and_then(|parent| children.get_mut(parent)) {
            siblings.push(index);
        }
    }
    let mut walk =
        Walk { entries, parents: &parents, children: &children, seen: vec![false; entries.len()], placed: Vec::new() };
    let roots = (0..entries.len()).filter(|index| parents[*index].is_none());
    // Records that are their own ancestors hang from no root; they are shown all the same.
    for root in roots.chain(0..entries.len()) {
        walk.visit(root);
    }
    walk.placed
}

struct Walk<'a, 'b> {
    entries: &'a [Entry],
    parents: &'b [Option<usize>],
    children: &'b [Vec<usize>],
    seen: Vec<bool>,
    placed: Vec<Placed<'a>>,
}

impl Walk<'_, '_> {
    /// Places a root and what is below it: without recursion, since a history may be long.
    fn visit(&mut self, root: usize) {
        let mut stack = vec![(root, 0, String::new(), String::new())];
        while let Some((index, depth, branch, below)) = stack.pop() {
            if std::mem::replace(&mut self.seen[index], true) {
                continue;
            }
            let parent = self.parents[index].and_then(|parent| self.entries.get(parent));
            self.placed.push(Placed { branch, parent, entry: &self.entries[index] });
            let children = &self.children[index];
            for (place, child) in children.iter().enumerate().rev() {
                let (line, space) = if place + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                let deeper = if depth < DEEPEST { format!("{below}{space}") } else { below.clone() };
                stack.push((*child, depth + 1, format!("{below}{line}"), deeper));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    fn entry(name: &str, id: Id, ancestors: &[Id]) -> Entry {
        Entry { name: name.parse().unwrap(), record: record(id, ancestors), bytes: 0 }
    }

    fn ids<const N: usize>() -> [Id; N] {
        std::array::from_fn(|at| format!("{at:016x}").parse().unwrap())
    }

    fn lines(entries: &[Entry]) -> Vec<String> {
        arrange(entries).iter().map(|placed| format!("{}{}", placed.branch, placed.entry.name)).collect()
    }

    #[test]
    fn children_hang_from_the_nearest_that_is_there() {
        let [a, b, c, d, e, gone] = ids();
        let entries = [
            entry("a", a, &[]),
            entry("b", b, &[a]),
            entry("c", c, &[gone, b, a]),
            entry("d", d, &[a]),
            entry("e", e, &[gone]),
        ];
        assert_eq!(lines(&entries), ["a", "├─ b", "│  └─ c", "└─ d", "e"]);
        let placed = arrange(&entries);
        assert_eq!(placed[2].parent.map(|entry| entry.name.as_str()), Some("b"));
        assert!(arrange(&[]).is_empty());
    }

    #[test]
    fn records_that_contradict_themselves_are_shown_once() {
        let [a, b, c] = ids();
        let entries = [entry("a", a, &[b]), entry("b", b, &[a]), entry("c", c, &[c]), entry("a2", a, &[])];
        let mut shown: Vec<_> = arrange(&entries).iter().map(|placed| placed.entry.name.as_str()).collect();
        shown.sort_unstable();
        assert_eq!(shown, ["a", "a2", "b", "c"]);
        // A history of any length.
        let long: Vec<_> = (0..20_000u64).map(|at| format!("{at:016x}").parse().unwrap()).collect();
        let entries: Vec<_> = long
            .iter()
            .enumerate()
            .map(|(at, id)| entry(&format!("n{at}"), *id, &long[at.saturating_sub(1)..at]))
            .collect();
        assert_eq!(arrange(&entries).len(), 20_000);
    }
}
