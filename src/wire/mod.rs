//! The Pegasus protocol as values: bytes in, meaning out, and back. Pure: no socket, clock or log.
//!
//! ```text
//! client bytes ─▶ frame (header kind, body) ─▶ message (method, seq, table, arguments)
//! client bytes ◀─ reply (envelope per asker) ◀─ answer (the MetaServer's result struct, untouched)
//! ```

pub mod answer;
pub mod config_view;
pub mod error_code;
pub mod frame;
pub mod message;
pub mod reply;

use thrift::TConfiguration;
use thrift::protocol::{TBinaryInputProtocol, TInputProtocol, TType};

/// Nesting that no Pegasus struct reaches; a deeper one is an attack on the stack.
const MAX_DEPTH: usize = 16;

type Input<'a> = TBinaryInputProtocol<&'a [u8]>;

/// A strict reader over `bytes` that believes no length larger than `bytes` themselves. What is left
/// to read is its `transport`.
fn reader(bytes: &[u8]) -> Input<'_> {
    let limits = TConfiguration::builder()
        .max_message_size(Some(bytes.len()))
        .max_frame_size(Some(bytes.len()))
        .max_recursion_depth(Some(MAX_DEPTH))
        .max_container_size(Some(bytes.len()))
        .max_string_size(Some(bytes.len()))
        .build()
        .expect("frame and message limit are the same");
    TBinaryInputProtocol::with_config(bytes, true, limits)
}

/// Reads a struct field by field; `field` gets its id and type and must consume it.
fn each_field<'a>(
    input: &mut Input<'a>,
    mut field: impl FnMut(&mut Input<'a>, (i16, TType)) -> thrift::Result<()>,
) -> thrift::Result<()> {
    input.read_struct_begin()?;
    loop {
        let begin = input.read_field_begin()?;
        match (begin.id, begin.field_type) {
            (_, TType::Stop) => return input.read_struct_end(),
            (id, kind) => field(input, (id.unwrap_or(-1), kind))?,
        }
    }
}
