//! Host names for one proxy, without a name server: a library takes the place of getaddrinfo (`names.c`, built by the C
//! compiler that links Rust programs, too). Only for a binary that is linked dynamically.
//!
//! ```text
//! test ── set, mute ─▶ file ◀── read for each look-up ── names.so, preloaded into the proxy
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::proxy::Builder;
use crate::scratch::Scratch;

/// Names and their addresses. Names that are not here do not exist.
pub struct Names {
    scratch: Scratch,
    library: PathBuf,
    lines: BTreeMap<String, String>,
}

impl Names {
    /// None yet.
    #[track_caller]
    pub fn new() -> Self {
        let scratch = Scratch::new("names");
        let source = scratch.write("names.c", include_str!("names.c"));
        let library = scratch.path().join("names.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
        // Some systems have dlsym in a library of its own.
        let status = cc.arg("-ldl").status();
        assert!(status.as_ref().is_ok_and(|status| status.success()), "{cc:?}: {status:?}");
        let names = Names { scratch, library, lines: BTreeMap::new() };
        names.write();
        names
    }

    /// From now on the name has this address.
    pub fn set(&mut self, name: &str, address: IpAddr) {
        self.lines.insert(name.to_owned(), address.to_string());
        self.write();
    }

    /// From now on the name server of this zone, such as `dead.example`, says nothing.
    pub fn mute(&mut self, zone: &str) {
        self.lines.insert(format!(".{zone}"), "mute".to_owned());
        self.write();
    }

    /// The name server of the zone is back.
    pub fn unmute(&mut self, zone: &str) {
        self.lines.remove(&format!(".{zone}"));
        self.write();
    }

    fn write(&self) {
        let text: String =
            self.lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        // In one step, for it is read at any time.
        let new = self.scratch.write("names.new", text);
        fs::rename(new, self.path()).expect("a file in a new directory");
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("names")
    }

    /// A proxy that knows no other names than these.
    pub fn known_to(&self, proxy: Builder) -> Builder {
        proxy.env("LD_PRELOAD", &self.library).env("NAMES", self.path())
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}
