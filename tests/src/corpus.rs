//! Certificates that rcgen cannot write, made by an independent hand: `tests/tools/certificates`.

use rustls::SignatureScheme;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use serde_json::Value;

use crate::handshake::Lab;
use crate::presented::{Forged, Proof};
use crate::python;

/// One group of cases, as the tool wrote it.
#[derive(Debug)]
pub struct Corpus {
    /// Roots that the victim is to trust.
    pub roots: Vec<CertificateDer<'static>>,
    /// The chains.
    pub cases: Vec<Case>,
    /// The signing requests.
    pub requests: Vec<Request>,
}

/// A chain and what must come of it.
#[derive(Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Whether it is to be accepted.
    pub accept: bool,
    /// The chain, with its key if it has one.
    pub forged: Forged,
}

/// A signing request and what must come of it.
#[derive(Debug)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// Whether it is to be accepted.
    pub accept: bool,
    /// The request.
    pub der: CertificateSigningRequestDer<'static>,
}

impl Corpus {
    /// Has the tool make `group`.
    ///
    /// # Panics
    ///
    /// If it cannot: the tests need it.
    pub fn make(group: &str) -> Self {
        let output = python::tool("certificates").arg(group).env("PYTHONDONTWRITEBYTECODE", "1").output();
        let output = output.expect("the interpreter starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let written: Value = serde_json::from_slice(&output.stdout).expect("the tool writes JSON");
        let list = |name: &str| written[name].as_array().expect("a list").iter();
        Self {
            roots: list("roots").flat_map(|root| certificates(root)).collect(),
            cases: list("cases").map(Case::read).collect(),
            requests: list("requests").map(Request::read).collect(),
        }
    }

    /// A lab whose victim trusts the roots of these cases.
    pub fn lab(&self) -> Lab {
        Lab::trusting(&self.roots)
    }

    /// The case of that name.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn case(&self, name: &str) -> &Case {
        let found = self.cases.iter().find(|case| case.name == name);
        found.unwrap_or_else(|| panic!("no case {name}"))
    }

    /// Tries every case in both roles. `refused` says for each that is to be refused by which reason and words;
    /// its names and those of the tool must be the same, so that neither forgets one.
    ///
    /// # Panics
    ///
    /// If a case comes out otherwise.
    pub async fn judge(&self, lab: &Lab, refused: &[(&str, &str, &str)]) {
        let expected: Vec<&str> = refused.iter().map(|(name, ..)| *name).collect();
        let unnamed: Vec<&Case> =
            self.cases.iter().filter(|case| !case.accept && !expected.contains(&&*case.name)).collect();
        assert!(unnamed.is_empty(), "cases without an expectation: {unnamed:?}");
        for (name, reason, says) in refused {
            let case = self.case(name);
            assert!(!case.accept, "{name} is to be accepted, says the tool");
            lab.refuses(name, &case.forged, reason, says).await;
        }
        for case in self.cases.iter().filter(|case| case.accept) {
            lab.accepts(&case.name, &case.forged).await;
        }
    }
}

impl Case {
    fn read(written: &Value) -> Self {
        let proof =
            written["key"].as_str().map_or(Proof::Nonsense(SignatureScheme::ECDSA_NISTP256_SHA256), |key| {
                let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).expect("a key in PEM");
                Proof::Key(key.secret_pkcs8_der().to_vec())
            });
        let forged = Forged { chain: certificates(&written["chain"]), proof };
        Self { name: text(&written["name"]), accept: accept(written), forged }
    }
}

impl Request {
    fn read(written: &Value) -> Self {
        let der = CertificateSigningRequestDer::from_pem_slice(text(&written["request"]).as_bytes());
        Self { name: text(&written["name"]), accept: accept(written), der: der.expect("a request in PEM") }
    }
}

fn certificates(pem: &Value) -> Vec<CertificateDer<'static>> {
    let text = text(pem);
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().expect("certificates in PEM")
}

fn accept(written: &Value) -> bool {
    match written["expect"].as_str() {
        Some("accept") => true,
        Some("refuse") => false,
        other => panic!("the tool expects {other:?}"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
