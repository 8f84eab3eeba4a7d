//! What is known of PHP's classes, for messages that are written with `serialize()`.

use indexmap::IndexMap;

/// Classes by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PhpClasses(pub(crate) IndexMap<String, PhpClass>);

/// The properties of a class, in the order of its declaration.
pub(crate) type PhpClass = Vec<PhpProperty>;

/// A property of a class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PhpProperty {
    pub(crate) name: String,
    /// The parent class that it is private to.
    pub(crate) declared_in: Option<String>,
    pub(crate) visibility: Visibility,
    pub(crate) is_nullable: bool,
    pub(crate) kind: PhpType,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Visibility {
    Public,
    Protected,
    Private,
}

/// What a property holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PhpType {
    Text,
    Int,
    Float,
    Bool,
    /// Anything that JSON holds; objects become arrays.
    Mixed,
    /// The same, but it must be an array.
    Array,
    /// A date of this class.
    Date(String),
    /// A `Uuid` or `Ulid` of this class.
    Uid(String),
    /// A case of this enum.
    Enum(String),
    /// An object of this class.
    Object(String),
    /// An array of such values.
    List(Box<PhpType>),
}

impl PhpProperty {
    /// Reads a property as PHP declares it: `private ?string`, `App\Address`, `public readonly int`, `enum App\Status`, `string[]`.
    /// Without a word for it, it is private. `App\Base::name` is one that is private to a parent class.
    pub(crate) fn parse(name: &str, declaration: &str) -> Result<Self, String> {
        let (declared_in, name) = match name.rsplit_once("::") {
            Some((class, name)) => (Some(class_name(class)?), name),
            None => (None, name),
        };
        if !is_identifier(name) {
            return Err(format!("\"{name}\" is no name of a property"));
        }
        let mut words: Vec<&str> = declaration.split_whitespace().collect();
        let mut visibility = Visibility::Private;
        while let Some(word) = words.first() {
            match *word {
                "public" => visibility = Visibility::Public,
                "protected" => visibility = Visibility::Protected,
                "private" => visibility = Visibility::Private,
                "readonly" => {}
                _ => break,
            }
            words.remove(0);
        }
        let (is_enum, written) = match words[..] {
            ["enum", written] => (true, written),
            [written] => (false, written),
            _ => {
                return Err(
                    "is not of the form `private ?string`, `App\\Address`, `enum App\\Status` or `int[]`".to_owned()
                );
            }
        };
        let mut is_nullable = written == "mixed" || written == "null";
        let mut written = written;
        for (prefix, suffix) in [("?", ""), ("null|", ""), ("", "|null")] {
            if let Some(rest) = written.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)) {
                is_nullable |= rest.len() < written.len();
                written = rest;
            }
        }
        let kind = PhpType::parse(written, is_enum)?;
        Ok(Self { name: name.to_owned(), declared_in, visibility, is_nullable, kind })
    }

    /// The class whose properties must be known to write it.
    pub(crate) fn class(&self) -> Option<&str> {
        let mut kind = &self.kind;
        while let PhpType::List(of) = kind {
            kind = of;
        }
        match kind {
            PhpType::Object(class) => Some(class),
            _ => None,
        }
    }
}

impl PhpType {
    fn parse(written: &str, is_enum: bool) -> Result<Self, String> {
        if let Some(of) = written.strip_suffix("[]") {
            return Ok(Self::List(Box::new(Self::parse(of, is_enum)?)));
        }
        if is_enum {
            return Ok(Self::Enum(class_name(written)?));
        }
        Ok(match written.trim_start_matches('\\') {
            "string" => Self::Text,
            "int" => Self::Int,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "mixed" => Self::Mixed,
            "array" | "iterable" => Self::Array,
            "DateTimeInterface" => Self::Date("DateTimeImmutable".to_owned()),
            "DateTimeImmutable" | "DateTime" => Self::Date(written.trim_start_matches('\\').to_owned()),
            "object" | "callable" | "self" | "static" | "null" | "false" | "true" => {
                return Err(format!("\"{written}\" does not say what to write"));
            }
            class if class.starts_with(r"Symfony\Component\Uid\") => Self::Uid(class_name(class)?),
            class => Self::Object(class_name(class)?),
        })
    }
}

/// A class's name, without a backslash at its start.
pub(crate) fn class_name(name: &str) -> Result<String, String> {
    let name = name.strip_prefix('\\').unwrap_or(name);
    if name.split('\\').all(is_identifier) {
        Ok(name.to_owned())
    } else {
        Err(format!("\"{name}\" is no name of a class"))
    }
}

pub(super) fn is_identifier(name: &str) -> bool {
    let fits = |c: char| c == '_' || c.is_ascii_alphanumeric() || !c.is_ascii();
    name.chars().all(fits) && name.chars().next().is_some_and(|first| !first.is_ascii_digit())
}
