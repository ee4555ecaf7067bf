//! Keys that are never on a disk, found where they must be: in the memory of the process that signs with them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use crate::needles::{BEFORE_SCALAR, SCALAR};

/// What stands before the secret bytes in a PKCS#8 key of P-256 (RFC 5958 with RFC 5915): both object identifiers, the
/// two octet strings' heads, and [`BEFORE_SCALAR`].
const HEAD: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
    0x04, 0x20,
];

/// The most of one region that is read: the heap of these processes is far smaller.
const MAX_REGION: u64 = 1 << 28;

/// The secret bytes of every P-256 key that lies as PKCS#8 in what the process can write to.
///
/// # Panics
///
/// If the process has ended or cannot be read, which only root can.
#[track_caller]
pub(crate) fn keys_of(pid: u32) -> Vec<Vec<u8>> {
    assert!(HEAD.ends_with(&BEFORE_SCALAR), "one shape of keys in both searches");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for (from, length) in maps.lines().filter_map(writable) {
        let mut region = vec![0; length];
        // A region that went away meanwhile, or that the kernel keeps for itself, holds nothing for us.
        let Ok(read) = memory.read_at(&mut region, from) else { continue };
        keys.extend(keys_in(&region[..read]));
    }
    keys.sort();
    keys.dedup();
    keys
}

/// Where a region begins and how long it is, if the process writes to it.
fn writable(line: &str) -> Option<(u64, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    let length = to.checked_sub(from).filter(|length| rest.starts_with("rw") && *length <= MAX_REGION)?;
    Some((from, usize::try_from(length).ok()?))
}

fn keys_in(region: &[u8]) -> Vec<Vec<u8>> {
    let heads =
        region.windows(HEAD.len()).enumerate().filter(|(_, window)| window[0] == HEAD[0] && *window == HEAD);
    let key = |at: usize| region.get(at + HEAD.len()..at + HEAD.len() + SCALAR).map(<[u8]>::to_vec);
    heads.filter_map(|(at, _)| key(at)).collect()
}
