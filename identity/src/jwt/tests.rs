//! Tokens as attackers make them: other algorithms, keys, issuers, times and shapes.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, encode};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.corp.example";

/// A key of an issuer, and how it publishes it.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

fn text(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn p256(name: &str) -> Signer {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    Signer {
        algorithm: Algorithm::ES256,
        key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()),
        jwk: json!({"kty": "EC", "crv": "P-256", "kid": name, "x": text(x), "y": text(y)}),
    }
}

fn p384(name: &str) -> Signer {
    let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    Signer {
        algorithm: Algorithm::ES384,
        key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()),
        jwk: json!({"kty": "EC", "crv": "P-384", "kid": name, "x": text(x), "y": text(y)}),
    }
}

fn ed25519(name: &str) -> Signer {
    let pair = Ed25519KeyPair::generate().unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": name, "x": text(pair.public_key().as_ref())});
    let key = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
    Signer { algorithm: Algorithm::EdDSA, key, jwk }
}

fn rsa(name: &str, algorithm: Algorithm) -> Signer {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let public = pair.public_key();
    let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent());
    let jwk = json!({"kty": "RSA", "use": "sig", "kid": name, "n": text(n), "e": text(e.big_endian_without_leading_zero())});
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    // `from_rsa_der` takes PKCS#1, which is the octet string at the end of PKCS#8 (RFC 5958).
    let at = pkcs8.as_ref().windows(2).skip(20).position(|two| two == [0x30, 0x82]).unwrap() + 20;
    Signer { algorithm, key: EncodingKey::from_rsa_der(&pkcs8.as_ref()[at..]), jwk }
}

fn set(signers: &[&Signer]) -> JwkSet {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk.clone()).collect();
    JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["shop", "other"], "sub": "ann", "exp": NOW + 300, "groups": ["customer"]})
}

fn header(signer: &Signer, name: Option<&str>) -> Header {
    Header { kid: name.map(ToOwned::to_owned), ..Header::new(signer.algorithm) }
}

fn sign(signer: &Signer, claims: &Value) -> String {
    encode(&header(signer, signer.jwk["kid"].as_str()), claims, &signer.key).unwrap()
}

/// A token with that text as its header, signed by the key all the same.
fn sign_raw(signer: &Signer, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", text(header.as_bytes()), text(claims.as_bytes()));
    let signature = crypto::sign(message.as_bytes(), &signer.key, signer.algorithm).unwrap();
    format!("{message}.{signature}")
}

fn expected() -> Expected {
    Expected {
        issuer: ISSUER.to_owned(),
        audiences: vec!["shop".to_owned()],
        leeway: Duration::from_secs(60),
    }
}

