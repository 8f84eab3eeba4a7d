//! Reads `serializer`, at the top of the file and on a transport, and `signing`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use indexmap::IndexMap;

use super::Secret;
use super::definition::{Definition, Kind, Setting};
use super::section::{Node, Reader, Section};
use crate::message::{PhpClass, PhpClasses, PhpProperty, class_name};

/// The length of a key, in bytes.
pub(crate) const KEY_LENGTH: usize = 32;

/// The service that makes a Symfony application read JSON, and its default.
const SYMFONY_JSON: &str = "messenger.transport.symfony_serializer";
const SYMFONY_PHP: &[&str] = &["messenger.transport.native_php_serializer", "messenger.default_serializer"];

/// What `serializer: NAME` may name beside serializers of the application.
const JSON: &str = "json";
const PHP: &str = "php";

/// The key `serializer`.
pub(super) const SERIALIZER: Definition = Definition::new(
    "serializer",
    Kind::Either(&[Kind::Text("name"), Kind::Section(KEYS)]),
    "how messages are written, for transports that do not say it themselves",
)
.or("JSON");

/// The same of a transport.
pub(super) const OWN_SERIALIZER: Definition = Definition::new(
    "serializer",
    Kind::Either(&[Kind::Text("name"), Kind::Section(KEYS)]),
    "how its messages are written: `json`, `php`, or the name of a serializer of the application, or these keys",
)
.or("`serializer`");

const KEYS: &[Definition] = &[NAME, TYPE, TYPE_FIELD, TYPES, BODY_FIELD, ENCRYPT];
const NAME: Definition =
    Definition::new("name", Kind::Text("name"), "`json`, `php`, or the name of a serializer of the application")
        .or("`json`");
const TYPE: Definition = Definition::new(
    "type",
    Kind::Text("type"),
    "the type of messages that another application has written without one",
);
const TYPE_FIELD: Definition = Definition::new(
    "type_field",
    Kind::Text("field"),
    "the field of such a message that says what it is; `a.b` is field `b` of field `a`",
);
const TYPES: Definition = Definition::new(
    "types",
    Kind::Map(&Kind::Text("type")),
    "the type for each value of that field; without it, the value is the type",
);
const BODY_FIELD: Definition = Definition::new(
    "body_field",
    Kind::Text("field"),
    "the field of such a message that holds what handlers get; without it, they get all of it",
);
const ENCRYPT: Definition =
    Definition::new("encrypt", Kind::Section(ENCRYPT_KEYS), "encrypts messages while they are in their queue");
const ENCRYPT_KEYS: &[Definition] = &[ENCRYPTION_KEYS, ACCEPT_PLAIN.definition];
const ENCRYPTION_KEYS: Definition = Definition::new(
    "keys",
    Kind::OneOrMore(&Kind::Text("text")),
    "keys of 32 bytes in base64, as the command `key` prints one: the first one encrypts, all of them decrypt",
)
.required()
.example("['%env(QUEUE_KEY)%']");
const ACCEPT_PLAIN: Setting<bool> = Setting::flag(
    "accept_plain",
    "false",
    "whether messages that are not encrypted are handled too, while a queue changes over",
);

/// The key `signing`.
pub(super) const SIGNING: Definition = Definition::new(
    "signing",
    Kind::Section(SIGNING_KEYS),
    "messages whose sender has to be known are signed, as Symfony 7.4 does for handlers with `sign: true`",
);
const SIGNING_KEYS: &[Definition] = &[SIGNING_KEY, SIGNED_TYPES, COVER_HEADERS.definition];
const SIGNING_KEY: Definition = Definition::new(
    "key",
    Kind::OneOrMore(&Kind::Text("text")),
    "the secret, in Symfony `kernel.secret`; of several the first one signs, and all of them verify",
)
.required()
.example("'%env(APP_SECRET)%'");
const SIGNED_TYPES: Definition = Definition::new(
    "types",
    Kind::OneOrMore(&Kind::Text("type")),
    "types, interfaces and wildcards of messages that must be signed",
)
.required()
.example(r"[App\Message\RunReport]");
const COVER_HEADERS: Setting<bool> = Setting::flag(
    "cover_headers",
    "true",
    "whether a signature covers type and stamps too; early releases of Symfony 7.4 know only false. Both are verified",
);

/// The key `php`.
pub(super) const PHP_KEY: Definition =
    Definition::new("php", Kind::Section(PHP_KEYS), "what must be known of PHP's classes for `serializer: php`");
const PHP_KEYS: &[Definition] = &[CLASSES];
const CLASSES: Definition = Definition::new(
    "classes",
    Kind::Map(&Kind::Map(&Kind::Text("declaration"))),
    "the properties of each class as PHP declares them: `{to: private string, at: ?DateTimeImmutable}`",
);

