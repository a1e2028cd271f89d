//! Invariants that hold for any bytes from a client or a MetaServer. Unit tests and `tests/fuzz` look for bytes that
//! break them; the proxy itself does not use this file. Pure.

use super::answer::{self, Answer, BadAnswer};
use super::config_view::{self, Address, ConfigView};
use super::error_code::ERR_OK;
use super::frame::{self, Cut, Frame, HeaderKind, Malformed};
use super::host_port;
use super::message::{self, QUERY_CONFIG, RequestId};
use super::protocol::Protocol;
use super::rdsn;
use super::reply::QueryHead;
use super::result;

const MAX_FRAME: usize = 64 * 1024;

/// A short name of the outcome for some bytes, to count which cases a test reaches.
pub type Outcome = &'static str;

/// Checks the first bytes of a client.
pub fn request(bytes: &[u8]) -> Outcome {
    let protocol = match Protocol::of(bytes) {
        Ok(Some(protocol)) => protocol,
        Ok(None) => return "incomplete",
        Err(malformed) => return malformed.kind(),
    };
    let whole = protocol.cut(bytes, MAX_FRAME);
    // The result does not depend on how the bytes arrive.
    for at in [bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        match (protocol.cut(&bytes[..at], MAX_FRAME), &whole) {
            (Ok(Cut::Incomplete), _) => {}
            (first, whole) => assert_eq!(&first, whole, "cut at {at}"),
        }
    }
    match whole {
        Err(malformed) => malformed.kind(),
        Ok(Cut::Incomplete) => "incomplete",
        Ok(Cut::Whole(frame)) => {
            assert!(frame.len <= bytes.len().min(MAX_FRAME));
            let alone = protocol.cut(&bytes[..frame.len], MAX_FRAME);
            assert_eq!(alone, Ok(Cut::Whole(Frame { ..frame })), "what is behind it is left alone");
            if let HeaderKind::Rdsn { .. } = frame.kind {
                let context = u64::from_le_bytes(bytes[104..112].try_into().expect("a header"));
                assert_eq!(context & 0x3c3, 0x41, "a client's request in Thrift binary");
            }
            whole_request(&frame).unwrap_or_else(|malformed| malformed.kind())
        }
    }
}

fn whole_request(frame: &Frame<'_>) -> Result<Outcome, Malformed> {
    let call = message::read_call(frame)?;
    if call.method != QUERY_CONFIG {
        return Ok("another method");
    }
    let query = call.query()?;
    let asked = (&*query.table, &query.args);
    let mut upstream = Vec::new();
    message::write_query(7, &query.args, &mut upstream);
    let Ok(Cut::Whole(sent)) = frame::cut(&upstream, usize::MAX) else {
        panic!("what goes upstream is one frame");
    };
    assert_eq!((sent.len, upstream[24..48] == [0; 24]), (upstream.len(), true), "our own header");
    let again = message::read_call(&sent)?;
    assert_eq!((again.id, again.method), (RequestId::Thft(7), QUERY_CONFIG));
    let again = again.query()?;
    assert_eq!((&*again.table, &again.args), asked);
    if query.args.starts_with(&[12, 0, 1]) {
        let over_rdsn = rdsn::write_query(u64::MAX, &query.args);
        let Ok(Cut::Whole(frame)) = rdsn::cut(&over_rdsn, usize::MAX) else {
            panic!("a question can be asked in both protocols");
        };
        let again = message::read_call(&frame)?.query()?;
        assert_eq!((&*again.table, &again.args), asked, "in both it is the same question");
    }
    Ok("query")
}