fn judge(token: &str, keys: &JwkSet) -> Result<Claims, JwtError> {
    verify(token, keys, &expected(), SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
}

#[test]
fn tokens_of_every_accepted_kind_are_taken() {
    let kinds = [
        p256("a"),
        p384("b"),
        ed25519("c"),
        rsa("d", Algorithm::RS256),
        rsa("e", Algorithm::RS512),
        rsa("f", Algorithm::PS256),
        rsa("g", Algorithm::PS384),
    ];
    let keys = set(&kinds.iter().collect::<Vec<_>>());
    for signer in &kinds {
        let found = judge(&sign(signer, &claims()), &keys).unwrap();
        assert_eq!(found.text("sub"), Some("ann"));
        assert_eq!(found.texts("groups"), Some(vec!["customer"]));
    }
}

#[test]
fn pol_11_the_key_says_which_algorithm_and_not_the_token() {
    let (own, other) = (p256("a"), p256("b"));
    let keys = set(&[&own, &other]);
    let body = claims().to_string();
    // The public key as a shared secret, the oldest confusion.
    let public = EncodingKey::from_secret(own.jwk.to_string().as_bytes());
    let forged =
        encode(&Header { kid: Some("a".to_owned()), ..Header::new(Algorithm::HS256) }, &claims(), &public);
    assert_eq!(judge(&forged.unwrap(), &keys), Err(JwtError::Algorithm));
    let none = format!("{}.{}.", text(br#"{"alg":"none"}"#), text(body.as_bytes()));
    assert_eq!(judge(&none, &keys), Err(JwtError::Malformed));
    // Signed by one key, said to be by another; by one that nobody has; by none.
    let swapped = encode(&header(&own, Some("b")), &claims(), &own.key).unwrap();
    assert_eq!(judge(&swapped, &keys), Err(JwtError::Signature));
    let unknown = encode(&header(&own, Some("c")), &claims(), &own.key).unwrap();
    assert_eq!(judge(&unknown, &keys), Err(JwtError::UnknownKey));
    assert!(JwtError::UnknownKey.wants_newer_keys());
    let unnamed = encode(&header(&own, None), &claims(), &own.key).unwrap();
    assert_eq!(judge(&unnamed, &keys), Err(JwtError::AmbiguousKey));
    assert!(judge(&unnamed, &set(&[&own])).is_ok(), "one key needs no name");
    // The key's own word counts, and its curve.
    let mut only_pss = rsa("r", Algorithm::RS256);
    only_pss.jwk["alg"] = json!("PS256");
    assert_eq!(judge(&sign(&only_pss, &claims()), &set(&[&only_pss])), Err(JwtError::UnknownKey));
    let other_curve = sign_raw(&own, r#"{"alg":"ES384","kid":"a"}"#, &body);
    assert_eq!(judge(&other_curve, &keys), Err(JwtError::UnknownKey));
    // What a token brings along is never used.
    let brought = format!(r#"{{"alg":"ES256","kid":"a","jwk":{},"jku":"https://evil.example"}}"#, other.jwk);
    assert_eq!(judge(&sign_raw(&other, &brought, &body), &keys), Err(JwtError::Signature));
}

#[test]
fn headers_that_demand_more_are_refused() {
    let signer = p256("a");
    let keys = set(&[&signer]);
    let body = claims().to_string();
    for (header, verdict) in [
        (r#"{"alg":"ES256","typ":"at+jwt"}"#, Ok(())),
        (r#"{"alg":"ES256","typ":"jose"}"#, Ok(())),
        (r#"{"alg":"ES256","typ":"dpop+jwt"}"#, Err(JwtError::Header)),
        (r#"{"alg":"ES256","crit":["exp"]}"#, Err(JwtError::Header)),
        (r#"{"alg":"ES256","b64":false}"#, Err(JwtError::Header)),
        (r#"{"alg":"ES256","zip":"DEF"}"#, Err(JwtError::Header)),
        (r#"{"alg":"ES256","enc":"A128GCM"}"#, Err(JwtError::Header)),
        (r#"{"alg":"ES256","alg":"ES256"}"#, Err(JwtError::Malformed)),
        (r#"{"alg":"ES512"}"#, Err(JwtError::Malformed)),
        (r#"["ES256"]"#, Err(JwtError::Malformed)),
    ] {
        assert_eq!(judge(&sign_raw(&signer, header, &body), &keys).map(drop), verdict, "{header}");
    }
}

#[test]
fn issuer_audience_and_times_are_those_that_were_asked_for() {
    let signer = p256("a");
    let keys = set(&[&signer]);
    let with = |name: &str, value: Value| {
        let mut all = claims();
        all[name] = value;
        judge(&sign(&signer, &all), &keys).map(drop)
    };
    let without = |name: &str| {
        let mut all = claims();
        all.as_object_mut().unwrap().remove(name);
        judge(&sign(&signer, &all), &keys).map(drop)
    };
    for value in [json!("https://login.corp.example/"), json!([ISSUER]), json!(""), Value::Null] {
        assert_eq!(with("iss", value), Err(JwtError::Issuer));
    }
    assert_eq!(with("aud", json!("shop")), Ok(()));
    for value in [json!("shop2"), json!([]), json!(["other"]), json!(["shop", 1]), json!({"shop": 1})] {
        assert_eq!(with("aud", value), Err(JwtError::Audience));
    }
    assert_eq!((without("iss"), without("aud")), (Err(JwtError::Issuer), Err(JwtError::Audience)));
    assert_eq!(without("exp"), Err(JwtError::NoExpiry));
    for value in [json!("1900000000"), Value::Null, json!([NOW])] {
        assert_eq!(with("exp", value), Err(JwtError::NoExpiry));
    }
    assert_eq!(
        (with("exp", json!(NOW - 59)), with("exp", json!(NOW - 60))),
        (Ok(()), Err(JwtError::Expired))
    );
    assert_eq!(with("exp", json!(-1)), Err(JwtError::Expired));
    for name in ["nbf", "iat"] {
        assert_eq!(with(name, json!(NOW + 60)), Ok(()));
        assert_eq!(with(name, json!(NOW + 61)), Err(JwtError::NotYetValid));
        assert_eq!(with(name, json!("yesterday")), Err(JwtError::NotYetValid));
    }
}

#[test]
fn leeway_and_audiences_are_bounded() {
    let signer = p256("a");
    let (keys, token) = (set(&[&signer]), sign(&signer, &claims()));
    let at = |after: u64, rule: &Expected| {
        verify(&token, &keys, rule, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + 300 + after)).map(drop)
    };
    let generous = Expected { leeway: Duration::from_secs(86_400), ..expected() };
    assert_eq!(at(299, &generous), Ok(()));
    assert_eq!(at(300, &generous), Err(JwtError::Expired));
    let nobody = Expected { audiences: Vec::new(), ..expected() };
    assert_eq!(at(0, &nobody), Err(JwtError::Audience));
    assert_eq!(verify(&token, &keys, &expected(), SystemTime::UNIX_EPOCH).map(drop), Ok(()), "it has no iat");
}

#[test]
fn other_shapes_are_no_tokens() {
    let signer = p256("a");
    let (keys, token) = (set(&[&signer]), sign(&signer, &claims()));
    for broken in [
        String::new(),
        "..".to_owned(),
        token.replace('.', "="),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}="),
        format!(" {token}"),
        token.rsplit_once('.').unwrap().0.to_owned(),
        sign_raw(&signer, r#"{"alg":"ES256"}"#, "[]"),
        sign_raw(&signer, r#"{"alg":"ES256"}"#, "not json"),
        sign_raw(&signer, r#"{"alg":"ES256"}"#, &format!("{}1{}", "[".repeat(500), "]".repeat(500))),
        // A name that stands twice, at any depth: readers differ in which they take.
        sign_raw(&signer, r#"{"alg":"ES256"}"#, r#"{"iss":"a","iss":"b"}"#),
        sign_raw(&signer, r#"{"alg":"ES256"}"#, r#"{"x":[{"y":1,"y":2}]}"#),
    ] {
        assert_eq!(judge(&broken, &keys), Err(JwtError::Malformed), "{broken}");
    }
    let mut long = claims();
    long["x"] = json!("x".repeat(MAX_TOKEN_BYTES));
    assert_eq!(judge(&sign(&signer, &long), &keys), Err(JwtError::TooLong));
}

#[test]
fn a_set_keeps_what_can_sign_and_refuses_what_is_ambiguous() {
    let parse =
        |keys: Value| JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).map(|set| set.len());
    let good = p256("a").jwk;
    let with = |changes: Value| {
        let mut key = good.clone();
        key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        key
    };
    assert_eq!(parse(json!([good, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "new"}, {}, 7])), Ok(1));
    for useless in [
        json!([]),
        json!([{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]),
        json!([with(json!({"use": "enc"}))]),
        json!([with(json!({"key_ops": ["encrypt"]}))]),
        json!([with(json!({"alg": "ES384"}))]),
        json!([with(json!({"alg": "HS256"}))]),
        json!([{"kty": "RSA", "n": text(&[255; 128]), "e": "AQAB"}]),
    ] {
        assert_eq!(parse(useless.clone()), Err(JwkSetError::NoKey), "{useless}");
    }
    assert_eq!(parse(json!([p256("a").jwk, p384("a").jwk])), Err(JwkSetError::SameName("a".to_owned())));
    assert_eq!(parse(json!(vec![json!({}); MAX_KEYS + 1])), Err(JwkSetError::TooMany));
    assert!(matches!(JwkSet::parse(b"{}"), Err(JwkSetError::Malformed(_))));
    assert_eq!(JwkSet::parse(&vec![b' '; MAX_SET_BYTES + 1]).map(|set| set.len()), Err(JwkSetError::TooLong));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whoever changes what is signed has no token any more.
    #[test]
    fn a_token_that_was_changed_is_refused(at in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.-]") {
        let signer = p256("a");
        let (keys, token) = (set(&[&signer]), sign(&signer, &claims()));
        let signed = token.rfind('.').unwrap();
        let at = at.index(signed);
        let changed = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        prop_assume!(changed != token);
        prop_assert!(judge(&changed, &keys).is_err());
    }

    #[test]
    fn no_text_is_too_odd(token in "\\PC{0,200}", set in "\\PC{0,200}") {
        let signer = p256("a");
        prop_assert!(judge(&token, &self::set(&[&signer])).is_err());
        prop_assert!(JwkSet::parse(set.as_bytes()).is_err());
    }
}