/// Reads `php`.
pub(super) fn read_php(node: Node, reader: &mut Reader) -> PhpClasses {
    let mut classes = PhpClasses::default();
    let Some(mut section) = node.section(PHP_KEYS, "a mapping with `classes`", reader) else { return classes };
    let entries =
        section.take("classes").and_then(|node| node.entries("a mapping of classes to their properties", reader));
    let mut used = Vec::new();
    for (name, node) in entries.unwrap_or_default() {
        let class = class_name(&name).map_err(|why| reader.error(&node.path, why)).ok();
        let mut properties = PhpClass::new();
        for (name, node) in node.entries("a mapping of properties to their declarations", reader).unwrap_or_default() {
            let Some(declaration) = node.filled_text("a declaration such as `private ?string`", reader) else {
                continue;
            };
            match PhpProperty::parse(&name, &declaration) {
                Ok(property) => {
                    used.extend(property.class().map(|class| (node.path.clone(), class.to_owned())));
                    properties.push(property);
                }
                Err(why) => reader.error(&node.path, why),
            }
        }
        classes.0.extend(class.map(|class| (class, properties)));
    }
    for (path, class) in used {
        if !classes.0.contains_key(&class) {
            reader.error(&path, format!("the properties of \"{class}\" are not under `php.classes`"));
        }
    }
    classes
}

/// How messages are written.
#[derive(Debug, Clone)]
pub(crate) struct SerializerConfig {
    /// Its place in the file.
    pub(crate) path: String,
    /// What a message looks like, before it is encrypted.
    pub(crate) form: MessageForm,
    /// Whether it is encrypted.
    #[cfg_attr(not(feature = "encryption"), allow(dead_code, reason = "nothing encrypts"))]
    pub(crate) encryption: Option<EncryptionConfig>,
}

/// What a message looks like.
#[derive(Debug, Clone)]
pub(crate) enum MessageForm {
    /// Symfony's JSON.
    Json,
    /// What PHP's `serialize()` writes.
    Php,
    /// What a serializer of the application writes.
    Named(String),
    /// What another application writes.
    Foreign(ForeignForm),
}

/// What another application's messages look like.
#[derive(Debug, Clone, Default)]
pub(crate) struct ForeignForm {
    /// The type where no field says it.
    pub(crate) message_type: Option<String>,
    /// The path of the field that says it.
    pub(crate) type_field: Option<String>,
    /// The types by that field's values; `None` if these are the types.
    pub(crate) types: Option<IndexMap<String, String>>,
    /// The path of the field with what handlers get.
    pub(crate) body_field: Option<String>,
}

/// How messages are encrypted.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "encryption"), allow(dead_code, reason = "nothing encrypts"))]
pub(crate) struct EncryptionConfig {
    /// At least one. The first one encrypts.
    pub(crate) keys: Vec<Key>,
    /// Whether plain messages are handled.
    pub(crate) accept_plain: bool,
}

/// A key, which is never shown.
#[derive(Clone)]
#[cfg_attr(not(feature = "encryption"), allow(dead_code, reason = "nothing encrypts"))]
pub(crate) struct Key(pub(crate) [u8; KEY_LENGTH]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Which messages are signed.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "signing"), allow(dead_code, reason = "nothing signs"))]
pub(crate) struct SigningConfig {
    /// At least one. The first one signs.
    pub(crate) keys: Vec<Secret>,
    /// Types, interfaces and wildcards.
    pub(crate) types: Vec<String>,
    /// Whether a signature covers type and stamps.
    pub(crate) cover_headers: bool,
}

/// Reads a serializer. `None` if there is a mistake in it.
pub(super) fn read_serializer(node: Node, reader: &mut Reader) -> Option<SerializerConfig> {
    let expected = "the name of a serializer, or a mapping";
    let path = node.path.clone();
    if !node.is_mapping() {
        let form = read_name(&node, expected, reader)?;
        return Some(SerializerConfig { path, form, encryption: None });
    }
    let mut section = node.section(KEYS, expected, reader)?;
    let named =
        section.take("name").map(|node| (node.path.clone(), read_name(&node, "the name of a serializer", reader)));
    let foreign = read_foreign(&mut section, reader);
    let encryption = section.take("encrypt").map(|node| read_encryption(node, reader));
    let form = match (named, foreign) {
        (Some((path, Some(MessageForm::Named(_) | MessageForm::Php))), Some(_)) => {
            reader.error(&path, "cannot be beside `type` and `type_field`: such a serializer knows the type itself");
            return None;
        }
        (_, Some(foreign)) => MessageForm::Foreign(foreign),
        (Some((_, named)), None) => named?,
        (None, None) => MessageForm::Json,
    };
    let encryption = match encryption {
        Some(encryption) => Some(encryption?),
        None => None,
    };
    Some(SerializerConfig { path, form, encryption })
}

