//! Real frames to start from.

use std::fs;
use std::path::Path;

use harness::rdsn;
use harness::wire::{ERR_OK, QUERY_CONFIG, Response};

/// Bytes to mutate.
pub type Corpus = Vec<Vec<u8>>;

fn golden(wanted: impl Fn(&str) -> bool) -> Corpus {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let entries = fs::read_dir(&folder).expect("tests/golden is part of the sources");
    let mut paths: Vec<_> =
        entries.map(|entry| entry.expect("it does not change").path()).collect();
    // In one order everywhere, so that a seed means the same.
    paths.sort();
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    paths.retain(|path| name(path).is_some_and(|name| wanted(&name)));
    paths.iter().map(|path| fs::read(path).expect("a file that was just listed")).collect()
}

/// Frames of clients.
pub fn requests() -> Corpus {
    golden(|name| name.ends_with(".request.bin") || name.ends_with(".c2s.bin"))
}

/// Answers of MetaServers, envelope and all.
pub fn answers() -> Corpus {
    golden(|name| name.ends_with(".response.bin"))
}

/// The result structs of those to QueryConfig.
pub fn results() -> Corpus {
    let name = format!("{QUERY_CONFIG}_ACK");
    let result = |frame: Vec<u8>| match frame.starts_with(b"RDSN") {
        true => {
            let answer = rdsn::Frame::decode(&frame).ok()?;
            (answer.rpc_name == name && answer.error_name == ERR_OK).then_some(answer.body)
        }
        false => {
            let answer = Response::decode(&frame).ok()?;
            (answer.name == name).then_some(answer.result)
        }
    };
    answers().into_iter().filter_map(result).collect()
}
