//! A body in gzip, RFC 1952: metrics of thousands of tables shrink to a twentieth. Pure.
//!
//! ```text
//! | 1f 8b | 8 | flags 0 | time 0 | 0 | 255 | deflate ... | crc32 | length |
//! ```

use miniz_oxide::deflate::compress_to_vec;

/// A shorter body gains little.
pub const MIN_BYTES: usize = 1_024;

/// The fastest useful level, because a scraper comes every few seconds.
const LEVEL: u8 = 2;

/// Magic, deflate, no flags, no time, no compressor level, unknown system.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

pub fn compress(body: &[u8]) -> Vec<u8> {
    let mut bytes = HEAD.to_vec();
    bytes.extend(compress_to_vec(body, LEVEL));
    bytes.extend(crc32(body).to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes
}

/// Whether an Accept-Encoding header allows gzip.
pub fn is_accepted(header: &str) -> bool {
    let allows = |part: &str| {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let is_zero = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !is_zero
    };
    header.split(',').any(allows)
}

/// The CRC of gzip and zip: polynomial 0xedb88320, bits reversed.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn gzip_reads_it() {
        let body = "meta_proxy_queries{table=\"orders\"} 7\n".repeat(10_000);
        let bytes = compress(body.as_bytes());
        assert!(bytes.len() * 20 < body.len(), "{} bytes", bytes.len());
        let mut gzip = Command::new("gzip")
            .arg("-dc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        gzip.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = gzip.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == body.as_bytes());
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn accept_encoding_decides() {
        for (header, want) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("deflate, br", false),
            ("", false),
        ] {
            assert_eq!(is_accepted(header), want, "{header}");
        }
    }
}
