//! Memory that the process keeps for the next batch of answers.
//!
//! glibc returns free memory at the end of a heap to the system when it exceeds 128 KiB. The answers of one call are
//! larger, so each call would return its memory, and the next one would fault it in again page by page: with answers of
//! 64 partitions that took a tenth of all processor time. glibc raises the limit to twice the largest block that was
//! mapped alone and then freed (mallopt(3), M_MMAP_THRESHOLD). So this code frees one such block.

use std::hint::black_box;

/// Each heap keeps twice as much. A few threads share a heap, so all heaps together keep some 10 MiB.
const BLOCK_BYTES: usize = 512 * 1024;

/// Lets heaps keep free memory. Call it before the first thread starts. Other allocators ignore it.
pub fn keep_freed() {
    drop(black_box(vec![0u8; BLOCK_BYTES]));
}
