//! How an attacker presents a chain: with its key, with another, or with bytes that prove nothing.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A chain, leaf first, with what the attacker signs handshakes with.
#[derive(Clone, Debug)]
pub struct Forged {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// How it is shown to belong to the attacker.
    pub proof: Proof,
}

/// What an attacker signs a handshake with.
#[derive(Clone, Debug)]
pub enum Proof {
    /// This key, PKCS#8.
    Key(Vec<u8>),
    /// This key, under the name of a signature scheme that may not be one of its own.
    KeyAs(Vec<u8>, SignatureScheme),
    /// Bytes that are no signature, under the name of this scheme.
    Nonsense(SignatureScheme),
}

impl Forged {
    /// The key that signs.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        match &self.proof {
            Proof::Key(key) | Proof::KeyAs(key, _) => PrivatePkcs8KeyDer::from(key.clone()).into(),
            Proof::Nonsense(scheme) => {
                panic!("no key: the handshake is signed by nonsense called {scheme:?}")
            }
        }
    }

    /// The same chain with another proof.
    #[must_use]
    pub fn proven_by(&self, proof: Proof) -> Self {
        Self { chain: self.chain.clone(), proof }
    }

    /// Presents this chain in every handshake, whatever is asked for and whether or not it makes sense.
    ///
    /// # Panics
    ///
    /// If the key cannot sign, which one of [`crate::forge::Authority`] can.
    pub fn presented(&self) -> Arc<Presented> {
        Arc::new(Presented(Arc::new(CertifiedKey::new(self.chain.clone(), self.signer()))))
    }

    fn signer(&self) -> Arc<dyn SigningKey> {
        let load = || aws_lc_rs::sign::any_supported_type(&self.key()).expect("a key that rustls can use");
        match self.proof {
            Proof::Key(_) => load(),
            Proof::KeyAs(_, scheme) => Arc::new(Liar { key: Some(load()), scheme }),
            Proof::Nonsense(scheme) => Arc::new(Liar { key: None, scheme }),
        }
    }
}

/// Signs under the name of one scheme, with a key of another kind or with none.
#[derive(Clone, Debug)]
struct Liar {
    key: Option<Arc<dyn SigningKey>>,
    scheme: SignatureScheme,
}

impl SigningKey for Liar {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Liar {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let Some(key) = &self.key else { return Ok(vec![0x30, 0x06, 2, 1, 1, 2, 1, 1]) };
        let own = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
        key.choose_scheme(&own).expect("a key of P-256 or RSA").sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// A certificate resolver that always answers with one chain.
#[derive(Debug)]
pub struct Presented(Arc<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Presents a bare public key in place of a certificate (RFC 7250), in both roles.
#[derive(Debug)]
pub struct RawPublicKey(pub Arc<Presented>);

impl ResolvesServerCert for RawPublicKey {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ResolvesServerCert::resolve(&*self.0, hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

impl ResolvesClientCert for RawPublicKey {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ResolvesClientCert::resolve(&*self.0, hints, schemes)
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A caller without a certificate: it answers the request with an empty Certificate message.
#[derive(Debug)]
pub struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
