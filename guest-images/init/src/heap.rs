//! Which parts of a range of memory are in use: pieces are handed out from its beginning on, and those given back are handed out
//! again. Pure: it never looks at the memory itself.
//!
//! A container can live for months while others look into it: what each of them needs must be given back. A page that was never
//! touched costs nothing, so the lowest place that is large enough is the one to use.

/// Sizes and places are multiples of this.
const UNIT: usize = 16;
/// Most free pieces that are kept between those in use. What is given back beyond them is lost, the smallest first.
const MOST_HOLES: usize = 128;

/// A free piece, from `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    start: usize,
    end: usize,
}

impl Hole {
    const NONE: Self = Self { start: 0, end: 0 };
}

/// A range of `SIZE` bytes. All places are counted from its beginning. One that is all free is all zeros.
#[derive(Debug)]
pub struct Heap<const SIZE: usize> {
    /// Nothing from here on is in use or was ever.
    top: usize,
    /// Free pieces below that, from the lowest to the highest; no two touch, and the last does not touch the top.
    holes: [Hole; MOST_HOLES],
    count: usize,
}

impl<const SIZE: usize> Default for Heap<SIZE> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const SIZE: usize> Heap<SIZE> {
    /// All free.
    #[must_use]
    pub const fn new() -> Self {
        Self { top: 0, holes: [Hole::NONE; MOST_HOLES], count: 0 }
    }

    /// Finds a place for `size` bytes, at a multiple of `align`. None: there is none.
    pub fn take(&mut self, size: usize, align: usize) -> Option<usize> {
        let (size, align) = (units(size)?, align.max(UNIT));
        let holes = self.holes.get(..self.count)?;
        let fitting = holes.iter().enumerate().find_map(|(at, hole)| {
            let start = hole.start.checked_next_multiple_of(align)?;
            let end = start.checked_add(size).filter(|&end| end <= hole.end)?;
            Some((at, *hole, start, end))
        });
        if let Some((at, hole, start, end)) = fitting {
            self.remove(at);
            self.insert(Hole { start: hole.start, end: start });
            self.insert(Hole { start: end, end: hole.end });
            return Some(start);
        }
        let start = self.top.checked_next_multiple_of(align)?;
        let end = start.checked_add(size).filter(|&end| end <= SIZE)?;
        let below = Hole { start: self.top, end: start };
        self.top = end;
        self.insert(below);
        Some(start)
    }

    /// Takes `size` bytes back that were handed out at `start`.
    pub fn give(&mut self, start: usize, size: usize) {
        let Some(end) = units(size).and_then(|size| start.checked_add(size)) else {
            return;
        };
        if end != self.top {
            return self.insert(Hole { start, end });
        }
        self.top = start;
        if let Some(last) = self.count.checked_sub(1)
            && let Some(hole) = self.holes.get(last).filter(|hole| hole.end == start)
        {
            self.top = hole.start;
            self.count = last;
        }
    }

    /// Makes the `old` bytes at `start` `new` bytes without moving them. False: that cannot be.
    pub fn resize(&mut self, start: usize, old: usize, new: usize) -> bool {
        let (Some(from), Some(to)) = (units(old), units(new)) else {
            return false;
        };
        if to <= from {
            if to < from {
                self.give(start + to, from - to);
            }
            return true;
        }
        let grows = start + from == self.top && start.checked_add(to).is_some_and(|end| end <= SIZE);
        if grows {
            self.top = start + to;
        }
        grows
    }

    /// Notes a free piece below the top.
    fn insert(&mut self, mut hole: Hole) {
        if hole.start >= hole.end {
            return;
        }
        let mut at = self.holes.get(..self.count).unwrap_or_default().partition_point(|other| other.start < hole.start);
        if let Some(before) = at.checked_sub(1)
            && let Some(neighbour) = self.holes.get(before).filter(|neighbour| neighbour.end == hole.start)
        {
            hole.start = neighbour.start;
            self.remove(before);
            at = before;
        }
        if let Some(neighbour) = self.holes.get(..self.count).and_then(|holes| holes.get(at))
            && neighbour.start == hole.end
        {
            hole.end = neighbour.end;
            self.remove(at);
        }
        if self.count == MOST_HOLES && !self.forget_one_smaller_than(hole, &mut at) {
            return;
        }
        self.holes.copy_within(at..self.count, at + 1);
        if let Some(slot) = self.holes.get_mut(at) {
            *slot = hole;
            self.count += 1;
        }
    }

