//! What a token says, read so that nobody can read it otherwise: a name that stands twice in one object is refused, as
//! readers differ in which of the two they take.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// The value of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimValue {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number; whole ones beyond 2^53 lose their last digits.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// An object.
    Object(BTreeMap<String, Self>),
}

/// The claims of a token that was verified; only [`super::verify`] hands them out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(BTreeMap<String, ClaimValue>);

impl Claims {
    /// The claim of that name. Names with dots are names: nothing is looked for inside of objects.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ClaimValue> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ClaimValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The claim, if it is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(ClaimValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The claim, if it is a finite number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(ClaimValue::Number(number)) if number.is_finite() => Some(*number),
            _ => None,
        }
    }

    /// The claim as a list of texts: itself, or what it lists if all of it is text (RFC 7519, 4.1.3).
    #[must_use]
    pub fn texts<'a>(&'a self, name: &str) -> Option<Vec<&'a str>> {
        let text =
            |one: &'a ClaimValue| if let ClaimValue::Text(text) = one { Some(text.as_str()) } else { None };
        let value = self.get(name)?;
        if let ClaimValue::List(all) = value {
            all.iter().map(text).collect()
        } else {
            Some(vec![text(value)?])
        }
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ClaimValue::Object(all) = ClaimValue::deserialize(deserializer)? else {
            return Err(D::Error::custom("claims are an object"));
        };
        Ok(Self(all))
    }
}

impl<'de> Deserialize<'de> for ClaimValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = ClaimValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON in which no name stands twice")
    }

    fn visit_unit<E>(self) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Bool(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "as the variant says")]
    fn visit_u64<E>(self, value: u64) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Number(value as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "as the variant says")]
    fn visit_i64<E>(self, value: i64) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<ClaimValue, E> {
        Ok(ClaimValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ClaimValue, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(ClaimValue::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ClaimValue, A::Error> {
        let mut all = BTreeMap::new();
        while let Some((name, value)) = fields.next_entry::<String, ClaimValue>()? {
            if all.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(ClaimValue::Object(all))
    }
}
