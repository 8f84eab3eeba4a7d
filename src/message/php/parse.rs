//! Parses the output of PHP's `serialize()` into a flat list of values, each with its place in the text.
//!
//! The crates that read this format (phpserz, deser-php) do not tell where a reference stands, which is what inserting a
//! value needs. Nothing is instantiated, and every bound is checked before memory is used for it.

use super::PhpError;

/// How deep values may be nested. PHP's own bound is 4096, that of its JSON 512.
pub(super) const MAX_DEPTH: usize = 512;

/// How many values there may be. Each takes less than 100 bytes of memory.
const MAX_VALUES: usize = 500_000;

/// A parsed text.
pub(super) struct Parsed<'a> {
    pub(super) text: &'a [u8],
    /// In the order of the text. The values in a container follow it.
    pub(super) nodes: Vec<Node<'a>>,
    /// The value that has a number, as references count: the first is number 1, at index 0.
    numbered: Vec<u32>,
}

/// One value.
pub(super) struct Node<'a> {
    pub(super) key: Key<'a>,
    pub(super) value: Value<'a>,
    /// Where the value's text begins and ends, without its key.
    start: u32,
    end: u32,
    /// The index after the last value in it.
    after: u32,
    /// The number that references use for it. `R:` has none.
    number: Option<u32>,
}

/// What a value stands under in its container.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    /// The outermost value has no key.
    None,
    Int(i64),
    Text(&'a [u8]),
}

pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a [u8]),
    Array,
    /// Its properties, or the elements that its `__serialize()` has returned.
    Object {
        class: &'a [u8],
    },
    /// An object of a class with a format of its own (PHP's interface `Serializable`).
    Custom {
        data: &'a [u8],
    },
    Enum {
        case: &'a [u8],
    },
    /// The value that has this number.
    Reference {
        number: u32,
        /// The index of the value that it refers to in the end: none that is a reference itself.
        target: u32,
    },
}

impl Node<'_> {
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    pub(super) fn number(&self) -> Option<u32> {
        self.number
    }
}

impl<'a> Parsed<'a> {
    /// Parses a text that is one value.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, PhpError> {
        if u32::try_from(text.len()).is_err() {
            return Err(PhpError::at(0, "the text is longer than 4 GiB"));
        }
        let parsed = Parsed { text, nodes: Vec::new(), numbered: Vec::new() };
        Parser { parsed, position: 0, opaque_from: None }.parse()
    }

    /// Parses what an object with a format of its own has written, if it is one value without another such object in it.
    pub(super) fn parse_data(text: &'a [u8]) -> Option<Self> {
        let parsed = Parsed::parse(text).ok()?;
        let is_plain = |node: &Node| !matches!(node.value, Value::Custom { .. });
        parsed.nodes.iter().all(is_plain).then_some(parsed)
    }

    /// The values in a container, by their index.
    pub(super) fn children(&self, container: usize) -> impl Iterator<Item = usize> {
        let end = self.nodes[container].after as usize;
        let mut next = container + 1;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(next)?;
            next = self.nodes[child].after as usize;
            Some(child)
        })
    }

    /// A value and all values in it, by their index.
    pub(super) fn subtree(&self, node: usize) -> std::ops::Range<usize> {
        node..self.nodes[node].after as usize
    }

    /// The number in a reference, and the index of the value that has it. That may be a reference itself.
    pub(super) fn reference(&self, node: usize) -> Option<(u32, usize)> {
        match self.nodes[node].value {
            Value::Reference { number, .. } => Some((number, self.numbered[number as usize - 1] as usize)),
            _ => None,
        }
    }

    /// The value that a node is or refers to.
    pub(super) fn resolve(&self, node: usize) -> usize {
        match self.nodes[node].value {
            Value::Reference { target, .. } => target as usize,
            _ => node,
        }
    }
}

struct Parser<'a> {
    parsed: Parsed<'a>,
    position: usize,
    /// How many values there were when an object with a format of its own came. PHP may count further values in it, so
    /// later references to higher numbers cannot be resolved.
    opaque_from: Option<(usize, &'a [u8])>,
}

/// A container that is not complete.
struct Open {
    index: u32,
    remaining: usize,
}

