//! Where the mesh is kept: on this host, or in etcd.
//!
//! Secrets stand in files, whose paths stand here; they are read when the server starts, and never shown.

use std::path::{Path, PathBuf};

use weft_api::fault::Fault;
use weft_policy::{code, name::ClusterName};
use zeroize::Zeroizing;

use super::{
    Rows,
    raw::{RawEtcd, RawStore},
};
use crate::{
    private::{self, PrivateError},
    refusal::catalogued,
    store::{
        embedded::Bounds,
        etcd::{Endpoint, Settings, Timeouts, TlsError, TlsFiles, User},
    },
};

/// The longest prefix, in bytes; it is part of every key.
const MAX_PREFIX_BYTES: usize = 256;
/// Members that are asked: clusters of etcd have at most 7.
const MAX_ENDPOINTS: usize = 16;

/// Where the mesh is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StoreConfig {
    /// In the state directory, for one server.
    Embedded,
    /// In an etcd cluster.
    Etcd(EtcdStoreConfig),
}

/// Which etcd, and as whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcdStoreConfig {
    /// Its members, in the order in which they are tried.
    pub endpoints: Vec<Endpoint>,
    /// What every key of this mesh starts with; `/weft/<cluster>/`.
    pub prefix: String,
    /// The files of TLS, for `https` endpoints.
    pub tls: Option<TlsFiles>,
    /// The user's name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
}

