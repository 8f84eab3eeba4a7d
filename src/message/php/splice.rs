//! Changes the stamps in a serialized envelope, and leaves all else as PHP wrote it.
//!
//! References are numbers of values, counted from the beginning of the text. So the references to values after a change
//! get new numbers; nothing else changes in them.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::value::RawValue;

use super::super::headers::Headers;
use super::super::wire::STAMP_PREFIX;
use super::header;
use super::layout::{Layout, StampList};
use super::parse::{Key, Parsed};
use super::stamps::{self, Serialized};

/// An envelope with other stamps.
pub(super) struct Change {
    /// `None` if no stamp in it has changed.
    pub(super) text: Option<Vec<u8>>,
    /// What is not in the text.
    pub(super) headers: Headers,
}

/// The stamps of one class, as they are to be.
struct NewList<'p> {
    key: Key<'p>,
    /// The array that holds them now, if there is one.
    node: Option<usize>,
    /// `None` if they stay as they are.
    items: Option<Vec<NewItem>>,
    /// Stamps that cannot be in the text, as JSON.
    beside: Vec<String>,
}

enum NewItem {
    Kept(usize),
    Added { json: String, serialized: Serialized },
}

/// Makes the stamps in an envelope those that the headers say. Stamps of classes that PHP may not know stay headers.
pub(super) fn splice(parsed: &Parsed<'_>, layout: &Layout, headers: &Headers) -> Change {
    let references = References::of(parsed);
    let current = layout.stamps(parsed);
    let in_text: HashSet<String> = current.iter().filter_map(|list| list.class.map(header)).collect();
    let mut beside: Headers = headers.iter().filter(|(name, _)| !in_text.contains(*name)).collect();
    let mut lists: Vec<NewList> = current.iter().map(|list| changed(list, headers, &references, parsed)).collect();
    lists.extend(headers.iter().filter_map(|(name, value)| {
        added(name.strip_prefix(STAMP_PREFIX).filter(|_| !in_text.contains(name))?, value)
    }));
    for list in &lists {
        list.put_beside(&mut beside, list.beside.clone());
    }
    if lists.iter().all(|list| list.items.is_none()) {
        return Change { text: None, headers: beside };
    }
    let text = Composition::new(parsed, layout, &references, &lists).compose();
    if text.is_none() {
        // A value refers to a list that is to go. The stamps that cannot be added are not lost.
        for list in &lists {
            let added = list.items.iter().flatten().filter_map(|item| match item {
                NewItem::Added { json, .. } => Some(json.clone()),
                NewItem::Kept(_) => None,
            });
            list.put_beside(&mut beside, added.chain(list.beside.clone()).collect());
        }
    }
    Change { text, headers: beside }
}

/// What becomes of the stamps of a class that the text has.
fn changed<'p>(list: &StampList<'p>, headers: &Headers, references: &References, parsed: &Parsed<'p>) -> NewList<'p> {
    let mut new = NewList { key: parsed.nodes[list.node].key, node: Some(list.node), items: None, beside: Vec::new() };
    let Some(class) = list.class else { return new };
    let value = headers.get(&header(class)).unwrap_or_default();
    if value == list.to_json() {
        return new;
    }
    // A stamp that another value refers to has to stay.
    let pinned = |range: Range<usize>| {
        let nodes = list.items[range].iter().map(|item| item.node);
        nodes.filter(|node| references.lead_into(parsed.subtree(*node))).map(NewItem::Kept)
    };
    let elements = elements(value);
    let matches = matches(&elements, list);
    let mut items = Vec::new();
    let mut next = 0;
    for (n, element) in elements.iter().enumerate() {
        let next_match = matches[n..].iter().flatten().next().copied().unwrap_or(list.items.len());
        items.extend(pinned(next..next_match));
        next = next_match;
        if matches[n].is_some() {
            items.push(NewItem::Kept(list.items[next].node));
            next += 1;
            continue;
        }
        let json = element.get().to_owned();
        match stamps::serialize(class, &json) {
            Some(serialized) => items.push(NewItem::Added { json, serialized }),
            None => new.beside.push(json),
        }
    }
    items.extend(pinned(next..list.items.len()));
    let is_same = items.len() == list.items.len() && items.iter().all(|item| matches!(item, NewItem::Kept(_)));
    new.items = (!is_same).then_some(items);
    new
}

/// Which stamp in the text each of these is, if any. Both are in the same order.
fn matches(elements: &[Box<RawValue>], list: &StampList<'_>) -> Vec<Option<usize>> {
    let mut next = 0;
    let find = |json: &str| {
        let distance = list.items[next..].iter().position(|item| item.json == json)?;
        next += distance + 1;
        Some(next - 1)
    };
    elements.iter().map(|element| element.get()).map(find).collect()
}

/// The stamps of a class that the text does not have; `None` if they stay a header.
fn added<'p>(class: &'p str, value: &str) -> Option<NewList<'p>> {
    let mut beside = Vec::new();
    let mut items = Vec::new();
    for element in elements(value) {
        let json = element.get().to_owned();
        match stamps::serialize(class, &json) {
            Some(serialized) => items.push(NewItem::Added { json, serialized }),
            None => beside.push(json),
        }
    }
    (!items.is_empty()).then_some(NewList { key: Key::Text(class.as_bytes()), node: None, items: Some(items), beside })
}

/// The stamps in a header, each as its original text.
fn elements(value: &str) -> Vec<Box<RawValue>> {
    serde_json::from_str(value).unwrap_or_default()
}