    /// Makes room for `hole`, which is to be the one at `at`. False: it is the smallest itself.
    fn forget_one_smaller_than(&mut self, hole: Hole, at: &mut usize) -> bool {
        let length = |hole: &Hole| hole.end - hole.start;
        let smallest = self.holes.iter().enumerate().min_by_key(|(_, hole)| length(hole));
        let Some((index, _)) = smallest.filter(|(_, smallest)| length(smallest) < length(&hole)) else {
            return false;
        };
        self.remove(index);
        *at -= usize::from(index < *at);
        true
    }

    fn remove(&mut self, at: usize) {
        self.holes.copy_within(at + 1..self.count, at);
        self.count -= 1;
    }
}

fn units(size: usize) -> Option<usize> {
    size.max(1).checked_next_multiple_of(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn what_is_given_back_is_handed_out_again() {
        let mut heap = Heap::<{ 1 << 20 }>::new();
        let places: Vec<usize> = (0..10).map(|_| heap.take(100, 8).unwrap()).collect();
        assert_eq!(places[..3], [0, 112, 224]);
        for at in [3, 5, 4] {
            heap.give(places[at], 100);
        }
        // One hole by now, and the lowest place that is large enough.
        assert_eq!(heap.count, 1);
        assert_eq!((heap.take(336, 1), heap.take(1, 1)), (Some(places[3]), Some(1120)));
        heap.give(1120, 1);
        places.iter().filter(|&&at| !(336..672).contains(&at)).for_each(|&at| heap.give(at, 100));
        heap.give(336, 336);
        assert_eq!((heap.top, heap.count), (0, 0));
        assert_eq!((heap.take(1 << 20, 4096), heap.take(1, 1)), (Some(0), None));
    }

    #[test]
    fn the_last_piece_grows_and_each_shrinks_where_it_is() {
        let mut heap = Heap::<4096>::new();
        let (first, last) = (heap.take(100, 1).unwrap(), heap.take(100, 1).unwrap());
        assert!(heap.resize(last, 100, 1000) && !heap.resize(last, 1000, 1 << 20) && !heap.resize(last, 1, usize::MAX));
        assert!(!heap.resize(first, 100, 113) && heap.resize(first, 100, 112) && heap.resize(first, 112, 1));
        assert_eq!(heap.take(96, 16), Some(16));
    }

    #[test]
    fn more_holes_than_can_be_kept_lose_the_smallest() {
        let mut heap = Heap::<{ 1 << 20 }>::new();
        let sizes: Vec<usize> = (0..MOST_HOLES + 20).map(|at| 16 * (at % 7 + 1)).collect();
        let places: Vec<usize> = sizes.iter().map(|&size| (heap.take(size, 1).unwrap(), heap.take(1, 1)).0).collect();
        for (&place, &size) in places.iter().zip(&sizes) {
            heap.give(place, size);
        }
        assert_eq!(heap.count, MOST_HOLES);
        assert_eq!(
            heap.holes.iter().filter(|hole| hole.end - hole.start == 112).count(),
            sizes.iter().filter(|&&size| size == 112).count()
        );
    }

    proptest! {
        #[test]
        fn no_two_pieces_overlap(steps in prop::collection::vec((0usize..3, 1usize..600, 0u32..8, any::<prop::sample::Index>()), 0..400)) {
            let mut heap = Heap::<{ 64 << 10 }>::new();
            let mut pieces: Vec<(usize, usize)> = Vec::new();
            for (what, size, align, which) in steps {
                let align = 1usize << align;
                match what {
                    0 if !pieces.is_empty() => {
                        let (start, size) = pieces.swap_remove(which.index(pieces.len()));
                        heap.give(start, size);
                    }
                    1 if !pieces.is_empty() => {
                        let at = which.index(pieces.len());
                        let piece = &mut pieces[at];
                        if heap.resize(piece.0, piece.1, size) {
                            piece.1 = size;
                        }
                    }
                    _ => {
                        if let Some(start) = heap.take(size, align) {
                            prop_assert!(start % align == 0 && start + size <= 64 << 10);
                            pieces.push((start, size));
                        }
                    }
                }
                let mut sorted = pieces.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{sorted:?}");
                let holes = &heap.holes[..heap.count];
                prop_assert!(holes.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(holes.last().is_none_or(|hole| hole.end < heap.top));
            }
            for (start, size) in pieces {
                heap.give(start, size);
            }
            prop_assert_eq!((heap.top, heap.count), (0, 0));
        }
    }
}
