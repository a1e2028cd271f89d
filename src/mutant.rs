//! Deliberate faults in a separate build, to check that the soak finds them.

/// Whether the environment chooses this fault; only in a build with `--cfg mutant`.
#[cfg(mutant)]
pub fn is(fault: &str) -> bool {
    std::env::var("META_PROXY_MUTANT").is_ok_and(|chosen| chosen == fault)
}

/// Other builds have no faults.
#[cfg(not(mutant))]
pub const fn is(_fault: &str) -> bool {
    false
}
