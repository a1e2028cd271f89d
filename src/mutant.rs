//! Faults that are built in on purpose, into a build of their own: whether the soak would find them.

/// Whether this fault is chosen, by the environment of a build with `--cfg mutant`.
#[cfg(mutant)]
pub fn is(fault: &str) -> bool {
    std::env::var("META_PROXY_MUTANT").is_ok_and(|chosen| chosen == fault)
}

/// No other build has any.
#[cfg(not(mutant))]
pub const fn is(_fault: &str) -> bool {
    false
}
