//! What handlers outside of this process are told about a message, besides its body.

use std::collections::HashSet;

use crate::message::{Envelope, Headers, ReceivedStamp, RedeliveryStamp, TransportMessageIdStamp, headers_to_json};

/// What a message is, and where it came from.
pub(super) struct Metadata {
    /// Its id on the transport that it was received from; empty if it is handled during its dispatch.
    pub(super) id: String,
    /// The transport that it was received from; empty if it is handled during its dispatch.
    pub(super) transport: String,
    /// 1 for the first attempt.
    pub(super) attempt: u32,
}

impl Metadata {
    pub(super) fn of(envelope: &Envelope) -> Self {
        let received = envelope.last::<ReceivedStamp>();
        let id = received.as_ref().and_then(|_| envelope.last::<TransportMessageIdStamp>());
        let retries = envelope.last::<RedeliveryStamp>().map_or(0, |stamp| stamp.retry_count);
        Self {
            id: match id.map(|stamp| stamp.id) {
                None => String::new(),
                Some(serde_json::Value::String(id)) => id,
                Some(id) => id.to_string(),
            },
            transport: received.map(|stamp| stamp.transport_name).unwrap_or_default(),
            attempt: retries.saturating_add(1),
        }
    }
}

/// The headers as JSON of at most `most` bytes. If they are larger (usually because of PHP's stack traces), the largest are
/// left out: a handler can do without them, but not without the message. `name` is where they are written.
pub(super) fn headers_within(most: usize, name: &str, mut headers: Headers) -> String {
    let json = headers_to_json(&headers);
    if json.len() <= most {
        return json;
    }
    let alone = |name: &str, value: &str| headers_to_json(&Headers::from([(name, value)])).len();
    let mut sizes: Vec<(usize, String)> =
        headers.iter().map(|(name, value)| (alone(name, value), name.to_owned())).collect();
    sizes.sort_by(|a, b| b.cmp(a));
    let mut length = json.len();
    let mut left_out = HashSet::new();
    for (size, header) in sizes {
        if length <= most {
            break;
        }
        if left_out.len() < 3 {
            tracing::warn!(header, "left out of {name}, which would be too large");
        }
        // `size` has two braces. One makes up for the comma; the other is not part of the whole.
        length -= size - 1;
        left_out.insert(header);
    }
    if left_out.len() > 3 {
        tracing::warn!(headers = left_out.len(), "headers left out of {name} in total");
    }
    headers.retain(|name, _| !left_out.contains(name));
    headers_to_json(&headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_headers_are_cut_quickly_to_what_fits() {
        const MOST: usize = 96 * 1024;
        let mut headers: Headers = (0..200_000).map(|n| (format!("X-{n}"), "v".to_owned())).collect();
        headers.insert("X-Large", "é\n".repeat(50_000));
        let begun = std::time::Instant::now();
        let json = headers_within(MOST, "MINUTELY_HEADERS", headers);
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
        assert!(json.len() <= MOST && json.len() > MOST - 100, "{}", json.len());
        let kept: std::collections::HashMap<String, String> = serde_json::from_str(&json).unwrap();
        assert!(!kept.contains_key("X-Large"));
    }
}
