//! What one agent is told: the objects it needs, as data.
//!
//! Owns their keys and their set. A view says nothing about whether its parts fit together; that is
//! [`super::build`]'s. How a view travels is `weft-api`'s.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    sync::Arc,
};

use weft_identity::denied::DenyPage;

use crate::{
    model::{
        AuthorizationPolicy, Endpoint, Mesh, Metadata, NamespaceSettings, Service, TargetRef, TcpRoute,
        TrafficPolicy,
    },
    name::{Namespace, ObjectName, ServiceName},
};

/// How new a view is: the store's revision that it shows.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What tells one object of a view from all others.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ViewKey {
    /// The mesh's own settings.
    Mesh,
    /// A namespace's defaults.
    Namespace(Namespace),
    /// A service.
    Service(ServiceName),
    /// One workload (by name) of a service.
    Endpoint(ServiceName, ObjectName),
    /// A route.
    TcpRoute(Namespace, ObjectName),
    /// Settings of destinations.
    TrafficPolicy(Namespace, ObjectName),
    /// Who may call.
    AuthorizationPolicy(Namespace, ObjectName),
    /// A page of the denylist, by its number.
    Denied(u8),
}

impl ViewKey {
    /// The kind as written in manifests and records; an endpoint has no manifest, its kind is `Endpoint`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Namespace(_) => "Namespace",
            Self::Service(_) => "Service",
            Self::Endpoint(..) => "Endpoint",
            Self::TcpRoute(..) => "TCPRoute",
            Self::TrafficPolicy(..) => "TrafficPolicy",
            Self::AuthorizationPolicy(..) => "AuthorizationPolicy",
            Self::Denied(_) => "Denied",
        }
    }

    /// The namespace that the object belongs to, or is; `None` for the mesh and the denylist.
    #[must_use]
    pub const fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Mesh | Self::Denied(_) => None,
            Self::Namespace(namespace)
            | Self::TcpRoute(namespace, _)
            | Self::TrafficPolicy(namespace, _)
            | Self::AuthorizationPolicy(namespace, _) => Some(namespace),
            Self::Service(service) | Self::Endpoint(service, _) => Some(&service.namespace),
        }
    }
}

impl fmt::Display for ViewKey {
    /// `AuthorizationPolicy/charge-from-order.shop`, as a person would say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Mesh => write!(f, "{kind}/mesh"),
            Self::Denied(page) => write!(f, "{kind}/{page:02x}"),
            Self::Namespace(name) => write!(f, "{kind}/{name}"),
            Self::Service(service) => write!(f, "{kind}/{service}"),
            Self::Endpoint(service, workload) => write!(f, "{kind}/{workload} of {service}"),
            Self::TcpRoute(namespace, name)
            | Self::TrafficPolicy(namespace, name)
            | Self::AuthorizationPolicy(namespace, name) => write!(f, "{kind}/{name}.{namespace}"),
        }
    }
}

/// A policy whose content cannot be read. It closes its targets and nothing else (security.md 7.2, point 11).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unreadable {
    /// Which policy it is: an [`ViewKey::AuthorizationPolicy`].
    pub key: ViewKey,
    /// What it is about. Empty when that is lost too: then every service of its namespace is closed.
    pub targets: Vec<TargetRef>,
    /// Why it cannot be read, for people.
    pub why: String,
}

/// One object of a view. Cloning shares it.
#[derive(Clone, Debug)]
pub enum ViewObject {
    /// See [`Mesh`].
    Mesh(Arc<Mesh>),
    /// See [`NamespaceSettings`].
    Namespace(Arc<NamespaceSettings>),
    /// See [`Service`].
    Service(Arc<Service>),
    /// See [`Endpoint`].
    Endpoint(Arc<Endpoint>),
    /// See [`TcpRoute`].
    TcpRoute(Arc<TcpRoute>),
    /// See [`TrafficPolicy`].
    TrafficPolicy(Arc<TrafficPolicy>),
    /// See [`AuthorizationPolicy`].
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// See [`Unreadable`].
    Unreadable(Arc<Unreadable>),
    /// See [`DenyPage`].
    Denied(Arc<DenyPage>),
}

