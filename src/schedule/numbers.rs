//! A set of small numbers, as a field of an expression names them; and such a set in words.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A set of numbers below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn of(numbers: impl IntoIterator<Item = u32>) -> Self {
        Self(numbers.into_iter().fold(0, |bits, number| bits | 1 << number))
    }

    pub(super) fn contains(self, number: u32) -> bool {
        number < 64 && self.0 >> number & 1 == 1
    }

    pub(super) fn first_from(self, number: u32) -> Option<u32> {
        let rest = if number < 64 { self.0 >> number << number } else { 0 };
        (rest != 0).then(|| rest.trailing_zeros())
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |number| self.contains(*number))
    }

    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Both together.
    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn add(&mut self, other: Self) {
        *self = self.with(other);
    }

    /// The numbers in words, one part for each run of them: three and more in a row are joined by `to`.
    pub(super) fn in_words(self, show: impl Fn(u32) -> String) -> Vec<String> {
        let mut shown = Vec::new();
        let mut rest = self.iter().peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1) {
                last = next;
            }
            match last - first {
                0 => shown.push(show(first)),
                1 => shown.extend([show(first), show(last)]),
                _ => shown.push(format!("{} to {}", show(first), show(last))),
            }
        }
        shown
    }

    /// The months that have these numbers: `January`, `January, March to May and July`.
    pub(super) fn as_months(self) -> String {
        listed(&self.in_words(|month| MONTHS[month as usize % 13 - 1].to_owned()))
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn listed(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}
