//! Which serializer reads and writes the messages of a transport.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::Serializer;
use super::foreign::Foreign;
use super::json::Json;
use super::php::Php;
use crate::config::{Config, MessageForm, Problem, SerializerConfig};
use crate::message::{Encoded, Envelope, SentToFailureTransportStamp, UndecodableError};

/// The interfaces of each type.
pub(crate) type Interfaces = HashMap<String, Vec<String>>;

/// The serializers of an application.
#[derive(Clone)]
pub(crate) struct Serializers {
    by_transport: HashMap<String, Arc<dyn Serializer>>,
    otherwise: Arc<dyn Serializer>,
    /// Whether that one writes anything else than JSON.
    otherwise_is_needed: bool,
    failure_transports: HashSet<String>,
    #[cfg(feature = "encryption")]
    encrypted: Vec<Arc<super::encrypted::Encrypted>>,
}

impl Default for Serializers {
    fn default() -> Self {
        Self {
            by_transport: HashMap::new(),
            otherwise: Arc::new(Json),
            otherwise_is_needed: false,
            failure_transports: HashSet::new(),
            #[cfg(feature = "encryption")]
            encrypted: Vec::new(),
        }
    }
}

impl Serializers {
    /// The serializers of a configuration. `own` are those of the application, by name.
    pub(crate) fn new(
        config: &Config,
        own: &IndexMap<String, Arc<dyn Serializer>>,
        interfaces: Interfaces,
    ) -> (Self, Vec<Problem>) {
        let mut building =
            Building { config, own, interfaces: Arc::new(interfaces), problems: Vec::new(), made: Self::default() };
        building.made.otherwise = building.serializer(config.serializer.as_ref());
        building.made.otherwise_is_needed = config.serializer.is_some() || config.signing.is_some();
        for (name, transport) in &config.transports {
            if transport.serializer.is_some() {
                let serializer = building.serializer(transport.serializer.as_ref());
                building.made.by_transport.insert(name.clone(), serializer);
            }
        }
        let own = config.transports.values().filter_map(|transport| transport.failure_transport.clone());
        building.made.failure_transports = own.chain(config.failure_transport.clone()).collect();
        (building.made, building.problems)
    }

    /// What writes and reads the messages of a transport.
    pub(crate) fn of(&self, transport: &str) -> &Arc<dyn Serializer> {
        self.by_transport.get(transport).unwrap_or(&self.otherwise)
    }

    /// The same, unless it is the one of all transports that need no other.
    pub(crate) fn if_needed(&self, transport: &str) -> Option<Arc<dyn Serializer>> {
        let is_needed = self.by_transport.contains_key(transport) || self.otherwise_is_needed;
        is_needed.then(|| Arc::clone(self.of(transport)))
    }

    /// Adds another name for a transport: that of an auto-fallback, whose messages are its target's.
    pub(crate) fn add_name(&mut self, name: &str, target: &str) {
        if let Some(serializer) = self.by_transport.get(target).cloned() {
            self.by_transport.insert(name.to_owned(), serializer);
        }
        if self.failure_transports.contains(name) {
            self.failure_transports.insert(target.to_owned());
        }
    }

    /// What can read this message of a transport, and writes it again. On a failure transport that is the serializer of the
    /// transport that the message came from.
    pub(crate) fn for_message(&self, transport: &str, encoded: &Encoded) -> Arc<dyn Serializer> {
        let mut serializer = self.of(transport);
        if self.failure_transports.contains(transport) {
            // The stamp is a header, except of messages that PHP has written: those are read alike by all.
            let mut stamps = Envelope::from_json("", "");
            stamps.join_headers(&encoded.headers);
            if let Some(SentToFailureTransportStamp { original_receiver_name: origin }) =
                stamps.all().into_iter().next()
            {
                serializer = self.of(&origin);
            }
            #[cfg(feature = "encryption")]
            if let Some(encrypted) = self.encrypted.iter().find(|encrypted| encrypted.has_key_of(encoded)) {
                return Arc::clone(encrypted) as Arc<dyn Serializer>;
            }
        }
        Arc::clone(serializer)
    }

