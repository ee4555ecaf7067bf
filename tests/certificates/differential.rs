//! Three verifiers, one verdict (CERT-29): whatever Weft accepts of a generated corpus, rustls-webpki alone and
//! OpenSSL accept too.
//!
//! The corpus is mutations of chains in order. A change in the signed part is signed again by the test's authority,
//! so that it is judged by what it says and not by its signature. `WEFT_LONG_MUTATIONS` sets how many there are,
//! `WEFT_SEED` replays a run.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::CustomExtension;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weft_identity::bundle::{TrustBundle, TrustBundles};
use weft_identity::tls::{PeerRole, verify_chain};
use weft_tests::forge::{Authority, Leaf, Name, Offset};
use weft_tests::handshake::{LOCAL, ORDER};
use weft_tests::python;

use super::mutation::{Node, Random};

/// In CI; a run of this many takes about 15 s of an idle machine.
const MUTATIONS: usize = 10_000;
/// In CI every run is the same, so that a failure is one of the change that caused it.
const SEED: u64 = 29;

type Chain = Vec<CertificateDer<'static>>;

#[test]
fn cert_29_what_weft_accepts_is_accepted_by_rustls_webpki_and_openssl() {
    let count = number("WEFT_LONG_MUTATIONS").map_or(MUTATIONS, |count| usize::try_from(count).unwrap());
    let seed = number("WEFT_SEED").unwrap_or(SEED);
    println!("seed {seed}, {count} mutations; replay with WEFT_SEED={seed} WEFT_LONG_MUTATIONS={count}");
    let (world, mut random) = (World::new(), Random(seed));

    let corpus: Vec<Chain> = (0..count).map(|_| world.mutation(&mut random)).collect();
    let openssl = world.openssl(&corpus);
    let mut counts = Counts::default();
    let mut faults = String::new();
    for (number, (chain, openssl)) in corpus.iter().zip(&openssl).enumerate() {
        let weft = world.weft(chain);
        let webpki = world.webpki(chain);
        counts.add(weft, webpki, openssl == "ok");
        let alone =
            (weft[0] && !webpki[0]) || (weft[1] && !webpki[1]) || (weft.contains(&true) && openssl != "ok");
        if alone && counts.faults <= 20 {
            let _ =
                writeln!(faults, "mutation {number}: webpki {webpki:?}, OpenSSL {openssl}\n{}", hex(chain));
        }
    }
    println!("{counts:?}");
    assert!(counts.weft > count / 50, "most mutations break the certificate, not all may: {counts:?}");
    assert!(counts.openssl > count / 50 && counts.weft < count, "{counts:?}");
    assert!(faults.is_empty(), "accepted by Weft alone:\n{faults}\n{counts:?}, seed {seed}");
}

#[test]
fn cert_29_the_corpus_is_built_on_chains_that_all_three_accept() {
    let world = World::new();
    let chains: Vec<Chain> = world.bases.iter().map(|base| base.chain.clone()).collect();
    for (chain, openssl) in chains.iter().zip(world.openssl(&chains)) {
        assert_eq!((world.weft(chain), world.webpki(chain)), ([true; 2], [true; 2]), "{}", hex(chain));
        assert_eq!(openssl, "ok", "{}", hex(chain));
    }
}

#[derive(Debug, Default)]
struct Counts {
    weft: usize,
    webpki: usize,
    openssl: usize,
    /// Accepted by both of the others and refused by Weft: what it is stricter about.
    stricter: usize,
    faults: usize,
}

impl Counts {
    fn add(&mut self, weft: [bool; 2], webpki: [bool; 2], openssl: bool) {
        let (any_weft, any_webpki) = (weft.contains(&true), webpki.contains(&true));
        self.weft += usize::from(any_weft);
        self.webpki += usize::from(any_webpki);
        self.openssl += usize::from(openssl);
        self.stricter += usize::from(any_webpki && openssl && !any_weft);
        self.faults += usize::from(any_weft && !(any_webpki && openssl));
    }
}

/// The authorities of the corpus and the chains in order that it starts from.
struct World {
    root: Authority,
    issuer: Authority,
    bases: Vec<Base>,
    bundles: TrustBundles,
    now: SystemTime,
}

/// A chain in order.
struct Base {
    chain: Chain,
    /// Whether the leaf is signed by the root itself.
    under_root: bool,
}

impl World {
    fn new() -> Self {
        let root = Authority::root(LOCAL);
        let issuer = root.intermediate(LOCAL);
        let named = [
            Name::Dns(b"order.example".to_vec()),
            Name::Uri(ORDER.into()),
            Name::Dns(b"other.example".to_vec()),
        ];
        let leaf = Leaf::good(ORDER);
        let chains = [
            (issuer.sign(&leaf, &[&issuer]).chain, false),
            (issuer.sign(&leaf.clone().names(&named), &[&issuer]).chain, false),
            (root.sign(&leaf, &[]).chain, true),
            (issuer.sign(&rich(), &[&issuer]).chain, false),
        ];
        let bases = chains.into_iter().map(|(chain, under_root)| Base { chain, under_root }).collect();
        let roots = vec![root.certificate().clone()];
        let bundles = TrustBundle::new(LOCAL.parse().expect("a trust domain"), roots, 1);
        let bundles = bundles.expect("a root in order").into();
        Self { root, issuer, bases, bundles, now: Offset::In(Duration::ZERO).moment() }
    }

