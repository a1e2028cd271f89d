//! A table goes from one cluster to another while both live, and no acknowledged write is lost.
//!
//! ```text
//! journal ─▶ look: route, A's env, duplications, decrees ─▶ decide: next step (pure) ─▶ act ─┐
//!              ▲                                                                             │
//!              └────────────────────────────── again ◀───────────────────────────────────────┘
//! 1 B->A (--keep-undo)  2 A refuses writes  3 in force everywhere  4 B has all  5 the route  6 A refuses reads  7 A stands still
//! 8 A->B ends
//! ```
//! **Who owns what.** The state is not noted step by step. It is read from the route, A's environment variable and the
//! duplications each time, so a run that is killed anywhere goes on where it was. The journal says what the move is,
//! whether it is taken back, whether the route led to B, and whether an answer was lost. It is written before step 2, with
//! the data that step 5 writes.
//!
//! **Why nothing is lost.** A refuses writes before B has all of them, and B gets its clients after that ([`force`] has the
//! proof). A is opened again only if the route stands at A and no request that writes it can still arrive: the route is
//! written again as it is, which gives it a new version, and every such request names an old one.
//!
//! **How it fails.** Anything that cannot be asked is asked again with a growing pause. When writes were refused for the
//! limit, or at a signal, everything goes back. Past step 5 there is no way back but a move in the other direction.
//!
//! **What bounds it.** One thread a server for a look. Each request has a time-out.

pub mod checks;
pub mod decide;
pub mod force;
pub mod state;

pub mod journal;
pub mod look;

pub mod run;
