//! Tracks which delivery tags of a channel are settled, to acknowledge them with as few frames as possible.
//!
//! The broker numbers a channel's deliveries 1, 2, 3, … over all its queues. A tag that has not been settled is open,
//! even if its message has not been read yet. So "acknowledge all up to this tag" is correct only if all of these have
//! been settled here.

use std::collections::BTreeSet;

/// The tags that are settled: acknowledged or refused.
#[derive(Debug, Default)]
pub(super) struct SettledTags {
    /// All tags up to this one are settled.
    up_to: u64,
    /// Settled tags after `up_to`.
    beyond: BTreeSet<u64>,
}

/// The acknowledgements to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Acks {
    /// Acknowledge all up to this tag.
    pub(super) all_up_to: Option<u64>,
    /// Acknowledge each of these.
    pub(super) single: Vec<u64>,
}

impl SettledTags {
    /// Adds a tag that was settled on its own.
    pub(super) fn add(&mut self, tag: u64) {
        if tag > self.up_to {
            self.beyond.insert(tag);
        }
        while self.beyond.first() == Some(&(self.up_to + 1)) {
            self.beyond.pop_first();
            self.up_to += 1;
        }
    }

    /// Adds tags that were open, and returns the acknowledgements to send for them.
    pub(super) fn acknowledge(&mut self, mut tags: Vec<u64>) -> Acks {
        tags.sort_unstable();
        tags.iter().for_each(|tag| self.add(*tag));
        let single = tags.split_off(tags.partition_point(|tag| *tag <= self.up_to));
        Acks { all_up_to: tags.pop(), single }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acks(all_up_to: impl Into<Option<u64>>, single: &[u64]) -> Acks {
        Acks { all_up_to: all_up_to.into(), single: single.to_vec() }
    }

    #[test]
    fn several_tags_are_acknowledged_at_once_only_if_no_lower_tag_is_open() {
        let mut settled = SettledTags::default();
        assert_eq!(settled.acknowledge(vec![2, 1, 3]), acks(3, &[]));
        // 4 has not even been read.
        assert_eq!(settled.acknowledge(vec![5, 6]), acks(None, &[5, 6]));
        settled.add(8);
        assert_eq!(settled.acknowledge(vec![4]), acks(4, &[]));
        assert_eq!(settled.acknowledge(vec![7, 10]), acks(7, &[10]));
        assert_eq!(settled.acknowledge(vec![9]), acks(9, &[]));
        assert_eq!((settled.up_to, settled.beyond.len()), (10, 0));
    }

    proptest! {
        /// Whatever the order, every tag is settled once, never an open one, and never one that is settled already.
        #[test]
        fn the_broker_settles_what_was_settled_here(
            order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in prop::collection::vec(1..8_usize, 40),
            refused in any::<u64>(),
        ) {
            let (mut settled, mut done) = (SettledTags::default(), BTreeSet::new());
            let mut open: BTreeSet<u64> = (1..=40).collect();
            let mut order = order.into_iter();
            for (n, size) in sizes.into_iter().enumerate() {
                let tags: Vec<u64> = order.by_ref().take(size).collect();
                done.extend(tags.iter().copied());
                if refused >> n & 1 == 1 {
                    for tag in tags {
                        settled.add(tag);
                        prop_assert!(open.remove(&tag));
                    }
                } else {
                    let Acks { all_up_to, single } = settled.acknowledge(tags);
                    if let Some(tag) = all_up_to {
                        prop_assert!(open.contains(&tag), "an unknown delivery tag");
                        open.retain(|open| *open > tag);
                    }
                    for tag in single {
                        prop_assert!(open.remove(&tag), "an unknown delivery tag");
                    }
                }
                prop_assert!(open.is_disjoint(&done));
                prop_assert_eq!(open.len() + done.len(), 40);
            }
        }
    }
}
