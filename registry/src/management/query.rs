//! Get and List: objects as they stand.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use weft_api::{
    channel::MAX_MESSAGE_BYTES,
    convert::management as convert,
    pb::management::{Document, GetRequest, GetResponse, ListRequest, ListResponse},
};
use weft_policy::{
    code,
    model::{Key, Kind, Resource, UnknownKind},
    name::Namespace,
};

use super::{namespace_of, require, require_for};
use crate::{
    catalog::Catalog,
    core::Core,
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
};

/// A page ends before it outgrows a message: half of one leaves room for the largest object.
const MAX_PAGE_BYTES: usize = MAX_MESSAGE_BYTES / 2;
/// The most names that are offered in place of one that does not exist.
const MAX_OFFERED: usize = 3;

pub(super) fn get(core: &Core, caller: &Caller, request: &GetRequest) -> Result<GetResponse, Refusal> {
    let reference = request.r#ref.as_ref().ok_or_else(|| Refusal::bad_value("ref", "no object is named"))?;
    let key = convert::key(reference).map_err(|fault| Refusal::invalid(vec![fault]))?;
    require_for(caller, &key, Role::Viewer)?;
    let catalog = core.world.catalog();
    match catalog.get(&key) {
        Some(resource) => Ok(GetResponse { document: Some(convert::document(&resource)) }),
        None => Err(missing(&catalog, caller, &key)),
    }
}

/// The refusal of an object that is not there, or cannot be read.
fn missing(catalog: &Catalog, caller: &Caller, key: &Key) -> Refusal {
    if let Some(aside) = catalog.unreadable().get(key) {
        let fault =
            catalogued(code::UNREADABLE_RECORD, format!("{key} cannot be read")).why(aside.why.clone());
        return Refusal::new(tonic::Code::DataLoss, fault);
    }
    let mut fault = catalogued(code::NOT_FOUND, format!("there is no {key}"));
    let elsewhere = catalog.keys(key.kind).into_iter().filter(|other| other.name == key.name);
    let visible = elsewhere.filter(|other| require_for(caller, other, Role::Viewer).is_ok());
    for other in visible.take(MAX_OFFERED) {
        fault = fault.why(format!("there is {other}"));
    }
    Refusal::new(tonic::Code::NotFound, fault)
}

/// Which objects of a kind are asked for.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    /// `None` means all that the caller may see.
    namespace: Option<Namespace>,
}

fn lacks_in(namespace: &Namespace) -> Refusal {
    Refusal::not_permitted(format!("namespace {namespace} needs the role viewer for it"))
}

impl Scope {
    /// Reads what is asked for.
    ///
    /// # Errors
    ///
    /// A refusal: an unknown kind, no namespace where one is needed, or one in which the caller has no role.
    pub(super) fn read(
        caller: &Caller,
        kind: &str,
        namespace: &str,
        all_namespaces: bool,
    ) -> Result<Self, Refusal> {
        require(caller, Role::Viewer)?;
        let unknown = |error: UnknownKind| {
            let known = Kind::ALL.map(Kind::name).join(", ");
            let fault = catalogued(code::UNKNOWN_KIND, error.to_string()).why(format!("kinds: {known}"));
            Refusal::invalid(vec![fault])
        };
        let known: Kind = kind.parse().map_err(unknown)?;
        // Kinds without a namespace are listed with or without the flag.
        if all_namespaces || !known.is_namespaced() {
            if !namespace.is_empty() {
                return Err(Refusal::bad_value(
                    "namespace",
                    "a namespace and all namespaces exclude each other",
                ));
            }
            return Ok(Self { kind: known, namespace: None });
        }
        let namespace: Namespace =
            namespace.parse().map_err(|error| Refusal::bad_value("namespace", format!("{error}")))?;
        if caller.role_in(Some(&namespace)) < Role::Viewer {
            return Err(lacks_in(&namespace));
        }
        Ok(Self { kind: known, namespace: Some(namespace) })
    }

    /// Whether `key` is asked for and the caller may see it.
    pub(super) fn holds(&self, caller: &Caller, key: &Key) -> bool {
        let asked = self.namespace.is_none() || self.namespace == key.namespace;
        asked && key.kind == self.kind && caller.role_in(namespace_of(key).as_ref()) >= Role::Viewer
    }

    /// The namespace, if one is asked for.
    pub(super) const fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }
}

pub(super) fn list(core: &Core, caller: &Caller, request: &ListRequest) -> Result<ListResponse, Refusal> {
    let scope = Scope::read(caller, &request.kind, &request.namespace, request.all_namespaces)?;
    let after = token(scope.kind, &request.page_token)?;
    let catalog = core.world.catalog();
    let size = page_size(request.page_size, core.list_page);
    let mut page = Page { documents: Vec::new(), bytes: 0, last: None };
    let mut next = None;
    for key in catalog.keys(scope.kind) {
        if after.as_ref().is_some_and(|after| key <= *after) || !scope.holds(caller, &key) {
            continue;
        }
        let Some(resource) = catalog.get(&key).filter(|found| selected(found, &request.selector)) else {
            continue;
        };
        if !page.take(size, key, convert::document(&resource)) {
            next = page.last.take();
            break;
        }
    }
    let next_page_token = next.map(|key| encode_token(&key)).unwrap_or_default();
    Ok(ListResponse { documents: page.documents, next_page_token, revision: catalog.revision().0 })
}

struct Page {
    documents: Vec<Document>,
    bytes: usize,
    last: Option<Key>,
}

impl Page {
    /// Whether the document still fits; the first one always does.
    fn take(&mut self, size: usize, key: Key, document: Document) -> bool {
        let full = self.documents.len() >= size || self.bytes + document.json.len() > MAX_PAGE_BYTES;
        if full && !self.documents.is_empty() {
            return false;
        }
        self.bytes += document.json.len();
        self.documents.push(document);
        self.last = Some(key);
        true
    }
}

/// API-06: whatever is asked for, a page has 1 to `most` objects; 0 is a caller that does not care.
fn page_size(asked: u32, most: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => most,
        Ok(size) => size.min(most),
    }
}

fn selected(resource: &Resource, selector: &BTreeMap<String, String>) -> bool {
    let labels = &resource.metadata().labels;
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The key after which a page starts.
fn token(kind: Kind, text: &str) -> Result<Option<Key>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let read = || -> Option<Key> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (namespace, name) = text.split_once('/')?;
        let namespace = match namespace {
            "" => None,
            name => Some(name.parse().ok()?),
        };
        Some(Key { kind, namespace, name: name.parse().ok()? })
    };
    read().map(Some).ok_or_else(|| Refusal::bad_value("pageToken", "this is not a page token of this server"))
}

fn encode_token(key: &Key) -> String {
    let namespace = key.namespace.as_ref().map(ToString::to_string).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(format!("{namespace}/{}", key.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_06_page_sizes_are_clamped() {
        let sizes = [0, 1, 499, 500, 501, u32::MAX].map(|asked| page_size(asked, 500));
        assert_eq!(sizes, [500, 1, 499, 500, 500, 500]);
    }

    #[test]
    fn a_page_token_is_read_back_and_anything_else_is_refused() {
        let key = Key {
            kind: Kind::Service,
            namespace: Some("shop".parse().unwrap()),
            name: "charge".parse().unwrap(),
        };
        assert_eq!(token(Kind::Service, &encode_token(&key)).unwrap(), Some(key));
        for text in ["x", "!!", &URL_SAFE_NO_PAD.encode("a/b/c"), &URL_SAFE_NO_PAD.encode("shop")] {
            assert!(token(Kind::Service, text).is_err(), "{text}");
        }
    }
}