impl NewList<'_> {
    /// Writes the header for stamps of this class that are not in the text, or removes it.
    fn put_beside(&self, headers: &mut Headers, stamps: Vec<String>) {
        let Key::Text(class) = self.key else { return };
        let name = header(&String::from_utf8_lossy(class));
        if !stamps.is_empty() {
            headers.insert(name, format!("[{}]", stamps.join(",")));
        } else if self.node.is_none() {
            headers.remove(&name);
        }
    }

    /// Does the envelope keep a list of this class? An empty one is none: Symfony expects a stamp in it.
    fn is_kept(&self) -> bool {
        self.items.as_ref().is_none_or(|items| !items.is_empty())
    }
}

/// The references in a text.
struct References {
    /// Where each one is, in the text, and the number it has; in the order of the text.
    places: Vec<(Range<usize>, u32)>,
    /// The value that each one refers to, and the reference, by their indexes; in the order of the former.
    targets: Vec<(usize, usize)>,
}

impl References {
    fn of(parsed: &Parsed<'_>) -> Self {
        let mut places = Vec::new();
        let mut targets = Vec::new();
        for (index, node) in parsed.nodes.iter().enumerate() {
            if let Some((number, target)) = parsed.reference(index) {
                places.push((node.range(), number));
                targets.push((target, index));
            }
        }
        targets.sort_unstable();
        Self { places, targets }
    }

    /// Does a value elsewhere refer to one of these?
    fn lead_into(&self, values: Range<usize>) -> bool {
        let first = self.targets.partition_point(|(target, _)| *target < values.start);
        let inside = self.targets[first..].iter().take_while(|(target, _)| *target < values.end);
        inside.into_iter().any(|(_, reference)| !values.contains(reference))
    }
}

/// Puts the new text together.
struct Composition<'a> {
    parsed: &'a Parsed<'a>,
    layout: &'a Layout,
    references: &'a References,
    lists: Vec<&'a NewList<'a>>,
    /// The new number of each value, by its old number. 0 if it is gone.
    numbers: Vec<u32>,
    out: Vec<u8>,
}

impl<'a> Composition<'a> {
    fn new(parsed: &'a Parsed<'a>, layout: &'a Layout, references: &'a References, lists: &'a [NewList<'a>]) -> Self {
        let lists = lists.iter().filter(|list| list.is_kept()).collect();
        let numbers = vec![0; parsed.nodes.len() + 1];
        Self { parsed, layout, references, lists, numbers, out: Vec::with_capacity(parsed.text.len() + 1024) }
    }

    /// `None` if a value refers to one that is gone.
    fn compose(mut self) -> Option<Vec<u8>> {
        self.count();
        let stamps = self.parsed.nodes[self.layout.stamps].range();
        self.copy(0..stamps.start)?;
        self.raw(&format!("a:{}:{{", self.lists.len()));
        for list in std::mem::take(&mut self.lists) {
            self.list(list)?;
        }
        self.raw("}");
        self.copy(stamps.end..self.parsed.text.len())?;
        Some(self.out)
    }

    /// Numbers the values as PHP will.
    fn count(&mut self) {
        let mut next = 1;
        self.number(0..1, &mut next);
        for property in self.parsed.children(0) {
            if property != self.layout.stamps {
                self.number(self.parsed.subtree(property), &mut next);
                continue;
            }
            self.number(property..property + 1, &mut next);
            for n in 0..self.lists.len() {
                self.number_list(self.lists[n], &mut next);
            }
        }
    }

    fn number_list(&mut self, list: &NewList<'_>, next: &mut u32) {
        match (list.node, &list.items) {
            (Some(node), None) => return self.number(self.parsed.subtree(node), next),
            (Some(node), Some(_)) => self.number(node..node + 1, next),
            (None, _) => *next += 1,
        }
        for item in list.items.iter().flatten() {
            match item {
                NewItem::Kept(node) => self.number(self.parsed.subtree(*node), next),
                NewItem::Added { serialized, .. } => *next += serialized.values,
            }
        }
    }

    fn number(&mut self, values: Range<usize>, next: &mut u32) {
        for node in &self.parsed.nodes[values] {
            if let Some(old) = node.number() {
                self.numbers[old as usize] = *next;
                *next += 1;
            }
        }
    }

    fn list(&mut self, list: &NewList<'_>) -> Option<()> {
        self.key(list.key);
        let items = match (list.node, &list.items) {
            (Some(node), None) => return self.copy(self.parsed.nodes[node].range()),
            (_, items) => items.as_deref().unwrap_or_default(),
        };
        self.raw(&format!("a:{}:{{", items.len()));
        for (n, item) in items.iter().enumerate() {
            self.raw(&format!("i:{n};"));
            match item {
                NewItem::Kept(node) => self.copy(self.parsed.nodes[*node].range())?,
                NewItem::Added { serialized, .. } => self.out.extend_from_slice(&serialized.text),
            }
        }
        self.raw("}");
        Some(())
    }

    fn key(&mut self, key: Key<'_>) {
        match key {
            Key::Int(key) => self.raw(&format!("i:{key};")),
            Key::Text(key) => {
                self.raw(&format!("s:{}:\"", key.len()));
                self.out.extend_from_slice(key);
                self.raw("\";");
            }
            Key::None => {}
        }
    }

    /// Copies a part of the text, with the new numbers in its references.
    fn copy(&mut self, part: Range<usize>) -> Option<()> {
        let mut copied = part.start;
        let first = self.references.places.partition_point(|(place, _)| place.start < part.start);
        for (place, number) in self.references.places[first..].iter().take_while(|(place, _)| place.end <= part.end) {
            let number = *self.numbers.get(*number as usize).filter(|number| **number != 0)?;
            // As it was: `r:` or `R:`.
            self.out.extend_from_slice(&self.parsed.text[copied..place.start + 2]);
            self.raw(&format!("{number};"));
            copied = place.end;
        }
        self.out.extend_from_slice(&self.parsed.text[copied..part.end]);
        Some(())
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }
}