    /// One of the chains, changed in one to three places.
    fn mutation(&self, random: &mut Random) -> Chain {
        let base = &self.bases[random.below(self.bases.len())];
        let mut chain = base.chain.clone();
        if random.below(20) == 0 {
            let (position, other) = (random.below(chain.len()), random.below(chain.len()));
            match random.below(3) {
                0 => chain.swap(position, other),
                1 => chain.insert(position, chain[other].clone()),
                _ => chain.push(self.root.certificate().clone()),
            }
            return chain;
        }
        let position = if random.below(4) == 0 { random.below(chain.len()) } else { 0 };
        let signer = if position == 0 && !base.under_root { &self.issuer } else { &self.root };
        let changed = match random.below(10) {
            0..7 => signed_again(&chain[position], signer, random),
            7 | 8 => {
                let mut whole = Node::read(&chain[position]).expect("it was in order");
                whole.mutate(random);
                whole.bytes()
            }
            _ => {
                let mut bytes = chain[position].to_vec();
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                bytes
            }
        };
        chain[position] = changed.into();
        chain
    }

    /// As client and as server.
    fn weft(&self, chain: &[CertificateDer<'_>]) -> [bool; 2] {
        [PeerRole::Client, PeerRole::Server]
            .map(|role| verify_chain(&self.bundles, chain, role, self.now).is_ok())
    }

    /// rustls-webpki with no rule of Weft's: any algorithm, any name.
    fn webpki(&self, chain: &[CertificateDer<'_>]) -> [bool; 2] {
        let anchors = [anchor_from_trusted_cert(self.root.certificate()).expect("it is in order")];
        let now = UnixTime::since_unix_epoch(self.now.duration_since(UNIX_EPOCH).expect("it is after 1970"));
        let Some((leaf, above)) = chain.split_first() else { return [false; 2] };
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return [false; 2] };
        [KeyUsage::client_auth(), KeyUsage::server_auth()].map(|usage| {
            leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, above, now, usage, None, None).is_ok()
        })
    }

    /// What OpenSSL says of each chain: `ok`, or why not.
    fn openssl(&self, corpus: &[Chain]) -> Vec<String> {
        let mut file = tempfile::NamedTempFile::new().expect("there is a directory for files");
        let now = self.now.duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let mut bytes = now.to_be_bytes().to_vec();
        let root = vec![self.root.certificate().clone()];
        for chain in std::iter::once(&root).chain(corpus) {
            bytes.push(u8::try_from(chain.len()).expect("a few certificates"));
            for certificate in chain {
                let length = u32::try_from(certificate.len()).expect("a few kilobytes");
                bytes.extend(length.to_be_bytes());
                bytes.extend_from_slice(certificate);
            }
        }
        file.write_all(&bytes).expect("there is space for files");
        file.flush().expect("there is space for files");
        let output = python::tool("certificates_openssl.py").arg(file.path()).output();
        let output = output.expect("the interpreter starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let verdicts: Vec<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(verdicts.len(), corpus.len());
        verdicts
    }
}

/// A leaf with extensions that Weft does not look at and that foreign authorities write.
fn rich() -> Leaf {
    let url = element(0x86, b"http://pki.example/x");
    let policies = element(0x30, &element(0x30, &[0x06, 0x03, 0x2a, 0x03, 0x04]));
    let lists = element(0x30, &element(0x30, &element(0xa0, &element(0xa0, &url))));
    let access = [&[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01][..], &url].concat();
    let access = element(0x30, &element(0x30, &access));
    let extensions = [
        (&[2, 5, 29, 32][..], policies),
        (&[2, 5, 29, 31], lists),
        (&[1, 3, 6, 1, 5, 5, 7, 1, 1], access),
        (&[1, 3, 6, 1, 4, 1, 55_555, 1], vec![0x05, 0x00]),
    ];
    let extensions = extensions.into_iter();
    let extensions = extensions.map(|(oid, value)| CustomExtension::from_oid_content(oid, value)).collect();
    Leaf { common_name: Some("order".to_owned()), extensions, ..Leaf::good(ORDER) }
}

/// Changes the signed part of `certificate` and has `signer` sign it.
fn signed_again(certificate: &CertificateDer<'_>, signer: &Authority, random: &mut Random) -> Vec<u8> {
    let whole = Node::read(certificate).expect("it was in order");
    let [body, algorithm, _signature] = whole.children() else { panic!("a certificate has three parts") };
    let mut body = body.clone();
    for _ in 0..=random.below(3) / 2 {
        body.mutate(random);
    }
    let body = body.bytes();
    let mut signature = vec![0];
    signature.extend(signer.signature(&body));
    let mut parts = body;
    algorithm.write(&mut parts);
    parts.extend(element(0x03, &signature));
    element(0x30, &parts)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u16::try_from(content.len()).expect("no mutation is that long") {
        short @ 0..0x80 => out.push(short.to_be_bytes()[1]),
        byte @ 0x80..0x100 => out.extend([0x81, byte.to_be_bytes()[1]]),
        long => {
            out.push(0x82);
            out.extend(long.to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn hex(chain: &[CertificateDer<'_>]) -> String {
    chain
        .iter()
        .map(|der| der.iter().map(|octet| format!("{octet:02x}")).collect::<String>() + "\n")
        .collect()
}
