//! Questions of administrators to a MetaServer: who the cluster is, which tables it has, where they are duplicated to. The
//! answers are those of a real one, field for field (`idl/meta_admin.thrift`, `idl/duplication.thrift`).

use std::collections::BTreeMap;

use crate::wire::Writer;
use crate::wire::kind::{BOOL, I32, I64, LIST, MAP, STRING, STRUCT};

pub const CLUSTER_INFO: &str = "RPC_CM_CLUSTER_INFO";
pub const LIST_APPS: &str = "RPC_CM_LIST_APPS";
pub const QUERY_DUPLICATION: &str = "RPC_CM_QUERY_DUPLICATION";

const AS_AVAILABLE: i32 = 1;
const DS_LOG: i32 = 3;

/// A table as it is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    pub name: String,
    pub app_id: i32,
    pub partition_count: i32,
    pub envs: BTreeMap<String, String>,
    pub create_second: i64,
    pub duplicating: bool,
    pub is_splitting: bool,
    pub is_bulk_loading: bool,
}

/// The result struct of [`CLUSTER_INFO`].
pub fn cluster_info(err: &str, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut w = begin(err);
    list(&mut w, 2, STRING, pairs.len());
    pairs.iter().for_each(|(key, _)| w.blob(key.as_bytes()));
    list(&mut w, 3, STRING, pairs.len());
    pairs.iter().for_each(|(_, value)| w.blob(value.as_bytes()));
    end(w)
}

/// The result struct of [`LIST_APPS`].
pub fn list_apps(err: &str, apps: &[App]) -> Vec<u8> {
    let mut w = begin(err);
    list(&mut w, 2, STRUCT, apps.len());
    for app in apps {
        w.field_i32(1, AS_AVAILABLE);
        w.field_string(2, "pegasus");
        w.field_string(3, &app.name);
        w.field_i32(4, app.app_id);
        w.field_i32(5, app.partition_count);
        w.0.extend([MAP, 0, 6, STRING, STRING]);
        w.0.extend((app.envs.len() as u32).to_be_bytes());
        for (key, value) in &app.envs {
            w.blob(key.as_bytes());
            w.blob(value.as_bytes());
        }
        w.0.extend([BOOL, 0, 7, 1]);
        w.field_i32(8, 3);
        w.field_i64(9, 0);
        w.field_i64(10, app.create_second);
        w.field_i64(11, 0);
        w.0.extend([BOOL, 0, 12, u8::from(app.duplicating)]);
        // While it is being split, the count that it had before.
        w.field_i32(13, app.partition_count >> u8::from(app.is_splitting));
        w.0.extend([BOOL, 0, 14, u8::from(app.is_bulk_loading), BOOL, 0, 15, 0]);
        w.stop();
    }
    end(w)
}

/// The result struct of [`QUERY_DUPLICATION`]: `app` is duplicated in DS_LOG to each of `remotes`, by a duplication with
/// these decrees, confirmed and committed, by partition.
pub fn query_duplication(
    err: &str,
    app: Option<&App>,
    remotes: &[(&str, i32, i64)],
    decrees: &[i64],
) -> Vec<u8> {
    let mut w = begin(err);
    w.field_i32(3, app.map_or(0, |app| app.app_id));
    list(&mut w, 4, STRUCT, remotes.len());
    for (remote, id, create_ms) in remotes {
        w.field_i32(1, *id);
        w.field_i32(2, DS_LOG);
        w.field_string(3, remote);
        w.field_i64(4, *create_ms);
        w.field_i32(7, 0);
        w.field_string(8, app.map_or("", |app| &app.name));
        w.field_i32(9, 3);
        w.0.extend([MAP, 0, 11, I32, STRUCT]);
        w.0.extend((decrees.len() as u32).to_be_bytes());
        for (index, decree) in decrees.iter().enumerate() {
            w.0.extend((index as u32).to_be_bytes());
            for id in [1_u8, 2] {
                w.0.extend([I64, 0, id]);
                w.0.extend(decree.to_be_bytes());
            }
            w.stop();
        }
        w.stop();
    }
    end(w)
}

pub(crate) fn begin(err: &str) -> Writer {
    let mut w = Writer::default();
    w.field_struct(0);
    w.field_struct(1);
    w.blob(err.as_bytes());
    w
}

pub(crate) fn list(w: &mut Writer, id: i16, kind: u8, len: usize) {
    w.0.push(LIST);
    w.0.extend(id.to_be_bytes());
    w.0.push(kind);
    w.0.extend((len as u32).to_be_bytes());
}

pub(crate) fn end(mut w: Writer) -> Vec<u8> {
    w.stop();
    w.stop();
    w.0
}