impl ViewObject {
    /// What tells it from all others.
    #[must_use]
    pub fn key(&self) -> ViewKey {
        let named = |metadata: &Metadata| (metadata.owner(), metadata.name.clone());
        match self {
            Self::Mesh(_) => ViewKey::Mesh,
            Self::Namespace(settings) => {
                // Its own name is the namespace; both are one DNS label, so the text always parses.
                let name = settings.metadata.name.as_str().parse();
                ViewKey::Namespace(name.unwrap_or_else(|_| Namespace::default_namespace()))
            }
            Self::Service(service) => ViewKey::Service(service.service_name()),
            Self::Endpoint(endpoint) => {
                ViewKey::Endpoint(endpoint.service.clone(), endpoint.workload.clone())
            }
            Self::TcpRoute(route) => {
                let (namespace, name) = named(&route.metadata);
                ViewKey::TcpRoute(namespace, name)
            }
            Self::TrafficPolicy(policy) => {
                let (namespace, name) = named(&policy.metadata);
                ViewKey::TrafficPolicy(namespace, name)
            }
            Self::AuthorizationPolicy(policy) => {
                let (namespace, name) = named(&policy.metadata);
                ViewKey::AuthorizationPolicy(namespace, name)
            }
            Self::Unreadable(object) => object.key.clone(),
            Self::Denied(page) => ViewKey::Denied(page.number()),
        }
    }

    /// Where the object is in memory: for as long as anybody has it, no other object is there.
    #[must_use]
    pub fn address(&self) -> usize {
        match self {
            Self::Mesh(object) => Arc::as_ptr(object).addr(),
            Self::Namespace(object) => Arc::as_ptr(object).addr(),
            Self::Service(object) => Arc::as_ptr(object).addr(),
            Self::Endpoint(object) => Arc::as_ptr(object).addr(),
            Self::TcpRoute(object) => Arc::as_ptr(object).addr(),
            Self::TrafficPolicy(object) => Arc::as_ptr(object).addr(),
            Self::AuthorizationPolicy(object) => Arc::as_ptr(object).addr(),
            Self::Unreadable(object) => Arc::as_ptr(object).addr(),
            Self::Denied(object) => Arc::as_ptr(object).addr(),
        }
    }

    /// How many have the object, this one among them.
    #[must_use]
    pub fn holders(&self) -> usize {
        match self {
            Self::Mesh(object) => Arc::strong_count(object),
            Self::Namespace(object) => Arc::strong_count(object),
            Self::Service(object) => Arc::strong_count(object),
            Self::Endpoint(object) => Arc::strong_count(object),
            Self::TcpRoute(object) => Arc::strong_count(object),
            Self::TrafficPolicy(object) => Arc::strong_count(object),
            Self::AuthorizationPolicy(object) => Arc::strong_count(object),
            Self::Unreadable(object) => Arc::strong_count(object),
            Self::Denied(object) => Arc::strong_count(object),
        }
    }

    /// Whether both are the very same object in memory: equal without looking.
    fn is_shared_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mesh(a), Self::Mesh(b)) => Arc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Arc::ptr_eq(a, b),
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b),
            (Self::Endpoint(a), Self::Endpoint(b)) => Arc::ptr_eq(a, b),
            (Self::TcpRoute(a), Self::TcpRoute(b)) => Arc::ptr_eq(a, b),
            (Self::TrafficPolicy(a), Self::TrafficPolicy(b)) => Arc::ptr_eq(a, b),
            (Self::AuthorizationPolicy(a), Self::AuthorizationPolicy(b)) => Arc::ptr_eq(a, b),
            (Self::Unreadable(a), Self::Unreadable(b)) => Arc::ptr_eq(a, b),
            (Self::Denied(a), Self::Denied(b)) => Arc::ptr_eq(a, b),
            (
                Self::Mesh(_)
                | Self::Namespace(_)
                | Self::Service(_)
                | Self::Endpoint(_)
                | Self::TcpRoute(_)
                | Self::TrafficPolicy(_)
                | Self::AuthorizationPolicy(_)
                | Self::Unreadable(_)
                | Self::Denied(_),
                _,
            ) => false,
        }
    }
}