/// Checks a result struct of a MetaServer, in a good envelope.
pub fn result(bytes: &[u8]) -> Outcome {
    enveloped(bytes);
    let (found, removed) = (result::walk(bytes), host_port::remove(bytes));
    let Ok(found) = found else {
        assert!(removed.is_err() && rdsn::check_result(bytes).is_err());
        return "unexpected";
    };
    let is_fit_for_cpp = rdsn::check_result(bytes).is_ok();
    let mut end = 0;
    for range in &found.host_ports {
        assert!(end < range.start && range.start < range.end && range.end < bytes.len());
        end = range.end;
    }
    match removed {
        Err(_) => {
            assert!(found.unknown_field.is_some(), "all that is known can be removed");
            "unknown field"
        }
        Ok(None) => {
            assert!(found.host_ports.is_empty());
            if is_fit_for_cpp { "nothing to remove" } else { "nothing to remove, unfit" }
        }
        Ok(Some(rest)) => {
            let removed: usize = found.host_ports.iter().map(|range| range.len()).sum();
            assert_eq!(rest.len() + removed, bytes.len());
            let without = result::walk(&rest).expect("the rest can be read");
            assert_eq!((without.err, without.partition_count), (found.err, found.partition_count));
            assert!(without.host_ports.is_empty() && without.unknown_field.is_none());
            same_but_for_hosts(bytes, &rest);
            if is_fit_for_cpp { "removed" } else { "removed, unfit" }
        }
    }
}

/// Checks that a reader without host_port fields sees no other difference.
fn same_but_for_hosts(result: &[u8], rest: &[u8]) {
    let view = |bytes| config_view::read(bytes).ok();
    let only_ips = |view: ConfigView| {
        let partitions = view.partitions.into_iter().map(|partition| {
            let is_ip = |address: &Address| matches!(address, Address::Ip(_));
            let secondaries: Vec<_> = partition.secondaries.into_iter().filter(is_ip).collect();
            (partition.index, partition.ballot, partition.primary.filter(is_ip), secondaries)
        });
        (view.err, view.app_id, view.partition_count, partitions.collect::<Vec<_>>())
    };
    // The view for people needs names in UTF-8.
    if let Some(with) = view(result) {
        assert_eq!(view(rest).map(only_ips), Some(only_ips(with)));
    }
}

/// Checks that a client finds any result after its envelope.
fn enveloped(bytes: &[u8]) {
    let thft = [QueryHead::new(RequestId::Thft(-9), bytes.len()).bytes(), bytes].concat();
    if let Ok(Answer::Leader { result_at, .. }) = read_answer(&thft) {
        assert_eq!(&thft[result_at..], bytes);
    }
    let head = rdsn::answer_head(9, ERR_OK, bytes.len());
    assert_eq!(rdsn::read_answer_head(&head, 9), Ok(bytes.len()));
}

/// Checks any bytes from a MetaServer, a frame or not.
pub fn upstream_answer(bytes: &[u8]) -> Outcome {
    let Some(first) = bytes.first_chunk() else {
        return "incomplete";
    };
    match answer::frame_len(*first) {
        Err(bad) => bad.kind(),
        Ok(len) if len > bytes.len() => "incomplete",
        Ok(len) => match read_answer(&bytes[..len]) {
            Ok(Answer::Leader { result_at, .. }) => {
                assert!(result_at < len);
                "leader"
            }
            Ok(Answer::Follower { .. }) => "follower",
            Err(bad) => bad.kind(),
        },
    }
}

fn read_answer(frame: &[u8]) -> Result<Answer, BadAnswer> {
    answer::read_envelope(frame)?.read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_invariants_hold_for_bytes_that_are_nearly_a_frame() {
        let mut query = Vec::new();
        message::write_query(1, &message::query_args("t"), &mut query);
        let rdsn = rdsn::write_query(1, &message::query_args("t"));
        for (frame, want) in [(query, "query"), (rdsn, "query")] {
            assert_eq!(request(&frame), want);
            for at in 0..frame.len() {
                assert_ne!(request(&frame[..at]), want);
                for bit in 0..8 {
                    let mut odd = frame.clone();
                    odd[at] ^= 1 << bit;
                    request(&odd);
                }
            }
        }
    }
}