/// What stands in the files.
#[derive(Clone, Debug)]
pub struct EtcdSecrets {
    /// How both sides prove themselves.
    pub tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    /// As whom the server logs in.
    pub user: Option<User>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Certificates or the key.
    #[error("TLS to etcd: {0}")]
    Tls(#[from] TlsError),
    /// The password's file.
    #[error("the password for etcd: {0}")]
    Password(#[from] PrivateError),
    /// There is none, or it is no text.
    #[error("the password for etcd: {} is missing, empty or no text of one line", .0.display())]
    NoPassword(PathBuf),
}

impl SecretError {
    /// Its code in the catalogue.
    #[must_use]
    pub fn code(&self) -> code::CodeId {
        match self {
            Self::Tls(TlsError::File(error)) | Self::Password(error) => error.code(),
            Self::Tls(_) | Self::NoPassword(_) => code::FILE_UNUSABLE,
        }
    }
}

impl EtcdStoreConfig {
    /// What a store needs to be opened by the server whose directory is `state_dir`.
    ///
    /// # Errors
    ///
    /// As [`Self::secrets`].
    pub fn settings(&self, state_dir: &Path) -> Result<Settings, SecretError> {
        let EtcdSecrets { tls, user } = self.secrets()?;
        Ok(Settings {
            endpoints: self.endpoints.clone(),
            tls,
            user,
            prefix: self.prefix.clone(),
            state_dir: state_dir.to_owned(),
            bounds: Bounds::default(),
            timeouts: Timeouts::default(),
        })
    }

    /// Reads the files that it names.
    ///
    /// # Errors
    ///
    /// [`SecretError`], with the file; a key or password that others may read is refused.
    pub fn secrets(&self) -> Result<EtcdSecrets, SecretError> {
        let tls = self.tls.as_ref().map(TlsFiles::load).transpose()?;
        let user = self.user.as_ref().map(|(name, path)| {
            let none = || SecretError::NoPassword(path.clone());
            let text = private::read(path)?.ok_or_else(none)?;
            let text = std::str::from_utf8(&text).map_err(|_| none())?;
            let password = text.strip_suffix('\n').unwrap_or(text);
            if password.is_empty() || password.chars().any(char::is_control) {
                return Err(none());
            }
            Ok(User { name: name.clone(), password: Zeroizing::new(password.to_owned()) })
        });
        Ok(EtcdSecrets { tls, user: user.transpose()? })
    }
}

impl StoreConfig {
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let Self::Etcd(etcd) = self else { return faults };
        let mut refuse = |key: &str, what: &str| {
            faults.push(catalogued(code::CONFIG_BAD_VALUE, what).at(format!("store.etcd.{key}"), None));
        };
        if !(1..=MAX_ENDPOINTS).contains(&etcd.endpoints.len()) {
            refuse("endpoints", "1 to 16 members are needed");
        }
        if etcd.tls.is_none() && etcd.endpoints.iter().any(|endpoint| endpoint.tls) {
            refuse("tls", "an https endpoint is proven by the roots in tls.ca");
        }
        let clean = !etcd.prefix.chars().any(char::is_control) && etcd.prefix.len() <= MAX_PREFIX_BYTES;
        if !(clean && etcd.prefix.starts_with('/') && etcd.prefix.ends_with('/') && etcd.prefix.len() > 1) {
            refuse("prefix", "a prefix begins and ends with a slash, and has at most 256 bytes between");
        }
        if etcd.user.as_ref().is_some_and(|(name, _)| name.is_empty()) {
            refuse("auth.user", "a user has a name");
        }
        faults
    }
}

pub(super) fn build(
    raw: RawStore,
    cluster: &ClusterName,
    rows: &mut Rows<'_>,
) -> Result<(PathBuf, StoreConfig), Fault> {
    match (raw.embedded, raw.etcd) {
        (Some(embedded), None) => {
            rows.given("store.embedded.path", &embedded.path.display());
            Ok((embedded.path, StoreConfig::Embedded))
        }
        (None, Some(etcd)) => {
            rows.given("store.etcd.path", &etcd.path.display());
            Ok((etcd.path.clone(), StoreConfig::Etcd(build_etcd(etcd, cluster, rows)?)))
        }
        (Some(_), Some(_)) => {
            let what = "a mesh is kept in one place: store.embedded or store.etcd";
            Err(catalogued(code::CONFIG_BAD_VALUE, what).at("store", None))
        }
        (None, None) => {
            let what = "store.embedded.path or store.etcd says where the mesh is kept";
            Err(catalogued(code::CONFIG_MISSING, what).at("store", None))
        }
    }
}

fn build_etcd(raw: RawEtcd, cluster: &ClusterName, rows: &mut Rows<'_>) -> Result<EtcdStoreConfig, Fault> {
    let endpoints: Vec<Endpoint> = raw.endpoints.into_iter().map(|text| text.0).collect();
    let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    rows.given("store.etcd.endpoints", &shown.join(", "));
    let prefix = rows.take("store.etcd.prefix", raw.prefix, format!("/weft/{cluster}/"), Clone::clone);
    let tls = match raw.tls {
        None => None,
        Some(tls) => {
            rows.given("store.etcd.tls.ca", &tls.ca.display());
            let own = match (tls.certificate, tls.key) {
                (Some(certificate), Some(key)) => {
                    rows.given("store.etcd.tls.certificate", &certificate.display());
                    rows.given("store.etcd.tls.key", &key.display());
                    Some((certificate, key))
                }
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => {
                    let what = "a certificate and its key belong together: give both or none";
                    return Err(catalogued(code::CONFIG_BAD_VALUE, what).at("store.etcd.tls", None));
                }
            };
            Some(TlsFiles { ca: tls.ca, own })
        }
    };
    let user = raw.auth.map(|auth| {
        rows.given("store.etcd.auth.user", &auth.user);
        rows.given("store.etcd.auth.passwordFile", &auth.password_file.display());
        (auth.user, auth.password_file)
    });
    Ok(EtcdStoreConfig { endpoints, prefix, tls, user })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(store: &str) -> Result<Config, Fault> {
        let text = format!("trustDomain: corp.example\ncluster: east\nstore: {store}\n");
        Config::parse(&text, "server.yaml").map_err(|mut faults| faults.remove(0))
    }

    #[test]
    fn a_store_in_etcd_is_read_with_its_origins() {
        let least = parse("{etcd: {path: /var/lib/weft, endpoints: [\"http://127.0.0.1:2379\"]}}").unwrap();
        let StoreConfig::Etcd(etcd) = &least.store else { panic!("{least:?}") };
        assert_eq!((&*etcd.prefix, &etcd.tls, &etcd.user), ("/weft/east/", &None, &None));
        assert_eq!(least.state_dir, PathBuf::from("/var/lib/weft"));

        let all = parse(
            "{etcd: {path: /s, endpoints: [\"https://a:2379\", \"https://b:2379\"], prefix: /mesh/, \
             tls: {ca: /ca, certificate: /c, key: /k}, auth: {user: weft, passwordFile: /p}}}",
        )
        .unwrap();
        let origins = all.origins();
        let row = |key: &str| origins.iter().find(|row| row.0 == key).cloned().unwrap();
        assert_eq!(row("store.etcd.endpoints").1, "https://a:2379, https://b:2379");
        assert_eq!(row("store.etcd.auth.passwordFile").1, "/p");
        assert_eq!(
            (row("store.etcd.prefix").1, row("store.etcd.prefix").2),
            ("/mesh/".into(), "server.yaml".into())
        );
    }

    #[test]
    fn a_store_that_cannot_be_is_refused_with_its_key() {
        let etcd = |more: &str| format!("{{etcd: {{path: /s, endpoints: [\"https://a:2379\"]{more}}}}}");
        for (store, path, id) in [
            ("{}".to_owned(), "store", code::CONFIG_MISSING),
            (
                "{embedded: {path: /s}, etcd: {path: /s, endpoints: []}}".to_owned(),
                "store",
                code::CONFIG_BAD_VALUE,
            ),
            (etcd(""), "store.etcd.tls", code::CONFIG_BAD_VALUE),
            (etcd(", tls: {ca: /ca, key: /k}"), "store.etcd.tls", code::CONFIG_BAD_VALUE),
            (etcd(", tls: {ca: /ca}, prefix: mesh"), "store.etcd.prefix", code::CONFIG_BAD_VALUE),
            (
                etcd(", tls: {ca: /ca}, auth: {user: \"\", passwordFile: /p}"),
                "store.etcd.auth.user",
                code::CONFIG_BAD_VALUE,
            ),
            (
                etcd(", tls: {ca: /ca}, auth: {user: a, password: secret}"),
                "store.etcd.auth.password",
                code::CONFIG_UNKNOWN_KEY,
            ),
            ("{etcd: {path: /s, endpoints: []}}".to_owned(), "store.etcd.endpoints", code::CONFIG_BAD_VALUE),
            (
                "{etcd: {path: /s, endpoints: [\"http://a:1\"]}}".to_owned(),
                "store.etcd.endpoints[0]",
                code::CONFIG_BAD_VALUE,
            ),
        ] {
            let fault = parse(&store).unwrap_err();
            assert_eq!((fault.path(), &*fault.code), (path, id.as_str()), "{store}: {fault:?}");
        }
    }

    #[test]
    fn a_password_comes_from_a_file_that_others_cannot_read() {
        use std::os::unix::fs::PermissionsExt as _;

        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("password");
        let config = EtcdStoreConfig {
            endpoints: Vec::new(),
            prefix: "/weft/".to_owned(),
            tls: None,
            user: Some(("weft".to_owned(), path.clone())),
        };
        assert!(matches!(config.secrets(), Err(SecretError::NoPassword(_))));
        for (text, password) in
            [("secret\n", Some("secret")), ("secret", Some("secret")), ("\n", None), ("a\nb", None)]
        {
            private::write(&path, text.as_bytes()).unwrap();
            let found = config.secrets().ok().and_then(|secrets| secrets.user);
            assert_eq!(found.map(|user| user.password.to_string()).as_deref(), password, "{text:?}");
        }
        private::write(&path, b"secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(config.secrets().unwrap_err().code(), code::KEY_PERMISSIONS);
    }
}