impl PartialEq for ViewObject {
    fn eq(&self, other: &Self) -> bool {
        self.is_shared_with(other)
            || match (self, other) {
                (Self::Mesh(a), Self::Mesh(b)) => a == b,
                (Self::Namespace(a), Self::Namespace(b)) => a == b,
                (Self::Service(a), Self::Service(b)) => a == b,
                (Self::Endpoint(a), Self::Endpoint(b)) => a == b,
                (Self::TcpRoute(a), Self::TcpRoute(b)) => a == b,
                (Self::TrafficPolicy(a), Self::TrafficPolicy(b)) => a == b,
                (Self::AuthorizationPolicy(a), Self::AuthorizationPolicy(b)) => a == b,
                (Self::Unreadable(a), Self::Unreadable(b)) => a == b,
                (Self::Denied(a), Self::Denied(b)) => a == b,
                (
                    Self::Mesh(_)
                    | Self::Namespace(_)
                    | Self::Service(_)
                    | Self::Endpoint(_)
                    | Self::TcpRoute(_)
                    | Self::TrafficPolicy(_)
                    | Self::AuthorizationPolicy(_)
                    | Self::Unreadable(_)
                    | Self::Denied(_),
                    _,
                ) => false,
            }
    }
}

/// Makes the plain values usable where a view object is asked for.
macro_rules! from_value {
    ($($kind:ident($value:ty)),+ $(,)?) => {$(
        impl From<$value> for ViewObject {
            fn from(value: $value) -> Self {
                Self::$kind(Arc::new(value))
            }
        }
    )+};
}

from_value! {
    Mesh(Mesh),
    Namespace(NamespaceSettings),
    Service(Service),
    Endpoint(Endpoint),
    TcpRoute(TcpRoute),
    TrafficPolicy(TrafficPolicy),
    AuthorizationPolicy(AuthorizationPolicy),
    Unreadable(Unreadable),
    Denied(DenyPage),
}

/// A set of objects, at most one per key. Cloning copies references, not objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View(BTreeMap<ViewKey, ViewObject>);

impl View {
    /// The view of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Puts an object in, and gives back what stood under its key.
    pub fn insert(&mut self, object: impl Into<ViewObject>) -> Option<ViewObject> {
        let object = object.into();
        self.0.insert(object.key(), object)
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &ViewKey) -> Option<ViewObject> {
        self.0.remove(key)
    }

    /// The object of that key.
    #[must_use]
    pub fn get(&self, key: &ViewKey) -> Option<&ViewObject> {
        self.0.get(key)
    }

    /// Every object with its key, in the order of the keys.
    pub fn iter(&self) -> btree_map::Iter<'_, ViewKey, ViewObject> {
        self.0.iter()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<O: Into<ViewObject>> FromIterator<O> for View {
    fn from_iter<I: IntoIterator<Item = O>>(objects: I) -> Self {
        let mut keyed: Vec<(ViewKey, ViewObject)> = Vec::new();
        keyed.extend(objects.into_iter().map(|object| {
            let object = object.into();
            (object.key(), object)
        }));
        // Sorted once, at little cost when they come in order. Of two under one key the later one stays, as with `insert`:
        // what closes something is put over what opens it.
        keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
        keyed.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Self(keyed.into_iter().collect())
    }
}

impl<O: Into<ViewObject>> Extend<O> for View {
    fn extend<I: IntoIterator<Item = O>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}

impl<'a> IntoIterator for &'a View {
    type Item = (&'a ViewKey, &'a ViewObject);
    type IntoIter = btree_map::Iter<'a, ViewKey, ViewObject>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