    /// Reads a message of a transport, and says what has read it.
    pub(crate) fn decode(
        &self,
        transport: &str,
        encoded: &Encoded,
    ) -> Result<(Envelope, Arc<dyn Serializer>), UndecodableError> {
        let serializer = self.for_message(transport, encoded);
        let envelope = serializer.decode(encoded).map_err(|error| why_unreadable(encoded, error))?;
        Ok((envelope, serializer))
    }
}

/// A serializer without encryption sees nothing but nonsense.
fn why_unreadable(encoded: &Encoded, error: UndecodableError) -> UndecodableError {
    match (encoded.headers.get(super::ENCRYPTED), &error) {
        (Some(_), UndecodableError::Encryption(_)) | (None, _) => error,
        (Some(_), _) => UndecodableError::Encryption(
            "the message is encrypted, and nothing here has its key: its transport needs `serializer: {encrypt: {keys: …}}`"
                .to_owned(),
        ),
    }
}

struct Building<'a> {
    config: &'a Config,
    own: &'a IndexMap<String, Arc<dyn Serializer>>,
    #[cfg_attr(not(feature = "signing"), expect(dead_code, reason = "only signatures go by interfaces"))]
    interfaces: Arc<Interfaces>,
    problems: Vec<Problem>,
    made: Serializers,
}

impl Building<'_> {
    fn serializer(&mut self, settings: Option<&SerializerConfig>) -> Arc<dyn Serializer> {
        let form = settings.map_or(&MessageForm::Json, |settings| &settings.form);
        let serializer: Arc<dyn Serializer> = match form {
            MessageForm::Json => Arc::new(Json),
            MessageForm::Php => Arc::new(Php(self.config.php.clone())),
            MessageForm::Foreign(form) => Arc::new(Foreign(form.clone())),
            MessageForm::Named(name) => match self.own.get(name) {
                Some(own) => Arc::clone(own),
                None => {
                    self.report_unknown(name, settings);
                    Arc::new(Json)
                }
            },
        };
        let signed = self.signed(Arc::clone(&serializer));
        self.encrypted(serializer, signed, settings)
    }

    #[cfg(feature = "signing")]
    fn signed(&self, inner: Arc<dyn Serializer>) -> Arc<dyn Serializer> {
        match &self.config.signing {
            Some(signing) => Arc::new(super::signed::Signed::new(inner, signing, Arc::clone(&self.interfaces))),
            None => inner,
        }
    }

    #[cfg(not(feature = "signing"))]
    fn signed(&self, inner: Arc<dyn Serializer>) -> Arc<dyn Serializer> {
        debug_assert!(self.config.signing.is_none(), "the configuration was refused");
        inner
    }

    /// What is encrypted needs no signature: nobody else has the key.
    #[cfg(feature = "encryption")]
    fn encrypted(
        &mut self,
        inner: Arc<dyn Serializer>,
        signed: Arc<dyn Serializer>,
        settings: Option<&SerializerConfig>,
    ) -> Arc<dyn Serializer> {
        match settings.and_then(|settings| settings.encryption.as_ref()) {
            Some(encryption) => {
                let encrypted = Arc::new(super::encrypted::Encrypted::new(inner, signed, encryption));
                self.made.encrypted.push(Arc::clone(&encrypted));
                encrypted
            }
            None => signed,
        }
    }

    #[cfg(not(feature = "encryption"))]
    fn encrypted(
        &mut self,
        _: Arc<dyn Serializer>,
        signed: Arc<dyn Serializer>,
        _: Option<&SerializerConfig>,
    ) -> Arc<dyn Serializer> {
        signed
    }

    fn report_unknown(&mut self, name: &str, settings: Option<&SerializerConfig>) {
        let path = settings.map_or("", |settings| settings.path.as_str());
        // The names of PHP's services have dots or backslashes in them.
        if name.contains(['.', '\\']) {
            let message = format!(
                "\"{name}\" is ignored: it is a PHP service, and new messages are JSON; for messages of other applications there are \
                 `type` and `type_field`"
            );
            self.problems.push(Problem::warning(path, message));
            return;
        }
        let known = self.own.keys().map(String::as_str).chain(["json", "php"]);
        self.problems.push(Problem::unknown(path, "serializer", name, known));
    }
}
