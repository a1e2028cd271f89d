//! From a real frame to one that is nearly real. Lengths and checksums are set right again now and then, or nothing
//! behind them would ever be reached.

use harness::rdsn::{self, HEADER};
use harness::rng::Rng;

/// Bytes that codecs have a special idea of: Thrift's types, ends of ranges.
const SPECIAL: [u8; 20] =
    [0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x7f, 0x80, 0xfe, 0xff, 0x41];

const LENGTHS: [u32; 10] =
    [0, 1, 2, 47, 192, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

/// No frame grows beyond it.
const MAX_LEN: usize = 8 * 1024;

/// Makes the next frame.
pub fn next(corpus: &[Vec<u8>], rng: &mut Rng, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(rng.pick::<Vec<u8>>(corpus));
    if rng.percent(1) {
        bytes.clear();
        bytes.extend((0..rng.below(300)).map(|_| rng.below(256) as u8));
    }
    for _ in 0..rng.below(5) {
        mutate(corpus, rng, bytes);
    }
    bytes.truncate(MAX_LEN);
    if rng.percent(70) {
        mend(rng, bytes);
    }
}

fn mutate(corpus: &[Vec<u8>], rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.below(bytes.len() + 1);
    let up_to = |rng: &mut Rng, most: usize| at + rng.below(most + 1).min(bytes.len() - at);
    match rng.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        1 if at < bytes.len() => bytes[at] = rng.below(256) as u8,
        2 if at < bytes.len() => bytes[at] = *rng.pick(&SPECIAL),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..up_to(rng, 40))),
        5 => {
            // Some bytes once more.
            let copied = bytes[at..up_to(rng, 40)].to_vec();
            let to = rng.below(bytes.len() + 1);
            drop(bytes.splice(to..to, copied));
        }
        6 => {
            let added: Vec<u8> = (0..rng.below(9)).map(|_| *rng.pick(&SPECIAL)).collect();
            drop(bytes.splice(at..at, added));
        }
        7 => {
            // The end of another frame.
            let other: &Vec<u8> = rng.pick(corpus);
            let from = rng.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let len = *rng.pick(&LENGTHS);
            let len = if rng.percent(50) { len.to_be_bytes() } else { len.to_le_bytes() };
            let end = bytes.len().min(at + 4);
            bytes[at..end].copy_from_slice(&len[..end - at]);
        }
    }
}

/// Sets what a sender reckons: lengths, checksums.
fn mend(rng: &mut Rng, bytes: &mut [u8]) {
    let len = bytes.len();
    match bytes.first_chunk() {
        Some(b"RDSN") if len >= HEADER => {
            set(bytes, 16, ((len - HEADER) as u32).to_le_bytes());
            let body_crc = if rng.percent(20) { rdsn::crc32c(&bytes[HEADER..]) } else { 0 };
            set(bytes, 20, body_crc.to_le_bytes());
            set(bytes, 12, [0; 4]);
            let header_crc = if rng.percent(20) { rdsn::crc32c(&bytes[..HEADER]) } else { 0 };
            set(bytes, 12, header_crc.to_le_bytes());
        }
        Some(b"THFT") if len >= 48 && bytes[7] == 0 => {
            set(bytes, 16, ((len - 48) as u32).to_be_bytes());
        }
        _ => {}
    }
}

fn set(bytes: &mut [u8], at: usize, value: [u8; 4]) {
    bytes[at..at + 4].copy_from_slice(&value);
}