fn read_name(node: &Node, expected: &str, reader: &mut Reader) -> Option<MessageForm> {
    let name = node.filled_text(expected, reader)?;
    if name == JSON || name == SYMFONY_JSON {
        return Some(MessageForm::Json);
    }
    if name == PHP {
        return Some(MessageForm::Php);
    }
    if SYMFONY_PHP.contains(&name.as_str()) {
        let message = format!(
            "{} is ignored: new messages are JSON, as {SYMFONY_JSON} writes and reads it; what PHP's default serializer has written is \
             read, and goes back in that form; `serializer: php` writes that form",
            node.shown()
        );
        reader.warning(&node.path, message);
        return Some(MessageForm::Json);
    }
    Some(MessageForm::Named(name))
}

fn read_foreign(section: &mut Section, reader: &mut Reader) -> Option<ForeignForm> {
    let [message_type, type_field, body_field] =
        [("type", "a type"), ("type_field", "a field"), ("body_field", "a field")].map(|(key, expected)| {
            section.take(key).map(|node| (node.path.clone(), node.filled_text(expected, reader)))
        });
    let types = section.take("types").map(|node| (node.path.clone(), read_types(node, reader)));
    for (what, path) in
        [("types", types.as_ref().map(|found| &found.0)), ("body_field", body_field.as_ref().map(|found| &found.0))]
    {
        if let Some(path) = path
            && type_field.is_none()
            && (what == "types" || message_type.is_none())
        {
            let needed = if what == "types" { "`type_field`" } else { "`type` or `type_field`" };
            reader.error(path, format!("is of no use without {needed}"));
        }
    }
    if message_type.is_none() && type_field.is_none() {
        return None;
    }
    Some(ForeignForm {
        message_type: message_type.and_then(|(_, text)| text),
        type_field: type_field.and_then(|(_, text)| text),
        types: types.map(|(_, types)| types),
        body_field: body_field.and_then(|(_, text)| text),
    })
}

fn read_types(node: Node, reader: &mut Reader) -> IndexMap<String, String> {
    let entries = node.entries("a mapping of the field's values to types", reader).unwrap_or_default();
    let read = |(value, node): (String, Node)| Some((value, node.filled_text("a type", reader)?));
    entries.into_iter().filter_map(read).collect()
}

fn read_encryption(node: Node, reader: &mut Reader) -> Option<EncryptionConfig> {
    let path = node.path.clone();
    let mut section = node.section(ENCRYPT_KEYS, "a mapping with `keys`", reader)?;
    let accept_plain = section.get(&ACCEPT_PLAIN, reader);
    let items = section.require(&ENCRYPTION_KEYS, reader)?.items_or_one("a list of keys", reader)?;
    if !cfg!(feature = "encryption") {
        reader.error(&path, "this build cannot encrypt: it was made without the cargo feature `encryption`");
        return None;
    }
    if items.is_empty() {
        reader.error(&path, "needs at least one key");
        return None;
    }
    let count = items.len();
    let keys: Vec<Key> = items.into_iter().filter_map(|node| read_key(&node, reader)).collect();
    (keys.len() == count).then_some(EncryptionConfig { keys, accept_plain })
}

/// A key. Its text is never shown.
fn read_key(node: &Node, reader: &mut Reader) -> Option<Key> {
    let text = node.filled_text("a key", reader)?;
    let key = BASE64.decode(text.trim()).ok().and_then(|bytes| <[u8; KEY_LENGTH]>::try_from(bytes).ok());
    if key.is_none() {
        reader.error(&node.path, format!("must be {KEY_LENGTH} bytes in base64, as the command `key` prints one"));
    }
    key.map(Key)
}

/// Reads `signing`.
pub(super) fn read_signing(node: Node, reader: &mut Reader) -> Option<SigningConfig> {
    let path = node.path.clone();
    let mut section = node.section(SIGNING_KEYS, "a mapping with `key` and `types`", reader)?;
    let cover_headers = section.get(&COVER_HEADERS, reader);
    let mut texts = |definition, expected: &str, reader: &mut Reader| {
        let items = section.require(definition, reader)?.items_or_one(expected, reader)?;
        let count = items.len();
        let texts: Vec<String> = items.iter().filter_map(|node| node.filled_text(expected, reader)).collect();
        (texts.len() == count).then_some(texts)
    };
    let keys = texts(&SIGNING_KEY, "a secret", reader);
    let types = texts(&SIGNED_TYPES, "a type", reader);
    let (keys, types) = (keys?, types?);
    if !cfg!(feature = "signing") {
        reader.error(&path, "this build cannot sign: it was made without the cargo feature `signing`");
        return None;
    }
    if keys.is_empty() {
        reader.error(&path, "needs at least one key");
        return None;
    }
    Some(SigningConfig { keys: keys.into_iter().map(Secret).collect(), types, cover_headers })
}
