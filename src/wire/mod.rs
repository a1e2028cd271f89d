//! The Pegasus protocol as values: decodes and encodes bytes. Pure: no socket, clock or log.
//!
//! ```text
//! client bytes ─▶ protocol ─▶ frame, rdsn (header, body) ─▶ message (method, id, table, arguments)
//! client bytes ◀─ reply (envelope per query) ◀─ answer (the MetaServer's result struct, untouched)
//!                                                └─ result (its fields) ─▶ host_port, for old clients
//! ```

pub mod address;
pub mod answer;
pub mod config_view;
pub mod crc32c;
pub mod error_code;
pub mod frame;
pub mod host_port;
pub mod invariants;
pub mod message;
pub mod protocol;
pub mod rdsn;
pub mod reply;
pub mod result;

use thrift::TConfiguration;
use thrift::protocol::{TBinaryInputProtocol, TInputProtocol, TMessageType, TType};

/// Deepest nesting: no Pegasus struct reaches it, and deeper nesting could overflow the stack.
const MAX_DEPTH: usize = 16;

pub(crate) type Input<'a> = TBinaryInputProtocol<&'a [u8]>;

/// A strict reader over `bytes`, which rejects lengths larger than `bytes`. Its `transport` is the unread part.
pub(crate) fn reader(bytes: &[u8]) -> Input<'_> {
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
pub(crate) fn each_field<'a>(
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

/// Reads a text without copying it.
fn text<'a>(input: &mut Input<'a>) -> thrift::Result<&'a str> {
    let len = input.read_i32()?;
    let parts = usize::try_from(len).ok().and_then(|len| input.transport.split_at_checked(len));
    let (text, rest) = parts.ok_or_else(|| bad(format!("a text of {len} bytes")))?;
    input.transport = rest;
    str::from_utf8(text).map_err(|e| bad(format!("a text that is not UTF-8: {e}")))
}

/// Reads the start of a message: method, type and seq. Strict, because all peers write it in this form.
fn message_begin<'a>(input: &mut Input<'a>) -> thrift::Result<(&'a str, TMessageType, i32)> {
    let [0x80, 0x01, _, kind] = input.read_i32()?.to_be_bytes() else {
        return Err(bad("a message of another version"));
    };
    Ok((text(input)?, TMessageType::try_from(kind)?, input.read_i32()?))
}

/// Consumes an unknown field in the way of every Thrift version. The crate's own `skip` differs: for type 16 it skips a
/// UUID of 16 bytes, where the Thrift 0.9.3 of Pegasus servers skips nothing and takes these bytes for fields.
pub(crate) fn skip(input: &mut Input<'_>, kind: TType) -> thrift::Result<()> {
    skip_nested(input, kind, MAX_DEPTH)
}

pub(crate) fn skip_nested(input: &mut Input<'_>, kind: TType, depth: usize) -> thrift::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(bad(format!("more than {MAX_DEPTH} structs and lists in one another")));
    };
    match kind {
        TType::Struct => each_field(input, |input, (_, kind)| skip_nested(input, kind, depth)),
        TType::List => {
            let list = input.read_list_begin()?;
            (0..list.size).try_for_each(|_| skip_nested(input, list.element_type, depth))
        }
        TType::Set => {
            let set = input.read_set_begin()?;
            (0..set.size).try_for_each(|_| skip_nested(input, set.element_type, depth))
        }
        TType::Map => {
            let map = input.read_map_begin()?;
            let (Some(key), Some(value)) = (map.key_type, map.value_type) else {
                return Err(bad("a map without types"));
            };
            (0..map.size).try_for_each(|_| {
                skip_nested(input, key, depth)?;
                skip_nested(input, value, depth)
            })
        }
        TType::Uuid => Err(bad("a field of type 16")),
        plain => input.skip(plain),
    }
}

fn bad(why: impl Into<String>) -> thrift::Error {
    thrift::Error::from(why.into())
}
