//! Makes inputs: random bytes, changed seeds, and bytes that look like protobuf messages.

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

/// An input that is longer finds nothing that a shorter one does not.
const INPUT_BYTES_MAX: usize = 4096;
/// Numbers at which code changes its mind.
const NUMBERS: [u64; 12] = [0, 1, 2, 63, 64, 127, 128, 1 << 16, 1 << 31, u32::MAX as u64, i64::MAX as u64, u64::MAX];
/// Texts that parts of messages have to be.
const TEXTS: [&[u8]; 8] = [
    b"name",
    b"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    b"0.1.0",
    b"\x04\x7f\x00\x00\x01\x06\x11\x94",
    b"{\"heartbeat_ms\": 5000}",
    b"18446744073709551615",
    b"zone",
];

/// The next input of a target with these seeds.
pub fn input(random: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = match random.random_range(0..8) {
        0 => raw(random),
        1 | 2 => prefixed(random),
        3 => message(random, 3),
        _ => match seeds.choose(random) {
            Some(seed) => changed(seed.clone(), random),
            None => message(random, 3),
        },
    };
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn raw(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..=256);
    (0..length).map(|_| random.random()).collect()
}

/// A message behind the bytes by which a target chooses.
fn prefixed(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = match random.random_range(0..3) {
        0 => vec![random.random()],
        1 => NUMBERS[random.random_range(0..NUMBERS.len())].to_le_bytes().to_vec(),
        _ => random.random_range(0..=64u64 << 30).to_le_bytes().to_vec(),
    };
    bytes.extend(message(random, 3));
    bytes
}

/// Fields with small numbers; some of them are messages again.
fn message(random: &mut StdRng, depth: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(0..6) {
        let field = random.random_range(1..=12u64);
        if random.random_range(0..3) == 0 {
            varint(&mut bytes, field << 3);
            let number = number(random);
            varint(&mut bytes, number);
        } else {
            varint(&mut bytes, field << 3 | 2);
            let body = body(random, depth);
            varint(&mut bytes, body.len() as u64);
            bytes.extend(body);
        }
    }
    bytes
}

fn body(random: &mut StdRng, depth: u32) -> Vec<u8> {
    match random.random_range(0..6) {
        // Digests, keys and identifiers.
        0 | 1 => (0..32).map(|_| random.random()).collect(),
        2 => identity(random),
        3 => TEXTS.choose(random).map(|text| text.to_vec()).unwrap_or_default(),
        _ if depth > 0 => message(random, depth - 1),
        _ => raw(random),
    }
}

/// A PeerId: the identity multihash of a key of ed25519.
fn identity(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    bytes.extend((0..32).map(|_| random.random::<u8>()));
    bytes
}

fn number(random: &mut StdRng) -> u64 {
    match random.random_range(0..3) {
        0 => random.random_range(0..16),
        1 => NUMBERS[random.random_range(0..NUMBERS.len())],
        _ => random.random(),
    }
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn changed(mut bytes: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => {
                let tail = bytes.split_off(at);
                bytes.extend(body(random, 1));
                bytes.extend(tail);
            }
            // A part twice, as repeated fields are.
            _ => bytes.extend_from_within(at..),
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}
