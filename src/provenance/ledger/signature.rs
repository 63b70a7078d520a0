//! Signing a ledger's head, with Ed25519.

use std::path::Path;

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::audit::{Audit, FindingKind};
use super::files::{bad, io, sync_dir, write_bytes};
use super::manifest::Manifest;
use crate::{Error, Result};

/// Name of the signature in the ledger's directory.
pub const SIGNATURE: &str = "signature.json";

/// What is put before the head, so that a signature of something else is none of a ledger.
const DOMAIN: &str = "gradroute ledger head 1\n";

/// A signed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Hash of the last entry that is signed.
    pub head: String,
    /// Number of entries up to there.
    pub entries: u64,
    /// The signer's public key, hexadecimal digits.
    pub public_key: String,
    /// Of `"gradroute ledger head 1\n"`, the head, `"\n"` and the number of entries in decimal.
    pub signature: String,
}

impl Signature {
    /// Reads the signature of a ledger; none where it is not signed.
    ///
    /// # Errors
    /// [`Error::Ledger`] when the file is none; [`Error::Io`].
    pub fn read(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = dir.as_ref().join(SIGNATURE);
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&path)(error)),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| bad(&path, error)),
        }
    }

    fn message(&self) -> Vec<u8> {
        format!("{DOMAIN}{}\n{}", self.head, self.entries).into_bytes()
    }

    fn holds(&self, key: &VerifyingKey) -> bool {
        let signature = hex(&self.signature).and_then(|bytes| bytes.try_into().ok());
        signature.is_some_and(|bytes: [u8; 64]| {
            let signature = ed25519_dalek::Signature::from_bytes(&bytes);
            key.verify_strict(&self.message(), &signature).is_ok()
        })
    }
}

/// Signs the head of a ledger with a private key in PKCS#8 PEM form, as
/// `openssl genpkey -algorithm ed25519` writes it, and leaves `signature.json` beside the
/// manifest. Commits that follow are not covered until it is signed again.
///
/// # Errors
/// [`Error::Argument`] when `key` is no such key; otherwise as opening a ledger.
pub fn sign(dir: impl AsRef<Path>, key: &str) -> Result<Signature> {
    let dir = dir.as_ref();
    let key = SigningKey::from_pkcs8_pem(key)
        .map_err(|error| Error::argument("key", "an Ed25519 key in PKCS#8 PEM form", error))?;
    let manifest = Manifest::read(dir)?;
    let mut signed = Signature {
        head: manifest.head().to_owned(),
        entries: manifest.next_index(),
        public_key: digits(key.verifying_key().as_bytes()),
        signature: String::new(),
    };
    signed.signature = digits(&key.sign(&signed.message()).to_bytes());
    let json = serde_json::to_vec_pretty(&signed).expect("numbers and strings are valid JSON");
    write_bytes(&dir.join(SIGNATURE), &json)?;
    sync_dir(dir)?;
    Ok(signed)
}

/// Adds to an audit whether the signature is by the holder of this public key (PEM, as
/// `openssl pkey -pubout` writes it), and the signed head in the chain.
///
/// # Errors
/// [`Error::Argument`] when `key` is no such key; [`Error::Io`].
pub fn audit_signature(dir: impl AsRef<Path>, key: &str, audit: &mut Audit) -> Result<()> {
    let dir = dir.as_ref();
    let key = VerifyingKey::from_public_key_pem(key)
        .map_err(|error| Error::argument("key", "an Ed25519 public key in PEM form", error))?;
    let path = dir.join(SIGNATURE);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            audit.find(SIGNATURE, None, FindingKind::Missing, "the ledger is not signed");
            return Ok(());
        }
        other => other.map_err(io(&path))?,
    };
    let signed: Signature = match serde_json::from_slice(&text) {
        Ok(signed) => signed,
        Err(error) => {
            let detail = format!("the file cannot be read: {error}");
            audit.find(SIGNATURE, None, FindingKind::Signature, detail);
            return Ok(());
        }
    };
    if signed.public_key != digits(key.as_bytes()) {
        let detail = format!("it states another key, {}", signed.public_key);
        audit.find(SIGNATURE, None, FindingKind::Signature, detail);
        return Ok(());
    }
    if !signed.holds(&key) {
        let detail = "it was not made with this key, or altered since";
        audit.find(SIGNATURE, None, FindingKind::Signature, detail);
        return Ok(());
    }
    let manifest = match Manifest::read(dir) {
        Ok(manifest) => manifest,
        Err(error) => {
            // Something else says already what is wrong with it, or nothing does.
            if audit.is_clean() {
                let detail = format!("the signed head cannot be looked up: {error}");
                audit.find(super::manifest::MANIFEST, None, FindingKind::Altered, detail);
            }
            return Ok(());
        }
    };
    let at = signed.entries.checked_sub(1).and_then(|at| manifest.entries.get(at as usize));
    match at {
        Some(entry) if entry.hash == signed.head => {
            let later = manifest.next_index() - signed.entries;
            if later > 0 {
                audit.notes.push(format!("{later} entries are newer than the signature"));
            }
        }
        _ => {
            let detail = format!(
                "the signed head, of {} entries, is not in the chain: it was cut off or replaced",
                signed.entries
            );
            audit.find(super::manifest::MANIFEST, None, FindingKind::CutOff, detail);
        }
    }
    Ok(())
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from lower-case hexadecimal digits.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |it: u8| match it {
        b'0'..=b'9' => Some(it - b'0'),
        b'a'..=b'f' => Some(it - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