impl<'a> Parser<'a> {
    fn parse(mut self) -> Result<Parsed<'a>, PhpError> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            // Ends every container that is complete.
            while let Some(Open { index, .. }) = open.pop_if(|container| container.remaining == 0) {
                self.expect(b"}")?;
                self.end(index);
            }
            let key = match open.last_mut() {
                Some(container) => {
                    container.remaining -= 1;
                    self.key()?
                }
                None if self.parsed.nodes.is_empty() => Key::None,
                None => break,
            };
            if let Some(container) = self.value(key)? {
                if open.len() >= MAX_DEPTH {
                    return Err(self.error(&format!("values are nested more than {MAX_DEPTH} deep")));
                }
                open.push(container);
            }
        }
        if self.position != self.parsed.text.len() {
            return Err(self.error("there is more text after the value"));
        }
        Ok(self.parsed)
    }

    /// Reads a value. Returns it if it is a container, whose values follow.
    fn value(&mut self, key: Key<'a>) -> Result<Option<Open>, PhpError> {
        let start = self.position;
        let kind = self.byte()?;
        if kind != b'R' {
            self.parsed.numbered.push(self.index()?);
        }
        let number = (kind != b'R').then_some(u32::try_from(self.parsed.numbered.len()).unwrap_or(u32::MAX));
        let mut children = None;
        let value = match kind {
            b'N' => {
                self.expect(b";")?;
                Value::Null
            }
            b'b' => {
                self.expect(b":")?;
                let value = self.byte()?;
                self.expect(b";")?;
                match value {
                    b'0' => Value::Bool(false),
                    b'1' => Value::Bool(true),
                    _ => return Err(self.error("expected b:0; or b:1;")),
                }
            }
            b'i' => {
                self.expect(b":")?;
                Value::Int(self.integer()?)
            }
            b'd' => {
                self.expect(b":")?;
                Value::Float(self.float()?)
            }
            b's' => {
                self.expect(b":")?;
                let text = self.quoted()?;
                self.expect(b";")?;
                Value::Text(text)
            }
            b'E' => {
                self.expect(b":")?;
                let name = self.quoted()?;
                self.expect(b";")?;
                let colon = name.iter().position(|byte| *byte == b':');
                let colon = colon.ok_or_else(|| self.error("expected an enum's class and case"))?;
                Value::Enum { case: &name[colon + 1..] }
            }
            b'a' => {
                self.expect(b":")?;
                children = Some(self.count()?);
                Value::Array
            }
            b'O' => {
                self.expect(b":")?;
                let class = self.quoted()?;
                self.expect(b":")?;
                children = Some(self.count()?);
                Value::Object { class }
            }
            b'C' => {
                self.expect(b":")?;
                let class = self.quoted()?;
                self.expect(b":")?;
                let length = self.length()?;
                self.expect(b":{")?;
                let data = self.take(length)?;
                self.expect(b"}")?;
                if has_reference(data) {
                    return Err(self.error(&format!(
                        "an object of the class {} has a format of its own, with references",
                        name(class)
                    )));
                }
                self.opaque_from.get_or_insert((self.parsed.numbered.len(), class));
                Value::Custom { data }
            }
            b'r' | b'R' => {
                self.expect(b":")?;
                self.reference(kind == b'r')?
            }
            _ => return Err(PhpError::at(start, "expected a value")),
        };
        let index = self.index()?;
        let (start, end) = (offset(start), offset(self.position));
        self.parsed.nodes.push(Node { key, value, start, end, after: index + 1, number });
        Ok(children.map(|remaining| Open { index, remaining }))
    }

    /// The index of the next value.
    fn index(&self) -> Result<u32, PhpError> {
        match u32::try_from(self.parsed.nodes.len()) {
            Ok(index) if self.parsed.nodes.len() < MAX_VALUES => Ok(index),
            _ => Err(self.error(&format!("there are more than {MAX_VALUES} values"))),
        }
    }

    fn end(&mut self, index: u32) {
        let after = u32::try_from(self.parsed.nodes.len()).unwrap_or(u32::MAX);
        let end = offset(self.position);
        let node = &mut self.parsed.nodes[index as usize];
        (node.end, node.after) = (end, after);
    }

    fn key(&mut self) -> Result<Key<'a>, PhpError> {
        let kind = self.byte()?;
        self.expect(b":")?;
        match kind {
            b'i' => Ok(Key::Int(self.integer()?)),
            b's' => {
                let text = self.quoted()?;
                self.expect(b";")?;
                Ok(Key::Text(text))
            }
            _ => Err(self.error("expected a key: an integer or a string")),
        }
    }

    /// A reference to a value before it: to an object, if it is `r:`.
    fn reference(&mut self, to_object: bool) -> Result<Value<'a>, PhpError> {
        let number = self.length()?;
        self.expect(b";")?;
        // `r:` has a number itself, and cannot refer to itself.
        let known = self.parsed.numbered.len() - usize::from(to_object);
        if number == 0 || number > known {
            return Err(self.error("a reference to a value that does not stand before it"));
        }
        if let Some((_, class)) = self.opaque_from.filter(|(until, _)| number > *until) {
            let class = name(class);
            return Err(
                self.error(&format!("a reference after an object of the class {class}, which has a format of its own"))
            );
        }
        let target = self.parsed.resolve(self.parsed.numbered[number - 1] as usize);
        let value = &self.parsed.nodes[target].value;
        if to_object && !matches!(value, Value::Object { .. } | Value::Custom { .. } | Value::Enum { .. }) {
            return Err(self.error("a reference to an object that is none"));
        }
        Ok(Value::Reference { number: offset(number), target: offset(target) })
    }

    /// The number of values in a container.
    fn count(&mut self) -> Result<usize, PhpError> {
        let count = self.length()?;
        self.expect(b":{")?;
        // A key takes four bytes at least, and a value two.
        if count > self.rest().len() / 6 {
            return Err(self.error("a count of values that the text cannot hold"));
        }
        Ok(count)
    }

    fn quoted(&mut self) -> Result<&'a [u8], PhpError> {
        let length = self.length()?;
        self.expect(b":\"")?;
        let text = self.take(length)?;
        self.expect(b"\"")?;
        Ok(text)
    }

    fn length(&mut self) -> Result<usize, PhpError> {
        let digits = self.take_while(|byte| byte.is_ascii_digit());
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok());
        number.map(|number| number as usize).ok_or_else(|| self.error("expected a number from 0 to 4294967295"))
    }

    fn integer(&mut self) -> Result<i64, PhpError> {
        let digits = self.take_while(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'));
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let number = number.ok_or_else(|| self.error("expected an integer of 64 bits"))?;
        self.expect(b";")?;
        Ok(number)
    }

    fn float(&mut self) -> Result<f64, PhpError> {
        let number = match self.take_while(|byte| byte != b';') {
            b"NAN" => f64::NAN,
            b"INF" => f64::INFINITY,
            b"-INF" => f64::NEG_INFINITY,
            digits if digits.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte)) => {
                let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                number.ok_or_else(|| self.error("expected a number"))?
            }
            _ => return Err(self.error("expected a number")),
        };
        self.expect(b";")?;
        Ok(number)
    }

    fn rest(&self) -> &'a [u8] {
        &self.parsed.text[self.position..]
    }

    fn byte(&mut self) -> Result<u8, PhpError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PhpError> {
        let taken = self.rest().get(..length).ok_or_else(|| self.error("the text ends too early"))?;
        self.position += length;
        Ok(taken)
    }

    fn take_while(&mut self, is_taken: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let length = rest.iter().position(|byte| !is_taken(*byte)).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    fn expect(&mut self, expected: &[u8]) -> Result<(), PhpError> {
        if !self.rest().starts_with(expected) {
            return Err(self.error(&format!("expected {}", String::from_utf8_lossy(expected))));
        }
        self.position += expected.len();
        Ok(())
    }

    fn error(&self, what: &str) -> PhpError {
        PhpError::at(self.position, what)
    }
}

/// A place in the text, whose length is checked before anything else.
fn offset(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

/// The name of a class, for people.
fn name(class: &[u8]) -> String {
    super::for_people(class)
}

/// Is there anything in it that might be a reference?
fn has_reference(data: &[u8]) -> bool {
    data.windows(3).any(|window| matches!(window, [b'r' | b'R', b':', digit] if digit.is_ascii_digit()))
}
